r"""Predicts hidden parts of rows: linear products of experts and hierarchies, validated on folds.

All choices are made on rows that were left out, with parts of them hidden: which ladder members
are averaged, the temper of each expert, the weight of the hierarchies, the scale of each feature,
the degrees of freedom, and the width of intervals.
"""

from __future__ import annotations

__all__ = ["Blend", "Calibration", "Key", "Part", "Prediction"]

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from mmpoe.imputation._conformal import conformal_rank
from mmpoe.posteriors import LinearPoE, LinearPosterior

from ._features import Features
from ._hidden import FEW, HiddenNetwork, hide_each, hide_some, partition
from ._student import log_joint

LADDER = ((40, 3.0), (80, 30.0), (80, 100.0), (120, 300.0))
"""Factors and shrinkage of the candidates."""
TEMPERS = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015)
FACTORS = (1.0, 0.3, 3.0, 10.0)
"""Of all tempers, for patterns other than one hidden modality."""
FREEDOM = (200.0, 50.0, 20.0, 12.0, 8.0, 6.0, 5.0)
WEIGHTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
"""Of the hierarchies."""
POWERS = (1.0, 1.5, 2.0, 3.0)
"""Of the probabilities of categories."""
SHARES = (1.0, 0.5, 0.25)
"""How much of what a row has is given, where modalities are too many for all their subsets."""
MEMBERS, FOLDS, PARTS = 3, 5, 10
QUESTIONS = 500
"""Of how many rows at most the error of a hierarchy is watched during training."""
CELLS, ROWS = 10**7, (2000, 20000)
"""About how many cells to learn from, and in how many rows at least and at most."""
LEAST = 20
"""How many rows a feature needs for intervals of its own."""

Key = tuple
"""A pattern that is calibrated together: ("subset", modalities), ("share", s) or ("cells",)."""
Read = Callable[[LinearPoE, LinearPosterior, np.ndarray], np.ndarray]
"""Called with a fit, posteriors of rows and the features that are wanted; returns these."""


Train = Callable[[np.ndarray, list[tuple[np.ndarray, np.ndarray]]], HiddenNetwork]


class Hidden(NamedTuple):
    """A part of each row that is hidden, and predicted from the rest."""

    given: np.ndarray
    """The columns that are given, boolean, with shape (n, d)."""
    cells: np.ndarray
    """The features that are hidden and were observed, boolean, with shape (n, F)."""
    targets: np.ndarray
    """The features that are hidden in any row, boolean, with shape (F)."""


class Member(NamedTuple):
    """A linear product of experts: one fit for each fold left out, one on all rows."""

    folds: list[LinearPoE]
    whole: LinearPoE
    tempers: dict[str, float]


class Calibration(NamedTuple):
    """The choices for one pattern, made on rows that were left out."""

    factor: float
    """Of all tempers."""
    weights: np.ndarray
    """Of the hierarchies, for each modality."""
    powers: np.ndarray
    """Of probabilities, for each modality."""
    scale: np.ndarray
    """The deviation of residuals relative to what the linear part claims, for each feature."""
    freedom: float
    residuals: np.ndarray
    """Absolute residuals relative to `scale`, with shape (n, F), NaN where nothing was hidden."""

    def width(self, coverage: float) -> np.ndarray:
        """The half-width of intervals in units of `scale`, for each feature, by split conformal.

        The k-th smallest of n residuals, k = ceil((n + 1) coverage), covers a new one as often as
        it says. Features with few rows share the residuals of all.
        """
        count = (~np.isnan(self.residuals)).sum(axis=0)
        pooled = np.sort(self.residuals[~np.isnan(self.residuals)])
        if len(pooled) == 0:
            return np.full(len(count), stats.norm.ppf((1 + coverage) / 2))
        rank = min(len(pooled), conformal_rank(len(pooled), coverage))
        width = np.full(len(count), pooled[rank - 1])
        for k, n in enumerate(count.tolist()):
            rank = conformal_rank(n, coverage)
            if n >= LEAST and rank <= n:
                width[k] = np.sort(self.residuals[:, k])[rank - 1]  # NaN comes last
        return width


class Part(NamedTuple):
    """Rows that are predicted under one pattern, and how their features vary together."""

    key: Key
    rows: np.ndarray
    cells: np.ndarray
    """The features that are predicted, boolean, with shape (n, F)."""
    posterior: LinearPosterior
    freedom: float


