"""One step of training: gradients of one or more batches, checked, clipped and applied."""

from __future__ import annotations

__all__ = ["NonFiniteError"]

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .checkpoint import CheckpointError, load_weights, save_state
from .processes import mean
from .run import Optimizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Loss = Callable[[Any, float], Tensor]
"""Called with a batch and the share of the run done so far."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row were skipped because a loss or a gradient was not finite."""


class Report(NamedTuple):
    """The numbers of a step."""

    losses: list[float]
    """The loss of each learner that took part, the mean over all batches of the step."""
    norms: list[float]
    """The norm of the gradient of each, before it was clipped."""


class Learner:
    """A network, its loss, and its optimiser.

    Arguments:
        fabric: What runs the training; it moves the network to its device.
        network: The network.
        loss: The loss; the mean of what it returns is minimised.
        build: Called with the parameters; returns the optimiser.
        start: The share of the run at which the training of the network begins.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: nn.Module,
        loss: Loss,
        build: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        start: float = 0.0,
    ) -> None:
        self.fabric, self.network, self.start = fabric, network, start
        # gradients are exchanged among processes around the forward pass of one module
        self.forward = fabric.setup_module(_Mean(network, loss))
        self._build = build
        self.restart()

    def restart(self) -> None:
        """Resets the state of the optimiser, such as averages of past gradients."""
        self.optimizer = self._build(self.network.parameters())
        if getattr(self.fabric.strategy.precision, "scaler", None) is None:
            _fuse(self.optimizer)

    def backward(self, batch: object, done: float, share: float, *, last: bool) -> Tensor:
        """Adds the gradient of a batch, times a factor; exchanges gradients after the last one."""
        with self.fabric.no_backward_sync(self.forward, enabled=not last):  # pyright: ignore
            # in a function, so that data are not rounded to half precision
            loss: Tensor = self.forward(lambda: batch, done)
            self.fabric.backward(loss * share)
        return loss.detach()

    def clip(self, limit: float) -> float:
        """Scales the gradient down to a norm, and returns its norm from before."""
        norm = self.fabric.clip_gradients(
            self.network, self.optimizer, max_norm=limit, error_if_nonfinite=False
        )
        assert norm is not None
        return norm.item()

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of the network and the optimiser."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "made": type(self.optimizer).__name__,
        }

    def load_state_dict(self, state: Mapping[str, Any], source: object) -> None:
        """Restores both, from a source that an error names.

        Raises:
            CheckpointError: If the state is that of another architecture or optimiser.
        """
        made, own = state.get("made"), type(self.optimizer).__name__
        if made not in (None, own):  # its numbers have another meaning
            raise CheckpointError(
                f"{source} should hold the state of the optimiser {own}, as this run has, but "
                f"holds that of {made}."
            )
        load_weights(self.network, state["network"], source)
        groups = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        _lay_out(self.optimizer)
        for group, own in zip(self.optimizer.param_groups, groups, strict=True):
            if "fused" in own:  # as this device has it, whatever wrote the state
                group["fused"] = own["fused"]


class Steps:
    """Takes steps, each of which changes all weights or none, and averages the weights.

    Arguments:
        fabric: What runs the training.
        learners: The learners, the model first.
        options: The options of the model's optimiser.
        folder: Where to write the last batches of too many skipped steps; a temporary folder if
            None.

    Attributes:
        averaged: The moving average of the model.
        skipped: The number of skipped steps.
        row: The number of skipped steps in a row.
        restarted: Whether the optimiser of the model was reset.
    """

    def __init__(
        self, fabric: Fabric, learners: list[Learner], options: Optimizer, folder: Path | None
    ) -> None:
        self.fabric, self.learners, self.options, self.folder = fabric, learners, options, folder
        self.model = learners[0]
        self.averaged = moving_average(self.model.network, options.average).eval()
        self.scaler: torch.amp.GradScaler | None = getattr(
            fabric.strategy.precision, "scaler", None
        )
        self.restarted = False
        self.skipped = self.row = 0

    def take(self, batches: Iterator[Any], done: float, lr: float) -> Report:
        """Takes one step.

        Arguments:
            batches: Where to take batches from.
            done: The share of the run done so far.
            lr: The learning rate of the model.

        Raises:
            NonFiniteError: If too many steps in a row were skipped.
        """
        restart = self.options.restart
        if restart is not None and done >= restart and not self.restarted:
            self.model.restart()
            self.restarted = True
        for group in self.model.optimizer.param_groups:
            group["lr"] = lr

        learners = [learner for learner in self.learners if done >= learner.start]
        used, losses = self._backward(learners, batches, done)
        norms = [learner.clip(self.options.clip) for learner in learners]
        self._apply(learners, losses, norms)
        for learner in self.learners:
            learner.optimizer.zero_grad()
        if self.row >= self.options.max_skipped:
            raise self._give_up(used, losses, norms)
        return Report(losses, norms)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all learners, but for the averaged weights."""
        return {
            "learners": [learner.state_dict() for learner in self.learners],
            "averaged": int(self.averaged.n_averaged),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "skipped": self.skipped,
            "row": self.row,
            "restarted": self.restarted,
        }

    def load_state_dict(self, state: Mapping[str, Any], source: object) -> None:
        """Restores the learners, from a source that an error names.

        Raises:
            CheckpointError: If the state is that of other networks or optimisers.
        """
        if len(state["learners"]) != len(self.learners):
            raise CheckpointError(
                f"{source} should be of a run with{'out' * (len(self.learners) == 1)} an "
                "adversary, as this one is, but is not."
            )
        for learner, entry in zip(self.learners, state["learners"], strict=True):
            learner.load_state_dict(entry, source)
        self.averaged.n_averaged.fill_(state["averaged"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.skipped, self.row = state["skipped"], state["row"]
        self.restarted = state["restarted"]

    def _backward(
        self, learners: list[Learner], batches: Iterator[Any], done: float
    ) -> tuple[list[Any], list[float]]:
        """Adds the gradients of all batches of a step; returns the batches and the mean losses."""
        number, used = self.options.accumulate, []
        totals = [torch.zeros((), device=self.fabric.device)] * len(learners)
        for k in range(number):
            used.append(self.fabric.to_device(next(batches)))
            for i, learner in enumerate(learners):
                with _frozen(self.learners[1:] if learner is self.model else []):
                    loss = learner.backward(used[-1], done, 1 / number, last=k + 1 == number)
                totals[i] = totals[i] + loss
        return used, mean(self.fabric, [total.item() / number for total in totals])

    def _apply(self, learners: list[Learner], losses: list[float], norms: list[float]) -> None:
        """Steps all optimisers and averages the weights, or counts a skipped step."""
        # half precision tries large scales, and lowers them when a gradient overflows
        searching = (
            self.scaler is not None
            and all(map(math.isfinite, losses))
            and self.scaler.get_scale() > 1
        )
        if all(map(math.isfinite, [*losses, *norms])):
            for learner in learners:
                if self.scaler is None:
                    learner.optimizer.step()
                else:
                    self.scaler.step(learner.optimizer)
            self.averaged.update_parameters(self.model.network)
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
    """The mean of a loss, as the forward pass of a module that holds the network."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: Callable[[], Any], done: float) -> Tensor:
        return self.loss(batch(), done).mean()


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Lets an optimiser update all parameters on a CPU in one call, if it can and may.

    Its loop over parameters takes longer there than the arithmetic; on a GPU it does without.
    """
    for group in optimizer.param_groups:
        undecided = "fused" in group and group["fused"] is None and group.get("foreach") is None
        simple = all(p.device.type == "cpu" and p.is_floating_point() for p in group["params"])
        if undecided and simple and not group.get("differentiable"):
            group["fused"] = True


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Gives the state of each parameter the strides of the parameter, which no file keeps.

    A fused optimiser runs through the memory of both side by side, whatever their strides are.
    """
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == p.shape:
                state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


@contextmanager
def _frozen(learners: list[Learner]) -> Iterator[None]:
    """Takes no gradient of some networks in a ``with`` block."""
    free = [p for n in learners for p in n.network.parameters() if p.requires_grad]
    for p in free:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in free:
            p.requires_grad_(True)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    r"""Returns a copy of a model that averages its weights, with ``update_parameters(model)``.

    .. math:: \bar w_t = d_t \, \bar w_{t-1} + (1 - d_t) \, w_t, \qquad
        d_t = \min\Big(d, \frac{1 + t}{10 + t}\Big), \quad \bar w_0 = w_0

    Arguments:
        model: The model.
        decay: The decay :math:`d`, in [0, 1), smaller during the first steps; 0 keeps the last
            weights.
    """

    @torch.no_grad()
    def update(averages: Any, values: Any, count: Any) -> None:  # noqa: ANN401
        rate = min(decay, (1 + int(count)) / (10 + int(count)))
        pairs = list(zip(averages, values, strict=True))
        if floats := [pair for pair in pairs if pair[0].is_floating_point()]:
            held, news = [list(tensors) for tensors in zip(*floats, strict=True)]
            torch._foreach_lerp_(held, news, 1 - rate)  # pyright: ignore
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
