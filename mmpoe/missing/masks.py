r"""Masks over modalities."""

from __future__ import annotations

__all__ = ["as_mask"]

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import check_names


def as_mask(
    given: Tensor | Sequence[str], modalities: Sequence[str], batch_size: int | None = None
) -> Tensor:
    r"""Returns a mask over modalities, from names or from a mask that is checked.

    It reads no data: :func:`collate` and :func:`from_nan` tell what samples have.

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


def fill(x: Tensor, observed: Tensor) -> Tensor:
    """Replaces the rows that were not observed by zeros.

    Arguments:
        x: One modality, with shape :math:`(B, *)`.
        observed: Its column of the mask, boolean, with shape :math:`(B)`.
    """
    return torch.where(observed.reshape(-1, *(1,) * (x.dim() - 1)), x, 0)
