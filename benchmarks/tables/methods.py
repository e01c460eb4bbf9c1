"""The methods that fill tables, and how the settings of opponents are chosen.

Opponents see a table as numbers: standardised columns, and an indicator of each category. A fifth
of the cells that are there are hidden as well, to choose among at most two settings. What the
chosen one misses these cells by is its spread, a Student t for each column, and says how much of
its probabilities of categories to believe: the rest is their frequencies.
"""

from __future__ import annotations

__all__ = ["OPPONENTS", "OURS", "Encoding", "Filled", "absent", "fill_by_opponent", "fill_by_ours"]

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from benchmarks.omics.opponents import Iterative, Neighbours, Ridge, SoftImpute
from benchmarks.omics.opponents import Table as Completed
from benchmarks.omics.predictions import LEVEL, StudentT, learn_spread
from mmpoe import MultimodalImputer

OURS = "mmpoe"
HIDDEN = 0.2
"""The share of cells that choose."""
BELIEFS = (0.0, 0.25, 0.5, 0.7, 0.85, 0.95, 0.99)
"""Shares of the probabilities of a method, the rest is frequencies."""


class Encoding:
    """A table with holes as numbers.

    Arguments:
        frame: The table, with NaN and None where cells are missing.
        categories: The categories of each column of categories.
    """

    def __init__(self, frame: pd.DataFrame, categories: dict[str, list[str]]) -> None:
        self.frame, self.categories = frame, categories
        self.places: dict[str, slice] = {}
        self.centre: dict[str, tuple[float, float]] = {}
        parts, start = [], 0
        for column in frame:
            values = frame[column]
            if column in categories:
                block = np.stack([(values == c).to_numpy(float) for c in categories[column]], 1)
                block[values.isna().to_numpy()] = np.nan
            else:
                x = values.to_numpy(float)
                self.centre[column] = float(np.nanmean(x)), float(np.nanstd(x)) or 1.0
                mean, scale = self.centre[column]
                block = ((x - mean) / scale)[:, None]
            parts.append(block)
            self.places[column] = slice(start, start + block.shape[1])
            start += block.shape[1]
        self.table = np.concatenate(parts, axis=1)

    def blocks(self) -> dict[str, np.ndarray]:
        """Returns the columns one by one, (n, 1) or (n, C)."""
        return {column: self.table[:, place] for column, place in self.places.items()}


@dataclass
class Filled:
    """Predictions of all cells of a table."""

    mean: dict[str, np.ndarray]
    """For each column of numbers, (n)."""
    crps: Callable[[str, np.ndarray], np.ndarray]
    """The scores of a column at its true values, (n)."""
    interval: dict[str, tuple[np.ndarray, np.ndarray]]
    probabilities: dict[str, np.ndarray]
    """For each column of categories, (n, C)."""


Fill = Callable[[Encoding, int], np.ndarray]
"""Returns an encoded table without NaN, from one with NaN and a seed."""


def _mean(encoding: Encoding, seed: int) -> np.ndarray:
    return np.where(np.isnan(encoding.table), np.nanmean(encoding.table, axis=0), encoding.table)


def _completed(method: Completed) -> Fill:
    def fill(encoding: Encoding, seed: int) -> np.ndarray:
        filler = method.set_to({})
        filler.learn_table(encoding.table, seed)
        return filler.complete(encoding.table)

    return fill


def _iterative(encoding: Encoding, seed: int) -> np.ndarray:
    """Without the last indicator of each column: all of them would predict each other exactly."""
    last = [encoding.places[column].stop - 1 for column in encoding.categories]
    filler = Iterative()
    filler.learn_table(np.delete(encoding.table, last, axis=1), seed)
    kept = filler.complete(np.delete(encoding.table, last, axis=1))
    filled = np.insert(kept, np.array(last, dtype=int) - np.arange(len(last)), 0.0, axis=1)
    for column in encoding.categories:
        place = encoding.places[column]
        filled[:, place.stop - 1] = 1 - filled[:, place.start : place.stop - 1].sum(axis=1)
    return filled


