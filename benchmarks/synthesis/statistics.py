r"""Comparisons of systems on the same patients: the best one, and those that are tied with it.

The unit is the patient. Tests are two-sided Wilcoxon signed-rank tests with Bonferroni's
correction for the systems that are compared; the effect is the matched-pairs rank-biserial
correlation

.. math:: r = \frac{\sum_{d_n > 0} R_n - \sum_{d_n < 0} R_n}{\sum_n R_n}

with the ranks :math:`R_n` of the absolute differences :math:`|d_n|` that are not 0: 1 if a system
is better on every patient, -1 if on none.
"""

from __future__ import annotations

__all__ = ["ALPHA", "Difference", "Standing", "compare", "mean_ranks", "standing", "testable"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05
"""The level of corrected p-values: stricter than the published 0.01 where a tie is a success."""


@dataclass(frozen=True)
class Difference:
    """A system beside another one."""

    median: float
    """The median over patients of the first minus the second."""
    effect: float
    """The rank-biserial correlation, above 0 where the first is better."""
    p: float
    """Not corrected."""


@dataclass(frozen=True)
class Standing:
    """The systems of one cell."""

    best: str
    """The one with the best mean."""
    tied: tuple[str, ...]
    """It, and those that are not significantly worse."""
    uncorrected: tuple[str, ...]
    """The same without Bonferroni's correction, which is fewer."""


def compare(value: np.ndarray, other: np.ndarray, *, higher: bool) -> Difference:
    """Compares two systems on the same patients.

    Arguments:
        value: The scores of the first one, one for each patient.
        other: Those of the second one.
        higher: Whether higher is better.
    """
    change = value - other
    some = change[change != 0]
    if not len(some):
        return Difference(0.0, 0.0, 1.0)
    rank = stats.rankdata(abs(some))
    effect = float((rank * np.sign(some)).sum() / rank.sum())
    p = float(np.asarray(stats.wilcoxon(some))[1])
    return Difference(float(np.median(change)), effect if higher else -effect, p)


def standing(scores: Mapping[str, np.ndarray], *, higher: bool) -> Standing:
    """Returns which system has the best mean, and which are not significantly worse.

    Arguments:
        scores: For each system one score per patient.
        higher: Whether higher is better.
    """
    sign = 1 if higher else -1
    best = max(scores, key=lambda s: sign * scores[s].mean())
    p = {s: compare(scores[s], scores[best], higher=higher).p for s in scores}
    count = len(scores) - 1
    return Standing(
        best,
        tuple(s for s in scores if s == best or min(1.0, count * p[s]) >= ALPHA),
        tuple(s for s in scores if s == best or p[s] >= ALPHA),
    )


def testable(patients: int, systems: int) -> bool:
    """Returns whether any outcome could be significant, after the correction.

    Arguments:
        patients: The number of patients.
        systems: The number of systems.
    """
    return (systems - 1) * 2.0 ** (1 - patients) < ALPHA


def mean_ranks(
    cells: Sequence[Mapping[str, np.ndarray]], *, higher: bool
) -> dict[str, np.ndarray]:
    """Returns the rank of each system for each patient, averaged over cells; 1 is the best.

    Arguments:
        cells: For each cell the scores of the same systems, one per patient.
        higher: Whether higher is better.
    """
    names = list(cells[0])
    values = np.array([[cell[name] for name in names] for cell in cells])  # (cells, systems, N)
    ranks = stats.rankdata(-values if higher else values, axis=1).mean(axis=0)
    return dict(zip(names, ranks, strict=True))
