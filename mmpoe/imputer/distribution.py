r"""The predictive distribution of cells of a table."""

from __future__ import annotations

__all__ = ["PredictiveDistribution"]

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from ._student import crps, log_joint
from ._tables import Column, Source, is_frame

if TYPE_CHECKING:
    from ._blend import Blend, Part, Prediction

GRID = (np.arange(200) + 0.5) / 200
"""The levels of quantiles that moments of counts are computed from."""


class PredictiveDistribution:
    r"""The distribution of cells of a table given others, in the units of the table.

    Arrays have shape (n, k), for n rows and the k columns that were asked for. A number follows a
    Student t distribution, and the numbers of a row one together, with the covariance of the
    linear part; the logarithm of one more than a count does; and a category has probabilities.

    A cell that was observed, and not asked for, is certain: it has its value as mean, quantiles
    and draws, the deviation 0, and neither density nor score (NaN). Moments, quantiles and CRPS of
    categories are NaN.

    It is made by :meth:`MultimodalImputer.predict_distribution`.

    Attributes:
        columns: The labels of the columns.
        predicted: The cells that are predicted, boolean, with shape (n, k).
    """

    def __init__(
        self,
        blend: Blend,
        prediction: Prediction,
        columns: list[Column],
        table: np.ndarray,
        wanted: np.ndarray,
        chosen: np.ndarray,
    ) -> None:
        self._blend, self._prediction, self._table, self._chosen = blend, prediction, table, chosen
        self._columns = [columns[j] for j in chosen]
        self._labels = {column.label for column in columns}
        self.columns: list[Hashable] = [column.label for column in self._columns]
        self.predicted = wanted[:, chosen]
        features = blend.features
        self._owned = [np.flatnonzero(features.column == j) for j in chosen]
        self._freedom = np.full(prediction.loc.shape, np.nan)
        for part in prediction.parts:
            self._freedom[part.rows] = np.where(part.cells, part.freedom, self._freedom[part.rows])

    @property
    def mean(self) -> np.ndarray:
        """The means."""
        loc = self._prediction.loc
        return self._by_column(
            lambda f: self._raw(f, loc[:, f]), lambda f: self._counts(f, GRID).mean(axis=0)
        )

    @property
    def stddev(self) -> np.ndarray:
        """The standard deviations."""

        def number(f: int) -> np.ndarray:
            v = self._freedom[:, f]
            return self._prediction.scale[:, f] * np.sqrt(v / (v - 2)) * self._unit(f)

        def count(f: int) -> np.ndarray:
            return self._counts(f, GRID).std(axis=0)

        return self._by_column(number, count, deviation=True)

    @property
    def probabilities(self) -> dict[Hashable, np.ndarray]:
        """The probabilities of the categories of each categorical column, with shape (n, C).

        Their order is that of `categories` in :attr:`MultimodalImputer.columns_`.
        """
        found = {}
        for k, column in enumerate(self._columns):
            if column.kind == "categorical":
                p = self._probabilities(k)[:, : len(column.categories)]
                # a single category leaves what its spare code has
                found[column.label] = p / p.sum(axis=1, keepdims=True)
        return found

    def quantile(self, q: float) -> np.ndarray:
        """Returns the quantiles of a level between 0 and 1.

        Raises:
            ValueError: If `q` is not between 0 and 1.
        """
        _check_share("q", q)
        return self._by_column(
            lambda f: self._raw(f, self._at(f, q)), lambda f: self._counts(f, np.array([q]))[0]
        )

    def interval(self, coverage: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lower and upper ends of intervals that hold a share of what is missing.

        Their widths are quantiles of the absolute residuals of rows left out, for each column and
        pattern of what is given. The k-th smallest of n holds a new one with probability
        k / (n + 1); between two the width is interpolated, which errs by O(1 / n²). That is of
        residuals that are exchangeable with the new one: those of a fold come from a fit on fewer
        rows, so that intervals of few rows are somewhat wide.

        Arguments:
            coverage: The share, between 0 and 1.

        Raises:
            ValueError: If `coverage` is not between 0 and 1.

        References:
            | Distribution-Free Predictive Inference for Regression (Lei et al., 2018)
            | https://arxiv.org/abs/1604.04173
            | Interpolated Nonparametric Prediction Intervals and Confidence Intervals (Beran &
              Hall, 1993)
            | https://doi.org/10.1111/j.2517-6161.1993.tb01929.x
        """
        _check_share("coverage", coverage)
        width = np.full(self._prediction.loc.shape, np.nan)
        for part in self._prediction.parts:
            own = self._blend.width(part.key, coverage) * self._prediction.scale[part.rows]
            width[part.rows] = np.where(part.cells, own, width[part.rows])
        loc = self._prediction.loc
        return self._at_points(loc - width), self._at_points(loc + width)

    def log_prob(self, values: Any) -> np.ndarray:  # noqa: ANN401
        """Returns the log-density of each number, the log-probability of counts and categories.

        Arguments:
            values: The values (n, k) of these columns, NaN or None where there is none: an array,
                or a data frame.

        Raises:
            ValueError: If the shape is another, a data frame has other columns of the table or
                another order, or a category is unknown.
        """
        return self._log_prob(self._encode(values))

    def _log_prob(self, encoded: np.ndarray) -> np.ndarray:
        out = np.full(encoded.shape, np.nan)
        for k, column in enumerate(self._columns):
            x = encoded[:, k]
            if column.kind == "categorical":
                p = self._probabilities(k)
                code = np.nan_to_num(x).astype(int)
                out[:, k] = np.log(np.maximum(p[np.arange(len(x)), code], 1e-300))
            elif column.kind == "count":
                out[:, k] = self._log_mass(self._owned[k][0], x)
            else:
                f = self._owned[k][0]
                z, scale = self._standard(f, x), self._prediction.scale[:, f]
                density = stats.t.logpdf(z, self._freedom[:, f])
                out[:, k] = density - np.log(scale * self._unit(f) * column.scale)
        return np.where(self.predicted & ~np.isnan(encoded), out, np.nan)

    def log_prob_joint(self, values: Any) -> np.ndarray:  # noqa: ANN401
        r"""Returns the joint log-density of the values of each row, with shape (n).

        Numbers that are predicted from the same cells are joint, with a covariance
        :math:`D (W V W^\top + \Psi) D`; counts and categories add their log-probabilities.

        Arguments:
            values: As in :meth:`log_prob`.

        Raises:
            ValueError: As :meth:`log_prob`.
        """
        return self._log_prob_joint(self._encode(values))

    def _log_prob_joint(self, encoded: np.ndarray) -> np.ndarray:
        scored = self.predicted & ~np.isnan(encoded)
        numeric = np.array([column.kind == "numeric" for column in self._columns])
        total = np.zeros(len(encoded))
        if not numeric.all():
            marginal = self._log_prob(encoded)
            total += np.where(scored & ~numeric, marginal, 0.0).sum(axis=1)
        residuals = np.zeros(self._prediction.loc.shape)
        cells = np.zeros(residuals.shape, dtype=bool)
        for k in np.flatnonzero(numeric):
            f = self._owned[k][0]
            features = self._blend.features
            x = (encoded[:, k] - features.loc[f]) / features.scale[f]
            residuals[:, f] = np.nan_to_num(x - self._prediction.loc[:, f])
            cells[:, f] = scored[:, k]
            unit = np.log(self._unit(f) * self._columns[k].scale)
            total -= np.where(scored[:, k], unit, 0.0)
        W, psi = self._blend.loadings, self._blend.variances
        for part in self._prediction.parts:
            own = cells[part.rows] & part.cells
            total[part.rows] += log_joint(
                residuals[part.rows],
                own,
                np.nan_to_num(self._prediction.factor[part.rows], nan=1.0),
                W,
                psi,
                part.posterior,
                part.freedom,
            )
        return total

    def crps(self, values: Any) -> np.ndarray:  # noqa: ANN401
        """Returns the continuous ranked probability score of each number or count.

        It is in the units of the table: the mean absolute error of a distribution, less is better.

        Arguments:
            values: As in :meth:`log_prob`.

        Raises:
            ValueError: As :meth:`log_prob`.
        """
        encoded = self._encode(values)
        out = np.full(encoded.shape, np.nan)
        for k, column in enumerate(self._columns):
            if column.kind == "categorical":
                continue
            f = self._owned[k][0]
            if column.kind == "count":
                q = self._counts(f, GRID)
                error = encoded[:, k] - q
                out[:, k] = 2 * (error * (GRID[:, None] - (error < 0))).mean(axis=0)
            else:
                score = crps(self._standard(f, encoded[:, k]), self._freedom[:, f])
                out[:, k] = score * self._prediction.scale[:, f] * self._unit(f) * column.scale
        return np.where(self.predicted & ~np.isnan(encoded), out, np.nan)

    def sample(self, draws: int, random_state: int = 0) -> np.ndarray:
        """Draws values that go together, with shape (draws, n, k).

        Numbers of a row follow their joint distribution. Counts are drawn as numbers, on the
        logarithmic scale. Categories are drawn with their probabilities, by a Gaussian copula that
        ties them to the same latents.

        Arguments:
            draws: The number of draws.
            random_state: The seed of the draws.

        Returns:
            An array of numbers, or of objects if there are categories.

        Raises:
            ValueError: If `draws` is not a positive integer.
        """
        if isinstance(draws, bool) or not isinstance(draws, (int, np.integer)) or draws < 1:
            raise ValueError(f"'draws' should be an integer of at least 1, but is {draws!r}.")
        encoded = self._sample(draws, random_state)
        parts = [
            np.stack([column.decode(row) for row in encoded[:, :, k]])
            for k, column in enumerate(self._columns)
        ]
        return np.stack(parts, axis=-1)

    # ------------------------------------------------------------ encoded cells

    def _expected(self) -> np.ndarray:
        """Encoded means, and the codes of the most likely categories."""
        out = np.empty(self.predicted.shape)
        for k, column in enumerate(self._columns):
            f = self._owned[k]
            if column.kind == "categorical":
                out[:, k] = self._probabilities(k).argmax(axis=1)
            elif column.kind == "count":
                out[:, k] = self._counts(f[0], GRID).mean(axis=0)
            else:
                out[:, k] = self._raw(f[0], self._prediction.loc[:, f[0]])
        return np.where(self.predicted, out, self._table[:, self._chosen])

    def _sample(self, draws: int, seed: int) -> np.ndarray:
        """Encoded draws, with shape (draws, n, k)."""
        rng = np.random.default_rng(seed)
        shape, K = self._prediction.loc.shape, self._blend.loadings.shape[1]
        observed = self._table[:, self._chosen]
        out = np.empty((draws, *observed.shape))
        for i in range(draws):
            noise = rng.standard_normal(shape), rng.standard_normal((shape[0], K))
            mixing = rng.random(shape[0])
            features, ranks = self._draw(*noise, mixing)
            for k, column in enumerate(self._columns):
                f = self._owned[k]
                if column.kind == "categorical":
                    drawn = self._categories(k, ranks[:, f[0]])
                elif column.kind == "count":
                    drawn = _rounded(self._raw(f[0], features[:, f[0]]))
                else:
                    drawn = self._raw(f[0], features[:, f[0]])
                out[i, :, k] = np.where(self.predicted[:, k], drawn, observed[:, k])
        return out

    def _draw(
        self, noise: np.ndarray, latent: np.ndarray, mixing: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws features (n, F), and the ranks of categories in the first feature of each."""
        p = self._prediction
        W, psi = self._blend.loadings, self._blend.variances
        features, ranks = np.full(p.loc.shape, np.nan), np.full(p.loc.shape, np.nan)
        for part in p.parts:
            rows, z = part.rows, _latents(part, latent[part.rows])
            e = z @ W.T + np.sqrt(psi) * noise[rows]
            heavy = np.sqrt(part.freedom / stats.chi2.ppf(mixing[rows], part.freedom))
            new = p.loc[rows] + p.factor[rows] * e * heavy[:, None]
            features[rows] = np.where(part.cells, new, features[rows])
            for k, column in enumerate(self._columns):
                f = self._owned[k]
                if column.kind == "categorical":
                    rank = _rank(e[:, f], W[f], psi[f], part)
                    ranks[rows, f[0]] = np.where(part.cells[:, f[0]], rank, ranks[rows, f[0]])
        return features, ranks

    def _categories(self, k: int, rank: np.ndarray) -> np.ndarray:
        """The categories at some ranks, in the order of their loadings on the leading axis."""
        f = self._owned[k]
        order = _axis(self._blend.loadings[f]).argsort()
        below = self._probabilities(k)[:, order].cumsum(axis=1)
        place = (np.nan_to_num(rank)[:, None] > below).sum(axis=1)
        return order[np.minimum(place, len(order) - 1)].astype(float)

    # ------------------------------------------------------------ one column

    def _by_column(
        self,
        number: Callable[[int], np.ndarray],
        count: Callable[[int], np.ndarray],
        *,
        deviation: bool = False,
    ) -> np.ndarray:
        """Fills (n, k) with a statistic of each column that is no category.

        Arguments:
            number: Computes it for the feature of a number, in its encoding.
            count: Computes it for the feature of a count.
            deviation: Whether it is a deviation, which is 0 for what is certain.
        """
        out = np.full(self.predicted.shape, np.nan)
        for k, column in enumerate(self._columns):
            if column.kind == "categorical":
                continue
            f, shift = self._owned[k][0], 0.0 if deviation else column.loc
            value = count(f) if column.kind == "count" else number(f) * column.scale + shift
            known = self._table[:, self._chosen[k]] * column.scale + column.loc
            out[:, k] = np.where(self.predicted[:, k], value, 0.0 if deviation else known)
        return out

    def _at_points(self, points: np.ndarray) -> np.ndarray:
        """Turns points on the scale of features (n, F) into the units of the table (n, k)."""
        return self._by_column(
            lambda f: self._raw(f, points[:, f]), lambda f: _rounded(self._raw(f, points[:, f]))
        )

    def _raw(self, f: int, values: np.ndarray) -> np.ndarray:
        """Undoes the standardisation of a feature."""
        return values * self._unit(f) + self._blend.features.loc[f]

    def _unit(self, f: int) -> float:
        return float(self._blend.features.scale[f])

    def _standard(self, f: int, raw: np.ndarray) -> np.ndarray:
        x = (raw - self._blend.features.loc[f]) / self._unit(f)
        return (x - self._prediction.loc[:, f]) / self._prediction.scale[:, f]

    def _at(self, f: int, q: float | np.ndarray) -> np.ndarray:
        """Quantiles of a feature."""
        t = stats.t.ppf(q, self._freedom[:, f])
        return self._prediction.loc[:, f] + self._prediction.scale[:, f] * t

    def _counts(self, f: int, levels: np.ndarray) -> np.ndarray:
        """Quantiles of a count, with shape (levels, n)."""
        raw = self._raw(f, self._at(f, levels[:, None]))
        return _rounded(raw)

    def _log_mass(self, f: int, counts: np.ndarray) -> np.ndarray:
        """The log-probability of counts: that of rounding exp(y) - 1, not below 0."""
        v = self._freedom[:, f]
        upper = self._standard(f, np.log1p(counts + 0.5))
        lower = np.where(
            counts > 0, self._standard(f, np.log1p(np.maximum(counts - 0.5, 0))), -np.inf
        )
        flip = lower > 0  # the tail that loses no digits
        mass = np.where(
            flip,
            stats.t.sf(lower, v) - stats.t.sf(upper, v),
            stats.t.cdf(upper, v) - stats.t.cdf(lower, v),
        )
        return np.log(np.maximum(mass, 1e-300))

    def _probabilities(self, k: int) -> np.ndarray:
        """The probabilities of a categorical column, with shape (n, C)."""
        f, j = self._owned[k], self._chosen[k]
        features = self._blend.features
        p = self._prediction.loc[:, f] * features.scale[f] + features.loc[f]
        code = self._table[:, j]
        certain = (code[:, None] == np.arange(len(f))).astype(float)
        certain[np.isnan(code)] = np.nan
        return np.where(self.predicted[:, [k]], p, certain)

    def _encode(self, values: Any) -> np.ndarray:  # noqa: ANN401
        array = values.astype(object).to_numpy() if is_frame(values) else np.asarray(values)
        names = list(values.columns) if is_frame(values) else self.columns
        unnamed = names == list(range(len(names)))
        if names != self.columns and not unnamed and self._labels.intersection(names):
            raise ValueError(
                f"'values' should have the columns {', '.join(map(str, self.columns))}, in this "
                f"order, but has {', '.join(map(str, names))}."
            )
        if array.shape != self.predicted.shape:
            raise ValueError(
                f"'values' should have shape {self.predicted.shape}, but has shape {array.shape}."
            )
        out = np.empty(array.shape)
        for k, column in enumerate(self._columns):
            cells = array[:, k]
            missing = np.array([v is None or bool(np.asarray(v != v)) for v in cells.tolist()])
            source = Source(str(column.label), column.label, cells, missing)
            out[:, k] = column.encode(source, argument="values")
        return out


def _check_share(name: str, value: Any) -> None:  # noqa: ANN401
    if not isinstance(value, (int, float, np.number)) or not 0 < value < 1:
        raise ValueError(f"'{name}' should be a number between 0 and 1, but is {value!r}.")


def _rounded(logarithms: np.ndarray) -> np.ndarray:
    """Turns logarithms of one more than a count into counts."""
    return np.rint(np.maximum(np.expm1(np.minimum(logarithms, 700.0)), 0))


def _latents(part: Part, noise: np.ndarray) -> np.ndarray:
    """Draws of the latents around their means."""
    root = np.linalg.cholesky(part.posterior.covariance.numpy())
    which = part.posterior.pattern.numpy()
    if len(root) == 1:
        return noise @ root[0].T
    return np.einsum("nkl,nl->nk", root[which], noise)


def _axis(W: np.ndarray) -> np.ndarray:
    """The direction in which indicators of categories vary most with the latents."""
    return np.linalg.svd(W, full_matrices=False)[0][:, 0]


def _rank(e: np.ndarray, W: np.ndarray, psi: np.ndarray, part: Part) -> np.ndarray:
    """The probability below drawn indicators, along their leading axis."""
    axis = _axis(W)
    w, V = axis @ W, part.posterior.covariance.numpy()
    variance = np.einsum("k,pkl,l->p", w, V, w)[part.posterior.pattern.numpy()]
    return stats.norm.cdf(e @ axis / np.sqrt(variance + (axis**2 * psi).sum()))
