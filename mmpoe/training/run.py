"""The options of a training run, and its history."""

from __future__ import annotations

__all__ = ["Adversary", "Cosine", "History", "Optimizer", "Run"]

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

adamw = partial(torch.optim.AdamW, betas=(0.9, 0.99))


@dataclass(frozen=True)
class Optimizer:
    """How gradients change the weights of a model.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> Optimizer(lr=2e-3, weight_decay=0, make=torch.optim.Adamax).lr
        0.002
    """

    lr: float = 2e-3
    """The highest learning rate; the schedule lowers it."""
    weight_decay: float = 1e-4
    """The weight decay."""
    clip: float = 1.0
    """The largest norm of the gradient of each network; longer ones are scaled down to it.
    Infinity for no limit."""
    accumulate: int = 1
    """The number of batches of a step; the gradient is the mean over them."""
    average: float = 0.99
    """The decay of the exponential moving average of the weights, in [0, 1), smaller during the
    first steps; 0 keeps the last weights."""
    max_skipped: int = 10
    """How many steps in a row may be skipped because a loss or a gradient was not finite. A
    skipped step leaves weights and optimisers unchanged."""
    restart: float | None = None
    """The share of the run at which the state of the model's optimiser is reset, but for the
    learning rate; never if None. Averages of the gradients of an old loss are
    dropped, as when an adversary sets in."""
    make: Callable[..., torch.optim.Optimizer] = adamw
    """Makes the optimiser: called with the parameters, `lr` and `weight_decay`. By default, AdamW
    with betas of 0.9 and 0.99."""

    def __post_init__(self) -> None:
        check("lr", self.lr, "positive and finite", 0 < self.lr < math.inf)
        decay = self.weight_decay
        check("weight_decay", decay, "at least 0 and finite", 0 <= decay < math.inf)
        check("clip", self.clip, "positive", self.clip > 0)
        check_integer("accumulate", self.accumulate, 1)
        check("average", self.average, "in [0, 1)", 0 <= self.average < 1)
        check_integer("max_skipped", self.max_skipped, 1)
        holds = self.restart is None or self.restart >= 0
        check("restart", self.restart, "at least 0 or None", holds)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the PyTorch optimiser of some parameters."""
        return self.make(parameters, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Cosine:
    r"""A learning rate that rises linearly, and then falls with a cosine.

    .. math:: \eta_t = \eta \, \min\big(1, \tfrac{t + 1}{T_w}\big)
        \big(c + (1 - c) \, \tfrac{1 + \cos(\pi \tau_t)}{2}\big)

    where :math:`\eta` is the highest learning rate, and :math:`\tau_t`, from 0 to 1, the share of
    the run done before step :math:`t`.

    Raises:
        ValueError: If a number is outside its range.

    References:
        | SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017)
        | https://arxiv.org/abs/1608.03983

    Example:
        >>> schedule = Cosine(warmup=2, floor=0.1)
        >>> [round(schedule(1.0, step, step / 4), 3) for step in range(4)]
        [0.5, 0.868, 0.55, 0.232]
    """

    warmup: int = 20
    """The number of steps :math:`T_w` in which the learning rate rises; 0 for none."""
    floor: float = 0.02
    """The last learning rate as a share :math:`c` of the highest."""

    def __post_init__(self) -> None:
        check_integer("warmup", self.warmup, 0)
        check("floor", self.floor, "in [0, 1]", 0 <= self.floor <= 1)

    def __call__(self, highest: float, step: int, done: float) -> float:
        """Returns the learning rate of a step.

        Arguments:
            highest: The highest learning rate.
            step: The step, from 0.
            done: The share of the run done before it, from 0 to 1.
        """
        cosine = self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
        return highest * min(1, (step + 1) / max(self.warmup, 1)) * cosine


@dataclass(frozen=True)
class Adversary:
    """Networks that are trained against a model, by an optimiser of their own.

    In each step, `loss` is called right after the objective, with the same batch. An objective
    that stores its output somewhere saves `loss` from computing it again; `loss` should detach it.
    While the gradient of the objective is taken, the networks are frozen.
    """

    network: nn.Module
    """The networks, such as a ModuleDict of discriminators."""
    loss: Callable[[Any, Any, float], Tensor]
    """Called with the networks, a batch and the share of the run done so far (0 to 1); returns
    numbers whose mean is minimised."""
    lr: float = 2e-4
    """The learning rate, which is constant."""
    start: float = 0.0
    """The share of the run at which their training begins."""
    make: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    """Makes the optimiser: called with the parameters and `lr`."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the PyTorch optimiser of some parameters."""
        return self.make(parameters, lr=self.lr)


