"""One step of training: gradients of one or more batches, checked, clipped and applied."""

from __future__ import annotations

__all__ = ["Adversary", "Learner", "NonFiniteError", "Report", "Steps", "adamw"]

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .checkpoint import CheckpointError, load_weights, save_state
from .distributed import mean

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Loss = Callable[[Any, Any, float], Tensor]
"""Called with a network, a batch and the share of the training done so far."""

adamw = partial(torch.optim.AdamW, betas=(0.9, 0.99))
"""The optimiser of :func:`mmpoe.training.fit`, unless it is given another."""


class NonFiniteError(RuntimeError):
    """Steps were skipped again and again because a loss or a gradient was not finite."""


@dataclass
class Adversary:
    """Networks that are trained against a model, by an optimiser of their own.

    In each step, `loss` is called right after the objective, with the same batch. An objective
    that stores its output somewhere saves it from computing that again; it should use it detached.
    While the gradient of the objective is taken, the network is frozen.
    """

    network: nn.Module
    """The networks, such as a ModuleDict of discriminators."""
    loss: Loss
    """Called with the network, a batch and the share of the training done so far (0 to 1); returns
    numbers whose mean is minimised."""
    lr: float = 2e-4
    """The learning rate, which does not change."""
    start: float = 0.0
    """The share of the training from which on they are trained."""
    optimizer: Callable[..., Optimizer] = torch.optim.Adam
    """Makes the optimiser: called with the parameters and `lr`."""


class Report(NamedTuple):
    """What happened in a step."""

    losses: list[float]
    """The loss of each learner that took part, the mean over all batches of the step."""
    norms: list[float]
    """The norm of the gradient of each, before it was clipped."""
    taken: bool
    """Whether all of these numbers were finite, so that weights changed."""


class Learner:
    """A network, what it minimises, and its optimiser.

    Arguments:
        fabric: What runs the training; it moves the network to its device.
        network: The network.
        loss: What to minimise; the mean of what it returns.
        optimizer: Called with the parameters; returns the optimiser.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: nn.Module,
        loss: Loss,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    ) -> None:
        self.fabric, self.network = fabric, network
        # all that is done with the network is one forward pass, for gradients to be exchanged
        self.forward = fabric.setup_module(_Mean(network, loss))
        self._make = optimizer
        self.restart()

    def restart(self) -> None:
        """Starts the optimiser afresh: what it remembers of gradients is gone."""
        self.optimizer = self._make(self.network.parameters())

    def backward(self, batch: object, done: float, share: float, *, last: bool) -> Tensor:
        """Adds the gradient of a batch, times a factor; exchanges gradients after the last one."""
        with self.fabric.no_backward_sync(self.forward, enabled=not last):  # pyright: ignore
            # handed over as a function, so that data are not rounded to half precision
            loss: Tensor = self.forward(lambda: batch, done)
            self.fabric.backward(loss * share)
        return loss.detach()

    def clip(self, limit: float) -> float:
        """Scales the gradient down to a norm, and returns the norm that it had."""
        norm = self.fabric.clip_gradients(
            self.network, self.optimizer, max_norm=limit, error_if_nonfinite=False
        )
        assert norm is not None
        return norm.item()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Takes no gradient of the network in a ``with`` block."""
        free = [p for p in self.network.parameters() if p.requires_grad]
        for p in free:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in free:
                p.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of the network and the optimiser."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "made": type(self.optimizer).__name__,
        }

    def load_state_dict(self, state: Mapping[str, Any], source: object) -> None:
        """Puts both back into a state, from a source that an error names.

        Raises:
            CheckpointError: If it is that of another architecture or optimiser.
        """
        made, own = state.get("made"), type(self.optimizer).__name__
        if made not in (None, own):  # which would go on from numbers of another meaning
            raise CheckpointError(
                f"{source} should hold the state of the optimiser {own}, as this run has, but "
                f"holds that of {made}."
            )
        load_weights(self.network, state["network"], source)
        self.optimizer.load_state_dict(state["optimizer"])


