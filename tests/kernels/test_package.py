"""The public names of `mmpoe.kernels`."""

from mmpoe import kernels


def test_what_is_listed_is_there():
    assert all(hasattr(kernels, name) for name in kernels.__all__)


def test_former_names_still_mean_the_same():
    assert kernels.PoE is kernels.Product
    assert kernels.warmup is kernels.build
    assert not {"PoE", "warmup"} & set(kernels.__all__)
