"""Samples that a model was not trained on, which tell how far its predictions are off."""

from __future__ import annotations

__all__ = ["HeldOut"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmpoe.missing import Batch, check_valid, valid_of


class HeldOut:
    r"""Samples that a model was not trained on, which tell how far its predictions are off.

    They set the scale of a :class:`Spread` (:func:`fit_spread`), and the width of conformal
    intervals (:meth:`Imputation.interval`).

    Arguments:
        x: The samples, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed in them, a boolean mask of shape :math:`(B, M)`; by default,
            all that `x` holds.
        valid: For some modalities, the elements to compare with predictions, boolean,
            broadcastable to :math:`(B, *)`, such as a field of view. By default, the element masks
            of `x`. Encoders see those of `x` alone.
        truth: The entries to compare with predictions, for modalities whose inputs are not these,
            as where they have more channels.
        cases: The case that each sample belongs to, whole numbers, with shape :math:`(B)`: the
            patient of a slice, say. Cases have to be exchangeable, samples of one need not be. By
            default, each sample is a case.

    Raises:
        ValueError: If shapes do not agree, or a mask is not boolean.

    Example:
        >>> slices = HeldOut({"t2": torch.zeros(4, 1, 8, 8)}, cases=torch.tensor([7, 7, 9, 9]))
        >>> len(slices), slices.cases
        (4, tensor([7, 7, 9, 9]))
    """

    def __init__(
        self,
        x: Mapping[str, Tensor],
        observed: Tensor | None = None,
        *,
        valid: Mapping[str, Tensor] | None = None,
        truth: Mapping[str, Tensor] | None = None,
        cases: Tensor | Sequence[int] | None = None,
    ) -> None:
        if not x:
            raise ValueError("'x' should hold at least one modality, but is empty.")
        self.x = Batch.of(x)
        size = len(next(iter(x.values())))
        if observed is not None and (observed.dtype != torch.bool or len(observed) != size):
            raise ValueError(
                f"'observed' should be boolean, with one row per sample ({size}), but has dtype "
                f"{observed.dtype} and shape {tuple(observed.shape)}."
            )
        self.observed = observed
        self.truth = {**self.x, **(truth or {})}
        for m, entries in self.truth.items():
            if len(entries) != size:
                raise ValueError(
                    f"'truth' should have one row per sample ({size}), but has {len(entries)} for "
                    f"{m!r}."
                )
        self.valid = dict(valid_of(x) if valid is None else valid)
        for m, inside in self.valid.items():
            check_valid(inside, self.truth[m].shape if m in x else None, m)
        self.cases = torch.arange(size) if cases is None else torch.as_tensor(cases).cpu()
        if self.cases.shape != (size,) or self.cases.is_floating_point():
            raise ValueError(
                f"'cases' should hold a whole number for each sample ({size}), but has dtype "
                f"{self.cases.dtype} and shape {tuple(self.cases.shape)}."
            )

    def __len__(self) -> int:
        return len(self.cases)

    def inside(self, modality: str, rows: Tensor) -> Tensor | None:
        r"""The elements of some samples to compare, with shape (n, \*); all if None."""
        if modality not in self.valid or modality not in self.x:
            return None
        return self.valid[modality].broadcast_to(self.truth[modality].shape)[rows]
