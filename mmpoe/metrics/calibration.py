r"""Calibration: scores of the spread of draws against the truth.

Draws are :math:`K` whole predictions per sample, likelihood noise included: the spread of decoder
means alone is no predictive distribution. Per-element scores see marginals only. Whether the
elements vary *together* as they should is seen by :func:`energy_score`, and by the coverage of
linear functionals (:func:`project`).
"""

from __future__ import annotations

__all__ = [
    "coverage",
    "crps",
    "energy_score",
    "linear_functionals",
    "project",
    "rank_histogram",
]

import math

import torch
from torch import Generator, Tensor

from mmpoe.gaussian import widen


def coverage(
    draws: Tensor, truth: Tensor, level: float = 0.9, *, mask: Tensor | None = None
) -> Tensor:
    r"""Returns whether the central interval of the draws covers the truth.

    .. math::
        C = \frac{1}{t + 1} \left| [r, r + t + 1]
        \cap \left[ \frac{1 - c}{2} (K + 1), \frac{1 + c}{2} (K + 1) \right] \right|,
        \qquad r = \#\{k : x_k < y\}, \quad t = \#\{k : x_k = y\}

    It is 1 where the rank :math:`r` of the truth among the draws is central, 0 where it is not,
    and in between for a rank on the border, which belongs to the interval in part; tied ranks
    share. If draws and truth are exchangeable, the expected value is therefore exactly the level
    :math:`c`, for any number of draws and any distribution.

    The interval between interpolated quantiles of the draws (the default of
    :func:`torch.quantile`) is narrower. It covers a uniform truth with probability
    :math:`c \, (K - 1) / (K + 1)`, and other distributions nearly so: 0.882 instead of 0.9 for
    :math:`K = 100`.

    Arguments:
        draws: The draws :math:`x_k`, with shape :math:`(K, B, *)`.
        truth: The truth :math:`y`, with shape :math:`(B, *)`.
        level: The nominal coverage :math:`c`, between 0 and 1.
        mask: What to score, boolean, broadcastable to :math:`(B, *)`; all if None.

    Returns:
        One number between 0 and 1 per element, with shape :math:`(B, *)`; NaN where `mask` is
        False. Average it with ``nanmean`` or :func:`mean_with_error`.

    Raises:
        ValueError: If the shapes do not agree, what is scored is not finite, or `level` is not
            between 0 and 1.

    References:
        | Predictive Model Assessment for Count Data (Czado et al., 2009)
        | https://doi.org/10.1111/j.1541-0420.2009.01191.x

    Example:
        >>> draws = torch.arange(1.0, 20.0)[:, None]  # 19 draws for one sample
        >>> [coverage(draws, torch.tensor([y])).item() for y in (0.5, 1.5, 19.5)]
        [0.0, 1.0, 0.0]
    """
    if not 0 < level < 1:
        raise ValueError(f"'level' should be between 0 and 1, but is {level!r}.")
    draws, truth, scored = _scored(draws, truth, mask, least=1)
    covered = _rank_share(draws, truth, (1 - level) / 2, (1 + level) / 2)
    return torch.where(scored, covered, torch.nan)


def rank_histogram(
    draws: Tensor, truth: Tensor, bins: int = 10, *, mask: Tensor | None = None
) -> Tensor:
    r"""Returns the histogram of the rank of the truth among the draws (PIT histogram).

    The position of the truth is :math:`u = (r + v) / (K + 1)` with its rank :math:`r` and a
    uniform :math:`v`, which is integrated out. If draws and truth are exchangeable, every bin is
    expected to hold :math:`1 / \mathrm{bins}`. Draws that spread too little make a U, draws that
    spread too much a hump, and a bias makes a slope.

    Arguments:
        draws: The draws, with shape :math:`(K, B, *)`.
        truth: The truth, with shape :math:`(B, *)`.
        bins: The number of bins of equal width.
        mask: What to score, boolean, broadcastable to :math:`(B, *)`; all if None.

    Returns:
        The share of the scored elements in each bin, with shape :math:`(\mathrm{bins})`, adding to
        1; NaN if nothing is scored.

    Raises:
        ValueError: If the shapes do not agree, what is scored is not finite, or `bins` is not
            positive.

    References:
        | Predictive Model Assessment for Count Data (Czado et al., 2009)
        | https://doi.org/10.1111/j.1541-0420.2009.01191.x

    Example:
        >>> draws = torch.tensor([[1.0], [2.0], [3.0]])
        >>> rank_histogram(draws, torch.tensor([1.5]), bins=2)
        tensor([1., 0.])
    """
    if bins < 1:
        raise ValueError(f"'bins' should be positive, but is {bins}.")
    draws, truth, scored = _scored(draws, truth, mask, least=1)
    draws, truth = draws[:, scored], truth[scored]  # (K, N), (N)
    shares = [_rank_share(draws, truth, b / bins, (b + 1) / bins) for b in range(bins)]
    return torch.stack(shares).mean(dim=1)


