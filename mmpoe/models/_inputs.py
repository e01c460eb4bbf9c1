r"""Checks of what goes into a model, in terms of the caller's arguments."""

from __future__ import annotations

__all__ = [
    "absent",
    "advice",
    "check_context",
    "check_entries",
    "check_noise",
    "check_pairs",
    "check_scored_rows",
    "check_weight",
    "components_of",
    "draw_component",
    "given_mask",
    "held",
    "subset_mask",
]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmpoe.hierarchy import Encodings
from mmpoe.missing import (
    as_mask,
    check_finite,
    check_names,
    check_valid,
    context_of,
    held_entries,
    random_subsets,
    subsets,
    valid_of,
)


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
        given = held(x, modalities) if x else []
    elif not isinstance(given, Tensor) and not hasattr(given, "__array__"):
        check_names(given, modalities, argument="given")
        if absent := [m for m in given if m not in x]:
            raise ValueError(
                f"'given' should name modalities that 'x' holds ({', '.join(x) or 'none'}), "
                f"but names {', '.join(absent)}."
            )
        for m in given:
            if m in valid_of(x) and bool((~held_entries(x, m)).any()):
                rows = (~held_entries(x, m)).nonzero()[:10, 0].tolist()
                raise ValueError(
                    f"'given' should name modalities that every row has, but {m!r} has no "
                    f"observed element in rows {rows}: pass a mask of shape (B, M)."
                )
    mask = as_mask(given, modalities, size)
    if mask.dim() == 1:
        mask = mask.unsqueeze(0)
    mask = mask.to(next(iter(x.values()), like).device)
    there = [m in x for m in modalities]
    return mask if all(there) else mask & torch.tensor(there, device=mask.device)


def held(x: Mapping[str, Tensor], modalities: Sequence[str]) -> Tensor:
    """Returns the entries that a batch holds, with shape (B, M): those with an observed element.

    Arguments:
        x: The batch, which holds at least one modality.
        modalities: The names of the modalities.
    """
    _batch_size(x, modalities)
    first = next(iter(x.values()))
    none = torch.zeros(first.shape[0], dtype=torch.bool, device=first.device)
    return torch.stack([held_entries(x, m) if m in x else none for m in modalities], dim=1)


def subset_mask(
    given: Tensor | Sequence[str], modalities: Sequence[str], size: int, argument: str = "given"
) -> Tensor:
    """Returns a mask of shape (B, M), from a mask or from names.

    Arguments:
        given: The mask or the names.
        modalities: The names of the modalities.
        size: The number of rows B.
        argument: The name of the argument, for messages.
    """
    if hasattr(given, "__array__"):
        given = torch.as_tensor(given)
    if not isinstance(given, Tensor):
        check_names(given, modalities, argument=argument)
        return as_mask(given, modalities, size)
    if given.dtype != torch.bool or given.shape != (size, len(modalities)):
        raise ValueError(
            f"'{argument}' should be boolean with shape (B, M) = {(size, len(modalities))}, "
            f"but has dtype {given.dtype} and shape {tuple(given.shape)}."
        )
    return given


def check_rows(rows: Tensor, length: int, size: int, *, values: bool = True) -> None:
    """Raises a ValueError unless `rows` holds positions in a batch.

    Arguments:
        rows: The positions, with shape (R).
        length: The number of rows R.
        size: The number of samples B.
        values: Whether to check the range too, which waits for the device.
    """
    if not isinstance(rows, Tensor) or rows.dtype != torch.long:
        kind = f"dtype {rows.dtype}" if isinstance(rows, Tensor) else f"type {type(rows).__name__}"
        raise ValueError(f"'rows' should be integers, torch.long, but has {kind}.")
    if rows.shape != (length,):
        raise ValueError(
            f"'rows' should have one position per row, shape {(length,)}, "
            f"but has shape {tuple(rows.shape)}."
        )
    if values and len(rows) and not torch.compiler.is_compiling():
        low, high = rows.aminmax()
        if low < 0 or high >= size:
            raise ValueError(
                f"'rows' should be positions in a batch of {size}, "
                f"but ranges from {int(low)} to {int(high)}."
            )


