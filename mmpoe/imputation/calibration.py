"""The fit of matched experts to a trained model."""

from __future__ import annotations

__all__ = ["Calibration", "calibrate"]

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmpoe.missing import Batch, check_names, check_observed, context_of
from mmpoe.models import MultimodalVAE
from mmpoe.nn.modes import evaluation
from mmpoe.objectives import posterior_matching
from mmpoe.objectives._matching import match, teaching_rows

from .matched import add_matched_experts

Reader = Callable[[Tensor], tuple[Mapping[str, Tensor], Tensor]]
"""Returns the batch and the mask of some rows."""

CHECK_EVERY = 25
"""How many steps there are from one look at held-out rows to the next."""
HELD_OUT_TERMS = 256
"""How many pairs of a held-out row and a subset a look averages over, at least."""


@dataclass
class Calibration:
    """How the matched experts were fitted."""

    losses: list[float] = field(default_factory=list)
    """The mean loss of the batch at each step, in nats."""
    held_out: dict[int, float] = field(default_factory=dict)
    """The mean loss of held-out rows, in nats, after some numbers of steps."""
    best: int = 0
    """The number of steps after which the matched experts were as they are now."""
    interrupted: bool = False
    """Whether the fit was stopped by an interrupt (Ctrl-C)."""


def calibrate(
    model: MultimodalVAE,
    data: tuple[Mapping[str, Tensor], Tensor] | Sequence[Mapping[str, Any]],
    *,
    teacher: str = "complete",
    steps: int = 1500,
    batch_size: int = 128,
    lr: float = 2e-3,
    held_out: float = 0.1,
    patience: int = 500,
    after_step: Callable[[int, float], object] | None = None,
) -> Calibration:
    r"""Fits matched experts to a trained model, so that its imputations spread as they should.

    It adds them to the model if there are none (:func:`add_matched_experts`), and minimises
    :func:`~mmpoe.objectives.posterior_matching` over random subsets with Adam. Every other
    parameter and buffer stays as it is, to the bit, and every module in its mode. Held-out rows
    tell which of the fits on the way is kept.

    Arguments:
        model: The model, on any device.
        data: Samples as for :func:`mmpoe.missing.collate`, in a list or dataset of known length;
            or the pair of a whole batch `x` and its mask `observed`, which may be a
            :class:`mmpoe.missing.Batch`. Each sample is read once beforehand, to see what it has.
        teacher: Which rows teach: ``"complete"``, ``"bootstrap"`` or ``"all"``, see
            :func:`~mmpoe.objectives.posterior_matching`. For ``"bootstrap"``, complete rows alone
            teach in the first half of the steps; in the second half, a fixed copy of the matched
            experts that they made teaches the incomplete rows.
        steps: The largest number of steps.
        batch_size: The number of rows of a batch.
        lr: The learning rate at the start; it falls to 0 along a cosine.
        held_out: The share of the rows with a posterior to learn from, drawn at random, that is
            not trained on; 0 for none, where the last fit is kept.
        patience: After how many steps without improvement on held-out rows to stop.
        after_step: Called after each step with its number, from 1, and its loss, in nats.

    Returns:
        How the fit went.

    Raises:
        ValueError: If no row has a posterior to learn from, or too few to hold some out, or a
            number is out of range.

    References:
        | Posterior Matching for Arbitrary Conditioning (Strauss & Oliva, 2022)
        | https://arxiv.org/abs/2201.12414
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("patience", patience)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"'{name}' should be an integer of at least 1, but is {value!r}.")
    if not 0 < lr < math.inf:
        raise ValueError(f"'lr' should be positive and finite, but is {lr!r}.")
    if not 0 <= held_out < 1:
        raise ValueError(f"'held_out' should be at least 0 and less than 1, but is {held_out!r}.")

    read, observed = _reader(model, data)
    anchor = "all" if teacher == "all" else "complete"  # rows whose teacher does not learn
    anchors = teaching_rows(observed, anchor)
    apart = _held_out_rows(anchors, held_out, teacher)
    stages = [(steps, anchor)]
    if teacher == "bootstrap":  # what complete rows taught teaches, held fixed
        stages = [(steps // 2, "complete"), (steps, "bootstrap")]
    model.fix_shapes(read(anchors.nonzero()[:1, 0])[0])
    add_matched_experts(model)
    matched = nn.ModuleList([g.matched for g in model.groups if g.matched is not None])
    modes = {module: module.training for module in matched.modules()}
    optimizer = torch.optim.Adam(matched.parameters(), lr=lr, betas=(0.9, 0.99))
    history, step = Calibration(), 0
    best = _Best(matched, history)

    def look() -> None:
        loss = None if len(apart) == 0 else _held_out_loss(model, read, apart, anchor)
        best.update(step, loss)

    try:
        for last, kind in stages:
            matched.load_state_dict(best.state)
            by, start = _frozen(model), step
            rows = teaching_rows(observed, kind)
            rows[apart] = False
            batches = _shuffled(rows.nonzero()[:, 0], batch_size)
            look()
            while step < last and step - max(history.best, start) < patience:
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
                matched.train()
                loss = match(model, *read(next(batches)), teacher=kind, by=by).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                history.losses.append(loss.item())
                step += 1
                if after_step is not None:
                    after_step(step, history.losses[-1])
                if step % CHECK_EVERY == 0 or step == last:
                    look()
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        matched.load_state_dict(best.state)
        for module, training in modes.items():
            module.training = training
    return history


class _Best:
    """Keeps the state of the matched experts that fit held-out rows best."""

    def __init__(self, matched: nn.Module, history: Calibration) -> None:
        self.matched, self.history, self.least = matched, history, math.inf
        self.state = copy.deepcopy(matched.state_dict())

    def update(self, step: int, loss: float | None) -> None:
        """Takes up the experts as they are now if they are the best, or no rows are held out."""
        if loss is not None:
            self.history.held_out[step] = loss
            if loss >= self.least:
                return
            self.least = loss
        self.history.best, self.state = step, copy.deepcopy(self.matched.state_dict())


def _held_out_rows(anchors: Tensor, share: float, teacher: str) -> Tensor:
    """Draws the rows to hold out among those that have a posterior to learn from."""
    total = int(anchors.sum())
    if total == 0:
        wanted = "a modality" if teacher == "all" else "all modalities"
        raise ValueError(
            f"'data' should hold samples with {wanted}, to learn from what they have, "
            f"but none of {len(anchors)} does."
        )
    apart = anchors.nonzero()[:, 0][torch.randperm(total)[: math.ceil(share * total)]]
    if len(apart) == total:
        raise ValueError(
            f"'data' should hold at least two samples that teach, but holds {total}; "
            "set 'held_out' to 0 to train on it."
        )
    return apart


def _reader(
    model: MultimodalVAE,
    data: tuple[Mapping[str, Tensor], Tensor] | Sequence[Mapping[str, Any]],
) -> tuple[Reader, Tensor]:
    """A function that reads some rows onto the device of the model, and the mask of all rows."""
    device = next(model.parameters(), torch.zeros(())).device
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor):
        x, mask = cast("tuple[Mapping[str, Tensor], Tensor]", data)
        check_observed(mask, model.modalities)
        check_names(list(x), model.modalities, argument="data")
        for m, v in {**x, **context_of(x)}.items():
            if len(v) != len(mask):
                raise ValueError(
                    f"'data' should hold one row per row of its mask ({len(mask)}), "
                    f"but {m!r} has shape {tuple(v.shape)}."
                )
        observed = mask.cpu()

        def batch(rows: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
            return Batch.of(x).take(rows), observed[rows]
    else:
        samples = cast("Sequence[Mapping[str, Any]]", data)
        masks = [model.collate([samples[i]])[1] for i in range(len(samples))]
        observed = torch.cat([torch.zeros(0, len(model.modalities), dtype=torch.bool), *masks])

        def batch(rows: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
            return model.collate([samples[i] for i in rows.tolist()])

    def read(rows: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        x, seen = batch(rows)
        return Batch.of(x).to(device), seen.to(device)

    return read, observed


def _frozen(model: MultimodalVAE) -> MultimodalVAE:
    """Returns a copy of a model with its own latent groups; it shares the rest."""
    shared = (model.encoders, model.decoders, model.trunk)
    return copy.deepcopy(model, {id(part): part for part in shared})


def _shuffled(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Batches of some rows, again and again, in a new order each time."""
    while True:
        yield from rows[torch.randperm(len(rows))].split(batch_size)


def _held_out_loss(model: MultimodalVAE, read: Reader, rows: Tensor, teacher: str) -> float:
    """The mean loss of some rows, with the same subsets and noise each time."""
    device = next(model.parameters()).device
    repeats = math.ceil(HELD_OUT_TERMS / len(rows))
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.no_grad(),
        evaluation(model.modules()),
    ):
        torch.manual_seed(0)
        total = 0.0
        for part in rows.repeat(repeats).split(HELD_OUT_TERMS):
            total += posterior_matching(model, *read(part), teacher=teacher).sum().item()
    return total / (repeats * len(rows))
