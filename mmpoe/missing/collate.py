r"""Collation of samples that each hold whichever modalities they have."""

from __future__ import annotations

__all__ = ["collate", "from_multivae", "from_nan"]

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from ._checks import check_modalities, check_names
from .batch import Batch, check_valid


def collate(
    samples: Sequence[Mapping[str, Any]],
    modalities: Sequence[str] | None = None,
    *,
    pad: Mapping[str, int] | None = None,
) -> tuple[MutableMapping[str, Tensor], Tensor]:
    r"""Makes one batch of samples that each hold whichever modalities they have.

    A sample may hold more than its modalities, by three names: ``"context"``, a mapping of its
    covariates, which all samples must have; ``"valid"``, a mapping of element masks for some of
    its modalities; and ``"id"``, its name. The batch is then a :class:`Batch`, which carries them.

    Arguments:
        samples: The :math:`B` samples: mappings from modality names to tensors, arrays or numbers.
            A missing modality is an absent key, or None.
        modalities: The names of the :math:`M` modalities, in the order of the columns of the mask.
            By default, those that the samples hold, in the order of the sample that holds most.
            Batches without a complete sample can then differ: name the modalities, or use the
            `collate` of a model, which does.
        pad: For modalities whose entries differ in length, along their last dimension, the length
            to pad all of them to. An element mask says what is padding.

    Returns:
        The batch, a mapping from modality names to tensors of shape :math:`(B, *)`, and the
        boolean mask of what was observed, with shape :math:`(B, M)`. Missing entries hold NaN
        (zero, if the modality is not floating-point), as does padding: nothing reads them. A call
        that is told to is an error instead of a wrong answer, unless the modality has an element
        mask. A modality that no sample has is absent.

    Raises:
        ValueError: If a sample holds an unknown name, the entries of a modality or the values of a
            covariate differ in shape or are not numbers, an entry is longer than what it is padded
            to, an element mask does not fit its entry, or some samples lack a covariate or an id.

    Example:
        >>> x, observed = collate([{"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(3)}])
        >>> x["b"]
        tensor([[nan, nan, nan],
                [1., 1., 1.]])
        >>> observed
        tensor([[ True, False],
                [ True,  True]])
        >>> x, _ = collate([{"a": torch.ones(2)}, {"a": torch.ones(3)}], pad={"a": 3})
        >>> x.valid["a"]
        tensor([[ True,  True, False],
                [ True,  True,  True]])
    """
    held, extras = [], []
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise ValueError(
                "'samples' should hold mappings from modality names to entries, "
                f"but holds a {type(sample).__name__}."
            )
        extra = {name for name in _EXTRAS if _is_extra(name, sample, modalities)}
        extras.append({name: sample[name] for name in extra})
        held.append({m: v for m, v in sample.items() if v is not None and m not in extra})
    by_size = sorted(held, key=len, reverse=True)  # stable: of equals, the first
    names = list(dict.fromkeys(m for sample in by_size for m in sample))
    if modalities is not None:
        check_modalities(modalities)
        check_names(names, modalities, argument="samples")
        names = list(modalities)
    elif names:
        check_modalities(names)
    pad = {} if pad is None else pad
    check_names(list(pad), names, argument="pad")

    x, valid = {}, {}
    masks = [extra.get("valid") or {} for extra in extras]
    for mask in masks:
        check_names(list(mask), names, argument="valid")
    for m in names:
        entries = [_entry(sample[m], m) if m in sample else None for sample in held]
        if all(entry is None for entry in entries):
            continue
        inside = [_inside(mask.get(m), e, m) for mask, e in zip(masks, entries, strict=True)]
        if m in pad:
            inside = [_padded(v, pad[m], m) for v in inside]
            entries = [_padded(e, pad[m], m) for e in entries]
        x[m] = _stack(entries, m)
        if m in pad or any(m in mask for mask in masks):
            valid[m] = _stack(inside, m)

    observed = torch.tensor([[m in sample for m in names] for sample in held], dtype=torch.bool)
    observed = observed.reshape(len(held), len(names))
    if not valid and not any(extras):
        return x, observed
    context = _covariates([extra.get("context") or {} for extra in extras])
    return Batch(x, context=context, valid=valid, ids=_ids(extras)), observed


_EXTRAS = ("context", "valid", "id")