def crps(draws: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Estimates the continuous ranked probability score of each element, lower is better.

    .. math::
        \frac{1}{K} \sum_k |x_k - y| - \frac{1}{2 K (K - 1)} \sum_{k, l} |x_k - x_l|

    This is the fair version: for independent draws from :math:`F`, its expectation is
    :math:`\mathbb{E} |X - y| - \frac{1}{2} \mathbb{E} |X - X'|`, the score of :math:`F` itself,
    whatever the number of draws. Single values can be negative. It takes :math:`O(K \log K)`.

    Arguments:
        draws: The draws :math:`x_k`, with shape :math:`(K, B, *)`, :math:`K \ge 2`.
        truth: The truth :math:`y`, with shape :math:`(B, *)`.
        mask: What to score, boolean, broadcastable to :math:`(B, *)`; all if None.

    Returns:
        The score, in the units of the truth, with shape :math:`(B, *)`; NaN where `mask` is False.

    Raises:
        ValueError: If the shapes do not agree, what is scored is not finite, or there are fewer
            than two draws.

    References:
        | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting & Raftery, 2007)
        | https://doi.org/10.1198/016214506000001437
        | Fair Scores for Ensemble Forecasts (Ferro, 2014)
        | https://doi.org/10.1002/qj.2270

    Example:
        >>> crps(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0]))
        tensor([0.])
    """
    draws, truth, scored = _scored(draws, truth, mask, least=2)
    error = draws - truth  # (K, B, *), so that a common offset does not cancel
    count = len(error)

    # sum over pairs of |x_k - x_l| = 2 sum_i (2i - K - 1) x_(i), of the sorted draws
    rank = torch.arange(1, count + 1, dtype=error.dtype, device=error.device)
    weight = (2 * rank - count - 1) / (count * (count - 1))  # (K)
    spread = torch.tensordot(weight, error.sort(dim=0).values, dims=1)  # (B, *)
    return torch.where(scored, error.abs().mean(dim=0) - spread, torch.nan)


def energy_score(draws: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Estimates the energy score of each sample, lower is better.

    .. math::
        \frac{1}{K} \sum_k \| x_k - y \| - \frac{1}{2 K (K - 1)} \sum_{k, l} \| x_k - x_l \|

    The multivariate :func:`crps`, with Euclidean norms over all elements of a sample that are
    scored; fair in the same way. Unlike averages of per-element scores, it is worse for draws
    whose elements vary together too little or too much. It takes :math:`O(K^2)` per element.

    Arguments:
        draws: The draws :math:`x_k`, with shape :math:`(K, B, *)`, :math:`K \ge 2`.
        truth: The truth :math:`y`, with shape :math:`(B, *)`.
        mask: What to score, boolean, broadcastable to :math:`(B, *)`; all if None. Scores over
            different numbers of elements are not comparable: they grow with that number.

    Returns:
        The score, in the units of the truth, with shape :math:`(B)`; NaN where no element of a
        sample is scored.

    Raises:
        ValueError: If the shapes do not agree, what is scored is not finite, or there are fewer
            than two draws.

    References:
        | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting & Raftery, 2007)
        | https://doi.org/10.1198/016214506000001437

    Example:
        >>> draws = torch.tensor([[[0.0, 0.0]], [[6.0, 8.0]]])
        >>> energy_score(draws, torch.tensor([[3.0, 4.0]]))
        tensor([0.])
    """
    draws, truth, scored = _scored(draws, truth, mask, least=2)
    count, batch, size = len(draws), len(truth), math.prod(truth.shape[1:])
    error = (draws - truth).reshape(count, batch, size).transpose(0, 1)  # (B, K, D)

    distance = torch.cdist(error, error, compute_mode="donot_use_mm_for_euclid_dist")  # (B, K, K)
    spread = distance.sum(dim=(1, 2)) / (2 * count * (count - 1))  # (B)
    score = torch.linalg.vector_norm(error, dim=2).mean(dim=1) - spread
    return torch.where(scored.reshape(batch, size).any(dim=1), score, torch.nan)


def project(x: Tensor, functionals: Tensor) -> Tensor:
    r"""Applies linear functionals to draws or truth, for scores of how elements vary together.

    .. math:: a_f = \sum_d w_{f d} \, x_d

    ``coverage(project(draws, w), project(truth, w))`` is the coverage of each functional. Where
    elements of the truth are missing, a functional of them is unknown: leave such rows out of what
    is scored, with a mask of shape :math:`(B, 1)`.

    Arguments:
        x: Draws or truth, with shape :math:`(*, D)`, where :math:`D` stands for the shape of one
            sample.
        functionals: The weights :math:`w`, with shape :math:`(F, D)`.

    Returns:
        The values, with shape :math:`(*, F)`.

    Raises:
        ValueError: If the trailing dimensions do not agree.

    Example:
        >>> project(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        tensor([[ 3., -1.]])
    """
    shape = functionals.shape[1:]
    if functionals.dim() == 0 or x.shape[x.dim() - len(shape) :] != shape:
        raise ValueError(
            "'functionals' should have shape (F, D), with D as in the shape (*, D) of 'x', "
            f"{tuple(x.shape)}, but has shape {tuple(functionals.shape)}."
        )
    x = widen(x)
    flat = x.reshape(*x.shape[: x.dim() - len(shape)], math.prod(shape))  # (*, D)
    weight = functionals.to(flat).reshape(len(functionals), flat.shape[-1])  # (F, D)
    return flat @ weight.mT


