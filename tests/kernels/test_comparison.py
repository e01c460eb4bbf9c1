"""Kernels compared with the reference: the right ones pass, and a GPU that differs is not used."""

import logging
import os

import pytest
import torch
from simulator import SimulatedLauncher

from mmpoe.kernels import _comparison, _cuda, status

EXACT = SimulatedLauncher(exact=True)
GPU = torch.device("cuda", 0)
exhaustive = pytest.mark.skipif(
    not os.environ.get("MMPOE_EXHAUSTIVE"), reason="takes minutes: make test-kernels"
)


@pytest.mark.parametrize("on", [None, pytest.param(EXACT, marks=exhaustive)], ids=["cpu", "cuda"])
@pytest.mark.slow
def test_kernels_are_as_near_to_the_reference_as_is_asked(on):
    rows = list(_comparison.compare("cpu", on))
    assert len(rows) == 30
    for row in rows:
        assert row.error < row.tolerance, row


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU that was never seen before."""
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    monkeypatch.setattr(_comparison, "verdicts", {})
    monkeypatch.setattr(_cuda, "launcher", SimulatedLauncher)
    monkeypatch.setattr(_cuda, "unavailable", lambda: None)


def compared(monkeypatch, error):
    """Replaces the comparison by one with that error; returns the devices compared."""
    devices = []

    def compare(device):
        devices.append(device)
        if isinstance(error, Exception):
            raise error
        yield _comparison.Row("case", torch.float32, error, 1e-5)

    monkeypatch.setattr(_comparison, "compare", compare)
    return devices


def test_a_gpu_that_agrees_is_used_and_compared_once(gpu, monkeypatch):
    devices = compared(monkeypatch, 0.5e-5)
    assert _comparison.failure(GPU) is None
    assert _comparison.failure(GPU) is None
    _comparison.verdicts.clear()  # another process finds it in the cache folder
    assert _comparison.failure(GPU) is None
    assert devices == [GPU]
    assert status()["cuda"] == "available"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (3e-5, "differ by 3 times what they may"),
        (float("inf"), "differ by inf times what they may"),
        (RuntimeError("no luck"), "failed: no luck"),
    ],
)
def test_a_gpu_that_differs_is_not_used_and_that_is_said(gpu, monkeypatch, caplog, error, said):
    compared(monkeypatch, error)
    with caplog.at_level(logging.ERROR, logger="mmpoe.kernels"):
        reason = _comparison.failure(GPU)
    assert reason == f"its kernels, compared with PyTorch on this GPU, {said}"
    assert reason in caplog.text
    assert status()["cuda"] == f"not available: {reason}"