def _is_extra(name: str, sample: Mapping[str, Any], modalities: Sequence[str] | None) -> bool:
    """Whether a sample holds something under a name that is no modality."""
    if modalities is not None and name in modalities:
        return False
    value = sample.get(name)
    if name != "id" and value is not None and not isinstance(value, Mapping):
        raise ValueError(
            f"'samples' should hold a mapping under {name!r}, but one holds a "
            f"{type(value).__name__}: if it is a modality, name the 'modalities'."
        )
    return value is not None


def _stack(entries: Sequence[Tensor | None], modality: str) -> Tensor:
    """One tensor of the entries of a modality, with NaN (or zeros) where there is none."""
    present = [entry for entry in entries if entry is not None]
    shapes = sorted({tuple(entry.shape) for entry in present})
    if len(shapes) > 1:
        raise ValueError(
            f"'samples' should hold entries of one shape per modality, but {modality!r} has "
            f"shapes {', '.join(map(str, shapes))}. If they differ in length, 'pad' them."
        )
    dtype = reduce(torch.promote_types, (entry.dtype for entry in present))
    blank = torch.full(shapes[0], torch.nan if dtype.is_floating_point else 0, dtype=dtype)
    return torch.stack([blank if e is None else e.to(dtype) for e in entries])


def _inside(mask: Any, entry: Tensor | None, modality: str) -> Tensor | None:  # noqa: ANN401
    """The element mask of one entry, of its shape, None if there is no entry."""
    if entry is None:
        return None
    if mask is None:
        return torch.ones(entry.shape, dtype=torch.bool)
    mask = _entry(mask, modality)
    check_valid(mask, entry.shape, modality)
    return mask.broadcast_to(entry.shape)


def _padded(entry: Tensor | None, length: int, modality: str) -> Tensor | None:
    """An entry of some length along its last dimension, with NaN, zero or False at its end."""
    if entry is None:
        return None
    if entry.dim() == 0 or entry.shape[-1] > length:
        raise ValueError(
            f"'pad' should be at least the length of each entry along its last dimension, but for "
            f"{modality!r} it is {length} and an entry has shape {tuple(entry.shape)}."
        )
    filler = torch.nan if entry.is_floating_point() else 0
    return torch.nn.functional.pad(entry, (0, length - entry.shape[-1]), value=filler)


