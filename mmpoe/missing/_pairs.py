"""Pairs of a sample of a batch and a subset of its modalities, the form that inference takes."""

from __future__ import annotations

__all__ = ["Pairs"]

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Pairs of a sample of a batch and a subset of its modalities.

    All ways to ask for several subsets come down to this one: a mask of shape (B, M) is one pair
    for each sample, and one of shape (S, B, M) is S pairs for each.
    """

    given: Tensor
    """The subsets, boolean, with shape (R, M)."""
    rows: Tensor | None = None
    """The sample of each pair, with shape (R); None if pair r is about sample r."""

    @classmethod
    def of(cls, given: Tensor, rows: Tensor | None = None) -> Pairs:
        """Returns the pairs of a mask of shape (B, M) or (S, B, M), or (R, M) with rows (R)."""
        if given.dim() == 2:
            return cls(given, rows)
        number, size = given.shape[:2]
        if rows is None:
            rows = torch.arange(size, device=given.device)
        return cls(given.flatten(0, 1), rows.repeat(number))

    def needed(self, size: int) -> Tensor:
        """Returns what some pair of each of B samples is given, boolean, with shape (B, M)."""
        if self.rows is None:
            return self.given
        counts = self.given.new_zeros((size, self.given.shape[1]), dtype=torch.long)
        return counts.index_add(0, self.rows, self.given.long()) > 0
