r"""Means with their standard errors, and paired tests between systems.

The unit is the independent case, such as a patient: scores of slices or elements of one case vary
together, so they are averaged before anything is tested.
"""

from __future__ import annotations

__all__ = ["mean_with_error", "paired_table", "per_case"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Mean:
    """A mean over samples."""

    mean: float
    """The mean."""
    error: float
    """Its standard error; NaN for fewer than two samples."""
    n: int
    """The number of samples that were scored."""


@dataclass(frozen=True)
class Comparison:
    """A system beside the reference."""

    system: str
    """The name of the system."""
    mean: float
    """The mean score over the compared cases."""
    sd: float
    """The standard deviation of the score over the compared cases; NaN for a single one."""
    difference: float
    """The median over cases of the system's score minus the reference's."""
    p: float
    """The p-value of the two-sided test."""
    corrected: float
    """The p-value, corrected for the number of systems compared."""
    significant: bool
    """Whether the corrected p-value is below the level of the table."""
    better: bool
    """Whether the tested difference is in favour of the system, significant or not."""
    n: int
    """The number of cases compared."""
    dropped: int
    """The number of cases left out, because the system or the reference has no score there."""


@dataclass(frozen=True)
class PairedTable:
    """Systems compared with a reference on the same cases."""

    reference: str
    """The name of the reference."""
    mean: float
    """The mean score of the reference over the cases that it has a score for."""
    sd: float
    """The standard deviation of the score of the reference over these cases."""
    n: int
    """The number of these cases."""
    rows: tuple[Comparison, ...]
    """The other systems."""
    alpha: float
    """The level below which a corrected p-value is significant."""

    def markdown(self, digits: int = 3) -> str:
        """Formats the table, the reference first.

        Arguments:
            digits: The number of decimals of means and differences.

        Returns:
            A Markdown table, with the test in a line below.
        """
        lines = [
            "| system | mean ± sd | median difference | p | corrected p | verdict | n |",
            "|---|---|---|---|---|---|---|",
            f"| {_cell(self.reference)} (reference) "
            f"| {self.mean:.{digits}f} ± {self.sd:.{digits}f} | | | | | {self.n} |",
        ]
        for row in self.rows:
            verdict = ("better" if row.better else "worse") if row.significant else "not different"
            dropped = f" ({row.dropped} dropped)" if row.dropped else ""
            lines.append(
                f"| {_cell(row.system)} | {row.mean:.{digits}f} ± {row.sd:.{digits}f} "
                f"| {row.difference:+.{digits}f} | {row.p:.2g} | {row.corrected:.2g} "
                f"| {verdict} | {row.n}{dropped} |"
            )
        several = "comparisons" if len(self.rows) > 1 else "comparison"
        test = (
            "Wilcoxon signed-rank test, two-sided, Bonferroni-corrected for "
            f"{len(self.rows)} {several}, p < {self.alpha:g}."
        )
        return "\n".join([*lines, "", test])


def mean_with_error(scores: ArrayLike) -> Mean:
    r"""Averages scores over samples, with the standard error of the mean.

    .. math::
        \bar{s} = \frac{1}{N} \sum_n s_n, \qquad
        \mathrm{se} = \sqrt{\frac{\sum_n (s_n - \bar{s})^2}{N (N - 1)}}

    Several scores of one sample are averaged first: they are not independent. Log-likelihoods, in
    nats per sample, become bits per dimension when divided by :math:`-D \log 2`.

    Arguments:
        scores: The scores, with shape :math:`(N, *)`; NaN is not scored.

    Returns:
        An object with the fields ``mean``, ``error``, its standard error (NaN for fewer than two
        samples), and ``n``, the number of samples with a score.

    Raises:
        ValueError: If there is no dimension of samples.

    Example:
        >>> mean_with_error(torch.tensor([-3.0, -1.0, float("nan"), -2.0]))
        Mean(mean=-2.0, error=0.5773502691896258, n=3)
    """
    values = _tensor(scores)
    if values.dim() == 0:
        raise ValueError("'scores' should have shape (N, *), but has shape ().")
    if values.dim() > 1:
        values = values.flatten(1).nanmean(dim=1)  # (N)
    values = values[~values.isnan()]
    mean, sd = _moments(values)
    return Mean(mean, sd / math.sqrt(max(len(values), 1)), len(values))


def per_case(scores: ArrayLike, cases: Sequence[Any] | ArrayLike) -> Tensor:
    r"""Averages the scores of each case, for instance of the slices of each patient.

    Arguments:
        scores: The scores, with shape :math:`(N)`, or :math:`(N, C)` or more, as those of images
            with C channels, whose mean over all but the first dimension is the score; NaN is not
            scored.
        cases: The case of each score: :math:`N` numbers or names.

    Returns:
        The mean score of each case, float64, in the sorted order of the cases, which is the same
        for all systems; NaN for a case without a score.

    Raises:
        ValueError: If there is not one case per score.

    Example:
        >>> per_case([1.0, 2.0, 5.0], ["p2", "p2", "p1"])
        tensor([5.0000, 1.5000], dtype=torch.float64)
    """
    import numpy as np

    values = _tensor(scores)
    names = cases.cpu().numpy() if isinstance(cases, Tensor) else np.asarray(cases)
    if values.dim() == 0 or names.shape != values.shape[:1]:
        raise ValueError(
            "'scores' should have shape (N) or (N, *), and 'cases' shape (N), "
            f"but have shapes {tuple(values.shape)} and {names.shape}."
        )
    values = values.flatten(1).nanmean(dim=1) if values.dim() > 1 else values
    found, case = np.unique(names, return_inverse=True)
    scored = ~values.isnan()
    case, values = torch.from_numpy(case)[scored], values[scored]
    total = torch.bincount(case, values, minlength=len(found))  # (C)
    return total / torch.bincount(case, minlength=len(found))


def paired_table(
    scores: Mapping[str, ArrayLike],
    *,
    reference: str,
    alpha: float = 0.01,
    higher_is_better: bool = True,
) -> PairedTable:
    r"""Tests every system against a reference, on the cases that both have a score for.

    The test is Wilcoxon's signed-rank test, two-sided, of SciPy. It leaves out cases without a
    difference and is exact for few cases; if no case differs, :math:`p = 1`. Comparing :math:`m`
    systems, p-values are corrected as by Bonferroni, :math:`\min(1, m p)`.

    Arguments:
        scores: For each system, one score per independent case, with shape :math:`(N)`, cases in
            the same order (see :func:`per_case`). NaN is no score.
        reference: The name of the system to compare the others with.
        alpha: The level below which a corrected p-value is significant.
        higher_is_better: Whether higher scores are better.

    Returns:
        The table, which ``markdown(digits=3)`` formats. Its fields are ``reference``; the ``mean``
        and standard deviation ``sd`` of the reference over its ``n`` cases; ``alpha``; and
        ``rows``, one for each other system. The fields of a row are ``system``, its name; the
        ``mean`` and ``sd`` of its score over the ``n`` cases compared; ``difference``, the median
        over these of its score minus that of the reference; the p-values ``p`` and ``corrected``;
        ``significant``, whether the latter is below `alpha`; ``better``, whether the tested
        difference is in its favour; and ``dropped``, the number of cases left out because either
        has no score.

    Raises:
        ValueError: If scores are infinite or differ in shape, a name is unknown, there is nothing
            to compare, or so few pairs of scores that no outcome could be significant.

    References:
        | Individual Comparisons by Ranking Methods (Wilcoxon, 1945)
        | https://doi.org/10.2307/3001968

    Example:
        >>> base = torch.arange(12.0)
        >>> scores = {"mean": base, "ours": base + 1 + 0.1 * base}
        >>> paired_table(scores, reference="mean").rows[0].p
        0.00048828125
    """
    if not 0 < alpha < 1:
        raise ValueError(f"'alpha' should be between 0 and 1, but is {alpha!r}.")
    if reference not in scores or len(scores) < 2:
        raise ValueError(
            "'scores' should hold the reference and another system, "
            f"but holds {', '.join(scores) or 'none'}, and 'reference' is {reference!r}."
        )
    values = _check_scores(scores)
    base = values.pop(reference)

    rows = []
    for system, score in values.items():
        both = ~(score.isnan() | base.isnan())
        value, other = score[both], base[both]
        p, sign = _signed_rank_test(system, value, other, alpha / len(values))
        corrected = min(1.0, len(values) * p)
        mean, sd = _moments(value)
        rows.append(
            Comparison(
                system=system,
                mean=mean,
                sd=sd,
                difference=(value - other).quantile(0.5).item(),
                p=p,
                corrected=corrected,
                significant=corrected < alpha,
                better=sign > 0 if higher_is_better else sign < 0,
                n=len(value),
                dropped=len(base) - len(value),
            )
        )
    base = base[~base.isnan()]
    mean, sd = _moments(base)
    return PairedTable(reference, mean, sd, len(base), tuple(rows), alpha)


def _signed_rank_test(
    system: str, value: Tensor, other: Tensor, smallest: float
) -> tuple[float, float]:
    """The two-sided p-value, and a number with the sign of the tested difference."""
    import numpy as np
    from scipy import stats

    needed = math.floor(1 - math.log2(smallest)) + 1
    if len(value) < needed:
        raise ValueError(
            f"'scores' should hold at least {needed} cases that both systems have a score for, "
            f"or no outcome could be significant, but {system!r} has {len(value)}. "
            "Add cases, or choose a larger 'alpha'."
        )
    change = (value - other).numpy()
    change = change[change != 0]
    if len(change) == 0:
        return 1.0, 0.0
    rank = stats.rankdata(abs(change))
    p = np.asarray(stats.wilcoxon(change))[1]
    return float(p), float(rank[change > 0].sum() - rank[change < 0].sum())


def _check_scores(scores: Mapping[str, ArrayLike]) -> dict[str, Tensor]:
    values = {system: _tensor(value) for system, value in scores.items()}
    shapes = sorted({tuple(value.shape) for value in values.values()})
    if len(shapes) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            "'scores' should hold one score per case, with the same shape (N) for all systems, "
            f"but holds shapes {', '.join(map(str, shapes))}."
        )
    for system, value in values.items():
        if bool(value.isinf().any()):
            raise ValueError(f"'scores' should be finite or NaN, but {system!r} holds infinity.")
    return values


def _moments(values: Tensor) -> tuple[float, float]:
    mean = values.mean().item() if len(values) else math.nan
    return mean, values.std().item() if len(values) > 1 else math.nan


def _tensor(values: ArrayLike) -> Tensor:
    return torch.as_tensor(values).detach().cpu().double()


def _cell(name: str) -> str:
    return name.replace("|", "\\|")