def linear_functionals(
    residuals: Tensor, *, principal: int = 4, random: int = 8, generator: Generator | None = None
) -> Tensor:
    r"""Makes functionals to check joint structure with: principal axes and random projections.

    The first principal axes of the residuals are the directions in which predictions are most
    uncertain. Axes follow the noise of the residuals that they come from, so take these from other
    rows than those to score: along the first axis of 100 rows of 50 independent elements, a
    perfect prediction covers only 0.7 of the same rows at the level 0.9.

    Arguments:
        residuals: The truth minus the mean of the draws, with shape :math:`(N, D)`, where
            :math:`D` stands for the shape of one sample.
        principal: The number of principal axes, largest variance first.
        random: The number of directions that are uniform on the sphere.
        generator: The random generator, on the CPU; PyTorch's own if None.

    Returns:
        The functionals, of unit norm, with shape :math:`(F, D)`: first the principal axes, then
        the random directions.

    Raises:
        ValueError: If the residuals are not finite, or are too few for that many axes.

    Example:
        >>> residuals = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
        >>> linear_functionals(residuals, principal=1, random=0).abs()
        tensor([[0., 1.]])
    """
    residuals = widen(residuals)
    if residuals.dim() == 0 or not residuals.is_floating_point():
        raise ValueError(
            "'residuals' should be floating-point with shape (N, D), "
            f"but has shape {tuple(residuals.shape)} and dtype {residuals.dtype}."
        )
    if not bool(residuals.isfinite().all()):
        raise ValueError("'residuals' should be finite, but holds NaN or infinity.")
    shape = residuals.shape[1:]
    flat = residuals.reshape(len(residuals), math.prod(shape))  # (N, D)
    most = min(len(flat) - 1, flat.shape[1])
    if not 0 <= principal <= max(most, 0):
        raise ValueError(
            f"'principal' should be at most {max(most, 0)} for 'residuals' of shape "
            f"{tuple(residuals.shape)}, but is {principal}."
        )
    if random < 0:
        raise ValueError(f"'random' should not be negative, but is {random}.")

    noise = torch.randn(random, flat.shape[1], dtype=torch.float64, generator=generator)
    directions = [(noise / noise.norm(dim=1, keepdim=True)).to(flat)]
    if principal:
        axes = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False).Vh
        directions.insert(0, axes[:principal])
    return torch.cat(directions).reshape(principal + random, *shape)


def _rank_share(draws: Tensor, truth: Tensor, low: float, high: float) -> Tensor:
    """The share of the position of the truth among the draws that lies between two levels."""
    positions = len(draws) + 1
    first = (draws < truth).sum(dim=0).to(truth.dtype)
    last = (draws <= truth).sum(dim=0).to(truth.dtype) + 1
    inside = last.clamp(max=high * positions) - first.clamp(min=low * positions)
    return inside.clamp(min=0) / (last - first)


def _scored(
    draws: Tensor, truth: Tensor, mask: Tensor | None, least: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the arguments, and puts 0 where nothing is scored."""
    if truth.dim() == 0 or draws.dim() == 0 or draws.shape[1:] != truth.shape:
        raise ValueError(
            "'draws' and 'truth' should have shapes (K, B, *) and (B, *), "
            f"but have shapes {tuple(draws.shape)} and {tuple(truth.shape)}."
        )
    if not (draws.is_floating_point() and truth.is_floating_point()):
        raise ValueError(
            "'draws' and 'truth' should be floating-point, "
            f"but have dtypes {draws.dtype} and {truth.dtype}."
        )
    if len(draws) < least:
        raise ValueError(f"'draws' should hold at least {least} draws, but holds {len(draws)}.")
    scored = _check_mask(mask, truth)

    dtype = torch.promote_types(widen(draws).dtype, widen(truth).dtype)
    draws = torch.where(scored, draws.to(dtype), 0)
    truth = torch.where(scored, truth.to(dtype), 0)
    for name, values in (("draws", draws), ("truth", truth)):
        if not bool(values.isfinite().all()):
            raise ValueError(
                f"'{name}' should be finite wherever it is scored, but holds NaN or infinity. "
                "Leave such elements out with 'mask'."
            )
    return draws, truth, scored


def _check_mask(mask: Tensor | None, truth: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(truth, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise ValueError(f"'mask' should be boolean, but has dtype {mask.dtype}.")
    try:
        return mask.to(truth.device).broadcast_to(truth.shape)
    except RuntimeError:
        raise ValueError(
            f"'mask' should broadcast to the shape of 'truth', {tuple(truth.shape)}, "
            f"but has shape {tuple(mask.shape)}."
        ) from None
