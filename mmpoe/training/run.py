r"""What a training is asked to keep, and what it tells in the end."""

from __future__ import annotations

__all__ = ["History", "Run", "Stateful"]

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class Stateful(Protocol):
    """Anything whose state can be taken and put back, such as a bank of images."""

    def state_dict(self) -> Any:  # noqa: ANN401
        """Returns the state: dictionaries, lists and tuples of tensors, numbers and strings."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:  # noqa: ANN401
        """Puts the object back into a state."""
        ...


@dataclass
class History:
    """What happened during training."""

    bounds: list[float] = field(default_factory=list)
    """The mean bound of the batch at each step, in the units of the objective; one entry per step,
    skipped ones included, so that it can be NaN or infinite there."""
    skipped: int = 0
    """The number of steps that were skipped because a loss or a gradient was not finite."""
    seconds: float = 0.0
    """How long the training took, in seconds."""
    signal: int | None = None
    """The signal that stopped the training before its end: SIGINT (Ctrl-C) or SIGTERM."""
    checkpoint: Path | None = None
    """The last checkpoint of the training, if it was kept."""
    best: Path | None = None
    """The checkpoint with the highest score, if there were any."""

    @property
    def interrupted(self) -> bool:
        """Whether the training was stopped by a signal."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a program should exit with: 0, or 128 plus the signal (130 for Ctrl-C)."""
        return 0 if self.signal is None else 128 + self.signal


@dataclass(frozen=True)
class Run:
    """Where a training is kept, and what is kept of it.

    The folder holds ``log.csv`` and ``checkpoints``, with the last two and the best of them, and
    what else is asked for.
    """

    folder: str | os.PathLike[str]
    """The folder; made if need be. All processes should see it."""
    resume: bool = False
    """Whether to go on from the last checkpoint, if there is one. With the same arguments the
    weights are, on a CPU, the same to the last bit as if the training had not been stopped."""
    save_every: int = 500
    """The number of steps from one checkpoint to the next. There is one at the end in any case."""
    log_every: int = 50
    """The number of steps from one row of the log to the next."""
    evaluate: Callable[[nn.Module, int], float | None] | None = None
    """Called before each of these checkpoints, by the first process, with the averaged model in
    evaluation mode and the step: the place for drawing samples. A number that it returns, higher
    if better, decides which checkpoint is the best. It cannot change what is trained: gradients
    are off, and random numbers drawn here are drawn again there."""
    images: Callable[[nn.Module, int], Mapping[str, Tensor]] | None = None
    """Called like `evaluate`; returns images by name, such as samples or panels: floating-point,
    from 0 to 1, with shape (N, C, H, W), where C is 1 or 3. They are written for TensorBoard if
    that is asked for, and otherwise, side by side, as ``images/<name>-<step>.png``."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """What to write about the model, and to compare with what is read; JSON should hold it. The
    model's modalities are compared in any case."""
    also: Mapping[str, Stateful] = field(default_factory=dict)
    """What else changes during training, by name. With several processes, the state of the first
    one is kept."""
    tensorboard: bool = False
    """Whether to log for TensorBoard too, in the folder ``tensorboard``."""
