r"""Student t distributions with the covariance of a linear product of experts."""

from __future__ import annotations

__all__ = ["crps", "log_joint"]

import numpy as np
from scipy import special, stats

from mmpoe.posteriors import LinearPosterior


def log_joint(
    residuals: np.ndarray,
    cells: np.ndarray,
    factor: np.ndarray,
    loadings: np.ndarray,
    variances: np.ndarray,
    posterior: LinearPosterior,
    freedom: float = np.inf,
) -> np.ndarray:
    r"""Computes the log-density of the residuals of some cells of each row, jointly.

    .. math:: r \sim t_\nu\big(0, \; D (W V W^\top + \Psi) D\big)

    By the identities of Woodbury and of the determinant, it takes matrices of factors only.

    Arguments:
        residuals: With shape (n, F), 0 where a cell is not scored.
        cells: The cells that are scored, boolean, with shape (n, F).
        factor: The diagonal of D, with shape (n, F).
        loadings: W, with shape (F, K).
        variances: The diagonal of :math:`\Psi`, with shape (F).
        posterior: The covariance V of each row.
        freedom: The degrees of freedom; normal if infinite.
    """
    V, pattern = posterior.covariance.numpy(), posterior.pattern.numpy()
    r = np.where(cells, residuals / factor, 0.0)
    square, log_det = (r**2 / variances).sum(axis=1), np.empty(len(r))
    score = (r / variances) @ loadings
    combined = np.concatenate([pattern[:, None].astype(np.int64), cells], axis=1)
    _, first, which = np.unique(combined, axis=0, return_index=True, return_inverse=True)
    for i, row in enumerate(first):
        rows, v = which.ravel() == i, V[pattern[row]]
        W, psi = loadings[cells[row]], variances[cells[row]]
        capacity = np.linalg.inv(v) + (W.T / psi) @ W
        y = score[rows]
        square[rows] -= (y * np.linalg.solve(capacity, y.T).T).sum(axis=1)
        log_det[rows] = (
            np.log(psi).sum() + np.linalg.slogdet(capacity)[1] + np.linalg.slogdet(v)[1]
        )
    log_det = log_det + 2 * np.where(cells, np.log(factor), 0.0).sum(axis=1)
    d = cells.sum(axis=1)
    if np.isinf(freedom):
        return -0.5 * (square + log_det + d * np.log(2 * np.pi))
    v = freedom
    constant = special.gammaln((v + d) / 2) - special.gammaln(v / 2) - d / 2 * np.log(v * np.pi)
    return constant - log_det / 2 - (v + d) / 2 * np.log1p(np.maximum(square, 0) / v)


def crps(z: np.ndarray, v: np.ndarray) -> np.ndarray:
    r"""Computes the continuous ranked probability score of a standard Student t, v > 1.

    References:
        | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting & Raftery, 2007)
        | Evaluating Probabilistic Forecasts with scoringRules (Jordan et al., 2019)
        | https://doi.org/10.18637/jss.v090.i12
    """
    own = np.exp(special.betaln(0.5, v - 0.5) - 2 * special.betaln(0.5, v / 2))
    spread = stats.t.pdf(z, v) * (v + z**2) / (v - 1) - np.sqrt(v) / (v - 1) * own
    return z * (2 * stats.t.cdf(z, v) - 1) + 2 * spread
