"""The cost of launching: calls, predictions and training steps, and the same as CUDA graphs."""

from __future__ import annotations

__all__ = ["rows"]

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.bench_poe import Case, fuse_with
from mmpoe.kernels import use_backend
from mmpoe.models import Predictor

from . import published, rivals
from .device import Device, Row, attempted
from .published import Example
from .waits import count_waits

LAUNCHED = Case("coarsest level", 1, rivals.COARSEST, torch.float32, draws=True)
BATCH = 2
"""Few images: launching is most of what a step costs."""


def rows(device: Device) -> Iterator[Row]:
    """Yields how long work takes when it is called, then the same as a replay of a graph of it.

    A graph that cannot be captured may spoil what comes after it: replays are last.
    """
    example = published.make(device, BATCH)
    backends = (device.fused, "eager")
    works = {f"{k}, {b}": work for b in backends for k, work in calls(device, b).items()}
    works |= {f"{k}, {b}": work for b in backends for k, work in uses(device, example, b).items()}
    waits = {what: count_waits(work, device.type) for what, work in works.items()}
    for what, work in works.items():
        row = {"work": what, "as": "call", "waits": waits[what]}
        yield attempted(row, partial(measure, device, work))
    for what, work in works.items():
        row = {"work": what, "as": "graph", "waits": 0}
        if waits[what]:
            yield row | {"waits": None, "note": "cannot be captured: the host waits"}
        else:
            yield attempted(row, partial(replay, device, work))


def replay(device: Device, work: Callable[[], object]) -> Row:
    """Captures work in a graph, and measures its replays."""
    return measure(device, device.captured(work))


def measure(device: Device, work: Callable[[], object]) -> Row:
    """Returns the time until the host is free, until the device is done, and of the device."""
    work()
    host = device.host_seconds(work, repeats=device.pick(30, 1))
    taken = device.seconds(work)
    alone = device.seconds(work, queued=True)
    return {"host us": round(1e6 * host, 1), "call us": taken.us, "device us": alone.us}


def calls(device: Device, backend: str) -> dict[str, Callable[[], object]]:
    """Returns the operation on a level where launching is all there is."""
    inputs = rivals.make(LAUNCHED, device)
    fuse = partial(fuse_with(backend), given=inputs.given, noise=None)

    def forward() -> object:
        with torch.no_grad():
            return fuse(*inputs.tensors)

    def both() -> object:
        return torch.autograd.grad(fuse(*inputs.tensors), inputs.tensors, inputs.gradients)

    return {"forward": forward, "forward and backward": both}


def uses(device: Device, example: Example, backend: str) -> dict[str, Callable[[], object]]:
    """Returns what a user would capture: a prediction, and a training step of all modalities.

    Nothing is gathered and checked: the shapes in a graph do not depend on data.
    """
    example.model.gather, example.model.validate = False, False
    predictor, given = Predictor(example.model, ["t2"]), torch.zeros_like(example.observed)
    given[:, 0] = True
    parameters = example.model.parameters()
    optimizer = torch.optim.Adamax(parameters, lr=2e-3, capturable=not device.dry)

    def predict() -> object:
        with torch.no_grad(), use_backend(backend):
            return predictor(example.x, given)

    def step() -> None:
        optimizer.zero_grad()
        with use_backend(backend):
            (-example.plain_bound()).backward()
        optimizer.step()

    return {"predict": predict, "training step": step}
