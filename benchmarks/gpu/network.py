"""A training step and a prediction of the published MMHVAE, fused and not, in both precisions."""

from __future__ import annotations

__all__ = ["rows"]

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.bench_mmhvae import training_step
from mmpoe.kernels import use_backend

from . import published
from .device import Device, Row, attempted
from .published import Example

BATCH = 16


def rows(device: Device) -> Iterator[Row]:
    """Yields a row for each backend and precision."""
    example = published.make(device, BATCH)
    for half in (False, True):
        for backend in (device.fused, "eager"):
            row = {"backend": backend, "precision": "bf16" if half else "fp32"}
            yield attempted(row, partial(measure, device, example, backend, half))


def measure(device: Device, example: Example, backend: str, half: bool) -> Row:
    """Returns how fast it is, and how much memory a step takes."""

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return -example.bound()

    def predict() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            example.model.predict(example.x, given=["us"], targets=["t2"])

    step = training_step(example.model, loss)
    with use_backend(backend):
        peak = device.peak_gib(step)
        taken = device.seconds(step, rounds=8)
        drawn = device.seconds(predict, rounds=8)
        last = loss().item()
    batch = len(example.observed)
    return {
        "batch": batch,
        "step ms": round(1e3 * taken.median, 1),
        "spread": taken.spread,
        "slices/s": round(batch / taken.median, 1),
        "peak GiB": peak,
        "predict ms": round(1e3 * drawn.median, 1),
        "loss": round(last, 1),
        "holds": last == last,
    }
