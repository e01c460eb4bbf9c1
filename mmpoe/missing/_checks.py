r"""Checks of names and masks, in terms of the caller's arguments."""

from __future__ import annotations

__all__ = [
    "check_finite",
    "check_modalities",
    "check_names",
    "check_observed",
    "check_within",
]

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor


def check_names(names: Sequence[str], modalities: Sequence[str], argument: str) -> None:
    """Raises a ValueError that lists the valid names unless `names` is a list of modalities."""
    if isinstance(names, str):
        raise ValueError(f"'{argument}' should be a list of names, but is the string {names!r}.")
    for name in names:
        _check_string(name, argument)
        if name not in modalities:
            close = difflib.get_close_matches(name, modalities, n=1)
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
    for name in modalities:
        _check_string(name, "modalities")


def _check_string(name: object, argument: str) -> None:
    if not isinstance(name, str):
        raise ValueError(
            f"'{argument}' should name modalities by strings, but has {name!r} of type "
            f"{type(name).__name__}."
        )


def check_observed(
    observed: Tensor, modalities: Sequence[str] | None = None, argument: str = "observed"
) -> None:
    """Raises a ValueError unless a mask is a boolean matrix with one column per modality.

    Arguments:
        observed: The mask.
        modalities: The names of the columns; any number if None.
        argument: The name of the argument that holds the mask, for messages.
    """
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        kind = observed.dtype if isinstance(observed, Tensor) else type(observed).__name__
        raise ValueError(f"'{argument}' should be boolean, but is {kind}.")
    columns = "M" if modalities is None else len(modalities)
    if observed.dim() != 2 or (modalities is not None and observed.shape[1] != len(modalities)):
        raise ValueError(
            f"'{argument}' should have one column per modality and shape (B, {columns}), "
            f"but has shape {tuple(observed.shape)}."
        )


def check_within(
    given: Tensor, observed: Tensor, modalities: Sequence[str], argument: str
) -> None:
    """Raises a ValueError that shows a row that is given what it did not observe.

    Arguments:
        given: What rows are given, boolean, with shape (B, M) or (S, B, M).
        observed: What was observed, boolean, with shape (B, M).
        modalities: The names of the columns.
        argument: The name of the argument that holds `given`, for messages.
    """
    beyond = (given & ~observed).any(dim=-1)  # (B) or (S, B)
    if not bool(beyond.any()):
        return
    where = beyond.nonzero()[0]
    row = int(where[-1])
    held, had = (
        ", ".join(m for m, there in zip(modalities, mask.tolist(), strict=True) if there)
        for mask in (given[tuple(where)], observed[row])
    )
    raise ValueError(
        f"'{argument}' should hold nothing beyond 'observed', but in {int(beyond.sum())} places "
        f"it does: row {row} is given {held}, and observed {had or 'nothing'}."
    )


def check_finite(x: Tensor, observed: Tensor, modality: str, valid: Tensor | None = None) -> None:
    """Raises a ValueError that names the rows in which an observed entry is not finite."""
    if not x.is_floating_point():
        return
    # a sum is finite only if all its terms are, and takes a fraction of the time
    total = x.flatten(1).sum(dim=1) if x.dim() > 1 else x
    if not bool((observed & ~total.isfinite()).any()):
        return
    bad = ~x.isfinite() if valid is None else ~x.isfinite() & valid
    bad = observed & (bad.flatten(1).any(dim=1) if bad.dim() > 1 else bad)
    if bool(bad.any()):
        rows = bad.nonzero()[:, 0].tolist()
        more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
        raise ValueError(
            f"'x' should be finite wherever it is given or observed, but {modality!r} holds NaN "
            f"or infinity in rows {rows[:10]}{more}. Mark them as missing, mask single "
            "elements (see mmpoe.missing.Batch and from_nan), or clean them."
        )
