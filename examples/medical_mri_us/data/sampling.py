"""Batches of samples that are drawn in proportion to weights, any of them at once."""

from __future__ import annotations

__all__ = ["WeightedBatches"]

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler


class WeightedBatches(Sampler[list[tuple[int, int]]]):
    r"""A batch sampler: indices drawn with replacement, each with a seed for its augmentation.

    Index :math:`i` is drawn with probability :math:`w_i / \sum_j w_j`, by looking a uniform number
    up among the cumulative sums of the weights. A pass draws one number from the generator of
    PyTorch; batch :math:`k` is a function of that number and :math:`k` alone, so that `skip` takes
    no longer for many batches than for few. Neither the order nor the augmentation depends on how
    many processes load the samples.

    Arguments:
        weights: The weights, one for each sample, any number of them.
        batch: The number of samples in a batch.
        number: The number of batches in a pass.

    Raises:
        ValueError: If `weights` is no list of finite numbers of at least 0 with one above 0.
    """

    def __init__(self, weights: npt.ArrayLike, batch: int, number: int) -> None:
        weights = np.asarray(weights, np.float64)
        if weights.ndim != 1 or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(
                "'weights' should be a list of finite numbers of at least 0, but has shape "
                f"{weights.shape} and lies in {weights.min(initial=0):g} to "
                f"{weights.max(initial=0):g}."
            )
        if not weights.any():
            raise ValueError("'weights' should have an entry above 0, but has none.")
        self.batch, self.number = batch, number
        self._sums = weights.cumsum()
        self._last = int(weights.nonzero()[0][-1])

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.skip(0)

    def skip(self, number: int) -> Iterator[list[tuple[int, int]]]:
        """Returns the batches of a pass behind its first `number`."""
        seed = int(torch.randint(2**62, ()))  # when the first batch is asked for
        for k in range(number, self.number):
            yield self._draw(np.random.default_rng([seed, k]))

    def _draw(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        found = self._sums.searchsorted(rng.random(self.batch) * self._sums[-1], side="right")
        found = np.minimum(found, self._last)  # where rounding reaches the whole sum
        seeds = rng.integers(2**62, size=self.batch)
        return list(zip(found.tolist(), seeds.tolist(), strict=True))
