"""The imputer of mmpoe, as the comparison asks it for predictions."""

from __future__ import annotations

__all__ = ["OURS", "Ours"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmpoe import MultimodalImputer

from .data import Groups
from .opponents import Method
from .predictions import Prediction

OURS = "mmpoe"
"""The name in tables."""


class Ours(Method):
    """The imputer with its defaults: it chooses what it has to on rows of its own.

    Arguments:
        networks: The number of its networks.
    """

    fills_cells = True

    def __init__(self, networks: int) -> None:
        super().__init__()
        self.networks = networks
        self.asked: tuple[Groups, Any] | None = None

    def fit(self, groups: Groups, seed: int) -> None:
        """Learns."""
        self.imputer = MultimodalImputer(networks=self.networks, random_state=seed).fit(groups)

    def predict(self, groups: Groups, given: Sequence[str], target: str) -> Prediction:
        """Predicts a modality, or what it lacks."""
        size = groups[target].shape[1]
        if target not in given:
            p = self.imputer.predict_distribution(groups, given=list(given), target=target)
            return Predicted(p, slice(0, size), size)
        before = sum(groups[name].shape[1] for name in list(groups)[: list(groups).index(target)])
        total = sum(x.shape[1] for x in groups.values())
        if self.asked is None or self.asked[0] is not groups:  # once for all targets
            self.asked = groups, self.imputer.predict_distribution(groups)
        return Predicted(self.asked[1], slice(before, before + size), total)


@dataclass(frozen=True)
class Predicted:
    """Some columns of a distribution that the imputer predicts."""

    distribution: Any
    columns: slice
    total: int
    """The number of columns of the distribution."""

    @property
    def mean(self) -> np.ndarray:
        """The means, (n, d)."""
        return self.distribution.mean[:, self.columns]

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Returns the log-density of each cell, (n, d)."""
        return self.distribution.log_prob(self._among_all(x))[:, self.columns]

    def crps(self, x: np.ndarray) -> np.ndarray:
        """Returns the continuous ranked probability score of each cell, (n, d)."""
        return self.distribution.crps(self._among_all(x))[:, self.columns]

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ends of intervals."""
        low, high = self.distribution.interval(level)
        return low[:, self.columns], high[:, self.columns]

    def log_joint(self, x: np.ndarray) -> np.ndarray | None:
        """Returns the log-density of each row, (n): of the cells that are not NaN."""
        return self.distribution.log_prob_joint(self._among_all(x))

    def _among_all(self, x: np.ndarray) -> np.ndarray:
        values = np.full((len(x), self.total), np.nan)
        values[:, self.columns] = x
        return values