def _ridge(encoding: Encoding, seed: int) -> np.ndarray:
    """Each column from all others, 0 where they are missing, and which of them are there."""
    blocks = encoding.blocks()
    ridge = Ridge()
    ridge.fit(blocks, seed)
    filled = encoding.table.copy()
    for column, place in encoding.places.items():
        given = [name for name in blocks if name != column]
        means = ridge.predict(blocks, given, column).mean
        filled[:, place] = np.where(np.isnan(blocks[column]), means, blocks[column])
    return filled


def _forest(leaf: int) -> Fill:
    def fill(encoding: Encoding, seed: int) -> np.ndarray:
        """Random forests of each column in turn, as missForest, three times."""
        holes = np.isnan(encoding.table)
        filled = _mean(encoding, seed)
        options: dict[str, Any] = {
            "n_estimators": 50,
            "min_samples_leaf": leaf,
            "random_state": seed,
        }
        fewest = sorted(encoding.places.items(), key=lambda item: holes[:, item[1]].sum())
        for _ in range(3):
            for column, place in fewest:
                lacks = holes[:, place.start]
                if not lacks.any():
                    continue
                others = np.delete(filled, np.arange(place.start, place.stop), axis=1)
                target = filled[~lacks, place]
                if column in encoding.categories:
                    forest = RandomForestClassifier(**options)
                    forest.fit(others[~lacks], target.argmax(axis=1))
                    block = np.zeros((int(lacks.sum()), target.shape[1]))
                    block[:, forest.classes_] = forest.predict_proba(others[lacks])
                else:
                    forest = RandomForestRegressor(**options, max_features=1 / 3)
                    forest.fit(others[~lacks], target[:, 0])
                    block = forest.predict(others[lacks])[:, None]
                filled[lacks, place] = block
        return filled

    return fill


