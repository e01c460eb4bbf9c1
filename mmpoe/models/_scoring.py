r"""The log-likelihood of the entries of a batch under states: nothing else is decoded."""

from __future__ import annotations

__all__ = ["Cells", "score"]

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmpoe.gaussian import widen
from mmpoe.hierarchy import State
from mmpoe.likelihoods import Likelihood, OptimalScale
from mmpoe.likelihoods._scoring import check_scored, log_likelihood

from ._inputs import absent

if TYPE_CHECKING:
    from .core import MultimodalVAE

CACHED = 2**18
"""The number of elements of one modality that are decoded at a time on a CPU, to be scored in its
cache; without gradients, for which all of them are kept in any case."""


class Cells(NamedTuple):
    """Cells of R rows and M modalities to score."""

    scored: Tensor
    """The cells, boolean, with shape (R, M)."""
    rows: Tensor | None
    """The sample of the batch that each row is about, with shape (R); None for all in order."""
    weight: Tensor | None
    """The weight of each cell, with shape (R, M); 1 if None."""


class Column(NamedTuple):
    """The cells of one modality, n of them, and their entries in the batch."""

    place: Tensor
    """The entry of each, with shape (n)."""
    scored: Tensor | None
    """The cells to score among them, boolean, with shape (n); all if None."""
    weight: Tensor | None
    """The weight of each, with shape (n)."""

    def repeat(self, copies: int) -> Column:
        """Returns the cells several times over, one block after the other."""
        scored, weight = (
            None if v is None else v.repeat(copies) for v in (self.scored, self.weight)
        )
        return Column(self.place.repeat(copies), scored, weight)


def score(
    model: MultimodalVAE,
    state: State,
    x: Mapping[str, Tensor],
    cells: Cells,
    valid: Mapping[str, Tensor],
) -> Tensor:
    """Returns the log-likelihood of cells, see :meth:`MultimodalVAE.log_likelihood`.

    The arguments are those of that method, checked, on one device.
    """
    total = widen(state.h.new_zeros(state.shape))
    scored, rows, weight = cells
    for number, m in enumerate(model.modalities):
        where = _rows_to_decode(scored[:, number])  # (n), of the last dimension of the state
        if len(where) == 0:
            continue
        if m not in x:
            if torch.compiler.is_compiling():  # which cannot depend on whether it was scored
                continue
            raise absent(m, x)
        column = Column(
            place=where if rows is None else rows[where],
            scored=scored[:, number] if torch.compiler.is_compiling() else None,
            weight=None if weight is None else weight[where, number],
        )
        part = state.take(where)
        if len(part.shape) > 1 and not isinstance(model.decoders[m], Likelihood):
            # the decoder knows one batch dimension
            part, column = part.flatten(), column.repeat(len(part.h) // len(where))
        log_p = _score_modality(model, m, part, x[m], column, valid.get(m)).to(total.dtype)
        total = total.index_add(-1, where, log_p.reshape(*state.shape[:-1], where.shape[0]))
    return total


def _score_modality(
    model: MultimodalVAE,
    modality: str,
    state: State,
    x: Tensor,
    column: Column,
    valid: Tensor | None,
) -> Tensor:
    """The log-likelihood of one modality, with the shape of the states to decode, (n) or (K, n).

    Arguments:
        model: The model.
        modality: The modality.
        state: The states to decode.
        x: All entries of the modality, with shape (B, *).
        column: The n cells that the states are about.
        valid: The elements of all entries to score.
    """
    entries = x.index_select(0, column.place)
    inside, results = None, []
    for piece in _pieces(state, entries):
        p = model.decode(piece, [modality])[modality]
        if len(state.shape) > 1 and isinstance(p, OptimalScale):
            p = p.base_dist.to_event(len(p.event_shape))  # samples are no data to fit a scale to
        if not results:  # each entry is checked once, in terms of the batch
            place = column.place if column.scored is None else column.place[column.scored]
            seen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            seen = seen.index_fill(0, place, True)
            check_scored(p, x, seen, modality, valid, values=model.validate)
            if valid is not None:
                inside = valid.broadcast_to(x.shape).index_select(0, column.place)
        results.append(log_likelihood(p, entries, column.scored, column.weight, inside))
    return torch.cat(results)


def _rows_to_decode(scored: Tensor) -> Tensor:
    """The rows to decode: those that are scored, or all where shapes cannot depend on data."""
    if torch.compiler.is_compiling():
        return torch.arange(scored.shape[0], device=scored.device)
    return scored.nonzero()[:, 0]


def _pieces(state: State, entries: Tensor) -> Iterator[State]:
    """Splits several states of each entry into parts that fit a CPU's cache once decoded."""
    kept = torch.is_grad_enabled() or state.h.device.type != "cpu"
    if len(state.shape) == 1 or kept:
        yield state
        return
    samples = state.shape[0]
    parts = max(1, min(samples, -(-samples * entries.numel() // CACHED)))
    for h in state.h.unflatten(0, state.shape).chunk(parts):
        dims = len(state.shape)
        yield State(h.flatten(0, dims - 1), h.shape[:dims], state.context)
