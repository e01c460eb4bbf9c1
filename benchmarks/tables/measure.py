"""One method on one table with one pattern of missing cells, and its scores."""

from __future__ import annotations

__all__ = ["RATE", "measure"]

import time
from typing import Any

import numpy as np

from .data import load
from .methods import OURS, Filled, fill_by_opponent, fill_by_ours
from .patterns import draw

RATE = 0.3
"""The share of cells that are missing."""
LEAST = 1e-3
"""The least probability that counts, where the log loss would be infinite."""


def measure(name: str, pattern: str, seed: int, method: str, networks: int) -> dict[str, Any]:
    """Fills a table with holes, and returns the scores of the holes, and the seconds.

    Arguments:
        name: The table.
        pattern: The pattern of its holes.
        seed: The seed.
        method: The method.
        networks: The number of networks of the imputer.
    """
    table = load(name)
    observed = draw(pattern, table.standardised(), RATE, seed)
    frame = table.frame.copy()
    for k, column in enumerate(frame):
        missing = None if column in table.categorical else np.nan
        frame[column] = frame[column].astype(object if missing is None else float)
        frame.loc[~observed[:, k], column] = missing
    categories = {c: sorted(table.frame[c].unique()) for c in table.categorical}
    start = time.process_time()
    if method == OURS:
        filled = fill_by_ours(frame, categories, seed, networks)
    else:
        filled = fill_by_opponent(method, frame, categories, seed)
    seconds = time.process_time() - start
    return {"seconds": round(seconds, 2), **_scores(filled, table.frame, categories, observed)}


def _scores(filled: Filled, truth: Any, categories: dict, observed: np.ndarray) -> dict[str, Any]:  # noqa: ANN401
    """Means over columns of the scores of their holes, in deviations of the complete columns."""
    found: dict[str, list[float]] = {
        key: [] for key in ("NRMSE", "CRPS", "coverage", "accuracy", "log loss")
    }
    for k, column in enumerate(truth):
        holes = ~observed[:, k]
        if not holes.any():
            continue
        x = truth[column].to_numpy()
        if column in categories:
            p = filled.probabilities[column][holes]
            code = np.array([categories[column].index(c) for c in x[holes]])
            found["accuracy"].append(float((p.argmax(axis=1) == code).mean()))
            likely = np.maximum(p[np.arange(len(code)), code], LEAST)
            found["log loss"].append(float(-np.log(likely).mean()))
        else:
            scale = x.std()
            missed = (filled.mean[column] - x)[holes] / scale
            found["NRMSE"].append(float(np.sqrt((missed**2).mean())))
            found["CRPS"].append(float(filled.crps(column, x)[holes].mean() / scale))
            low, high = filled.interval[column]
            found["coverage"].append(float(((low <= x) & (x <= high))[holes].mean()))
    return {key: float(np.mean(v)) if v else None for key, v in found.items()}
