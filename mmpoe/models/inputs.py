r"""Checks of what goes into a model, in terms of the caller's arguments."""

from __future__ import annotations

__all__ = ["check_entries", "check_noise", "draw_component", "given_mask", "given_rows"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmpoe.missing import as_mask, check_finite, check_names, random_subsets


def given_mask(
    x: Mapping[str, Tensor],
    given: Tensor | Sequence[str] | None,
    modalities: Sequence[str],
    like: Tensor,
) -> Tensor:
    """Returns the mask of what is given, with shape (B, M) or (S, B, M), after checking `x`.

    Arguments:
        x: The batch.
        given: A mask, in which a modality that is absent from `x` is not given; or names, which
            `x` must hold; or None for all that it holds.
        modalities: The names of the modalities.
        like: A tensor on the device to use if `x` is empty.
    """
    size = _batch_size(x, modalities)
    if given is None:
        given = list(x)
    elif not isinstance(given, Tensor) and not hasattr(given, "__array__"):
        check_names(given, modalities, argument="given")
        if absent := [m for m in given if m not in x]:
            raise ValueError(
                f"'given' should name modalities that 'x' holds ({', '.join(x) or 'none'}), "
                f"but names {', '.join(absent)}."
            )
    mask = as_mask(given, modalities, size)
    if mask.dim() == 1:
        mask = mask.unsqueeze(0)
    mask = mask.to(next(iter(x.values()), like).device)
    return mask & torch.tensor([m in x for m in modalities], device=mask.device)


def given_rows(
    x: Mapping[str, Tensor],
    given: Tensor | Sequence[str] | None,
    rows: Tensor,
    modalities: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """Returns what each row is given (R, M), and what that needs of each sample (B, M).

    Arguments:
        x: The batch.
        given: A mask of shape (R, M).
        rows: The sample that each row is about, with shape (R).
        modalities: The names of the modalities.
    """
    if not isinstance(given, Tensor) or given.shape[:-1] != rows.shape or rows.dim() != 1:
        shown = tuple(given.shape) if isinstance(given, Tensor) else given
        raise ValueError(
            "'given' should be a mask of shape (R, M) for 'rows' of shape (R), "
            f"but is {shown} for {tuple(rows.shape)}."
        )
    if rows.dtype != torch.long:
        raise ValueError(f"'rows' should be integers, torch.long, but has dtype {rows.dtype}.")
    size = _batch_size(x, modalities)
    if size is None:
        raise ValueError("'x' should hold at least one modality for 'rows' to point into.")
    if not torch.compiler.is_compiling() and len(rows):
        low, high = rows.aminmax()
        if low < 0 or high >= size:
            raise ValueError(
                f"'rows' should be positions in a batch of {size}, "
                f"but ranges from {int(low)} to {int(high)}."
            )
    device = next(iter(x.values())).device
    held = torch.tensor([m in x for m in modalities], device=device)
    mask, rows = as_mask(given, modalities).to(device) & held, rows.to(device)
    counts = torch.zeros(size, len(modalities), dtype=torch.long, device=device)
    return mask, counts.index_add(0, rows, mask.long()) > 0


def draw_component(given: Tensor, family: str) -> Tensor:
    """Draws one component of a mixture for each row: a member of the family of what it is given.

    Arguments:
        given: What each row is given, boolean, with shape (R, M).
        family: The family of subsets, ``"full"``, ``"singletons"`` or ``"powerset"``.
    """
    if family == "full":
        return given
    if family == "powerset":
        return random_subsets(given)[0]
    keys = torch.where(given, torch.rand(given.shape, device=given.device), -1)
    return given & (keys == keys.amax(dim=-1, keepdim=True))


def check_entries(
    x: Mapping[str, Tensor],
    modality: str,
    seen: Tensor,
    dtype: torch.dtype | None,
    *,
    finite: bool,
) -> None:
    """Raises a ValueError unless the entries of a modality can be encoded.

    Arguments:
        x: The batch.
        modality: The modality.
        seen: The rows that will be encoded, boolean, with shape (B).
        dtype: The dtype that its encoder takes, None if any will do.
        finite: Whether to check for NaN and infinity.
    """
    if modality not in x:
        raise ValueError(
            f"'x' should hold {modality!r}, which 'observed' says was observed, "
            f"but holds {', '.join(x) or 'nothing'}."
        )
    entries = x[modality]
    if entries.shape[0] != seen.shape[0]:
        raise ValueError(
            f"'x' should have one row per row of 'observed' ({len(seen)}), "
            f"but {modality!r} has shape {tuple(entries.shape)}."
        )
    strict = dtype is not None and not torch.is_autocast_enabled(entries.device.type)
    if strict and entries.is_floating_point() and entries.dtype != dtype:
        raise ValueError(
            f"'x' should have the dtype of the model, {dtype}, "
            f"but {modality!r} has dtype {entries.dtype}."
        )
    if finite:
        check_finite(entries, seen, modality)


def check_noise(
    noise: Sequence[Tensor], levels: int, shape: tuple[int, ...], argument: str = "noise"
) -> None:
    """Raises a ValueError unless there is noise for each group, for rows of the given shape."""
    if len(noise) != levels:
        raise ValueError(
            f"'{argument}' should hold one tensor per latent group ({levels}), "
            f"but holds {len(noise)}."
        )
    for level, n in enumerate(noise):
        if tuple(n.shape[: len(shape)]) != shape:
            raise ValueError(
                f"'{argument}[{level}]' should have the shape of 'z[{level}]', which starts with "
                f"{shape}, but has shape {tuple(n.shape)}."
            )


def _batch_size(x: Mapping[str, Tensor], modalities: Sequence[str]) -> int | None:
    """The number of samples of a batch that is checked, None if it holds nothing."""
    check_names(list(x), modalities, argument="x")
    for m, v in x.items():
        if not isinstance(v, Tensor) or v.dim() == 0:
            kind = "a scalar" if isinstance(v, Tensor) else f"a {type(v).__name__}"
            raise ValueError(f"'x' should hold tensors of shape (B, *), but {m!r} is {kind}.")
    sizes = {m: v.shape[0] for m, v in x.items()}
    size = next(iter(sizes.values()), None)
    if any(other != size for other in sizes.values()):
        raise ValueError(f"'x' should hold one batch size, but holds {sizes}.")
    return size
