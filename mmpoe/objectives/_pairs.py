r"""Pairs of a sample and a subset of what it observed, one after the other."""

from __future__ import annotations

__all__ = [
    "Family",
    "Packed",
    "choose",
    "choose_family",
    "full_and_singletons",
    "of_same_rows",
    "places",
]

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from mmpoe.missing import (
    Pairs,
    check_observed,
    check_within,
    pack,
    random_subsets,
    subsets,
)
from mmpoe.missing._draws import draw_at


class Packed(NamedTuple):
    """Distinct pairs of a sample of a batch and a subset, in the order of the samples."""

    given: Tensor
    """The subsets, boolean, with shape (R, M)."""
    rows: Tensor
    """The sample of each pair, ascending, with shape (R)."""
    weight: Tensor
    """The weight of each pair, with shape (R)."""

    def needed(self, size: int) -> Tensor:
        """Returns what some pair of each of B samples is given, boolean, with shape (B, M)."""
        return Pairs(self.given, self.rows).needed(size)

    def sum(self, values: Tensor, size: int) -> Tensor:
        """Adds up the values of the pairs of each of B samples: from (R) to (B)."""
        return values.new_zeros(size).index_add(0, self.rows, values)


Family = str | Tensor | tuple[Tensor, Tensor] | Packed
"""The name of a family or its patterns, see :func:`mmpoe.missing.subsets`; subsets of each sample,
(S, B, M), and their weights, (S, B). Objectives by name pass pairs, whose weights need not sum to
1."""


def choose_family(
    x: Mapping[str, Tensor],
    observed: Tensor,
    modalities: Sequence[str],
    family: Family,
) -> Packed:
    """Returns the distinct pairs of a batch for a family of subsets.

    Arguments:
        x: The batch.
        observed: What was observed, boolean, with shape (B, M).
        modalities: The names of the modalities.
        family: The family.
    """
    check_observed(observed, modalities)
    if isinstance(family, Packed):
        return family
    observed = beside(observed, x)
    if not isinstance(family, tuple):
        return _pairs(*subsets(observed, family, dtype=weight_dtype(x)))

    given, weight = (v.to(observed.device) for v in family)
    if given.shape[1:] != observed.shape or given.dtype != torch.bool:
        raise ValueError(
            "'family' should hold boolean subsets with shape (S, B, M), where (B, M) is "
            f"{tuple(observed.shape)}, but has dtype {given.dtype} and shape {tuple(given.shape)}."
        )
    if weight.shape != given.shape[:2]:
        raise ValueError(
            f"'family' should hold one weight for each subset, shape {tuple(given.shape[:2])}, "
            f"but has shape {tuple(weight.shape)}."
        )
    if not torch.compiler.is_compiling():
        check_within(given, observed, modalities, argument="family")
        if not bool((weight >= 0).all()):
            raise ValueError("'family' should hold weights of at least 0, but holds others.")
    return _pairs(given, weight)


def full_and_singletons(
    x: Mapping[str, Tensor], observed: Tensor, modalities: Sequence[str], samples: int = 0
) -> Packed:
    """Returns all that each sample observed, each of its modalities alone, and random subsets.

    Each counts once, with weight 1, however often it occurs.

    Arguments:
        x: The batch.
        observed: What was observed, boolean, with shape (B, M).
        modalities: The names of the modalities.
        samples: The number of random subsets to draw for each sample.
    """
    check_observed(observed, modalities)
    if samples < 0:
        raise ValueError(f"'samples' should be at least 0, but is {samples}.")
    observed = beside(observed, x)
    parts = [observed[None], subsets(observed, "singletons")[0]]
    if samples:
        parts.append(random_subsets(observed, samples=samples))
    given = torch.cat(parts)  # (S, B, M)
    pairs = Packed(*pack(given, given.new_ones(given.shape[:2], dtype=weight_dtype(x))))
    return pairs._replace(weight=torch.ones_like(pairs.weight))


def places(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns where pairs stand in a table with one row per sample, padded at its end.

    Arguments:
        rows: The sample of each pair, ascending, with shape (R).

    Returns:
        The N distinct samples, with shape (N), and the row and column of each pair, with shape
        (R).
    """
    samples, row, counts = rows.unique_consecutive(return_inverse=True, return_counts=True)
    start = counts.cumsum(dim=0) - counts
    return samples, row, torch.arange(len(rows), device=rows.device) - start[row]


def of_same_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns all couples of pairs of the same sample, a pair and itself among them.

    Arguments:
        rows: The sample of each pair, ascending, with shape (R).

    Returns:
        The first and the second pair of each couple, both with shape (N).
    """
    _, row, counts = rows.unique_consecutive(return_inverse=True, return_counts=True)
    width = counts[row]  # (R), the number of couples that each pair is the first of
    first = torch.arange(len(rows), device=rows.device).repeat_interleave(width)
    place = torch.arange(len(first), device=rows.device) - (width.cumsum(dim=0) - width)[first]
    return first, (counts.cumsum(dim=0) - counts)[row][first] + place


def choose(pairs: Packed, point: Tensor | None = None) -> Tensor:
    r"""Draws one pair of each sample by its weight; it then counts for all of them.

    Arguments:
        pairs: The pairs, of N samples.
        point: Numbers in [0, 1) that decide for each sample, with shape (N); drawn if None.

    Returns:
        How much each pair counts, with shape (R): the total weight of its sample, or 0. Its
        expectation is the weight of the pair.
    """
    samples, row, column = places(pairs.rows)
    if point is None:
        point = torch.rand(len(samples), dtype=torch.float64, device=row.device)
    table = point.new_zeros((int(column.max()) + 1 if len(row) else 1, len(samples)))
    table[column, row] = pairs.weight.double()  # (S, N)
    drawn = draw_at(table, point[None])[0]  # (N)
    counts = table.sum(dim=0).to(pairs.weight.dtype)
    return torch.where(column == drawn[row], counts[row], 0)


def _pairs(given: Tensor, weight: Tensor) -> Packed:
    """Lists subsets (S, B, M) that weigh (S, B), those that weigh nothing if this is compiled.

    The number of the others is data, which the shapes in a compiled graph cannot depend on.
    """
    if not torch.compiler.is_compiling():
        return Packed(*pack(given, weight))
    number, size = weight.shape
    rows = torch.arange(size, device=given.device).repeat_interleave(number)
    return Packed(given.transpose(0, 1).flatten(0, 1), rows, weight.t().flatten())


def beside(observed: Tensor, x: Mapping[str, Tensor]) -> Tensor:
    """Moves a mask to the device of a batch."""
    return observed.to(next((v.device for v in x.values()), observed.device))


def weight_dtype(x: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of weights."""
    floating = [v.dtype for v in x.values() if v.is_floating_point()]
    return reduce(torch.promote_types, floating, torch.float32)
