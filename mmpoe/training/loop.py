r"""The training loop: one optimiser, a warm-up and a cosine, averaged weights, a progress bar."""

from __future__ import annotations

__all__ = ["History", "fit"]

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from mmpoe.extras import needs

Objective = Callable[[Any, Any, float], Tensor]


@dataclass
class History:
    """What happened during training."""

    bounds: list[float] = field(default_factory=list)
    """The mean bound of the batch at each step, in the units of the objective; one entry per step,
    skipped ones included, so that it can be NaN or infinite there."""
    skipped: int = 0
    """The number of steps that were skipped because a gradient was not finite."""
    seconds: float = 0.0
    """How long the training took, in seconds."""
    interrupted: bool = False
    """Whether the training was stopped by an interrupt (Ctrl-C)."""


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    objective: Objective,
    *,
    steps: int,
    minutes: float | None = None,
    lr: float = 2e-3,
    weight_decay: float = 1e-4,
    warmup: int = 20,
    clip: float = 1.0,
    average: float = 0.99,
    progress: bool = True,
) -> History:
    r"""Maximises an objective with AdamW, a linear warm-up and a cosine decay.

    An interrupt (Ctrl-C) ends the training after the step at hand, with the weights in order.

    Arguments:
        model: The model; it holds the averaged weights at the end, and is left in evaluation mode,
            on the device that it was trained on (a GPU if there is one).
        batches: The batches, iterated again and again: any structure of tensors.
        objective: Called with the model, a batch and the share of the training done so far (0 to
            1); returns one bound per sample, whose mean is maximised.
        steps: The number of optimiser steps.
        minutes: The longest time that the training may take; the schedules follow whichever of
            steps and time is further on. None sets no limit.
        lr: The highest learning rate; it ends at 2 % of that.
        weight_decay: The weight decay.
        warmup: The number of steps in which the learning rate rises linearly; 0 for none.
        clip: The largest norm of the gradient; longer ones are scaled down to it. Infinity for
            any norm.
        average: The decay of the exponential moving average of the weights, in [0, 1), smaller
            during the first steps; 0 keeps the last weights.
        progress: Whether to show a progress bar.

    Returns:
        The history of the training.

    Raises:
        ValueError: If a number is outside its range, or `batches` has no batch or can be iterated
            only once (and is too short for all steps).

    References:
        | Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019)
        | https://arxiv.org/abs/1711.05101
    """
    _check("steps", steps, "an integer of at least 1", isinstance(steps, Integral) and steps >= 1)
    _check("minutes", minutes, "positive or None", minutes is None or minutes > 0)
    _check("lr", lr, "positive and finite", 0 < lr < math.inf)
    _check("weight_decay", weight_decay, "at least 0 and finite", 0 <= weight_decay < math.inf)
    _check(
        "warmup", warmup, "an integer of at least 0", isinstance(warmup, Integral) and warmup >= 0
    )
    _check("clip", clip, "positive", clip > 0)
    _check("average", average, "in [0, 1)", 0 <= average < 1)

    # imported here, so that importing mmpoe stays cheap
    from torch.optim.swa_utils import AveragedModel

    with needs("train"):
        from lightning_fabric import Fabric
        from tqdm.auto import tqdm

    fabric = Fabric(accelerator="auto", devices=1)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay
    )
    model.train()
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)  # moves the model to the device
    averaged = AveragedModel(model, multi_avg_fn=_moving_average(average), use_buffers=True)

    history = History()
    start = time.monotonic()
    stream = _repeat(batches)
    bar = tqdm(total=steps, desc="Training", unit="step", disable=not progress)
    with bar, _deferred_interrupt() as interrupted:
        for step in range(steps):
            elapsed = time.monotonic() - start
            done = step / steps if minutes is None else max(step / steps, elapsed / (60 * minutes))
            if done >= 1 or interrupted.is_set():
                break
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (step + 1) / max(warmup, 1)) * _cosine(done)

            bound = objective(wrapped, fabric.to_device(next(stream)), done).mean()
            fabric.backward(-bound)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            if norm.isfinite():
                wrapped_optimizer.step()
                averaged.update_parameters(model)
            else:
                history.skipped += 1
            wrapped_optimizer.zero_grad()

            history.bounds.append(bound.item())
            recent = history.bounds[-50:]
            bar.set_postfix(bound=f"{sum(recent) / len(recent):.4g}", refresh=False)
            bar.update()

    history.interrupted = interrupted.is_set()
    history.seconds = time.monotonic() - start
    if averaged.n_averaged > 0:
        model.load_state_dict(averaged.module.state_dict())
    model.eval()
    return history


def _check(name: str, value: object, wanted: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"'{name}' should be {wanted}, but is {value!r}.")


def _cosine(done: float, last: float = 0.02) -> float:
    return last + (1 - last) * (1 + math.cos(math.pi * done)) / 2


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        rate = min(decay, (1 + int(count)) / (10 + int(count)))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - rate)
            else:
                average.copy_(value)

    return torch.no_grad()(update)


def _repeat(batches: Iterable[Any]) -> Iterator[Any]:
    for turn in count():
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty and turn == 0:
            raise ValueError("'batches' should hold at least one batch, but is empty.")
        if empty:
            raise ValueError(
                "'batches' should be iterable again and again, as a list or a DataLoader is, "
                f"but is a {type(batches).__name__} that has nothing left."
            )


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turns a first Ctrl-C into an event; a second one raises KeyboardInterrupt as usual."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    previous = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
