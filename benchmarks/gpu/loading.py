"""The share of a training step spent waiting for data, with `mmpoe.training.fit`."""

from __future__ import annotations

__all__ = ["rows"]

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.bench_mmhvae import NAMES
from mmpoe.models import MMHVAE
from mmpoe.objectives import mixture_elbo
from mmpoe.training import fit

from . import published
from .device import Device, Row, attempted

BATCH, STEPS = 8, 25


class Slices(Dataset[dict[str, Tensor]]):
    """Random images that are scaled and flipped when they are loaded, as augmentation does."""

    def __init__(self, size: int, number: int) -> None:
        self.size, self.number = size, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        images = torch.rand(len(NAMES), 1, self.size, self.size) * 2 - 1
        images = (images * (0.9 + 0.1 * torch.rand(()))).flip(-1)
        return dict(zip(NAMES, images, strict=True))


class Timed:
    """Batches, and the time spent waiting for them."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch


def rows(device: Device) -> Iterator[Row]:
    """Yields a row for each number of processes that load."""
    for workers in device.pick((0, 2, 8), (0, 1)):
        yield attempted({"workers": workers}, partial(measure, device, workers))


def measure(device: Device, workers: int) -> Row:
    """Returns the share of waiting, without the first steps, and the time of a step."""
    example = published.make(device, BATCH)
    model, (batch, *_, size) = example.model, example.x["us"].shape
    steps = device.pick(STEPS, 3)
    loader = DataLoader(
        Slices(size, batch * steps),
        batch_size=batch,
        num_workers=workers,
        collate_fn=model.collate,
        persistent_workers=workers > 0,
    )
    train(device, model, loader, 2)  # to build and start what is used later
    timed = Timed(loader)
    taken = train(device, model, timed, steps)
    return {
        "batch": batch,
        "step ms": round(1e3 * taken / steps, 1),
        "waiting": round(timed.seconds / taken, 3),
    }


def train(device: Device, model: MMHVAE, batches: Iterable[Any], steps: int) -> float:
    """Returns the seconds that some steps take, by the history of the run."""

    def objective(model: MMHVAE, batch: Any, done: float) -> Tensor:  # noqa: ANN401
        x, observed = batch
        return mixture_elbo(model, x, observed, family="full")

    history = fit(
        model,
        batches,
        objective,
        steps=steps,
        precision="bf16-mixed",
        accelerator=device.type,
        progress=False,
    )
    return history.seconds
