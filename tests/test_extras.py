"""Without an optional package, the error says which extra brings it."""

import sys

import pytest
from example_models import flat

from mmpoe.extras import needs
from mmpoe.metrics import psnr, ssim
from mmpoe.training import fit, load_checkpoint, save_checkpoint


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("skimage.metrics", "metrics", lambda: psnr([[0.0]], [[0.0]])),
        ("skimage.metrics", "metrics", lambda: ssim([[0.0]], [[0.0]])),
        ("lightning_fabric", "train", lambda: fit(flat(), [], None, steps=1)),
        ("safetensors.torch", "train", lambda: save_checkpoint("unused", {}, {})),
        ("safetensors.torch", "train", lambda: load_checkpoint("unused")),
    ],
)
def test_missing_packages_are_named_with_their_extra(package, extra, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{package}, .*mmpoe\[{extra}\]"):
        call()


def test_other_errors_pass():
    with pytest.raises(ValueError, match="its own"), needs("train"):
        raise ValueError("its own")
