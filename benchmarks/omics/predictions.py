r"""Predictions of modalities, and how they are scored.

A method of few words about its errors, a point prediction, gets a multivariate Student t of the
residuals that it leaves on rows it did not learn from: a scale for each column, a correlation that
is shrunk as Ledoit and Wolf do, and degrees of freedom that make the residuals likely.
"""

from __future__ import annotations

__all__ = ["LEVEL", "Gaussian", "Prediction", "Spread", "StudentT", "learn_spread", "scores"]

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import special, stats
from sklearn.covariance import LedoitWolf

LEVEL = 0.9
"""The probability of intervals."""
DEGREES = (3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0, 50.0, 200.0)
"""Degrees of freedom to choose from."""
LEAST_SHRINKAGE = 0.05
"""The least share of the identity in a correlation."""
PULL = 10
"""The number of rows by which the variance of a column is drawn to that of its modality."""


class Prediction(Protocol):
    """A prediction of some cells, an array (n, d). Truths may be NaN, which nothing is said of."""

    @property
    def mean(self) -> np.ndarray:
        """The means, (n, d)."""
        ...

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Returns the log-density of each cell, (n, d)."""
        ...

    def crps(self, x: np.ndarray) -> np.ndarray:
        """Returns the continuous ranked probability score of each cell, (n, d)."""
        ...

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ends of central intervals."""
        ...

    def log_joint(self, x: np.ndarray) -> np.ndarray | None:
        """Returns the log-density of each row, (n), or None."""
        ...


@dataclass(frozen=True)
class Spread:
    """How far truths are from point predictions: a multivariate Student t."""

    scale: np.ndarray
    """The scale of each column, (d)."""
    df: float
    """The degrees of freedom of each column."""
    correlation: np.ndarray
    """The correlation of scaled residuals, (d, d)."""
    joint_df: float
    """The degrees of freedom of all columns together."""


@dataclass(frozen=True)
class StudentT:
    """Point predictions, and how far truths are from them."""

    mean: np.ndarray
    spread: Spread

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Returns the log-density of each cell, (n, d)."""
        scale = self.spread.scale
        return stats.t.logpdf((x - self.mean) / scale, self.spread.df) - np.log(scale)

    def crps(self, x: np.ndarray) -> np.ndarray:
        """Returns the continuous ranked probability score of each cell, (n, d)."""
        v, z = self.spread.df, (x - self.mean) / self.spread.scale
        beta = special.betaln(0.5, v - 0.5) - 2 * special.betaln(0.5, v / 2)
        own = 2 * np.sqrt(v) / (v - 1) * np.exp(beta)
        away = z * (2 * stats.t.cdf(z, v) - 1) + 2 * stats.t.pdf(z, v) * (v + z**2) / (v - 1)
        return self.spread.scale * (away - own)

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ends of central intervals."""
        half = stats.t.ppf((1 + level) / 2, self.spread.df) * self.spread.scale
        return self.mean - half, self.mean + half

    def log_joint(self, x: np.ndarray) -> np.ndarray | None:
        """Returns the log-density of each row, (n): of the cells that are not NaN."""
        s = self.spread
        # at the same variances as the columns have
        deviation = s.scale * _deviation(s.df) / _deviation(s.joint_df)
        return _log_t(x - self.mean, deviation, s.correlation, s.joint_df)


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of each row, which has factors: covariance W V W' and variances."""

    mean: np.ndarray
    weight: np.ndarray
    """W, (d, K)."""
    covariance: np.ndarray
    """V, (n, K, K)."""
    variance: np.ndarray
    """The variance that factors leave of each cell, (n, d)."""

    @property
    def scale(self) -> np.ndarray:
        """The standard deviations, (n, d)."""
        of_factors = np.einsum("dk,nkl,dl->nd", self.weight, self.covariance, self.weight)
        return np.sqrt(of_factors + self.variance)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Returns the log-density of each cell, (n, d)."""
        return stats.norm.logpdf(x, self.mean, self.scale)

    def crps(self, x: np.ndarray) -> np.ndarray:
        """Returns the continuous ranked probability score of each cell, (n, d)."""
        scale = self.scale
        z = (x - self.mean) / scale
        known = z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z)
        return scale * (known - 1 / np.sqrt(np.pi))

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ends of central intervals."""
        half = stats.norm.ppf((1 + level) / 2) * self.scale
        return self.mean - half, self.mean + half

    def log_joint(self, x: np.ndarray) -> np.ndarray | None:
        """Returns the log-density of each row, (n): of the cells that are not NaN."""
        # by the determinant and the inverse of a matrix of rank K and a diagonal
        seen = ~np.isnan(x)
        weighted = seen / self.variance  # (n, d)
        residual = np.nan_to_num(x - self.mean)
        inner = np.linalg.inv(self.covariance)
        factors = self.weight.shape[1]
        outer = (self.weight[:, :, None] * self.weight[:, None, :]).reshape(-1, factors**2)
        inner = inner + (weighted @ outer).reshape(-1, factors, factors)  # (n, K, K)
        pull = (weighted * residual) @ self.weight  # (n, K)
        along = np.einsum("nk,nk->n", pull, np.linalg.solve(inner, pull[..., None])[..., 0])
        square = (weighted * residual**2).sum(axis=1) - along
        log_det = np.where(seen, np.log(self.variance), 0).sum(axis=1)
        log_det += np.linalg.slogdet(inner)[1] + np.linalg.slogdet(self.covariance)[1]
        return -0.5 * (square + log_det + seen.sum(axis=1) * np.log(2 * np.pi))