def _covariates(contexts: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The covariates of all samples, with one row for each."""
    names = list(dict.fromkeys(name for context in contexts for name in context))
    for row, context in enumerate(contexts):
        if absent := [name for name in names if context.get(name) is None]:
            raise ValueError(
                f"'samples' should all hold the same covariates ({', '.join(names)}), but that in "
                f"row {row} lacks {', '.join(absent)}."
            )
    return {name: _stack([_entry(c[name], name) for c in contexts], name) for name in names}


def _ids(extras: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    """The names of all samples, None if they have none."""
    named = [row for row, extra in enumerate(extras) if "id" in extra]
    if not named:
        return None
    if len(named) < len(extras):
        row = next(row for row, extra in enumerate(extras) if "id" not in extra)
        raise ValueError(f"'samples' should all hold an 'id', but that in row {row} does not.")
    return [extra["id"] for extra in extras]


def from_nan(arrays: Mapping[str, Any]) -> tuple[Batch, Tensor]:
    r"""Makes a batch of arrays that hold NaN where something is missing.

    A row that is NaN throughout was not observed. Of a row that holds some NaN, the other elements
    were: an element mask says which.

    Arguments:
        arrays: For each modality, in the order of the columns of the mask, an array or tensor of
            shape :math:`(B, *)`, one row for each sample.

    Returns:
        The batch, with element masks (:attr:`Batch.valid`) of the modalities that need one, and
        the boolean mask of what was observed, with shape :math:`(B, M)`.

    Raises:
        ValueError: If there is no array, arrays have no rows or other numbers of rows, or hold
            something else than numbers.

    Example:
        >>> nan = torch.nan
        >>> x, observed = from_nan({"a": [[1.0, 2.0], [nan, nan]], "b": [[nan, 3.0], [4.0, 5.0]]})
        >>> observed
        tensor([[ True,  True],
                [False,  True]])
        >>> x.valid
        {'b': tensor([[False,  True],
                [ True,  True]])}
    """
    if not isinstance(arrays, Mapping) or not arrays:
        kind = "is empty" if isinstance(arrays, Mapping) else f"is a {type(arrays).__name__}"
        raise ValueError(f"'arrays' should map names of modalities to arrays, but {kind}.")
    check_modalities(list(arrays))
    x = {m: _entry(array, m, "arrays") for m, array in arrays.items()}
    shapes = {m: tuple(v.shape) for m, v in x.items()}
    if len({shape[:1] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise ValueError(
            f"'arrays' should have one row for each sample, but have shapes {shapes}."
        )
    valid, observed = {}, []
    for m, v in x.items():
        there = ~v.isnan() if v.is_floating_point() else torch.ones(v.shape, dtype=torch.bool)
        seen = there.flatten(1).any(dim=1) if v.dim() > 1 else there
        observed.append(seen)
        if bool((~there[seen]).any()):
            valid[m] = there
    return Batch(x, valid=valid), torch.stack(observed, dim=1)


def from_multivae(
    dataset: Any,  # noqa: ANN401
    modalities: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Reads a dataset of the MultiVae library as samples that each hold what they have.

    A list of samples is what :func:`collate` takes, and a `torch.utils.data.DataLoader` whose
    `collate_fn` is the `collate` method of a model. What the masks call unavailable is left out,
    whatever filler stands in its place. Labels are not a modality, and stay with the dataset.

    Arguments:
        dataset: An `IncompleteDataset`, a `MultimodalBaseDataset` or anything like them. Its items
            hold `data`, a mapping from modality names to tensors, and may hold `masks`, a mapping
            from modality names to whether they are available; a dataset without items holds the
            same for all samples at once.
        modalities: The names of the modalities to read, all of them if None.

    Returns:
        The samples, mappings from modality names to entries, which may share memory with the
        dataset.

    Raises:
        ValueError: If the dataset has another format, or a modality is unknown.

    References:
        | https://github.com/AgatheSenellart/MultiVae

    Example:
        >>> from types import SimpleNamespace
        >>> data = {"a": torch.ones(2), "b": torch.zeros(2)}
        >>> masks = {"a": torch.tensor([True, True]), "b": torch.tensor([True, False])}
        >>> from_multivae(SimpleNamespace(data=data, masks=masks))
        [{'a': tensor(1.), 'b': tensor(0.)}, {'a': tensor(1.)}]
    """
    samples = []
    for data, masks in _items(dataset):
        if modalities is not None:
            check_names(modalities, list(data), argument="modalities")
        names = list(data) if modalities is None else modalities
        if masks is not None and (unmasked := [m for m in names if m not in masks]):
            raise ValueError(
                f"'dataset' should have a mask for each modality, but has none for {unmasked}."
            )
        samples.append({m: data[m] for m in names if masks is None or _is_true(masks[m], m)})
    return samples


def _items(dataset: Any) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:  # noqa: ANN401
    """The data and the masks, None if there are none, of each item."""
    if hasattr(dataset, "__getitem__"):  # where subclasses finish their items
        for i in range(len(dataset)):
            yield _fields(dataset[i])
    else:
        data, masks = _fields(dataset)
        for i in range(min((len(v) for v in data.values()), default=0)):
            one = {m: v[i] for m, v in data.items()}
            yield one, None if masks is None else {m: v[i] for m, v in masks.items()}


def _fields(source: Any) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:  # noqa: ANN401
    get = source.get if isinstance(source, Mapping) else partial(getattr, source)
    data, masks = get("data", None), get("masks", None)
    if not isinstance(data, Mapping) or not isinstance(masks, Mapping | None):
        raise ValueError(
            "'dataset' should hold 'data', a mapping from modality names to tensors, and may hold "
            f"'masks', another, but holds a {type(data).__name__} and a {type(masks).__name__}."
        )
    return data, masks


def _is_true(mask: Any, modality: str) -> bool:  # noqa: ANN401
    mask = _entry(mask, modality)
    if mask.numel() != 1 or mask.dtype != torch.bool:
        raise ValueError(
            f"'dataset' should have masks of one truth value per sample, but that of {modality!r} "
            f"has dtype {mask.dtype} and shape {tuple(mask.shape)} for a sample."
        )
    return bool(mask)


def _entry(value: Any, modality: str, argument: str = "samples") -> Tensor:  # noqa: ANN401
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"'{argument}' should hold tensors, arrays or numbers, but {modality!r} is {value!r}."
        ) from None
