r"""Checks of what goes into a model, in terms of the caller's arguments."""

from __future__ import annotations

__all__ = ["check_entries", "check_noise", "given_mask"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmpoe.missing import as_mask, check_finite, check_names


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
    check_names(list(x), modalities, argument="x")
    for m, v in x.items():
        if not isinstance(v, Tensor) or v.dim() == 0:
            kind = "a scalar" if isinstance(v, Tensor) else f"a {type(v).__name__}"
            raise ValueError(f"'x' should hold tensors of shape (B, *), but {m!r} is {kind}.")
    sizes = {m: len(v) for m, v in x.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"'x' should hold one batch size, but holds {sizes}.")

    if given is None:
        given = list(x)
    elif not isinstance(given, Tensor) and not hasattr(given, "__array__"):
        check_names(given, modalities, argument="given")
        if absent := [m for m in given if m not in x]:
            raise ValueError(
                f"'given' should name modalities that 'x' holds ({', '.join(x) or 'none'}), "
                f"but names {', '.join(absent)}."
            )
    mask = as_mask(given, modalities, next(iter(sizes.values()), None))
    if mask.dim() == 1:
        mask = mask.unsqueeze(0)
    mask = mask.to(next(iter(x.values()), like).device)
    return mask & torch.tensor([m in x for m in modalities], device=mask.device)


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
    if len(entries) != len(seen):
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


def check_noise(noise: Sequence[Tensor], levels: int, shape: tuple[int, ...]) -> None:
    """Raises a ValueError unless there is noise for each group, for rows of the given shape."""
    if len(noise) != levels:
        raise ValueError(
            f"'noise' should hold one tensor per latent group ({levels}), but holds {len(noise)}."
        )
    for level, n in enumerate(noise):
        if tuple(n.shape[: len(shape)]) != shape:
            raise ValueError(
                f"'noise[{level}]' should have the shape of 'z[{level}]', which starts with "
                f"{shape}, but has shape {tuple(n.shape)}."
            )