class Prediction(NamedTuple):
    """Student t distributions of the features of a table; NaN where nothing is predicted."""

    loc: np.ndarray
    """The centres, with shape (n, F)."""
    scale: np.ndarray
    """The scales of the cells, with shape (n, F)."""
    factor: np.ndarray
    """The factors on both sides of the covariance of the linear part, with shape (n, F)."""
    parts: list[Part]


class Blend:
    """Predicts features from those that are given, with linear products of experts and networks.

    Arguments:
        features: The features.
        table: The encoded table, NaN where cells are missing. Of many rows, some are taken.
        seed: The seed of rows, of folds and of what is hidden.
    """

    def __init__(self, features: Features, table: np.ndarray, seed: int) -> None:
        most = int(np.clip(CELLS / len(features.column), *ROWS))
        if len(table) > most:
            table = table[np.random.default_rng(seed).permutation(len(table))[:most]]
        self.features, self.table, self.seed = features, table, seed
        self.Y = features.encode(table)
        self.names = list(features.slices)
        n = len(table)
        self.folds = min(FOLDS, n)
        self.fold = np.random.default_rng(seed).permutation(n) % self.folds
        self.few = len(self.names) <= FEW and len(np.unique(features.column)) > len(self.names)
        self.networks: list[HiddenNetwork] = []
        self.calibrations: dict[Key, Calibration] = {}

    def fit(self, train: Train, networks: int) -> Blend:
        """Fits all parts.

        Arguments:
            train: Trains a hierarchy on some rows, and keeps the weights that predict others best,
                each given in turn without a part of it.
            networks: How many hierarchies to train.
        """
        self.main: Key = ("share", 1.0) if not self.few else ("each",)
        candidates = self._candidates()
        tempers = {c: [dict.fromkeys(self.names, t) for t in TEMPERS] for c in candidates}
        ranked = sorted(
            (self._error([Member(candidates[c], candidates[c][0], t)]), c, t[self.names[0]])
            for c, choices in tempers.items()
            for t in choices
        )
        self.members = [self._member(candidates[c], c, t, loss) for loss, c, t in ranked[:MEMBERS]]
        for i in range(networks):
            left_out = self._left_out(i, networks)
            self.networks.append(train(self.table[~left_out], self._questions(left_out)))
        mean = self._calibrate_mean(self.main, (1.0,))
        self.covariance = self._choose_covariance(candidates, mean)
        self.calibrations[self.main] = self._calibrate_spread(self.main, *mean)
        return self

    def predict(self, table: np.ndarray, wanted: np.ndarray) -> Prediction:
        """Predicts cells of an encoded table from its other cells.

        Arguments:
            table: What is given, NaN elsewhere, with shape (n, d).
            wanted: The cells to predict, boolean, with shape (n, d).
        """
        shape = len(table), len(self.features.column)
        loc, scale, factor = (np.full(shape, np.nan) for _ in range(3))
        parts = []
        for key, rows, columns in self._patterns(~np.isnan(table), wanted):
            c = self._calibration(key)
            cells = columns[:, self.features.column]
            x = self.features.encode(table[rows])
            centre = self._centre(c, x, table[rows])
            member = self.covariance
            posterior = self._posterior(member.whole, x, member.tempers, c.factor)
            claimed = _spread(member.whole, posterior)
            own = np.maximum(c.scale, 0.05 / claimed) * np.sqrt(1 - 2 / c.freedom)
            for out, new in ((loc, centre), (scale, own * claimed), (factor, own)):
                out[rows] = np.where(cells, new, out[rows])
            parts.append(Part(key, rows, cells, posterior, c.freedom))
        return Prediction(loc, scale, factor, parts)

    def width(self, key: Key, coverage: float) -> np.ndarray:
        """The half-width of intervals under a pattern, in scales of the Student t."""
        c = self._calibration(key)
        return c.width(coverage) / np.sqrt(1 - 2 / c.freedom)

    @property
    def loadings(self) -> np.ndarray:
        """The loadings of the covariance, with shape (F, K)."""
        return _loadings(self.covariance.whole)

    @property
    def variances(self) -> np.ndarray:
        """The noise variances of the covariance, with shape (F)."""
        return _variances(self.covariance.whole)

    # ------------------------------------------------------------ patterns

    def _modalities(self, cells: np.ndarray) -> np.ndarray:
        """Turns a mask of columns (n, d) into one of modalities (n, M) that have a cell."""
        owner = self._owner()
        return np.stack([cells[:, owner == m].any(axis=1) for m in range(len(self.names))], axis=1)

    def _owner(self) -> np.ndarray:
        """The modality of each column."""
        owner = np.empty(self.table.shape[1], dtype=int)
        owner[self.features.column] = self.features.modality
        return owner

    def _patterns(
        self, given: np.ndarray, wanted: np.ndarray
    ) -> Iterator[tuple[Key, np.ndarray, np.ndarray]]:
        """Yields patterns, their rows, and the columns (n, d) that are predicted under each."""
        have = self._modalities(given)
        inside = wanted & have[:, self._owner()]  # holes of modalities that are given in part
        yield from _chosen(("cells",), np.any(inside, axis=1), inside)
        outside = wanted & ~inside
        asked = np.any(outside, axis=1)
        if not self.few:
            full = (~np.isnan(self.table)).mean() * have.shape[1]
            relative = np.maximum(have.sum(axis=1), 1) / max(full, 1.0)
            near = np.abs(np.log(relative[:, None] / np.array(SHARES))).argmin(axis=1)
            near[~have.any(axis=1)] = -1
            for i in np.unique(near[asked]):
                key = ("share", SHARES[i]) if i >= 0 else ("subset", ())
                yield from _chosen(key, asked & (near == i), outside)
            return
        for subset in np.unique(have[asked], axis=0):
            key = ("subset", tuple(np.flatnonzero(subset).tolist()))
            yield from _chosen(key, np.logical_and(asked, np.all(have == subset, axis=1)), outside)

    def _hidings(self, key: Key) -> list[np.ndarray]:
        """Masks (n, d) of what is given in turn, so that a cell is hidden once at most."""
        n, d = self.table.shape
        M = len(self.names)
        rng = np.random.default_rng([self.seed, len(key), int(1000 * _number(key))])
        if key[0] == "cells":
            return partition(n, d, FOLDS, rng)
        if key[0] == "each":
            masks = hide_each(n, M)
        elif key[0] == "subset":
            masks = [np.broadcast_to(np.isin(np.arange(M), key[1]), (n, M))]
        elif key[1] == 1.0:
            masks = partition(n, M, min(M, PARTS), rng)
        else:
            masks = hide_some(self._modalities(~np.isnan(self.table)), key[1], rng)
        return [mask[:, self._owner()] for mask in masks]

    def _calibration(self, key: Key) -> Calibration:
        """Calibrates a pattern when it is first asked for."""
        if key not in self.calibrations:
            count = len(key[1]) if key[0] == "subset" else 1
            factors = (1.0,) if count in (0, len(self.names) - 1) else FACTORS
            mean = self._calibrate_mean(key, factors)
            self.calibrations[key] = self._calibrate_spread(key, *mean)
        return self.calibrations[key]

    # ------------------------------------------------------------ rows left out

    def _hidden(self, key: Key) -> list[Hidden]:
        """The parts that are hidden in turn under a pattern."""
        hidden = []
        for given in self._hidings(key):
            left = np.logical_and(given, ~np.isnan(self.table))
            shown = np.any(left, axis=1)
            if key == ("subset", ()):
                shown[:] = True
            cells = ~given[:, self.features.column] & ~np.isnan(self.Y) & shown[:, None]
            if key[0] == "cells":  # of modalities that are still given in part
                cells &= self._modalities(left)[:, self.features.modality]
            hidden.append(Hidden(given, cells, np.any(cells, axis=0)))
        return hidden

    def _out_of_fold(self, key: Key, member: Member, read: Read, factor: float) -> np.ndarray:
        """Reads what is hidden in turn (n, F) from posteriors of fits that left out their rows."""
        out = np.full(self.Y.shape, np.nan)
        for hidden, fold, rows, posterior in self._posteriors(key, member, factor):
            new = read(member.folds[fold], posterior, hidden.targets)
            _put(out, rows, hidden, new)
        return out

    def _posteriors(
        self, key: Key, member: Member, factor: float = 1.0
    ) -> Iterator[tuple[Hidden, int, np.ndarray, LinearPosterior]]:
        """Yields posteriors of rows, by fits that left them out, for each thing that is hidden."""
        hidden = self._hidden(key)
        for i, poe in enumerate(member.folds):
            rows = [np.flatnonzero((self.fold == i) & h.cells.any(axis=1)) for h in hidden]
            if sum(map(len, rows)) == 0:
                continue
            x = [self._given(r, h.given[r]) for r, h in zip(rows, hidden, strict=True)]
            posterior = self._posterior(poe, np.concatenate(x), member.tempers, factor)
            start = 0
            for r, h in zip(rows, hidden, strict=True):
                if len(r):
                    yield h, i, r, _part_of(posterior, start, start + len(r))
                start += len(r)

    def _linear(self, key: Key, member: Member, factor: float = 1.0) -> np.ndarray:
        return self._out_of_fold(key, member, _mean, factor)

    def _claimed(self, key: Key, member: Member, factor: float = 1.0) -> np.ndarray:
        return self._out_of_fold(key, member, _spread, factor)

    def _given(self, rows: np.ndarray, given: np.ndarray) -> np.ndarray:
        """The features of some rows, NaN where they are not given."""
        return np.where(given[:, self.features.column], self.Y[rows], np.nan)

    def _posterior(
        self, poe: LinearPoE, x: np.ndarray, tempers: dict[str, float], factor: float
    ) -> LinearPosterior:
        groups = {name: x[:, part] for name, part in self.features.slices.items()}
        given = [name for name, v in groups.items() if not np.isnan(v).all()]
        return poe.posterior(groups, given, {k: factor * tempers[k] for k in given})

    def _error(self, members: Sequence[Member]) -> float:
        """The mean over modalities of their relative squared error."""
        mean = np.mean([self._linear(self.main, member) for member in members], axis=0)
        return float(np.mean(list(self._errors(mean).values()) or [1.0]))

    def _errors(self, mean: np.ndarray) -> dict[int, float]:
        """The relative squared error of each modality that was hidden."""
        hit = ~np.isnan(mean)
        errors = {}
        for m, part in enumerate(self.features.slices.values()):
            own = hit[:, part]
            if own.any():
                y = self.Y[:, part][own]
                error = np.mean((mean[:, part][own] - y) ** 2)
                errors[m] = float(error / max(np.mean(y**2), 1e-12))
        return errors

    # ------------------------------------------------------------ choices

    def _candidates(self) -> dict[tuple[int, float], list[LinearPoE]]:
        """The ladder's fits on rows without each fold."""
        n, F = self.Y.shape
        most = max(1, min((n - -(-n // self.folds)) // 2, F))
        ladder = sorted({(min(factors, most), shrinkage) for factors, shrinkage in LADDER})
        rows = [self.fold != i if self.folds > 1 else self.fold == i for i in range(self.folds)]
        return {c: [self._fit(self.Y[r], *c) for r in rows] for c in ladder}

    def _fit(self, Y: np.ndarray, factors: int, shrinkage: float) -> LinearPoE:
        groups = {name: Y[:, part] for name, part in self.features.slices.items()}
        return LinearPoE(factors, shrinkage).fit(groups)

    def _member(
        self, folds: list[LinearPoE], size: tuple[int, float], temper: float, loss: float
    ) -> Member:
        """A ladder member with the temper of each expert searched, one after the other."""
        member = Member(folds, self._fit(self.Y, *size), dict.fromkeys(self.names, temper))
        for name, step in product(self.names * 2 if self.few else [], (0.4, 2.5)):
            while True:
                temper = member.tempers[name] * step
                trial = member._replace(tempers={**member.tempers, name: temper})
                if not 1e-3 < temper < 2 or (new := self._error([trial])) >= loss - 5e-4:
                    break
                member, loss = trial, new
        return member

    def _left_out(self, i: int, networks: int) -> np.ndarray:
        """The rows that network i is not trained on, boolean: of one network, the first fold."""
        return self.fold % networks == i if networks > 1 else (self.fold == 0) & (self.folds > 1)

    def _questions(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The rests of some rows when parts are hidden, and the features that are hidden."""
        questions = []
        for hidden in self._hidden(self.main):
            asked = np.flatnonzero(rows & hidden.cells.any(axis=1))[:QUESTIONS]
            if len(asked):
                left = np.where(hidden.given[asked], self.table[asked], np.nan)
                questions.append((left, np.where(hidden.cells[asked], self.Y[asked], np.nan)))
        return questions

    def _centre(self, c: Calibration, x: np.ndarray, table: np.ndarray) -> np.ndarray:
        """The centres of all features, from all fits on all rows."""
        means = []
        for member in self.members:
            posterior = self._posterior(member.whole, x, member.tempers, c.factor)
            means.append(_mean(member.whole, posterior))
        linear = self._sharpened(np.mean(means, axis=0), c.powers)
        if not c.weights.any():
            return linear
        networks = np.mean([network.predict(table) for network in self.networks], axis=0)
        return linear + c.weights[self.features.modality] * (networks - linear)

    def _sharpened(self, mean: np.ndarray, powers: np.ndarray) -> np.ndarray:
        """Turns the indicators of categories into probabilities, standardised as they were."""
        mean = mean.copy()
        for m, part in enumerate(self.features.slices.values()):
            if self.features.classes[m]:
                p = self.features.probabilities(mean, part, powers[m])
                mean[:, part] = self.features.standardised(p, part)
        return mean

    def _loss(self, m: int, part: slice, mean: np.ndarray) -> float:
        """The squared error of numbers, the log loss of categories, of a modality."""
        hit = ~np.isnan(mean[:, part])
        if not hit.any():
            return 0.0
        if self.features.classes[m]:
            raw = mean[:, part] * self.features.scale[part] + self.features.loc[part]
            true = self.Y[:, part].argmax(axis=1)[hit[:, 0]]
            p = raw[hit[:, 0]][np.arange(len(true)), true]
            return float(-np.log(np.maximum(p, 1e-12)).mean())
        return float(np.mean((mean[:, part][hit] - self.Y[:, part][hit]) ** 2))

    def _calibrate_mean(
        self, key: Key, factors: Sequence[float]
    ) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Chooses factor, powers and weights; returns them with the predictions out of fold."""
        linear = {
            f: np.mean([self._linear(key, member, f) for member in self.members], axis=0)
            for f in factors
        }
        errors = {f: sum(self._errors(mean).values()) for f, mean in linear.items()}
        factor = min(factors, key=lambda f: errors[f])
        powers, weights = np.ones(len(self.names)), np.zeros(len(self.names))
        mean = linear[factor]
        step = None
        if self.networks and key != ("subset", ()):
            step = self._networks_out_of_fold(key)
            step = np.where(np.isnan(step), mean, step)
        out = mean.copy()
        for m, part in enumerate(self.features.slices.values()):
            if self.features.classes[m]:
                trials = {a: self._sharpened(mean, np.full(len(powers), a)) for a in POWERS}
                powers[m] = min(POWERS, key=lambda a: self._loss(m, part, trials[a]))
                out[:, part] = trials[powers[m]][:, part]
            if step is not None:
                base, toward = out.copy(), step - out
                losses = [self._loss(m, part, base + w * toward) for w in WEIGHTS]
                weights[m] = WEIGHTS[int(np.argmin(losses))]
                out[:, part] = (base + weights[m] * toward)[:, part]
        return factor, powers, weights, out

    def _networks_out_of_fold(self, key: Key) -> np.ndarray:
        out, count = np.full(self.Y.shape, np.nan), len(self.networks)
        for hidden in self._hidden(key):
            for i, network in enumerate(self.networks):
                left_out = self._left_out(i, count)
                rows = np.flatnonzero(left_out & hidden.cells.any(axis=1))
                if len(rows):
                    table = np.where(hidden.given[rows], self.table[rows], np.nan)
                    _put(out, rows, hidden, network.predict(table)[:, hidden.targets])
        return out

    def _calibrate_spread(
        self, key: Key, factor: float, powers: np.ndarray, weights: np.ndarray, mean: np.ndarray
    ) -> Calibration:
        residuals, claimed = self.Y - mean, self._claimed(key, self.covariance, factor)
        scale = _column_scale(residuals, claimed, self.features.modality)
        z = residuals / (scale * claimed)
        seen = z[~np.isnan(z)]

        def density(v: float) -> float:
            unit = np.sqrt(v / (v - 2))
            return float(np.mean(stats.t.logpdf(seen * unit, v)) + np.log(unit))

        freedom = max(FREEDOM, key=density) if len(seen) else FREEDOM[0]
        return Calibration(factor, weights, powers, scale, freedom, np.abs(z))

    def _choose_covariance(
        self, candidates: dict[tuple[int, float], list[LinearPoE]], mean: tuple
    ) -> Member:
        """The ladder member and tempers with the best density of residuals, jointly if few."""
        residuals = self.Y - mean[-1]
        tempers = [dict.fromkeys(self.names, t) for t in (0.3, 0.1, 0.03)]
        trials = [(c, t) for c in candidates for t in tempers]
        best = self.members[0]
        size = next(c for c, folds in candidates.items() if folds is best.folds)
        trials.append((size, best.tempers))
        scores = [
            self._density(Member(candidates[c], best.whole, t), residuals) for c, t in trials
        ]
        c, t = trials[int(np.argmax(scores))]
        whole = best.whole if c == size else self._fit(self.Y, *c)
        return Member(candidates[c], whole, t)

    def _density(self, member: Member, residuals: np.ndarray) -> float:
        claimed = self._claimed(self.main, member)
        scale = _column_scale(residuals, claimed, self.features.modality)
        if not self.few:
            z = residuals / (scale * claimed)
            density = -(0.5 * z**2 + np.log(scale * claimed))
            return float(np.nansum(density) / max(1, (~np.isnan(z)).sum()))
        total = 0.0
        for hidden, fold, rows, posterior in self._posteriors(self.main, member):
            poe, cells = member.folds[fold], hidden.cells[rows]
            own = np.maximum(scale, 0.05 / claimed[rows])
            r = np.where(cells, residuals[rows], 0.0)
            density = log_joint(r, cells, own, _loadings(poe), _variances(poe), posterior)
            total += float(density.sum() / hidden.cells.sum())
        return total


def _put(out: np.ndarray, rows: np.ndarray, hidden: Hidden, new: np.ndarray) -> None:
    """Writes what was hidden in some rows into its place."""
    place = np.ix_(rows, hidden.targets)
    out[place] = np.where(hidden.cells[place], new, out[place])


def _part_of(posterior: LinearPosterior, start: int, stop: int) -> LinearPosterior:
    """The posterior of adjacent rows."""
    used, pattern = posterior.pattern[start:stop].unique(return_inverse=True)
    return LinearPosterior(posterior.loc[start:stop], posterior.covariance[used], pattern)


def _chosen(
    key: Key, rows: np.ndarray, wanted: np.ndarray
) -> Iterator[tuple[Key, np.ndarray, np.ndarray]]:
    if rows.any():
        yield key, np.flatnonzero(rows), wanted[rows]


def _number(key: Key) -> float:
    return float(key[1]) if key[0] == "share" else float(len(key[0]))


def _loadings(poe: LinearPoE) -> np.ndarray:
    return torch.cat(list(poe.loadings.values())).numpy()


def _variances(poe: LinearPoE) -> np.ndarray:
    return torch.cat(list(poe.variances.values())).numpy()


def _mean(
    poe: LinearPoE, posterior: LinearPosterior, targets: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """The means of some features, with shape (n, F)."""
    loc = torch.cat(list(poe.loc.values())).numpy()
    return posterior.loc.numpy() @ _loadings(poe)[targets].T + loc[targets]


def _spread(
    poe: LinearPoE, posterior: LinearPosterior, targets: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """The deviations of some features, with shape (n, F)."""
    W, psi = _loadings(poe)[targets], _variances(poe)[targets]
    V = posterior.covariance.numpy()
    if len(W) < W.shape[1] or len(V) > 64:
        variances = np.einsum("fk,pkl,fl->pf", W, V, W, optimize=True)
    else:
        variances = np.stack([((W @ v) * W).sum(axis=1) for v in V])
    return np.sqrt(variances + psi)[posterior.pattern.numpy()]


def _column_scale(residuals: np.ndarray, claimed: np.ndarray, modality: np.ndarray) -> np.ndarray:
    """The root of the ratio of squared residuals to claimed variances, for each column.

    It is drawn to that of its modality as by ten rows. A ratio of sums is robust where a column is
    all but constant, and the deviation that a fold claims close to 0.
    """
    hit = ~np.isnan(residuals)
    count = hit.sum(axis=0)
    expected = np.where(hit, claimed**2, 0.0).sum(axis=0)
    ratio = np.nansum(residuals**2, axis=0) / np.maximum(expected, 1e-300)
    total = np.bincount(modality, count)
    pooled = np.bincount(modality, ratio * count) / np.maximum(total, 1)
    pooled = np.where(total > 0, pooled, 1.0)
    return np.sqrt(np.maximum((count * ratio + 10 * pooled[modality]) / (count + 10), 1e-18))
