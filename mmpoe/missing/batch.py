r"""A batch that carries covariates, element masks and names of its samples."""

from __future__ import annotations

__all__ = ["Batch"]

from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Batch(MutableMapping[str, Tensor]):
    r"""The entries of a batch by modality, and what else is known of its samples.

    It is a mapping, and goes wherever a batch `x` goes: into models, objectives, evidence,
    imputation, calibration and Pyro programs. Dictionaries made of it (``dict(x)``, ``{**x}``)
    hold the entries alone.

    Covariates are known of every sample (a site, an age, a label, the depth of sequencing). A
    network of a model whose ``forward`` has a parameter `context` is called with them, as a
    dictionary of tensors of shape :math:`(N, *)`, one row for each row of its input; other
    networks are called without. A network inside another gets what the outer one passes on. So do
    encoders with a parameter `valid`, the element mask of their input, boolean, of the same shape.

    Element masks say which elements inside an entry were observed. What is outside is never read:
    encoders see 0 there, likelihoods do not score it, and imputation fills it. An entry without
    any is not given, unless a mask says that it is.

    Arguments:
        entries: The entries of each modality, with shape :math:`(B, *)`, or a batch.
        context: The covariates by name, each with shape :math:`(B, *)`.
        valid: For some modalities, which elements were observed, boolean, broadcastable to
            :math:`(B, *)`; all of them by default.
        ids: The names of the samples, for the user alone.

    What is None is taken from `entries` if that is a batch.

    Raises:
        ValueError: If a covariate is no tensor or has another number of rows than the entries,
            a mask is not boolean or does not broadcast, or `ids` has another length.

    Example:
        >>> x = Batch({"rna": torch.zeros(3, 5)}, context={"site": torch.tensor([0, 1, 1])})
        >>> x.take([2, 0]).context["site"]
        tensor([1, 0])
    """

    context: dict[str, Tensor]
    valid: dict[str, Tensor]
    ids: list[Hashable] | None

    def __init__(
        self,
        entries: Mapping[str, Tensor],
        *,
        context: Mapping[str, Tensor] | None = None,
        valid: Mapping[str, Tensor] | None = None,
        ids: Sequence[Hashable] | None = None,
    ) -> None:
        self._entries = dict(entries)
        self.context = dict(context_of(entries) if context is None else context)
        self.valid = dict(valid_of(entries) if valid is None else valid)
        ids = getattr(entries, "ids", None) if ids is None else ids
        self.ids = None if ids is None else list(ids)
        self._check()

    @classmethod
    def of(cls, x: Mapping[str, Tensor]) -> Batch:
        """Returns a batch as it is, or makes one of a mapping."""
        return x if isinstance(x, Batch) else cls(x)

    def __getitem__(self, modality: str) -> Tensor:
        return self._entries[modality]

    def __setitem__(self, modality: str, entries: Tensor) -> None:
        self._entries[modality] = entries

    def __delitem__(self, modality: str) -> None:
        del self._entries[modality]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, rows: Tensor | Sequence[int] | slice) -> Batch:
        """Returns some samples of the batch.

        Arguments:
            rows: Their positions, with shape :math:`(n)`; a boolean mask of all samples, or a
                slice.
        """
        first = next(iter((*self.values(), *self.context.values())), None)
        size = 0 if first is None else first.shape[0]
        rows = rows.cpu() if isinstance(rows, Tensor) else rows
        index = torch.arange(size)[rows]

        def taken(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: v[index.to(v.device)] for name, v in tensors.items()}

        valid = {m: v.broadcast_to(self[m].shape) for m, v in self.valid.items() if m in self}
        ids = None if self.ids is None else [self.ids[row] for row in index.tolist()]
        return _carrying(taken(self), taken(self.context), taken(valid), ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Returns the batch on a device.

        Arguments:
            device: The device.
            non_blocking: Whether the copy may go on while the caller does.
        """

        def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device, non_blocking=non_blocking) for k, v in tensors.items()}

        return _carrying(moved(self), moved(self.context), moved(self.valid), self.ids)

    def pin_memory(self) -> Batch:
        """Returns the batch in pinned memory, as a ``DataLoader`` asks for it."""

        def pinned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.pin_memory() for k, v in tensors.items()}

        return _carrying(pinned(self), pinned(self.context), pinned(self.valid), self.ids)

    def copy(self) -> Batch:
        """Returns a batch with the same tensors."""
        return _carrying(self, self.context, self.valid, self.ids)

    def __repr__(self) -> str:
        parts = {"context": self.context, "valid": self.valid, "ids": self.ids}
        carried = "".join(f", {name}={part!r}" for name, part in parts.items() if part)
        return f"Batch({self._entries!r}{carried})"

    def _check(self) -> None:
        for name, v in self.context.items():
            if not isinstance(v, Tensor) or v.dim() == 0:
                kind = "a scalar" if isinstance(v, Tensor) else f"a {type(v).__name__}"
                raise ValueError(
                    f"'context' should hold tensors of shape (B, *), but {name!r} is {kind}."
                )
        held = [v for v in self.values() if isinstance(v, Tensor) and v.dim()]
        size = next((v.shape[0] for v in (*held, *self.context.values())), None)
        for name, v in self.context.items():
            if v.shape[0] != size:
                raise ValueError(
                    f"'context' should have one row per sample ({size}), "
                    f"but {name!r} has shape {tuple(v.shape)}."
                )
        for m, inside in self.valid.items():
            check_valid(inside, self[m].shape if m in self else None, m)
        if self.ids is not None and size is not None and len(self.ids) != size:
            raise ValueError(
                f"'ids' should hold one name per sample ({size}), but holds {len(self.ids)}."
            )


def context_of(x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the covariates that a batch carries, none if it is a plain mapping."""
    return x.context if isinstance(x, Batch) else {}


def valid_of(x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the element masks that a batch carries, none if it is a plain mapping."""
    return x.valid if isinstance(x, Batch) else {}


def with_valid(
    x: Mapping[str, Tensor], valid: Mapping[str, Tensor] | None
) -> Mapping[str, Tensor]:
    """Returns a batch that carries element masks.

    Arguments:
        x: The batch.
        valid: The masks, in place of those that the batch carries; None leaves it as it is.
    """
    if valid is None:
        return x
    return Batch(x, valid=valid)


def check_valid(valid: Any, shape: Sequence[int] | None, modality: str) -> None:  # noqa: ANN401
    r"""Raises a ValueError unless an element mask is boolean and broadcasts to its modality.

    Arguments:
        valid: The mask.
        shape: The shape of all entries, (B, \*); any if None.
        modality: The name of the modality.
    """
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        kind = (
            f"dtype {valid.dtype}" if isinstance(valid, Tensor) else f"type {type(valid).__name__}"
        )
        raise ValueError(f"'valid' should be boolean, but {modality!r} has {kind}.")
    if shape is None:
        return
    try:
        valid.broadcast_to(shape)
    except RuntimeError:
        raise ValueError(
            f"'valid' should broadcast to the shape of {modality!r}, {tuple(shape)}, "
            f"but has shape {tuple(valid.shape)}."
        ) from None


def held_entries(x: Mapping[str, Tensor], modality: str) -> Tensor:
    """Returns which entries of a modality have an element that was observed, with shape (B).

    Arguments:
        x: The batch.
        modality: A modality that it holds.
    """
    entries, valid = x[modality], valid_of(x).get(modality)
    if valid is None:
        return torch.ones(entries.shape[0], dtype=torch.bool, device=entries.device)
    return valid.broadcast_to(entries.shape).unsqueeze(-1).flatten(1).any(dim=1)


def _carrying(
    entries: Mapping[str, Tensor],
    context: Mapping[str, Tensor],
    valid: Mapping[str, Tensor],
    ids: list[Hashable] | None,
) -> Batch:
    """A batch without checks."""
    batch = Batch.__new__(Batch)
    batch._entries, batch.ids = dict(entries), ids
    batch.context, batch.valid = dict(context), dict(valid)
    return batch
