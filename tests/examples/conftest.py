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
