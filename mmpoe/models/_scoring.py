r"""The log-likelihood of the entries of a batch under states: nothing else is decoded."""

from __future__ import annotations

__all__ = ["score"]

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmpoe.gaussian import widen
from mmpoe.hierarchy import State
from mmpoe.likelihoods import Likelihood
from mmpoe.likelihoods._scoring import check_scored, log_likelihood

from ._inputs import absent

if TYPE_CHECKING:
    from .core import MultimodalVAE

CACHED = 2**18
"""The number of elements of one modality that are decoded at a time on a CPU, to be scored in its
cache; without gradients, for which all of them are kept in any case."""


def score(
    model: MultimodalVAE,
    state: State,
    x: Mapping[str, Tensor],
    scored: Tensor,
    rows: Tensor | None,
    weight: Tensor | None,
    valid: Mapping[str, Tensor],
) -> Tensor:
    """Returns the log-likelihood of entries, see :meth:`MultimodalVAE.log_likelihood`.

    The arguments are those of that method, checked, on one device.
    """
    total = widen(state.h.new_zeros(state.shape))
    for column, m in enumerate(model.modalities):
        where = _rows_to_decode(scored[:, column])  # (n), of the last dimension of the state
        if len(where) == 0:
            continue
        if m not in x:
            if torch.compiler.is_compiling():  # which cannot depend on whether it was scored
                continue
            raise absent(m, x)
        place = where if rows is None else rows[where]  # (n), the entries in the batch
        counted = scored[where, column]
        factor = None if weight is None else weight[where, column]
        part = state.take(where)
        if len(part.shape) > 1 and not isinstance(model.decoders[m], Likelihood):
            copies = len(part.h) // len(where)  # the decoder knows one batch dimension
            part, place, counted = part.flatten(), place.repeat(copies), counted.repeat(copies)
            factor = None if factor is None else factor.repeat(copies)
        log_p = _score_modality(model, m, part, x[m], place, counted, factor, valid.get(m))
        log_p = log_p.to(total.dtype).reshape(*state.shape[:-1], where.shape[0])
        total = total.index_add(-1, where, log_p)
    return total


def _score_modality(
    model: MultimodalVAE,
    modality: str,
    state: State,
    x: Tensor,
    place: Tensor,
    counted: Tensor,
    weight: Tensor | None,
    valid: Tensor | None,
) -> Tensor:
    """The log-likelihood of one modality, with the shape of the state.

    Arguments:
        model: The model.
        modality: The modality.
        state: The states to decode, with shape (n) or (K, n).
        x: All entries of the modality, with shape (B, *).
        place: The entry that each of the n is about, with shape (n).
        counted: Whether each of the n counts, boolean, with shape (n).
        weight: The weight of each, with shape (n).
        valid: The elements of all entries to score.
    """
    entries = x.index_select(0, place)
    inside, results = None, []
    whole = getattr(model.decoders[modality], "optimal", False)  # fits all at once
    for piece in [state] if whole else _pieces(state, entries):
        p = model.decode(piece, [modality])[modality]
        if not results:  # each entry is checked once, in terms of the batch
            seen = counted.new_zeros(len(x)).index_fill(0, place[counted], True)
            check_scored(p, x, seen, modality, valid, values=model.validate)
            if valid is not None:
                inside = valid.broadcast_to(x.shape).index_select(0, place)
        results.append(log_likelihood(p, entries, counted, weight, inside))
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
        yield State(h.flatten(0, dims - 1), h.shape[:dims])