def learn_spread(residuals: np.ndarray) -> Spread:
    """Returns how residuals are distributed.

    Arguments:
        residuals: What predictions missed the truth by, (n, d), on rows they did not learn from.
            Those that are unknown are NaN.
    """
    counts = (~np.isnan(residuals)).sum(axis=0)
    squares = np.nansum(residuals**2, axis=0)
    everywhere = squares.sum() / counts.sum()
    scale = np.sqrt((squares + PULL * everywhere) / (counts + PULL))
    z = residuals / scale
    df = max(DEGREES, key=lambda v: np.nanmean(_log_scaled_t(z, v)))
    whole = np.nan_to_num(z)
    half = len(whole) // 2
    first, second = _correlation(whole[:half]), whole[half:]

    def likelihood(v: float) -> float:
        ones = np.full(whole.shape[1], 1 / _deviation(v))
        return _log_t(second, ones, first, v).mean()

    joint_df = max(DEGREES, key=likelihood)
    return Spread(scale / _deviation(df), df, _correlation(whole), joint_df)


def scores(prediction: Prediction, x: np.ndarray, *, joint: bool) -> dict[str, float | None]:
    """Returns the scores of a prediction: sums over cells are left to those who average.

    Arguments:
        prediction: The prediction.
        x: The truth, standardised by the rows that train. Cells that do not count are NaN.
        joint: Whether rows have a density too.
    """
    counts = ~np.isnan(x)
    low, high = prediction.interval(LEVEL)
    found: dict[str, float | None] = {
        "R2": 1 - float(np.nansum((prediction.mean - x) ** 2) / np.nansum(x**2)),
        "CRPS": float(np.nanmean(prediction.crps(x))),
        "NLL": -float(np.nanmean(prediction.log_prob(x))),
        "coverage": float(((low <= x) & (x <= high))[counts].mean()),
        "joint": None,
    }
    if joint:
        densities = prediction.log_joint(x)
        if densities is not None:
            found["joint"] = float(densities.sum() / counts.sum())
    return found


def _deviation(df: float) -> float:
    return np.sqrt(df / (df - 2))


def _log_scaled_t(z: np.ndarray, df: float) -> np.ndarray:
    """The log-density of a Student t of variance 1."""
    return stats.t.logpdf(z * _deviation(df), df) + np.log(_deviation(df))


def _correlation(z: np.ndarray) -> np.ndarray:
    """A correlation that is shrunk, and by no less than `LEAST_SHRINKAGE`, for few rows."""
    if len(z) < 2:
        return np.eye(z.shape[1])
    covariance = LedoitWolf(assume_centered=True).fit(z).covariance_
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    correlation = covariance / np.outer(deviation, deviation)
    np.fill_diagonal(correlation, 1.0)  # of residuals that are all 0 too
    return (1 - LEAST_SHRINKAGE) * correlation + LEAST_SHRINKAGE * np.eye(len(correlation))


def _log_t(r: np.ndarray, scale: np.ndarray, correlation: np.ndarray, df: float) -> np.ndarray:
    """The log-density of residuals, by a multivariate Student t, of those that are not NaN."""
    found = np.empty(len(r))
    patterns, pattern = np.unique(~np.isnan(r), axis=0, return_inverse=True)
    for p, seen in enumerate(patterns):
        rows, d = pattern.ravel() == p, int(seen.sum())
        factor = np.linalg.cholesky(correlation[np.ix_(seen, seen)])
        z = np.linalg.solve(factor, (r[rows][:, seen] / scale[seen]).T)  # (d, n)
        constant = special.gammaln((df + d) / 2) - special.gammaln(df / 2)
        constant -= d / 2 * np.log(df * np.pi) + np.log(np.diag(factor)).sum()
        tail = (df + d) / 2 * np.log1p((z**2).sum(axis=0) / df)
        found[rows] = constant - np.log(scale[seen]).sum() - tail
    return found
