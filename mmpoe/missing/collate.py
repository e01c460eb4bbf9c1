r"""Collation of samples that each hold whichever modalities they have."""

from __future__ import annotations

__all__ = ["collate", "from_multivae"]

from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from ._checks import check_modalities, check_names


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


def _entry(value: Any, modality: str) -> Tensor:  # noqa: ANN401
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"'samples' should hold tensors, arrays or numbers, but {modality!r} is {value!r}."
        ) from None
