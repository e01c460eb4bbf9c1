r"""Missing modalities: collation, masks and subsets. True always means observed (or given)."""

from __future__ import annotations

__all__ = ["as_mask", "collate", "fill", "random_subsets", "subsets"]

import difflib
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Generator, Tensor

MAX_ENUMERATED = 12
"""The largest number of modalities whose 2^M - 1 subsets are enumerated."""


def collate(
    samples: Sequence[Mapping[str, Any]], modalities: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    r"""Makes one batch of samples that each hold whichever modalities they have.

    Arguments:
        samples: The :math:`B` samples: mappings from modality names to tensors, arrays or numbers.
            A missing modality is an absent key, or None.
        modalities: The names of the :math:`M` modalities, in the order of the columns of the mask.
            By default, those that the samples hold, in the order of the sample that holds most.
            Batches without a complete sample can then differ: name the modalities, or use the
            `collate` method of a model, which does.

    Returns:
        The batch, a mapping from modality names to tensors of shape :math:`(B, *)`, and the
        boolean mask of what was observed, with shape :math:`(B, M)`. Missing entries hold NaN
        (zero, if the modality is not floating-point): nothing reads them, and a call that would is
        an error instead of a wrong answer. A modality that no sample has is absent.

    Raises:
        ValueError: If a sample holds an unknown modality, or the entries of a modality differ in
            shape or are not numbers.

    Example:
        >>> x, observed = collate([{"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(3)}])
        >>> x["b"]
        tensor([[nan, nan, nan],
                [1., 1., 1.]])
        >>> observed
        tensor([[ True, False],
                [ True,  True]])
    """
    held = []
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise ValueError(
                "'samples' should hold mappings from modality names to entries, "
                f"but holds a {type(sample).__name__}."
            )
        held.append({m: v for m, v in sample.items() if v is not None})
    by_size = sorted(held, key=len, reverse=True)  # stable: of equals, the first
    names = list(dict.fromkeys(m for sample in by_size for m in sample))
    if modalities is not None:
        check_modalities(modalities)
        check_names(names, modalities, argument="samples")
        names = list(modalities)

    x = {}
    for m in names:
        entries = [_entry(sample[m], m) if m in sample else None for sample in held]
        present = [entry for entry in entries if entry is not None]
        if not present:
            continue
        shapes = sorted({tuple(entry.shape) for entry in present})
        if len(shapes) > 1:
            raise ValueError(
                f"'samples' should hold entries of one shape per modality, but {m!r} has shapes "
                f"{', '.join(map(str, shapes))}."
            )
        dtype = reduce(torch.promote_types, (entry.dtype for entry in present))
        blank = torch.full(shapes[0], torch.nan if dtype.is_floating_point else 0, dtype=dtype)
        x[m] = torch.stack([blank if e is None else e.to(dtype) for e in entries])

    observed = torch.tensor([[m in sample for m in names] for sample in held], dtype=torch.bool)
    return x, observed.reshape(len(held), len(names))


def as_mask(
    given: Tensor | Sequence[str], modalities: Sequence[str], batch_size: int | None = None
) -> Tensor:
    r"""Returns a mask over modalities, from names or from a mask that is checked.

    Arguments:
        given: The names of some modalities, or a boolean mask of shape :math:`(M)`, :math:`(B, M)`
            or :math:`(S, B, M)`.
        modalities: The names of the :math:`M` modalities, in the order of the columns.
        batch_size: The number of rows :math:`B`. Names and single rows are repeated :math:`B`
            times.

    Returns:
        The boolean mask, with shape :math:`(B, M)` or :math:`(S, B, M)`; :math:`(M)` without
        `batch_size` if one row was given.

    Raises:
        ValueError: If a name is unknown, or the mask has another dtype, number of rows or columns.

    Example:
        >>> as_mask(["t2"], ["us", "t2"], batch_size=2)
        tensor([[False,  True],
                [False,  True]])
    """
    if hasattr(given, "__array__"):
        given = torch.as_tensor(given)
    if not isinstance(given, Tensor):
        names = given if isinstance(given, str) else list(given)
        check_names(names, modalities, argument="given")
        given = torch.tensor([m in names for m in modalities], dtype=torch.bool)

    if given.dtype != torch.bool:
        raise ValueError(f"'given' should be boolean, but has dtype {given.dtype}.")
    if given.dim() not in (1, 2, 3) or given.shape[-1] != len(modalities):
        raise ValueError(
            f"'given' should have one column per modality ({len(modalities)}), "
            f"but has shape {tuple(given.shape)}."
        )
    if batch_size is None:
        return given
    if given.dim() == 1:
        given = given.unsqueeze(0)
    if given.shape[-2] not in (1, batch_size):
        raise ValueError(
            f"'given' should have one row per sample ({batch_size}), "
            f"but has shape {tuple(given.shape)}."
        )
    return given.expand(*given.shape[:-2], batch_size, len(modalities))


def subsets(
    observed: Tensor,
    family: str = "powerset",
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
      group. Groups that are empty for a row share their weight among the others.

    Arguments:
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        family: The family of subsets.
        special: The column of the special modality of ``"groups"`` (ultrasound in MMHVAE).
        dtype: The dtype of the weights, PyTorch's default if None.

    Returns:
        The subsets, boolean, with shape :math:`(S, B, M)`, and their weights
        :math:`\alpha_{s | r}`, with shape :math:`(S, B)`. A subset that stands twice for a row is
        merged: one of them carries the weight of both and the other weighs 0, as does the empty
        subset. The weights of a row sum to 1; those of a row that observed nothing are all 0.

    Raises:
        ValueError: If the family is unknown, `observed` is not a boolean matrix, `special` is not
            a column, or there are too many modalities to enumerate their subsets.

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
    check_observed(observed)
    modalities = observed.shape[1]

    if family == "full":
        groups = [observed[None]]
    elif family == "singletons":
        groups = [_within(torch.eye(modalities, dtype=torch.bool), observed)]
    elif family == "powerset":
        groups = [_within(_powerset(modalities), observed)]
    elif family == "groups":
        if not 0 <= special < modalities:
            raise ValueError(
                f"'special' should be a column of 'observed', 0 to {modalities - 1}, "
                f"but is {special}."
            )
        alone = torch.arange(modalities) == special
        others = _powerset(modalities)
        others = others[~others[:, special]]
        groups = [observed[None], _within(alone[None], observed), _within(others, observed)]
    else:
        raise ValueError(
            f"'family' should be one of full, singletons, powerset, groups, but is {family!r}."
        )

    # uniform over the groups that a row can use, and uniform inside each of them
    possible = [given.any(dim=-1) for given in groups]  # (S_g, B)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    weights = [p.to(dtype) / p.sum(dim=0).clamp(min=1) for p in possible]
    usable = torch.stack([p.any(dim=0) for p in possible]).sum(dim=0).clamp(min=1)  # (B)

    given, weight = torch.cat(groups), torch.cat(weights) / usable
    if len(groups) > 1:
        _merge(given, weight)
    return given, weight


def random_subsets(
    observed: Tensor, *, samples: int = 1, proper: bool = False, generator: Generator | None = None
) -> Tensor:
    r"""Draws subsets of what each row observed, uniformly over its non-empty subsets.

    Arguments:
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        samples: The number of subsets to draw for each row, :math:`S`, independently.
        proper: Whether to leave out the full set, where a row observed two modalities or more.
        generator: The random generator, on the CPU; PyTorch's own if None.

    Returns:
        The subsets, boolean, with shape :math:`(S, B, M)`. A row that observed nothing gets
        nothing.

    Raises:
        ValueError: If `observed` is not a boolean matrix or has over 62 columns, or `samples` is
            not positive.

    Example:
        >>> random_subsets(torch.tensor([[True, False, True]]), proper=True).sum(dim=-1)
        tensor([[1]])
    """
    check_observed(observed)
    if samples < 1:
        raise ValueError(f"'samples' should be at least 1, but is {samples}.")
    if observed.shape[1] > 62:
        raise ValueError(
            f"'observed' should have at most 62 columns, but has shape {tuple(observed.shape)}."
        )
    size = observed.sum(dim=1)
    count = 2**size - 1 - (proper & (size > 1)).long()  # of the subsets to choose from
    draw = torch.randint(2**62, (samples, len(observed)), generator=generator)
    code = 1 + draw.to(observed.device) % count.clamp(min=1)

    # the k-th observed modality of a row takes part if the k-th bit of its code is set
    rank = observed.cumsum(dim=1) - 1
    return observed & (code[..., None] >> rank.clamp(min=0) & 1).bool()


def fill(x: Tensor, observed: Tensor) -> Tensor:
    """Replaces the rows that were not observed by zeros.

    Arguments:
        x: One modality, with shape :math:`(B, *)`.
        observed: Its column of the mask, boolean, with shape :math:`(B)`.
    """
    return torch.where(observed.reshape(-1, *(1,) * (x.dim() - 1)), x, 0)


def check_names(names: Sequence[str], modalities: Sequence[str], argument: str) -> None:
    """Raises a ValueError that lists the valid names unless `names` is a list of modalities."""
    if isinstance(names, str):
        raise ValueError(f"'{argument}' should be a list of names, but is the string {names!r}.")
    for name in names:
        if name not in modalities:
            close = difflib.get_close_matches(str(name), modalities, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(
                f"'{argument}' should hold modalities among {', '.join(modalities)}, "
                f"but holds {name!r}{hint}."
            )


def check_modalities(modalities: Sequence[str]) -> None:
    """Raises a ValueError unless `modalities` is a list of distinct names, at least one."""
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise ValueError(
            "'modalities' should be a list of distinct names, at least one, "
            f"but is {modalities!r}."
        )


def check_observed(observed: Tensor, modalities: Sequence[str] | None = None) -> None:
    """Raises a ValueError unless `observed` is a boolean matrix with one column per modality."""
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        kind = observed.dtype if isinstance(observed, Tensor) else type(observed).__name__
        raise ValueError(f"'observed' should be boolean, but is {kind}.")
    columns = "M" if modalities is None else len(modalities)
    if observed.dim() != 2 or (modalities is not None and observed.shape[1] != len(modalities)):
        raise ValueError(
            f"'observed' should have one column per modality and shape (B, {columns}), "
            f"but has shape {tuple(observed.shape)}."
        )


def check_finite(x: Tensor, observed: Tensor, modality: str, valid: Tensor | None = None) -> None:
    """Raises a ValueError that names the rows in which an observed entry is not finite."""
    if not x.is_floating_point():
        return
    bad = ~x.isfinite() if valid is None else ~x.isfinite() & valid
    bad = observed & (bad.flatten(1).any(dim=1) if bad.dim() > 1 else bad)
    if bool(bad.any()):
        rows = bad.nonzero()[:, 0].tolist()
        more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
        raise ValueError(
            f"'x' should be finite wherever it is given or observed, but {modality!r} holds NaN "
            f"or infinity in rows {rows[:10]}{more}. Mark them as missing, or clean them."
        )


def _within(members: Tensor, observed: Tensor) -> Tensor:
    """The members (S, M) that are subsets of what a row observed, else nothing: (S, B, M)."""
    members = members.to(observed.device)[:, None]
    return members & ~(members & ~observed).any(dim=-1, keepdim=True)


def _merge(given: Tensor, weight: Tensor) -> None:
    """Moves, in place, the weight of each subset to the next time that it stands for the row."""
    for s in range(len(given) - 1):
        same = (given[s] == given[s + 1 :]).all(dim=-1) & (weight[s + 1 :] > 0)  # (S - s - 1, B)
        again = same.any(dim=0)  # (B)
        following = same & (same.cumsum(dim=0) == 1)
        weight[s + 1 :] += following * weight[s]
        weight[s] = torch.where(again, 0, weight[s])


def _entry(value: Any, modality: str) -> Tensor:  # noqa: ANN401
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"'samples' should hold tensors, arrays or numbers, but {modality!r} is {value!r}."
        ) from None


def _powerset(modalities: int) -> Tensor:
    """All non-empty subsets, (2^M - 1, M), in the order of their binary codes."""
    if modalities > MAX_ENUMERATED:
        raise ValueError(
            f"'observed' should have at most {MAX_ENUMERATED} columns for its {2**modalities - 1} "
            "subsets to be enumerated; draw some with 'random_subsets' instead."
        )
    codes = torch.arange(1, 2**modalities)
    return (codes[:, None] >> torch.arange(modalities) & 1).bool()