def check_pairs(
    given: Tensor, rows: Tensor | None, encodings: Encodings, *, values: bool = True
) -> None:
    """Raises a ValueError unless some subsets can be inferred from encodings.

    Arguments:
        given: The subsets, with shape (B, M) or (S, B, M), or (R, M) with rows.
        rows: The sample of each pair, with shape (R); None without.
        encodings: The encodings.
        values: Whether to check what they hold too, which waits for the device.
    """
    if not isinstance(given, Tensor):
        raise ValueError(f"'given' should be a boolean tensor, but is a {type(given).__name__}.")
    size, columns = encodings.given.shape
    if rows is None:
        wanted = f"(B, M) or (S, B, M), where (B, M) is {(size, columns)}"
        fits = given.dim() in (2, 3) and given.shape[-2:] == (size, columns)
    else:
        wanted = f"(R, M), where M is {columns}"
        fits = given.dim() == 2 and given.shape[1] == columns
    if given.dtype != torch.bool or not fits:
        raise ValueError(
            f"'given' should be boolean with shape {wanted}, "
            f"but has dtype {given.dtype} and shape {tuple(given.shape)}."
        )
    if rows is not None:
        check_rows(rows, given.shape[0], size, values=values)
    if torch.compiler.is_compiling() or not values:
        return
    encoded = encodings.given if rows is None else encodings.given[rows]
    if bool((given & ~encoded).any()):
        raise ValueError(
            "'given' should hold nothing beyond what was encoded, but in "
            f"{int((given & ~encoded).sum())} places it does: encode all that a pair is given."
        )


def check_scored_rows(
    x: Mapping[str, Tensor], scored: Tensor, rows: Tensor | None, *, values: bool = True
) -> None:
    """Raises a ValueError unless each row of a mask has a sample of the batch.

    Arguments:
        x: The batch, with entries of shape (B, *).
        scored: The mask, with shape (B, M), or (R, M) with rows.
        rows: The sample of each row, with shape (R); None if row r is sample r.
        values: Whether to check the range of `rows`, which waits for the device.
    """
    sizes = {m: v.shape[0] for m, v in x.items()}
    size = next(iter(sizes.values()), 0) if rows is not None else scored.shape[0]
    if any(other != size for other in sizes.values()):
        wanted = "one batch size" if rows is not None else f"one row per row of the mask ({size})"
        raise ValueError(f"'x' should hold {wanted}, but holds {sizes}.")
    if rows is not None and x:
        check_rows(rows, scored.shape[0], size, values=values)


def check_weight(weight: Tensor, scored: Tensor) -> Tensor:
    """Returns the weights of entries, with the shape of a mask, or raises a ValueError.

    Arguments:
        weight: The weights, broadcastable: a tensor, a number or a sequence of numbers.
        scored: The mask, with shape (R, M).
    """
    weight = torch.as_tensor(weight, device=scored.device)
    try:
        weight = weight.broadcast_to(scored.shape)
    except RuntimeError:
        raise ValueError(
            f"'weight' should broadcast to one number per row and modality, "
            f"{tuple(scored.shape)}, but has shape {tuple(weight.shape)}."
        ) from None
    bad = ~((weight >= 0) & weight.isfinite())
    if not torch.compiler.is_compiling() and bool(bad.any()):
        raise ValueError(
            f"'weight' should be finite and at least 0, but holds {weight[bad][0].item():g}."
        )
    return weight


def draw_component(given: Tensor, family: str) -> Tensor:
    """Draws one component of a mixture for each row: a member of the family of what it is given.

    Arguments:
        given: The entries that each row is given, boolean, with shape (B, M) or (S, B, M).
        family: The family of subsets, ``"full"``, ``"singletons"`` or ``"powerset"``.
    """
    if family == "full":
        return given
    if family == "powerset":
        flat = given.flatten(0, -2)
        return random_subsets(flat)[0].view(given.shape)
    keys = torch.where(given, torch.rand(given.shape, device=given.device), -1)
    return given & (keys == keys.amax(dim=-1, keepdim=True))


def components_of(given: Tensor, family: str) -> tuple[Tensor, Tensor | None]:
    """Returns the components of a posterior and their weights.

    Arguments:
        given: What each row is given, boolean, with shape (B, M).
        family: The family of subsets, ``"full"``, ``"singletons"`` or ``"powerset"``.

    Returns:
        The subset of each component, boolean, and its weight: of shapes (S, B, M) and (S, B), or
        what is given and None for a product, which has one component.
    """
    if family == "full":
        return given, None
    if given.dim() != 2:
        raise ValueError(
            f"'given' should have shape (B, M) for the mean of a mixture, "
            f"but has shape {tuple(given.shape)}."
        )
    subset, weight = subsets(given, family)
    first = torch.where(given.any(dim=1), weight[0], 1)  # given nothing, the prior
    return subset, torch.cat([first[None], weight[1:]])


