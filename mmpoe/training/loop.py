r"""The training loop: steps, schedules, averaged weights, and what is kept of them."""

from __future__ import annotations

__all__ = ["fit"]

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmpoe.extras import needs

from .average import moving_average
from .batches import Stream, generators_of, split
from .distributed import Precision, make_fabric, mean
from .faults import explained
from .keeper import Keeper
from .log import Watch
from .randomness import Randomness
from .run import History, Run
from .signals import SIGNALS, deferred_signals
from .steps import Adversary, Learner, Steps, adamw

Objective = Callable[[Any, Any, float], Tensor]


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
    floor: float = 0.02,
    clip: float = 1.0,
    accumulate: int = 1,
    average: float = 0.99,
    patience: int = 10,
    restart: float | None = None,
    optimizer: Callable[..., Optimizer] = adamw,
    adversary: Adversary | None = None,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    run: Run | None = None,
    progress: bool = True,
) -> History:
    r"""Maximises an objective with a linear warm-up and a cosine decay of the learning rate.

    .. math:: \eta_t = \eta \, \min\big(1, \tfrac{t + 1}{T_w}\big)
        \big(c + (1 - c) \, \tfrac{1 + \cos(\pi \tau_t)}{2}\big)

    where :math:`\tau_t`, from 0 to 1, is the share of the training done. SIGINT (Ctrl-C) and
    SIGTERM end the training after the step at hand, with the weights in order; a second signal
    ends it at once. Started by ``torchrun``, each process has its share of the batches, and the
    gradient is the mean over processes.

    Arguments:
        model: The model, compiled by :func:`torch.compile` or not; it holds the averaged weights
            at the end, and is left in evaluation mode, on the device that it was trained on.
        batches: The batches, iterated again and again: any structure of tensors.
        objective: Called with the model, a batch and the share of the training done so far (0 to
            1); returns one bound per sample, whose mean is maximised.
        steps: The number of optimiser steps.
        minutes: The longest time that the training may take; the schedules follow whichever of
            steps and time is further on. None sets no limit.
        lr: The highest learning rate :math:`\eta`.
        weight_decay: The weight decay.
        warmup: The number of steps :math:`T_w` in which the learning rate rises linearly; 0 for
            none.
        floor: The last learning rate as a share :math:`c` of the highest.
        clip: The largest norm of the gradient; longer ones are scaled down to it. Infinity for
            any norm.
        accumulate: The number of batches of a step, of whose gradients the mean is taken.
        average: The decay of the exponential moving average of the weights, in [0, 1), smaller
            during the first steps; 0 keeps the last weights.
        patience: The number of steps in a row that may be skipped because a loss or a gradient
            was not finite. A skipped step leaves weights and optimisers as they were.
        restart: The share of the training at which the optimiser of the model starts afresh, with
            the learning rate that it had; never if None. A model whose loss is about to change,
            by an adversary that sets in, say, forgets the gradients of the old one.
        optimizer: Makes the optimiser: called with the parameters, `lr` and `weight_decay`. By
            default, AdamW with betas of 0.9 and 0.99.
        adversary: Networks to train against the model.
        precision: ``"32-true"``; ``"bf16-mixed"``; or, on a GPU, ``"16-mixed"``.
        accelerator: ``"cpu"``, ``"cuda"``, or ``"auto"``, a GPU if there is one.
        run: Where to keep checkpoints and a log, if anywhere.
        progress: Whether to show a progress bar.

    Returns:
        The history of the training.

    Raises:
        ValueError: If a number is outside its range, `batches` has no batch or can be iterated
            only once (and is too short for all steps), or the folder of the run holds checkpoints
            and it is not to resume, or is in use.
        CheckpointError: If the checkpoint to go on from is damaged, or that of another model or
            kind of optimiser.
        NonFiniteError: If `patience` steps in a row were skipped; the message says where the
            batch of the last one was saved.
        DeviceMemoryError: If the device has run out of memory; the message says what needs less.
        WorkerError: If a process of a DataLoader has died; the message says what it may have been
            loading.
        OSError: If the folder of the run cannot be written to, which is found before the first
            step, or a checkpoint cannot; those before it are as they were.

    References:
        | Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019)
        | https://arxiv.org/abs/1711.05101
    """
    _check_integer("steps", steps, 1)
    _check("minutes", minutes, "positive or None", minutes is None or minutes > 0)
    _check("lr", lr, "positive and finite", 0 < lr < math.inf)
    _check("weight_decay", weight_decay, "at least 0 and finite", 0 <= weight_decay < math.inf)
    _check_integer("warmup", warmup, 0)
    _check("floor", floor, "in [0, 1]", 0 <= floor <= 1)
    _check("clip", clip, "positive", clip > 0)
    _check_integer("accumulate", accumulate, 1)
    _check("average", average, "in [0, 1)", 0 <= average < 1)
    _check_integer("patience", patience, 1)
    _check("restart", restart, "at least 0 or None", restart is None or restart >= 0)
    if run is not None:
        _check_integer("save_every", run.save_every, 1)
        _check_integer("log_every", run.log_every, 1)

    with needs("train"):  # imported here, so that importing mmpoe stays cheap
        from tqdm.auto import tqdm

    fabric = make_fabric(precision, accelerator)
    first = fabric.global_rank == 0
    schedule = partial(_rate, highest=lr, warmup=warmup, floor=floor)

    # who learns
    model.train()
    make = partial(optimizer, lr=lr, weight_decay=weight_decay)
    network = _own(model)
    learners = [Learner(fabric, network, lambda _, *a: -objective(model, *a), make)]
    if adversary is not None:
        make = partial(adversary.optimizer, lr=adversary.lr)
        critic = adversary.network.train()
        loss = adversary.loss
        learners.append(Learner(fabric, _own(critic), lambda _, *a: loss(critic, *a), make))
    averaged = moving_average(network, average)
    averaged.eval()
    stepper = Steps(
        fabric,
        learners,
        [0.0] if adversary is None else [0.0, adversary.start],
        restart=math.inf if restart is None else restart,
        accumulate=accumulate,
        clip=clip,
        patience=patience,
        folder=None if run is None else Path(run.folder),
    )

    # what they learn from
    seed = fabric.broadcast(torch.initial_seed() % 2**62)
    if fabric.world_size > 1:
        batches = split(batches, fabric.global_rank, fabric.world_size, seed)
    randomness = Randomness(fabric.device, generators_of(batches))
    if not first:
        randomness.seed(seed + fabric.global_rank)  # other noise in each process
    stream = Stream(batches, randomness)

    history = History()
    keeper = None
    with explained(stream, history), ExitStack() as stack:
        if run is not None:
            keeper = Keeper(run, fabric, stepper, averaged, stream, randomness, history)
            stack.enter_context(keeper.opened())
        start = time.monotonic() - history.seconds
        elapsed = history.seconds
        heard = stack.enter_context(deferred_signals())
        bar = stack.enter_context(
            tqdm(
                total=steps,
                initial=len(history.bounds),
                desc="Training",
                unit="step",
                disable=not (progress and first),
            )
        )
        while len(history.bounds) < steps and history.signal is None:
            step = len(history.bounds)
            done = step / steps if minutes is None else max(step / steps, elapsed / (60 * minutes))
            if done >= 1:
                break
            rate = schedule(step, done)
            with Watch(model, active=keeper is not None and keeper.logs(step + 1)) as watch:
                report = stepper.take(stream, done, rate)
            if report.taken:
                averaged.update_parameters(network)
            history.bounds.append(-report.losses[0])
            history.skipped = stepper.skipped

            # all processes agree on the time, and on whether to stop
            elapsed, *flags = mean(
                fabric,
                [time.monotonic() - start, *(float(number in heard) for number in SIGNALS)],
            )
            history.seconds = elapsed
            flagged = [int(n) for n, flag in zip(SIGNALS, flags, strict=True) if flag]
            history.signal = flagged[0] if flagged else None

            losses = {"bound": _recent(history.bounds, 50)}
            if len(report.losses) > 1:
                losses["adversary"] = report.losses[1]
            bar.set_postfix({k: f"{v:.4g}" for k, v in losses.items()}, refresh=False)
            bar.update()
            if keeper is not None:
                losses["bound"] = _recent(history.bounds, keeper.run.log_every)
                row = {"lr": rate, **losses, "norm": report.norms[0], **watch.kl}
                keeper.after_step(row, watch, done)
        if keeper is not None:
            keeper.finish()

    history.seconds = time.monotonic() - start
    if averaged.n_averaged > 0:
        network.load_state_dict(averaged.module.state_dict())
    model.eval()
    return history


def _own(network: nn.Module) -> nn.Module:
    """The module that has the weights, by its own names, of one that torch.compile made of it."""
    return getattr(network, "_orig_mod", network)


def _rate(step: int, done: float, *, highest: float, warmup: int, floor: float) -> float:
    cosine = floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
    return highest * min(1, (step + 1) / max(warmup, 1)) * cosine


def _recent(values: list[float], number: int) -> float:
    """The mean of the last values, those that are finite."""
    recent = [value for value in values[-number:] if math.isfinite(value)]
    return sum(recent) / len(recent) if recent else math.nan


def _check(name: str, value: object, wanted: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"'{name}' should be {wanted}, but is {value!r}.")


def _check_integer(name: str, value: object, least: int) -> None:
    holds = isinstance(value, Integral) and value >= least  # pyright: ignore
    _check(name, value, f"an integer of at least {least}", holds)
