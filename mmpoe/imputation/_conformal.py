"""The conformal quantile: how wide intervals have to be to hold new cases."""

from __future__ import annotations

__all__ = ["conformal_rank", "conformal_width", "fewest_cases"]

import math

import torch
from torch import Tensor

SLACK = 1e-9
"""How much of a case rounding may take: 0.9 times 10 is 9, whatever the last digit says."""


def fewest_cases(coverage: float) -> int:
    """Returns how many cases it takes for an interval of some coverage to be finite.

    Example:
        >>> fewest_cases(0.9), fewest_cases(0.5)
        (9, 1)
    """
    return math.ceil(coverage / (1 - coverage) - SLACK)


def conformal_rank(count: int, coverage: float) -> int:
    """Returns the rank, from 1, of the score that a new one is below with some probability.

    It is more than `count` if there are too few scores to tell.

    Arguments:
        count: The number of scores.
        coverage: The probability.

    Example:
        >>> conformal_rank(19, 0.9), conformal_rank(8, 0.9)
        (18, 9)
    """
    return math.ceil((count + 1) * coverage - SLACK)


def conformal_width(scores: Tensor, cases: Tensor, coverage: float) -> float:
    r"""Returns the smallest width whose intervals hold a share of a new case's elements.

    .. math::
        \min \Big\{ q : \frac{1}{n + 1} \Big( 1 + \sum_{i \le n}
        \frac{\#\{j : s_{ij} > q\}}{n_i} \Big) \le 1 - c \Big\}

    If the new case is exchangeable with the n that are known, its share of elements within q is
    at least c in expectation. With one score for each case, q is the score of rank
    :func:`conformal_rank`.

    Arguments:
        scores: The scores :math:`s_{ij}`, with shape (N, \*); NaN where there is none.
        cases: The case of each row, whole numbers, with shape (N).
        coverage: The share :math:`c`.

    Returns:
        The width, infinite if there are fewer than :func:`fewest_cases`.

    References:
        | Conformal Risk Control (Angelopoulos et al., 2024)
        | https://arxiv.org/abs/2208.02814
    """
    if scores.numel() == 0:
        return math.inf
    scores = scores.reshape(len(scores), -1)
    there = ~scores.isnan()
    _, case = cases.unique(return_inverse=True)
    counts = torch.zeros(len(case), dtype=torch.float64, device=scores.device)
    counts = counts.index_add(0, case, there.sum(dim=1).double())
    weight = (1 / counts)[case][:, None].expand(scores.shape)[there]
    budget = (int((counts > 0).sum()) + 1) * (1 - coverage) - 1 + SLACK
    if budget < 0 or weight.numel() == 0:
        return math.inf
    ordered, order = scores[there].sort()
    above = weight.sum() - weight[order].cumsum(dim=0)  # beyond each score
    last = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])
    return float(ordered[last & (above <= budget)][0])