def check_entries(
    x: Mapping[str, Tensor],
    modality: str,
    seen: Tensor,
    parameter: Tensor | None,
    valid: Tensor | None = None,
    *,
    finite: bool,
) -> None:
    """Raises a ValueError unless the entries of a modality can be encoded.

    Arguments:
        x: The batch.
        modality: The modality.
        seen: The rows that will be encoded, boolean, with shape (B).
        parameter: A parameter of its encoder, whose dtype and device it should have; None if any
            will do.
        valid: The elements that were observed, boolean, broadcastable to all entries; all if None.
        finite: Whether to check for NaN and infinity.
    """
    if modality not in x:
        raise absent(modality, x)
    entries = x[modality]
    check_dense(entries, modality)
    if entries.shape[0] != seen.shape[0]:
        raise ValueError(
            f"'x' should have one row per row of 'observed' ({len(seen)}), "
            f"but {modality!r} has shape {tuple(entries.shape)}."
        )
    if parameter is not None and entries.device != parameter.device:
        raise ValueError(
            f"'x' should be on the device of the model, {parameter.device}, "
            f"but {modality!r} is on {entries.device}."
        )
    autocast = torch.is_autocast_enabled(entries.device.type)
    dtype = None if parameter is None or autocast else parameter.dtype  # None for any
    if dtype is not None and entries.is_floating_point() and entries.dtype != dtype:
        raise ValueError(
            f"'x' should have the dtype of the model, {dtype}, "
            f"but {modality!r} has dtype {entries.dtype}."
        )
    if valid is not None:
        check_valid(valid, entries.shape, modality)
    if finite:
        check_finite(entries, seen, modality, valid)


def check_dense(entries: Tensor, modality: str) -> None:
    """Raises a ValueError if the entries of a modality are sparse or nested."""
    if entries.is_nested or entries.layout != torch.strided:
        kind = "nested" if entries.is_nested else f"of layout {entries.layout}"
        raise ValueError(
            f"'x' should hold dense tensors, but {modality!r} is {kind}. Call 'to_dense()' on "
            "sparse entries; pad those of different lengths, see 'mmpoe.missing.collate'."
        )


def check_context(
    context: Mapping[str, Tensor], needed: Tensor, like: Tensor, *, finite: bool
) -> None:
    """Raises a ValueError unless covariates fit a batch.

    Arguments:
        context: The covariates by name.
        needed: A mask with one row for each sample.
        like: A tensor with the dtype of the model.
        finite: Whether to check for NaN and infinity, unless compiled.
    """
    for name, v in context.items():
        if v.shape[0] != needed.shape[0]:
            raise ValueError(
                f"'context' should have one row per sample ({needed.shape[0]}), "
                f"but {name!r} has shape {tuple(v.shape)}."
            )
        if v.device != needed.device:
            raise ValueError(
                f"'context' should be on the device of the batch, {needed.device}, "
                f"but {name!r} is on {v.device}."
            )
        strict = v.is_floating_point() and not torch.is_autocast_enabled(v.device.type)
        if strict and v.dtype != like.dtype:
            raise ValueError(
                f"'context' should have the dtype of the model, {like.dtype}, or hold integers, "
                f"but {name!r} has dtype {v.dtype}."
            )
        if finite and not torch.compiler.is_compiling() and not bool(v.isfinite().all()):
            raise ValueError(
                f"'context' should be finite, but {name!r} holds NaN or infinity: fill in what is "
                "unknown, or give it a category of its own."
            )


def advice(error: Exception) -> str:
    """Returns a way out of what an encoder fails for, if there is one."""
    if "more than 1 value per channel" not in str(error):
        return ""
    return (
        " Batch normalisation needs two rows that have the modality; use a normalisation of "
        "single rows, such as torch.nn.GroupNorm, or set its layers to evaluation mode."
    )


def absent(modality: str, x: Mapping[str, Tensor]) -> ValueError:
    """Returns the error to raise where an observed modality is not part of the batch."""
    return ValueError(
        f"'x' should hold {modality!r}, which 'observed' says was observed, "
        f"but holds {', '.join(x) or 'nothing'}."
    )


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
        check_dense(v, m)
    sizes = {m: v.shape[0] for m, v in x.items()}
    size = next(iter(sizes.values()), None)
    if size is None:
        size = next((v.shape[0] for v in context_of(x).values()), None)
    if any(other != size for other in sizes.values()):
        raise ValueError(f"'x' should hold one batch size, but holds {sizes}.")
    return size