class Steps:
    """Takes steps, each whole or not at all.

    Arguments:
        fabric: What runs the training.
        learners: Who learns, the model first.
        starts: The share of the training from which on each does.
        restart: The share of the training at which the optimiser of the model starts afresh.
        accumulate: The number of batches of a step.
        clip: The largest norm of a gradient.
        patience: The number of skipped steps in a row after which to give up.
        folder: Where to write the batches of the last of them; a temporary folder if None.

    Attributes:
        skipped: The number of steps that were skipped.
        row: The number of them in a row.
        restarted: Whether the optimiser of the model has started afresh.
    """

    def __init__(
        self,
        fabric: Fabric,
        learners: list[Learner],
        starts: list[float],
        *,
        restart: float = math.inf,
        accumulate: int,
        clip: float,
        patience: int,
        folder: Path | None,
    ) -> None:
        self.fabric, self.learners, self.starts = fabric, learners, starts
        self.restart, self.restarted = restart, False
        self.accumulate, self.clip = accumulate, clip
        self.patience, self.folder = patience, folder
        self.scaler: torch.amp.GradScaler | None = getattr(
            fabric.strategy.precision, "scaler", None
        )
        self.skipped = self.row = 0

    def take(self, batches: Iterator[Any], done: float, lr: float) -> Report:
        """Takes one step.

        Arguments:
            batches: Where to take batches from.
            done: The share of the training done so far.
            lr: The learning rate of the model.

        Raises:
            NonFiniteError: If this is one skipped step too many in a row.
        """
        learners = [
            n for n, start in zip(self.learners, self.starts, strict=True) if done >= start
        ]
        model, others = learners[0], self.learners[1:]
        if done >= self.restart and not self.restarted:
            model.restart()
            self.restarted = True
        for group in model.optimizer.param_groups:
            group["lr"] = lr
        totals = [torch.zeros((), device=self.fabric.device)] * len(learners)
        used = []
        for k in range(self.accumulate):
            used.append(self.fabric.to_device(next(batches)))
            for i, learner in enumerate(learners):
                with _all_frozen(others if learner is model else []):
                    totals[i] = totals[i] + learner.backward(
                        used[-1], done, 1 / self.accumulate, last=k + 1 == self.accumulate
                    )
        losses = mean(self.fabric, [total.item() / self.accumulate for total in totals])
        norms = [learner.clip(self.clip) for learner in learners]
        taken = all(map(math.isfinite, [*losses, *norms]))
        self._apply(learners, losses, taken=taken)
        for learner in self.learners:
            learner.optimizer.zero_grad()
        if self.row >= self.patience:
            raise self._give_up(used, losses, norms)
        return Report(losses, norms, taken)

    def _apply(self, learners: list[Learner], losses: list[float], *, taken: bool) -> None:
        # half precision tries large scales, and lowers them when a gradient overflows
        searching = (
            self.scaler is not None
            and all(map(math.isfinite, losses))
            and self.scaler.get_scale() > 1
        )
        if taken:
            for learner in learners:
                if self.scaler is None:
                    learner.optimizer.step()
                else:
                    self.scaler.step(learner.optimizer)
            self.row = 0
        else:
            self.skipped += 1
            self.row += not searching
        if self.scaler is not None:
            self.scaler.update()

    def _give_up(
        self, batches: list[Any], losses: list[float], norms: list[float]
    ) -> NonFiniteError:
        folder = Path(tempfile.mkdtemp(prefix="mmpoe-")) if self.folder is None else self.folder
        rank = self.fabric.global_rank
        path = folder / ("bad-batch" if rank == 0 else f"bad-batch-{rank}")
        try:
            save_state(path, batches)
        except (TypeError, OSError) as error:
            place = f"Its batches cannot be saved: {error}"
        else:
            place = (
                f"Its batches are in {path}.safetensors; mmpoe.training.load_state({str(path)!r}) "
                "reads them, as a list."
            )
        return NonFiniteError(
            f"{self.row} steps in a row were skipped because a loss or a gradient was not finite; "
            f"in the last one, losses were {losses} and norms of gradients {norms}. {place}"
        )


class _Mean(nn.Module):
    """The mean of a loss, as a module whose forward pass is all of it."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = partial(loss)  # no submodule, should it be one

    def forward(self, batch: Callable[[], Any], done: float) -> Tensor:
        return self.loss(self.network, batch(), done).mean()


@contextmanager
def _all_frozen(learners: list[Learner]) -> Iterator[None]:
    if not learners:
        yield
        return
    first, *others = learners
    with first.frozen(), _all_frozen(others):
        yield
