"""A training run that asks for more memory than there is: what it says, and what goes on."""

from __future__ import annotations

__all__ = ["rows"]

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_mmhvae import NAMES
from mmpoe.likelihoods import Normal
from mmpoe.models import MVAE
from mmpoe.nn import MLP
from mmpoe.objectives import mixture_elbo
from mmpoe.training import DeviceMemoryError, fit

from .device import Device, Row, check

ROOM = 1 << 30
"""The bytes that are left free on a GPU."""

LARGE, SMALL = 1 << 21, 64
"""Rows of a batch that takes some ten times that, and of one that takes little."""

DRY_LIMIT = 128
"""The rows from which on memory runs out in a dry run."""


def rows(device: Device) -> Iterator[Row]:
    """Yields checks about the error, about memory after it, and about training after it."""
    encoders = {m: MLP(6, 8) for m in NAMES}
    model = MVAE(encoders, {m: Normal(MLP(4, 6)) for m in NAMES})
    train(device, model, SMALL)
    ballast = fill(device)
    before = allocated(device)
    said = error_of(device, model)
    yield check("too large a batch raises DeviceMemoryError", said is not None, said=said)
    yield check("the error says how to need less", "half the size" in (said or ""))
    kept = allocated(device) - before
    yield check("memory is free after it", kept < 1 << 24, said=f"{kept / 2**20:.1f} MiB more")
    bounds = train(device, model, SMALL)
    right = all(bound == bound for bound in bounds)
    yield check("the same model trains after it", right, said=f"{len(bounds)} steps")
    del ballast


def train(device: Device, model: MVAE, batch: int) -> list[float]:
    """Takes three steps, and returns their bounds."""
    x = {m: torch.rand(batch, 6) for m in NAMES}
    observed = torch.ones(batch, len(NAMES), dtype=torch.bool)
    batches = [(x, observed)]

    def objective(model: MVAE, batch: Any, done: float) -> Tensor:  # noqa: ANN401
        x, observed = batch
        if device.dry and len(observed) > DRY_LIMIT:  # a CPU kills a process in place of an error
            raise torch.OutOfMemoryError("CUDA out of memory. Stands for a GPU in a dry run.")
        return mixture_elbo(model, x, observed, family="full")

    history = fit(model, batches, objective, steps=3, accelerator=device.type, progress=False)
    return history.bounds


def error_of(device: Device, model: MVAE) -> str | None:
    """Trains on too large a batch; returns what the error says, None if there is none."""
    try:
        train(device, model, device.pick(LARGE, 2 * DRY_LIMIT))
    except DeviceMemoryError as error:
        return str(error)
    return None


def fill(device: Device) -> Tensor | None:
    """Takes all memory of a GPU but some room."""
    if device.dry:
        return None
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(max(free - ROOM, 0), dtype=torch.uint8, device="cuda")


def allocated(device: Device) -> int:
    """Returns the bytes that tensors take on a GPU, 0 on a CPU."""
    device.synchronize()
    return 0 if device.dry else torch.cuda.memory_allocated()