def _mice(encoding: Encoding, seed: int) -> np.ndarray:
    """The mean of three tables that miceforest draws."""
    package = import_module("miceforest")
    frame = encoding.frame.copy()
    for column, known in encoding.categories.items():
        frame[column] = pd.Categorical(frame[column], categories=known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = package.ImputationKernel(frame, num_datasets=3, random_state=seed)
        kernel.mice(2, num_threads=1, num_iterations=30)
        drawn = [kernel.complete_data(dataset) for dataset in range(3)]
    return np.mean([_again(encoding, table) for table in drawn], axis=0)


def _again(encoding: Encoding, frame: pd.DataFrame) -> np.ndarray:
    """A completed table, encoded as the one with holes."""
    parts = []
    for column in encoding.places:
        if column in encoding.categories:
            known = encoding.categories[column]
            parts.append(np.stack([(frame[column] == c).to_numpy(float) for c in known], 1))
        else:
            mean, scale = encoding.centre[column]
            parts.append(((frame[column].to_numpy(float) - mean) / scale)[:, None])
    return np.concatenate(parts, axis=1)


OPPONENTS: dict[str, tuple[Fill, ...]] = {
    "mean": (_mean,),
    "KNN": tuple(
        _completed(Neighbours().set_to({"count": k, "weights": "uniform"})) for k in (5, 15)
    ),
    "ridge": (_ridge,),
    "IterativeImputer": (_iterative,),
    "SoftImpute": tuple(_completed(SoftImpute().set_to({"penalty": p})) for p in (1.0, 5.0)),
    "missForest": (_forest(1), _forest(5)),
    "miceforest": (_mice,),
}
"""The settings of the opponents, by their names in tables."""
PACKAGES = {"miceforest": "miceforest"}


def absent(name: str) -> bool:
    """Returns whether an opponent is not installed.

    Arguments:
        name: Its name.
    """
    return name in PACKAGES and find_spec(PACKAGES[name]) is None


def fill_by_opponent(
    name: str, frame: pd.DataFrame, categories: dict[str, list[str]], seed: int
) -> Filled:
    """Fills a table.

    Arguments:
        name: The opponent.
        frame: The table, with holes.
        categories: The categories of each column of categories.
        seed: The seed.
    """
    encoding = Encoding(frame, categories)
    hidden = np.random.default_rng(seed).random(frame.shape) < HIDDEN
    hidden &= frame.notna().to_numpy()
    trial = Encoding(frame.mask(hidden), categories)
    # on the scale of the whole table
    truth = _again(encoding, frame)
    for number, (column, place) in enumerate(encoding.places.items()):
        truth[~hidden[:, number], place] = np.nan
        if column in encoding.centre:
            trial.table[:, place] = np.where(
                np.isnan(trial.table[:, place]), np.nan, encoding.table[:, place]
            )
    trial.centre = encoding.centre
    trials = [fill(trial, seed) for fill in OPPONENTS[name]]
    errors = [float(np.nanmean((found - truth) ** 2)) for found in trials]
    best = int(np.argmin(errors))
    found = OPPONENTS[name][best](encoding, seed)
    mean, interval, probabilities, predictions = {}, {}, {}, {}
    for column, place in encoding.places.items():
        if column in categories:
            believed = _probabilities(trials[best][:, place], encoding.table[:, place], None)
            belief = _belief(believed, truth[:, place], encoding.table[:, place])
            probabilities[column] = _probabilities(
                found[:, place], encoding.table[:, place], belief
            )
        else:
            centre, scale = encoding.centre[column]
            missed = trials[best][:, place] - truth[:, place]
            if np.isnan(missed).all():
                missed = trials[best][:, place] * 0 + 1.0
            p = StudentT(found[:, place], learn_spread(missed))
            low, high = p.interval(LEVEL)
            mean[column] = found[:, place.start] * scale + centre
            interval[column] = low[:, 0] * scale + centre, high[:, 0] * scale + centre
            predictions[column] = p, centre, scale

    def crps(column: str, x: np.ndarray) -> np.ndarray:
        p, centre, scale = predictions[column]
        return p.crps(((x - centre) / scale)[:, None])[:, 0] * scale

    return Filled(mean, crps, interval, probabilities)


def _probabilities(block: np.ndarray, known: np.ndarray, belief: float | None) -> np.ndarray:
    """Indicators that were predicted, made probabilities; mixed with frequencies by a belief."""
    positive = np.clip(block, 0, None)
    total = positive.sum(axis=1, keepdims=True)
    frequency = np.nanmean(known, axis=0)
    p = np.where(total > 0, positive / np.where(total > 0, total, 1), frequency)
    return p if belief is None else belief * p + (1 - belief) * frequency


def _belief(p: np.ndarray, truth: np.ndarray, known: np.ndarray) -> float:
    """How much of probabilities to believe, by the likelihood of cells that were hidden."""
    rows = ~np.isnan(truth).any(axis=1)
    frequency = np.nanmean(known, axis=0)

    def likelihood(belief: float) -> float:
        mixed = belief * p[rows] + (1 - belief) * frequency
        return float(np.log(np.maximum((mixed * truth[rows]).sum(axis=1), 1e-6)).sum())

    return max(BELIEFS, key=likelihood)


def fill_by_ours(
    frame: pd.DataFrame, categories: dict[str, list[str]], seed: int, networks: int
) -> Filled:
    """Fills a table with the imputer, by its defaults.

    Arguments:
        frame: The table, with holes.
        categories: The categories of each column of categories.
        seed: The seed.
        networks: The number of its networks.
    """
    imputer = MultimodalImputer(networks=networks, random_state=seed).fit(frame)
    p: Any = imputer.predict_distribution(frame)  # pyright: ignore
    places = {str(label): k for k, label in enumerate(p.columns)}
    low, high = p.interval(LEVEL)
    numeric = [column for column in places if column not in categories]
    probabilities = {}
    for column, known in categories.items():
        own = [str(c) for c in imputer.columns_[places[column]].categories]
        block = np.zeros((len(frame), len(known)))
        block[:, [known.index(c) for c in own]] = p.probabilities[column]
        probabilities[column] = block

    def crps(column: str, x: np.ndarray) -> np.ndarray:
        values = np.full((len(x), len(places)), None, dtype=object)
        values[:, places[column]] = x
        return p.crps(values)[:, places[column]]

    return Filled(
        {c: p.mean[:, places[c]] for c in numeric},
        crps,
        {c: (low[:, places[c]], high[:, places[c]]) for c in numeric},
        probabilities,
    )
