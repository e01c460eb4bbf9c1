"""Fixtures of the example's tests: one cache per process, and never the user's own."""

import sys

import pytest

from examples.medical_mri_us.phantom import load_atlas, render_patient


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The cache folder, also of processes that the tests start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMPOE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def brain(cache):
    """The atlas, which is then in the cache."""
    known = set(sys.modules)
    built = load_atlas()
    assert not {name for name in set(sys.modules) - known if name.startswith("nilearn")}
    return built


@pytest.fixture(scope="session")
def patients(brain):
    return [render_patient(seed, brain, slices=4) for seed in range(4)]


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """The folder of an evaluation of two small models, on cases that are not all complete."""
    from scored import write_dataset, write_run

    from examples.medical_mri_us.subcommands import evaluate

    folder = tmp_path_factory.mktemp("evaluated")
    every = ("us", "t2", "cet1", "flair")
    cases = [(f"train-{k}", "train", every[: 2 + k]) for k in range(3)]
    cases += [("a", "test", every), ("b", "test", every), ("c", "test", ("us", "t2"))]
    index = write_dataset(folder / "data", cases)
    runs = write_run(folder / "ours"), write_run(folder / "theirs", seed=1)
    options = evaluate.Evaluate(
        runs[0], index, folder / "eval", compare=runs[1:], views=2, perceptual=False
    )
    assert evaluate.run(options) == 0
    return folder
