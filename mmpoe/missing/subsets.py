r"""Families of subsets of what each row observed, enumerated."""

from __future__ import annotations

__all__ = ["pack", "subsets"]

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_observed

FAMILIES = ("full", "singletons", "powerset", "groups")
MAX_ENUMERATED = 12
"""The largest number of modalities of a row whose 2^m - 1 subsets are enumerated."""


def subsets(
    observed: Tensor,
    family: str | Tensor = "powerset",
    *,
    special: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Enumerates the subsets of what each row observed, with their mixture weights.

    The families, for a row that observed :math:`r`:

    - ``"full"``: :math:`r` alone;
    - ``"singletons"``: each observed modality, uniformly;
    - ``"powerset"``: every non-empty subset of :math:`r`, uniformly;
    - ``"groups"``: the groups of MMHVAE, :math:`\{r\}`, the special modality alone, and the
      non-empty subsets of the other modalities of :math:`r`, one third each and uniform inside the
      group (groups that are empty for a row share their weight among the others);
    - a boolean tensor of patterns: those that are subsets of :math:`r`, uniformly. A pattern that
      stands twice counts twice; the empty pattern does not count.

    Arguments:
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        family: The name of the family, or its patterns, boolean, with shape :math:`(S, M)`.
        special: The column of the special modality of ``"groups"`` (ultrasound in MMHVAE).
        dtype: The dtype of the weights, PyTorch's default if None.

    Returns:
        The subsets, boolean, with shape :math:`(S, B, M)`, and their weights
        :math:`\alpha_{s | r}`, with shape :math:`(S, B)`. A subset that stands twice for a row is
        merged: one of them carries the weight of both and the other weighs 0, as does the empty
        subset. The weights of a row sum to 1; those of a row that observed nothing are all 0.

    Raises:
        ValueError: If the family is unknown, `observed` is not a boolean matrix, `special` is not
            a column, a row observed more than 12 modalities, whose subsets are too many to
            enumerate, or the family has no subset for a row that observed something.

    References:
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632

    Example:
        >>> given, weight = subsets(torch.tensor([[True, True], [False, True]]))
        >>> given.int().tolist()
        [[[1, 0], [0, 0]], [[0, 1], [0, 1]], [[1, 1], [0, 0]]]
        >>> weight
        tensor([[0.3333, 0.0000],
                [0.3333, 1.0000],
                [0.3333, 0.0000]])
    """
    check_family(family, observed, special)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    modalities = observed.shape[1]
    if isinstance(family, str) and family == "full":
        return observed[None], observed.any(dim=1)[None].to(dtype)
    if isinstance(family, str) and family == "groups":
        return _groups(observed, special, dtype)

    count = torch.ones(1, dtype=torch.long)
    if isinstance(family, Tensor):
        members, count = distinct(family)
        given, inside = within(members, observed)
    elif family == "singletons":
        given, inside = within(torch.eye(modalities, dtype=torch.bool), observed)
    else:
        given, inside = _powerset(observed)
    check_covered(inside.any(dim=0), observed)
    times = inside * count.to(inside.device)[:, None]  # (S, B)
    return given, times.to(dtype) / times.sum(dim=0).clamp(min=1)


class Pairs(NamedTuple):
    """Pairs of a sample of a batch and a subset of its modalities.

    All ways to ask for several subsets come down to this one: a mask of shape (B, M) is one pair
    for each sample, and one of shape (S, B, M) is S pairs for each.
    """

    given: Tensor
    """The subsets, boolean, with shape (R, M)."""
    rows: Tensor | None = None
    """The sample of each pair, with shape (R); None if pair r is about sample r."""

    @classmethod
    def of(cls, given: Tensor, rows: Tensor | None = None) -> Pairs:
        """Returns the pairs of a mask of shape (B, M) or (S, B, M), or (R, M) with rows (R)."""
        if given.dim() == 2:
            return cls(given, rows)
        number, size = given.shape[:2]
        if number == 1:
            return cls(given[0], rows)
        if rows is None:
            rows = torch.arange(size, device=given.device)
        return cls(given.flatten(0, 1), rows.repeat(number))

    def needed(self, size: int) -> Tensor:
        """Returns what some pair of each of B samples is given, boolean, with shape (B, M)."""
        if self.rows is None:
            return self.given
        counts = self.given.new_zeros((size, self.given.shape[1]), dtype=torch.long)
        return counts.index_add(0, self.rows, self.given.long()) > 0


def pack(given: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Lists the distinct pairs of a row and a subset, so that each is computed once.

    Subsets :math:`s_{kb}` that coincide for a row :math:`b` become one pair, which weighs as much
    as they do together. Empty subsets, and those that weigh nothing, are left out. So for any
    :math:`f` that is 0 for the empty subset,

    .. math:: \sum_k w_{kb} \, f(b, s_{kb}) = \sum_{i : \, b_i = b} w_i \, f(b_i, s_i)

    Arguments:
        given: The subsets, boolean, with shape :math:`(S, B, M)`.
        weight: Their weights, at least 0, with shape :math:`(S, B)`.

    Returns:
        The :math:`R` subsets, with shape :math:`(R, M)`; the row in the batch that each is a
        subset of, ascending, with shape :math:`(R)`; and their weights, with shape :math:`(R)`.

    Raises:
        ValueError: If `given` is not a boolean tensor of three dimensions, or `weight` does not
            have one weight per subset, at least 0.

    Example:
        >>> given = torch.tensor([[[True, False]], [[True, False]], [[True, True]]])
        >>> pack(given, torch.tensor([[0.25], [0.25], [0.5]]))
        (tensor([[ True, False],
                [ True,  True]]), tensor([0, 0]), tensor([0.5000, 0.5000]))
    """
    if given.dtype != torch.bool or given.dim() != 3:
        raise ValueError(
            f"'given' should be boolean and have shape (S, B, M), but has dtype {given.dtype} and "
            f"shape {tuple(given.shape)}."
        )
    if weight.shape != given.shape[:2] or not bool((weight >= 0).all()):
        raise ValueError(
            f"'weight' should hold one weight per subset, at least 0, with shape "
            f"{tuple(given.shape[:2])}, but has shape {tuple(weight.shape)} and is {weight}."
        )
    rows, s = (given.any(dim=-1) & (weight > 0)).t().nonzero(as_tuple=True)  # (N)
    given, weight = given[s, rows], weight[s, rows]  # (N, M), (N)

    found = distinct_pairs(rows, given)
    if found is None:
        return given, rows, weight
    one, pair = found  # (R), (N)
    merged = weight.new_zeros(len(one)).index_add(0, pair, weight)
    return given[one], rows[one], merged


def distinct_pairs(rows: Tensor, given: Tensor) -> tuple[Tensor, Tensor] | None:
    """Finds the distinct pairs among some of a row and a subset, in the order of the rows.

    Arguments:
        rows: The row of each pair, with shape (N).
        given: The subset of each pair, boolean, with shape (N, M).

    Returns:
        The place of one of those that are equal, for each of the R distinct pairs, with shape (R);
        and which of them each of the pairs is, with shape (N). None if all are distinct, and in
        order already.
    """
    code = _codes(rows, given)
    if bool((code[1:] > code[:-1]).all()):
        return None
    code, pair = code.unique(return_inverse=True)
    place = torch.arange(len(pair), device=pair.device)
    return torch.empty_like(code).scatter(0, pair, place), pair


def distinct(patterns: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct non-empty patterns, (S, M), as they come, and how often each stands, (S)."""
    counts = Counter(tuple(pattern) for pattern in patterns.tolist() if any(pattern))
    members = torch.tensor(list(counts), dtype=torch.bool).reshape(-1, patterns.shape[1])
    return members, torch.tensor(list(counts.values()), dtype=torch.long)


def check_family(family: str | Tensor, observed: Tensor, special: int) -> None:
    """Raises a ValueError unless the arguments describe a family of subsets of `observed`."""
    check_observed(observed)
    modalities = observed.shape[1]
    if isinstance(family, Tensor):
        if family.dtype != torch.bool or family.dim() != 2 or family.shape[1] != modalities:
            raise ValueError(
                f"'family' should hold boolean patterns with shape (S, {modalities}), "
                f"but has dtype {family.dtype} and shape {tuple(family.shape)}."
            )
    elif family not in FAMILIES:
        raise ValueError(
            f"'family' should be one of {', '.join(FAMILIES)}, or a boolean tensor of patterns, "
            f"but is {family!r}."
        )
    elif family == "groups" and not 0 <= special < modalities:
        raise ValueError(
            f"'special' should be a column of 'observed', 0 to {modalities - 1}, but is {special}."
        )


def check_covered(covered: Tensor, observed: Tensor) -> None:
    """Raises a ValueError unless each row that observed something has a subset in the family."""
    if torch.compiler.is_compiling():  # which data cannot break off
        return
    lost = (observed.any(dim=1) & ~covered).nonzero()[:, 0].tolist()
    if lost:
        shown = [f"row {b} ({observed[b].nonzero()[:, 0].tolist()})" for b in lost[:5]]
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise ValueError(
            f"'family' should leave a subset of what each row observed, but leaves none for "
            f"{', '.join(shown)}{more}, with the observed columns in parentheses."
        )


def _groups(observed: Tensor, special: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    alone = torch.arange(observed.shape[1]) == special
    of_one, has_it = within(alone[None], observed)
    others, of_others = _powerset(observed & ~alone.to(observed.device), but=special)
    given, inside = (
        torch.cat([of_one, others]),
        torch.cat([has_it, of_others]),
    )  # (S, B, M), (S, B)

    # uniform over the groups that a row can use, and uniform inside each of them
    whole, first, rest = observed.any(dim=1), inside[0], inside[1:]
    usable = torch.stack([whole, first, rest.any(dim=0)]).sum(dim=0).clamp(min=1)  # (B)
    even = rest.to(dtype) / rest.sum(dim=0).clamp(min=1)
    weight = torch.cat([first.to(dtype)[None], even]) / usable

    # all that a row observed may be a member of another group too, which then takes its weight
    same = inside & (given.sum(dim=2) == observed.sum(dim=1))
    apart = whole & ~same.any(dim=0)
    weight = torch.cat([apart.to(dtype)[None] / usable, weight + same / usable.to(dtype)])
    return torch.cat([observed[None], given]), weight


def within(members: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The members (S, M) that are subsets of what a row observed, else nothing; and which are."""
    members = members.to(observed.device)
    outside = members.float() @ (~observed).float().t()  # (S, B), how many were not observed
    inside = outside == 0
    return members[:, None] & inside[..., None], inside


def _codes(rows: Tensor, given: Tensor) -> Tensor:
    """A number for each pair of a row (N) and a subset (N, M), which orders them by row first."""
    modalities = given.shape[1]
    if len(rows) and modalities + int(rows.max()).bit_length() > 63:  # too long for an integer
        pairs = torch.cat([rows[:, None], given.long()], dim=1)
        return pairs.unique(dim=0, return_inverse=True)[1]
    bits = torch.arange(modalities, device=given.device)
    return (rows << modalities) + (given.long() << bits).sum(dim=1)


def _powerset(observed: Tensor, but: int | None = None) -> tuple[Tensor, Tensor]:
    """All non-empty subsets of what each row observed, and nothing where a row has no more.

    They are patterns that all rows share, in the order of their codes, if there are few
    modalities. If not, the k-th subset of a row has the modalities, among those that it observed,
    whose bits are set in k.

    Arguments:
        observed: What was observed, boolean, with shape (B, M).
        but: A column that no row observed, which patterns can leave out.

    Returns:
        The subsets, with shape (S, B, M), and which of them are some, with shape (S, B).
    """
    modalities = observed.shape[1]
    if modalities <= MAX_ENUMERATED:
        codes = torch.arange(1, 2**modalities)
        members = (codes[:, None] >> torch.arange(modalities) & 1).bool()
        return within(members if but is None else members[~members[:, but]], observed)
    size = observed.sum(dim=1)  # (B)
    most = int(size.max()) if len(size) else 0
    if most > MAX_ENUMERATED:
        raise ValueError(
            f"'observed' should have at most {MAX_ENUMERATED} modalities in each row for its "
            f"subsets to be enumerated, but a row has {most}. Choose some patterns, or draw "
            "subsets: objectives take sample_subsets(observed, samples=K) as their 'family'."
        )
    codes = torch.arange(1, 2**most, device=observed.device)[:, None]  # (S, 1)
    inside = codes < 2**size  # (S, B)
    bits = codes[..., None] >> (observed.cumsum(dim=1) - 1).clamp(min=0) & 1  # (S, B, M)
    return bits.bool() & observed & inside[..., None], inside
