r"""Checks of what an oracle is made from and asked."""

from __future__ import annotations

__all__ = ["check_covariance", "check_diagonal", "check_shape", "read"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmpoe.missing import as_mask, check_finite, check_names, fill


def read(
    x: Mapping[str, Tensor], given: Tensor | Sequence[str], sizes: Mapping[str, int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the mask of what is given, and all entries, with zeros where they are not.

    Arguments:
        x: The batch.
        given: A mask, or the names of some modalities.
        sizes: The number of dimensions of each modality.
    """
    modalities = list(sizes)
    check_names(list(x), modalities, argument="x")
    mask = as_mask(given, modalities, next((len(v) for v in x.values()), None))
    mask = mask.unsqueeze(0) if mask.dim() == 1 else mask  # (B, M) or (S, B, M)
    needed = mask if mask.dim() == 2 else mask.any(dim=0)  # (B, M)

    entries = {}
    for column, (m, size) in enumerate(sizes.items()):
        shape, seen = (len(needed), size), needed[:, column]
        if m in x:
            check_shape(f"x[{m!r}]", x[m], shape)
            check_finite(x[m], seen, m)
            entries[m] = fill(x[m], seen).double()
        elif bool(seen.any()):
            raise ValueError(
                f"'x' should hold {m!r}, which is asked about, "
                f"but holds {', '.join(x) or 'nothing'}."
            )
        else:
            entries[m] = torch.zeros(shape, dtype=torch.float64)
    return mask, entries


def check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raises a ValueError unless a tensor has the shape that it should have."""
    if value.shape != shape:
        raise ValueError(
            f"'{name}' should have shape {shape}, but has shape {tuple(value.shape)}."
        )


def check_covariance(name: str, value: Tensor, size: int) -> None:
    """Raises a ValueError unless a matrix is a covariance of `size` dimensions."""
    check_shape(name, value, (size, size))
    if not torch.allclose(value, value.T) or torch.linalg.cholesky_ex(value).info > 0:
        raise ValueError(
            f"'{name}' should be symmetric and positive definite, but is {value.tolist()}."
        )


def check_diagonal(information: Mapping[str, Tensor]) -> None:
    """Raises a ValueError unless the information matrices are diagonal, to rounding."""
    for m, matrix in information.items():
        off = (matrix - matrix.diagonal().diag()).abs().max()
        if off > 1e-12 * matrix.diagonal().max():
            raise ValueError(
                "'weight' and 'covariance' should make W' Psi^-1 W diagonal, so that experts are, "
                f"but that of {m!r} is {matrix.tolist()}."
            )