class Stateful(Protocol):
    """Anything whose state can be saved and restored, such as a bank of images."""

    def state_dict(self) -> Any:  # noqa: ANN401
        """Returns the state: dictionaries, lists and tuples of tensors, numbers and strings."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:  # noqa: ANN401
        """Restores a state."""
        ...


@dataclass(frozen=True)
class Run:
    """The folder of a training run, and what to keep there.

    The folder holds ``log.csv`` and ``checkpoints``, of which the last two and the best are kept.

    Raises:
        ValueError: If `save_every` or `log_every` is not positive.
    """

    folder: str | os.PathLike[str]
    """The folder; made if need be. All processes should see it."""
    resume: bool = False
    """Whether to resume from the last checkpoint, if there is one. On a CPU, with the same
    arguments and as many processes, the weights are bit-identical to those of a run that was not
    stopped. On another number of processes, the batches are the same, dealt out anew, and a
    :class:`ProcessesWarning` says so."""
    save_every: int = 500
    """The number of steps from one checkpoint to the next. There is always one at the end."""
    log_every: int = 50
    """The number of steps from one row of the log to the next."""
    evaluate: Callable[[nn.Module, int], float | None] | None = None
    """Called before each checkpoint, by the first process, with the averaged model in evaluation
    mode and the step: the place for drawing samples. A number that it returns, higher if better,
    decides which checkpoint is the best. It cannot change the run: gradients are off, and random
    numbers that are drawn here are drawn again in training."""
    images: Callable[[nn.Module, int], Mapping[str, Tensor]] | None = None
    """Called like `evaluate`; returns images by name, such as samples or panels: floating-point,
    from 0 to 1, with shape (N, C, H, W), where C is 1 or 3. With `tensorboard` they go there, and
    otherwise, side by side, to ``images/<name>-<step>.png``."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """A description of the model, to write and to compare when a run resumes; JSON should hold it.
    The modalities of the model are always compared. The keys ``sha256``, ``aliases``,
    ``description_sha256`` and ``previous`` are those of the checkpoint."""
    also: Mapping[str, Stateful] = field(default_factory=dict)
    """Other objects that change during training, by name. With several processes, the state of the
    first one is kept."""
    tensorboard: bool = False
    """Whether to log for TensorBoard too, in the folder ``tensorboard``."""

    def __post_init__(self) -> None:
        check_integer("save_every", self.save_every, 1)
        check_integer("log_every", self.log_every, 1)


@dataclass
class History:
    """The history of a training run."""

    bounds: list[float] = field(default_factory=list)
    """The mean bound of the batch at each step, in the units of the objective; one entry per step,
    skipped ones included, so that it can be NaN or infinite there."""
    skipped: int = 0
    """The number of steps that were skipped because a loss or a gradient was not finite."""
    seconds: float = 0.0
    """How long the run took, in seconds."""
    signal: int | None = None
    """The signal that stopped the run before its end: SIGINT (Ctrl-C) or SIGTERM."""
    checkpoint: Path | None = None
    """The last checkpoint, if there is one."""
    best: Path | None = None
    """The checkpoint with the highest score, if there is one."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal stopped the run."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code for a program: 0, or 128 plus the signal (130 for Ctrl-C)."""
        return 0 if self.signal is None else 128 + self.signal


def check(name: str, value: object, wanted: str, holds: bool) -> None:
    """Raises a ValueError unless a condition on an argument holds."""
    if not holds:
        raise ValueError(f"'{name}' should be {wanted}, but is {value!r}.")


def check_integer(name: str, value: object, least: int) -> None:
    """Raises a ValueError unless an argument is an integer of at least `least`."""
    holds = isinstance(value, Integral) and value >= least  # pyright: ignore
    check(name, value, f"an integer of at least {least}", holds)
