"""Kernels compared with the reference: the right ones pass, and a GPU that differs is not used."""

import logging
import os
from contextlib import contextmanager

import pytest
import torch
from simulator import SimulatedDriver, SimulatedLauncher
from torch._subclasses.fake_tensor import FakeTensorMode

from mmpoe.kernels import BuildError, _comparison, _cpu, _cuda, status

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
    ],
)
def test_a_gpu_that_differs_is_not_used_and_that_is_said(gpu, monkeypatch, caplog, error, said):
    devices = compared(monkeypatch, error)
    with caplog.at_level(logging.ERROR, logger="mmpoe.kernels"):
        reason = _comparison.failure(GPU)
    assert reason == f"its kernels, compared with PyTorch on this GPU, {said}"
    assert reason in caplog.text
    assert status()["cuda"] == f"not available: {reason}"
    _comparison.verdicts.clear()  # another process finds it in the cache folder
    assert _comparison.failure(GPU) == reason
    assert devices == [GPU]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("all CUDA-capable devices are busy"),
        BuildError("NVRTC failed: no luck"),
        OSError("no space left"),
        ImportError("no module of that name"),
    ],
)
def test_a_comparison_that_fails_is_repeated_in_the_next_process(gpu, monkeypatch, caplog, error):
    devices = compared(monkeypatch, error)
    for _ in range(2):  # in one process, PyTorch runs from then on
        reason = _comparison.failure(GPU)
        assert reason == (
            f"its kernels could not be compared with PyTorch on this GPU ({error}); "
            "the next process tries again"
        )
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert status()["cuda"] == f"not available: {reason}"
    assert devices == [GPU]

    _comparison.verdicts.clear()  # another process finds nothing
    devices = compared(monkeypatch, 0.5e-5)
    assert _comparison.failure(GPU) is None
    assert devices == [GPU]


@contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def on_another_device_by_default():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES = [
    torch.inference_mode,
    torch.no_grad,
    double_by_default,
    on_another_device_by_default,
    lambda: torch.device("meta"),
    lambda: torch.autocast("cpu", torch.bfloat16),
    FakeTensorMode,
]


@pytest.mark.parametrize("mode", MODES)
def test_a_comparison_does_not_depend_on_where_the_first_call_is(monkeypatch, request, mode):
    _cpu.library(torch.float32)  # compiled, or found in the cache
    request.getfixturevalue("gpu")
    cases = {name: _comparison._CASES[name] for name in ("seed", "common noise")}
    monkeypatch.setattr(_comparison, "_CASES", cases)
    monkeypatch.setattr(_comparison, "_TOLERANCES", {torch.float32: 2e-5})
    with mode():
        assert _comparison.failure(torch.device("cpu")) is None


def test_nothing_is_compared_while_a_graph_is_captured(gpu, monkeypatch):
    devices = compared(monkeypatch, 0.5e-5)
    with monkeypatch.context() as patch:
        patch.setattr(SimulatedDriver, "is_capturing", lambda self: True)
        with pytest.raises(RuntimeError, match="CUDA graph is captured: call mmpoe"):
            _comparison.failure(GPU)
    assert devices == []
    assert _comparison.failure(GPU) is None  # nothing is held against it
    with monkeypatch.context() as patch:
        patch.setattr(SimulatedDriver, "is_capturing", lambda self: True)
        assert _comparison.failure(GPU) is None
