r"""The opponents, each as one who knows it would use it, and all tuned in the same way.

A method has at most four settings. Each is fitted to four fifths of the training rows; the rest of
them choose, by the mean error of modalities that are predicted from all others, and then the
method is fitted to all training rows. Point predictions get their spread from what the chosen
setting missed on the rows that chose, see `learn_spread`. Ridge and the forest have better than
that: errors of rows that were left out one by one, or that were out of the bag, choose among their
settings for each pattern, and give the spread.
"""

from __future__ import annotations

__all__ = [
    "OPPONENTS",
    "Iterative",
    "Method",
    "Neighbours",
    "Ridge",
    "SoftImpute",
    "Table",
    "absent",
]

import contextlib
import copy
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.linear_model import RidgeCV

from .data import Groups, has, hide_cells, rows_of
from .predictions import Gaussian, Prediction, StudentT, learn_spread

if TYPE_CHECKING:
    from typing_extensions import Self

FOLDS = 5
"""One part in this many chooses."""


class Method(ABC):
    """A method with a setting."""

    package: ClassVar[str | None] = None
    """The package it needs beside scikit-learn."""
    fills_cells: ClassVar[bool] = False
    """Whether it predicts cells from others of the same modality too."""

    def __init__(self) -> None:
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def remembered(self, table: np.ndarray, work: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns what was made of the table last time, if it is the same: targets share it."""
        if self._last is None or not np.array_equal(self._last[0], table, equal_nan=True):
            self._last = table, work()
        return self._last[1]

    @abstractmethod
    def fit(self, groups: Groups, seed: int) -> None:
        """Learns.

        Arguments:
            groups: The training rows.
            seed: The seed.
        """

    @abstractmethod
    def predict(self, groups: Groups, given: Sequence[str], target: str) -> Prediction:
        """Predicts a modality.

        Arguments:
            groups: The rows.
            given: The modalities to look at. If the target is among them, some of its cells are
                NaN, and are what to predict.
            target: The modality to predict.
        """


Means = Callable[[Groups, Sequence[str], str], np.ndarray]
"""Point predictions of a modality, (n, d), from rows, what is given and the target."""


def error(means: Means, groups: Groups) -> float:
    """Returns the mean squared error of modalities predicted from all others, over variances.

    Arguments:
        means: The predictions.
        groups: Rows that they do not come from.
    """
    found = []
    for target, x in groups.items():
        given = [name for name in groups if name != target]
        rows = has(x) & np.any([has(groups[name]) for name in given], axis=0)
        missed = means(rows_of(groups, rows), given, target) - x[rows]
        found.append(np.nanmean(missed**2) / np.nanmean(x[rows] ** 2))
    return float(np.mean(found))


class Point(Method):
    """A method of point predictions, with settings to choose from."""

    settings: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Values of attributes to choose from."""
    stopped: ClassVar[str | None] = None
    """The attribute that says when a trial was best."""

    def set_to(self, setting: Mapping[str, Any]) -> Self:
        """Returns a copy that has a setting."""
        found = copy.copy(self)
        vars(found).update(setting)
        return found

    @abstractmethod
    def learn(self, groups: Groups, seed: int, validation: Groups | None) -> None:
        """Learns. In a trial, there are validation rows, to say when to stop."""

    @abstractmethod
    def means(self, groups: Groups, given: Sequence[str], target: str) -> np.ndarray:
        """Returns point predictions of a modality, (n, d)."""

    def fit(self, groups: Groups, seed: int) -> None:
        """Chooses a setting, and learns with it."""
        size = len(next(iter(groups.values())))
        part = np.random.default_rng(seed).permutation(size) % FOLDS
        learns, self.validation = rows_of(groups, part > 0), rows_of(groups, part == 0)
        trials = [self.set_to(setting) for setting in self.settings]
        for trial in trials:
            trial.learn(learns, seed, self.validation)
        best = 0
        if len(trials) > 1:
            best = int(np.argmin([error(trial.means, self.validation) for trial in trials]))
        self.setting, self.trial = dict(self.settings[best]), trials[best]
        if self.stopped is not None:
            self.setting[self.stopped] = getattr(self.trial, self.stopped)
        vars(self).update(self.setting)
        self.learn(groups, seed, None)
        self._last = None
        self.spreads: dict[tuple[str, ...], Any] = {}

    def predict(self, groups: Groups, given: Sequence[str], target: str) -> Prediction:
        """Predicts a modality."""
        key = (*given, target)
        if key not in self.spreads:
            self.spreads[key] = learn_spread(self.residuals(groups, given, target))
        return StudentT(self.means(groups, given, target), self.spreads[key])

    def residuals(self, groups: Groups, given: Sequence[str], target: str) -> np.ndarray:
        """Returns what predictions miss rows by that were not learned from, (n, d)."""
        if target in given:  # hides as many cells as were asked for, at random
            shown = hide_cells(self.validation, float(np.isnan(groups[target]).mean()), 0)
            missed = self.trial.means(shown, given, target) - self.validation[target]
            return np.where(np.isnan(shown[target]), missed, np.nan)
        rows = has(self.validation[target])
        rows &= np.any([has(self.validation[name]) for name in given], axis=0)
        shown = rows_of(self.validation, rows)
        return self.trial.means(shown, given, target) - shown[target]


class Mean(Point):
    """The mean of each column."""

    fills_cells = True

    def learn(self, groups: Groups, seed: int, validation: Groups | None) -> None:
        """Learns the means."""
        self.mean = {name: np.nanmean(x, axis=0) for name, x in groups.items()}

    def means(self, groups: Groups, given: Sequence[str], target: str) -> np.ndarray:
        """Returns them."""
        return np.broadcast_to(self.mean[target], groups[target].shape)


class Ridge(Method):
    """Ridge regression, fitted for each pattern that is asked for.

    Inputs are the modalities that are given, 0 where a row lacks one, and which of them are there.
    The penalty is chosen by errors of rows that are left out one by one, of sixteen, once for all
    columns and once for each, whichever is better. These errors give the spread as well.

    For hidden cells, the regression of each column on those that a row has is that of a Gaussian
    with the covariance S + a I of a completed table.
    """

    fills_cells = True
    penalties = np.logspace(0, 5, 16)
    shrinkages = (0.03, 0.1, 0.3, 1.0)

    def fit(self, groups: Groups, seed: int) -> None:
        """Keeps the rows: regressions are fitted when they are asked for."""
        self.groups = groups
        self.fitted: dict[tuple[str, ...], tuple[Any, Any]] = {}
        self.table: tuple[np.ndarray, float, Any] | None = None

    def predict(self, groups: Groups, given: Sequence[str], target: str) -> Prediction:
        """Predicts a modality."""
        if target in given:
            return self._cells(groups, target)
        key = (*given, target)
        if key not in self.fitted:
            self.fitted[key] = self._regress(given, target)
        model, spread = self.fitted[key]
        means = model(self._inputs(groups, given))
        return StudentT(means.reshape(len(means), -1), spread)

    def _regress(self, given: Sequence[str], target: str) -> tuple[Callable, Any]:
        rows = has(self.groups[target]) & np.any([has(self.groups[m]) for m in given], axis=0)
        known = rows_of(self.groups, rows)
        x, y = self._inputs(known, given), np.nan_to_num(known[target])
        options = {"alphas": self.penalties, "store_cv_results": True}
        best, least = None, np.inf
        for each in (False, True):
            ridge = RidgeCV(**options, alpha_per_target=each).fit(x, y)
            chosen = np.broadcast_to(np.atleast_1d(np.asarray(ridge.alpha_)), y.shape[1:])
            places = np.searchsorted(self.penalties, chosen * (1 - 1e-9))
            squares = np.take_along_axis(ridge.cv_results_, places[None, :, None], axis=2)[..., 0]
            if squares.mean() < least:
                best, least = (ridge, chosen), squares.mean()
        assert best is not None
        ridge, chosen = best
        return ridge.predict, learn_spread(left_out(x, y, chosen))

    @staticmethod
    def _inputs(groups: Groups, given: Sequence[str]) -> np.ndarray:
        there = [has(groups[name])[:, None].astype(float) for name in given]
        return np.concatenate([*(np.nan_to_num(groups[name]) for name in given), *there], axis=1)

    def _cells(self, groups: Groups, target: str) -> Prediction:
        """Predicts hidden cells."""
        names = list(groups)
        ends = np.cumsum([groups[name].shape[1] for name in names])
        place = names.index(target)
        columns = slice(ends[place] - groups[target].shape[1], ends[place])
        table = np.concatenate(list(groups.values()), axis=1)
        if self.table is None:
            self.table = self._learn_table(names, float(np.isnan(table).mean()))
        covariance, shrinkage, residuals = self.table
        means = self.remembered(table, lambda: conditional_means(table, covariance, shrinkage))
        return StudentT(means[:, columns], learn_spread(residuals[:, columns]))

    def _learn_table(self, names: list[str], share: float) -> tuple[np.ndarray, float, Any]:
        """The covariance of a table that is completed by regressions, and its shrinkage."""
        size = len(self.groups[names[0]])
        part = np.random.default_rng(0).permutation(size) % FOLDS
        completed = []
        for target in names:
            x = np.nan_to_num(self.groups[target])
            lacks = ~has(self.groups[target])
            given = [name for name in names if name != target]
            if lacks.any():
                x[lacks] = self.predict(rows_of(self.groups, lacks), given, target).mean
            completed.append(x)
        whole = np.concatenate(completed, axis=1)
        validation = rows_of(self.groups, part == 0)
        own = np.concatenate(list(validation.values()), axis=1)
        shown = np.concatenate(list(hide_cells(validation, share, 0).values()), axis=1)
        hidden = np.isnan(shown)
        learned = whole[part > 0].T @ whole[part > 0] / (part > 0).sum()
        trials = []
        for shrinkage in self.shrinkages:
            missed = conditional_means(shown, learned, shrinkage) - own
            missed[~hidden] = np.nan
            trials.append((float(np.nanmean(missed**2)), shrinkage, missed))
        _, shrinkage, residuals = min(trials, key=lambda trial: trial[0])
        return whole.T @ whole / size, shrinkage, residuals


def left_out(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Returns errors of ridge regressions with a constant, each row left out in turn, (n, d)."""
    centred = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    inner = u.T @ (y - y.mean(axis=0))  # (K, d)
    kept = s[:, None] ** 2 / (s[:, None] ** 2 + penalties)  # (K, d)
    fitted = y.mean(axis=0) + u @ (kept * inner)
    leverage = 1 / len(x) + u**2 @ kept
    return (fitted - y) / (1 - leverage)


def conditional_means(table: np.ndarray, covariance: np.ndarray, shrinkage: float) -> np.ndarray:
    """The means of all cells given those of the row that are there, (n, d)."""
    whole = covariance + shrinkage * np.eye(len(covariance))
    means = np.zeros_like(table)
    for n, row in enumerate(table):
        seen = ~np.isnan(row)
        if seen.any():
            weights = np.linalg.solve(whole[np.ix_(seen, seen)], row[seen])
            means[n] = whole[:, seen] @ weights
            means[n, seen] = row[seen]
    return means


class Forest(Method):
    """Extremely randomised trees for each pattern, as missForest has one for each column.

    Settings are chosen, and the spread is learned, by errors of rows that are out of the bag.
    """

    settings = tuple((share, leaf) for share in (0.1, 0.3) for leaf in (2, 5))
    trial_trees = 30
    trees = 100

    def fit(self, groups: Groups, seed: int) -> None:
        """Keeps the rows: forests are grown when they are asked for."""
        self.groups, self.seed = groups, seed
        self.grown: dict[tuple[str, ...], tuple[Any, Any]] = {}

    def predict(self, groups: Groups, given: Sequence[str], target: str) -> Prediction:
        """Predicts a modality."""
        key = (*given, target)
        if key not in self.grown:
            self.grown[key] = self._grow(given, target)
        forest, spread = self.grown[key]
        x = np.concatenate([np.nan_to_num(groups[name]) for name in given], axis=1)
        return StudentT(forest.predict(x).reshape(len(x), -1), spread)

    def _grow(self, given: Sequence[str], target: str) -> tuple[Any, Any]:
        rows = has(self.groups[target]) & np.any([has(self.groups[m]) for m in given], axis=0)
        known = rows_of(self.groups, rows)
        x = np.concatenate([np.nan_to_num(known[name]) for name in given], axis=1)
        y = np.nan_to_num(known[target])

        def grow(trees: int, share: float, leaf: int) -> tuple[Any, np.ndarray]:
            forest = ExtraTreesRegressor(
                trees,
                max_features=share,
                min_samples_leaf=leaf,
                bootstrap=True,
                oob_score=True,
                random_state=self.seed,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a few rows are in every bag
                forest.fit(x, y)
            missed = forest.oob_prediction_.reshape(y.shape) - y
            return forest, np.where(missed == -y, np.nan, missed)  # in every bag

        few = [np.nanmean(grow(self.trial_trees, *s)[1] ** 2) for s in self.settings]
        forest, missed = grow(self.trees, *self.settings[int(np.argmin(few))])
        return forest, learn_spread(missed)


class Table(Point):
    """A method that completes a table, in which modalities are side by side."""

    fills_cells = True
    names: list[str]

    @abstractmethod
    def learn_table(self, table: np.ndarray, seed: int) -> None:
        """Learns from a table with NaN."""

    @abstractmethod
    def complete(self, table: np.ndarray) -> np.ndarray:
        """Returns a table without NaN."""

    def learn(self, groups: Groups, seed: int, validation: Groups | None) -> None:
        """Learns."""
        self.learn_table(np.concatenate(list(groups.values()), axis=1), seed)

    def means(self, groups: Groups, given: Sequence[str], target: str) -> np.ndarray:
        """Returns the columns of a modality."""
        shown = [x if name in given else np.full_like(x, np.nan) for name, x in groups.items()]
        ends = np.cumsum([x.shape[1] for x in shown])
        place = list(groups).index(target)
        start = ends[place] - shown[place].shape[1]
        table = np.concatenate(shown, axis=1)
        return self.remembered(table, lambda: self.complete(table))[:, start : ends[place]]


class Neighbours(Table):
    """Means of the nearest rows."""

    settings = tuple({"count": count} for count in (5, 10, 20, 40))
    count: int = 5
    weights: Literal["uniform", "distance"] = "distance"

    def learn_table(self, table: np.ndarray, seed: int) -> None:
        """Keeps the rows."""
        self.imputer = KNNImputer(
            n_neighbors=min(self.count, len(table) - 1),
            weights=self.weights,
            keep_empty_features=True,
        ).fit(table)

    def complete(self, table: np.ndarray) -> np.ndarray:
        """Returns a table without NaN."""
        return np.asarray(self.imputer.transform(table))


class Iterative(Table):
    """Bayesian ridge regressions of each column on the columns it is most correlated with."""

    columns = 20

    def learn_table(self, table: np.ndarray, seed: int) -> None:
        """Learns the regressions."""
        self.imputer = IterativeImputer(
            max_iter=3,
            n_nearest_features=min(self.columns, table.shape[1] - 1),
            keep_empty_features=True,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has not converged
            self.imputer.fit(table)

    def complete(self, table: np.ndarray) -> np.ndarray:
        """Returns a table without NaN."""
        return np.asarray(self.imputer.transform(table))


class SoftImpute(Table):
    """A matrix of low rank with a penalty on its nuclear norm, by alternating least squares.

    References:
        | Matrix Completion and Low-Rank SVD (Hastie et al., 2015)
        | https://jmlr.org/papers/v16/hastie15a.html
    """

    settings = tuple({"penalty": penalty} for penalty in (1.0, 3.0, 10.0, 30.0))
    penalty = 10.0
    rank = 60
    sweeps = 30

    def learn_table(self, table: np.ndarray, seed: int) -> None:
        """Learns the columns' factors."""
        rank = min(self.rank, *table.shape)
        _, s, vt = np.linalg.svd(np.nan_to_num(table), full_matrices=False)
        self.factors = vt[:rank].T * np.sqrt(s[:rank])  # (d, K)
        of_rows, of_columns = _patterns(table), _patterns(table.T)
        for _ in range(self.sweeps):
            rows = self._solve(table, self.factors, of_rows)
            self.factors = self._solve(table.T, rows, of_columns)

    def complete(self, table: np.ndarray) -> np.ndarray:
        """Returns a table without NaN."""
        filled = self._solve(table, self.factors, _patterns(table)) @ self.factors.T
        return np.where(np.isnan(table), filled, table)

    def _solve(
        self, table: np.ndarray, factors: np.ndarray, patterns: list[tuple[np.ndarray, np.ndarray]]
    ) -> np.ndarray:
        """The factors of rows, given those of columns, (n, K)."""
        found = np.zeros((len(table), factors.shape[1]))
        for rows, seen in patterns:
            known = factors[seen]
            inner = known.T @ known + self.penalty * np.eye(known.shape[1])
            found[rows] = np.linalg.solve(inner, known.T @ table[np.ix_(rows, seen)].T).T
        return found


def _patterns(table: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows that have the same cells, and these cells, for each pattern."""
    patterns, pattern = np.unique(~np.isnan(table), axis=0, return_inverse=True)
    pattern = pattern.ravel()
    return [
        (np.flatnonzero(pattern == p), np.flatnonzero(seen)) for p, seen in enumerate(patterns)
    ]


class Mofa(Method):
    """MOFA+ of mofapy2, with its own posterior predictive, which is Gaussian.

    The package has no step for new rows. Theirs is that of its factors: a precision of I plus that
    of what was observed, with the second moments of the weights, and the variances of the columns
    at their means. It stops early: after some hundred steps it predicts worse.

    References:
        | MOFA+: Integration of Multi-Modal Single-Cell Data (Argelaguet et al., 2020)
        | https://doi.org/10.1186/s13059-020-02015-1
    """

    package = "mofapy2"
    fills_cells = True
    settings = (40, 80)
    factors = 30
    largest_precision = 100.0

    def fit(self, groups: Groups, seed: int) -> None:
        """Chooses the number of steps, and learns."""
        size = len(next(iter(groups.values())))
        part = np.random.default_rng(seed).permutation(size) % FOLDS
        errors = []
        for steps in self.settings:
            self._learn(rows_of(groups, part > 0), seed, steps)
            errors.append(error(self._means, rows_of(groups, part == 0)))
        self._learn(groups, seed, self.settings[int(np.argmin(errors))])

    def _means(self, groups: Groups, given: Sequence[str], target: str) -> np.ndarray:
        return self.predict(groups, given, target).mean

    def predict(self, groups: Groups, given: Sequence[str], target: str) -> Prediction:
        """Predicts a modality."""
        size = len(groups[target])
        factors = self.weight[target].shape[1]
        precision = np.broadcast_to(np.eye(factors), (size, factors, factors)).copy()
        pull = np.zeros((size, factors))
        for name in given:
            w, tau, spread = self.weight[name], self.precision[name], self.uncertainty[name]
            seen = ~np.isnan(groups[name])
            weighted = seen * tau  # (n, d)
            outer = (w[:, :, None] * w[:, None, :]).reshape(len(w), -1)
            precision += (weighted @ outer).reshape(size, factors, factors)
            precision += (weighted @ spread)[:, :, None] * np.eye(factors)
            pull += (weighted * np.nan_to_num(groups[name] - self.centre[name])) @ w
        covariance = np.linalg.inv(precision)
        z = np.einsum("nkl,nl->nk", covariance, pull)
        second = np.diagonal(covariance, axis1=1, axis2=2) + z**2  # (n, K)
        variance = 1 / self.precision[target] + second @ self.uncertainty[target].T
        mean = self.centre[target] + z @ self.weight[target].T
        return Gaussian(mean, self.weight[target], covariance, variance)

    def _learn(self, groups: Groups, seed: int, steps: int) -> None:
        entry_point = import_module("mofapy2.run.entry_point").entry_point
        names, size = list(groups), len(next(iter(groups.values())))
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = entry_point()
            run.set_data_options(scale_groups=False, scale_views=False)
            run.set_data_matrix(
                [[groups[name].copy()] for name in names],
                likelihoods=["gaussian"] * len(names),
                views_names=names,
                groups_names=["all"],
                samples_names=[[str(n) for n in range(size)]],
                features_names=[[f"{m}{d}" for d in range(groups[m].shape[1])] for m in names],
            )
            run.set_model_options(
                factors=min(self.factors, size // 4, sum(x.shape[1] for x in groups.values()) - 1),
                spikeslab_weights=False,
                ard_weights=True,
                ard_factors=False,
            )
            run.set_train_options(iter=steps, convergence_mode="fast", seed=seed + 1, quiet=True)
            run.build()
            run.run()
        nodes = run.model.nodes
        first = dict(zip(names, nodes["W"].getExpectations(), strict=True))
        self.weight = {name: np.asarray(e["E"]) for name, e in first.items()}
        self.uncertainty = {
            name: np.maximum(np.asarray(e["E2"]) - self.weight[name] ** 2, 0)
            for name, e in first.items()
        }
        self.precision = {}
        for name, tau in zip(names, nodes["Tau"].getExpectation(), strict=True):
            tau = np.asarray(tau)
            by_column = tau.max(axis=0) if tau.ndim == 2 else tau
            self.precision[name] = np.minimum(by_column, self.largest_precision)
        self.centre = {name: np.nanmean(x, axis=0) for name, x in groups.items()}


class MultiVae(Point):
    """MVTCAE of MultiVae, with its own networks, stopped by rows that did not train.

    References:
        | Multi-View Representation Learning via Total Correlation Objective (Hwang et al., 2021)
        | https://openreview.net/forum?id=Bbzyz0jLYUU
    """

    package = "multivae"
    settings = ({"beta": 0.1}, {"beta": 0.5})
    stopped = "epochs"
    latents = 16
    beta = 0.5
    epochs = 40
    every = 5

    def learn(self, groups: Groups, seed: int, validation: Groups | None) -> None:
        """Trains."""
        models, data = import_module("multivae.models"), import_module("multivae.data")
        dims = {name: (x.shape[1],) for name, x in groups.items()}
        torch.manual_seed(seed)
        config = models.MVTCAEConfig(
            n_modalities=len(dims), latent_dim=self.latents, input_dims=dims, beta=self.beta
        )
        model = models.MVTCAE(config)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-2)
        x = {name: torch.tensor(np.nan_to_num(v)).float() for name, v in groups.items()}
        masks = {name: torch.as_tensor(has(v)) for name, v in groups.items()}
        size = len(next(iter(masks.values())))
        best, least, chosen = model, np.inf, self.epochs
        for epoch in range(1, self.epochs + 1):
            model.train()
            for rows in torch.randperm(size).split(64):
                batch = data.IncompleteDataset(
                    data={name: v[rows] for name, v in x.items()},
                    masks={name: v[rows] for name, v in masks.items()},
                )
                optimizer.zero_grad()
                model(batch).loss.backward()
                optimizer.step()
            if validation is not None and epoch % self.every == 0:
                self.model = model.eval()
                found = error(self.means, validation)
                if found < least:
                    best, least, chosen = copy.deepcopy(model), found, epoch
        self.model, self.epochs = best.eval(), chosen

    @torch.no_grad()
    def means(self, groups: Groups, given: Sequence[str], target: str) -> np.ndarray:
        """Returns what is decoded at the mean of the latents."""
        data = import_module("multivae.data")
        found = np.zeros(groups[target].shape)
        there = np.stack([has(groups[name]) for name in given], axis=1)
        patterns, pattern = np.unique(there, axis=0, return_inverse=True)
        for p, seen in enumerate(patterns):
            rows = pattern.ravel() == p
            names = [name for name, is_there in zip(given, seen, strict=True) if is_there]
            x = {m: torch.tensor(np.nan_to_num(groups[m][rows])).float() for m in names}
            encoded = self.model.encode(
                data.MultimodalBaseDataset(data=x), cond_mod=names, return_mean=True
            )
            decoded = self.model.decoders[target](encoded.z.reshape(int(rows.sum()), -1))
            found[rows] = decoded.reconstruction.numpy()
        return found


OPPONENTS: dict[str, Callable[[], Method]] = {
    "mean": Mean,
    "KNN": Neighbours,
    "ridge": Ridge,
    "random forest": Forest,
    "IterativeImputer": Iterative,
    "SoftImpute": SoftImpute,
    "MOFA": Mofa,
    "MultiVae": MultiVae,
}
"""The opponents by their names in tables."""


def absent(name: str) -> bool:
    """Returns whether an opponent is not installed.

    Arguments:
        name: Its name.
    """
    package = getattr(OPPONENTS.get(name), "package", None)
    return package is not None and find_spec(package) is None
