"""One method on the data of one seed: what it is asked, and its scores."""

from __future__ import annotations

__all__ = ["CELLS", "Scenario", "measure", "queries"]

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .data import Groups, has, hide_cells, rows_of, split
from .opponents import OPPONENTS
from .ours import OURS, Ours
from .predictions import scores

CELLS = 0.3
"""The share of test cells that are hidden, where cells are."""


class Scenario(NamedTuple):
    """Data, and why training rows lack modalities."""

    data: str
    mechanism: str

    @property
    def name(self) -> str:
        """The name in results."""
        return f"{self.data} {self.mechanism}"


def queries(groups: Groups, *, cells: bool) -> Iterator[tuple[str, list[str], str]]:
    """Yields what is asked of a method: a kind, what is given, and the target.

    The kinds are ``all``, a modality from all others; ``one``, from the smallest alone; and
    ``cells``, some cells of all modalities from the other cells.

    Arguments:
        groups: The modalities.
        cells: Whether to ask for cells.
    """
    names = list(groups)
    smallest = min(names, key=lambda name: groups[name].shape[1])
    for target in names:
        yield "all", [name for name in names if name != target], target
    for target in names:
        if target != smallest:
            yield "one", [smallest], target
    for target in names if cells else []:
        yield "cells", names, target


def measure(
    scenario: Scenario, seed: int, name: str, *, networks: int, cells: bool
) -> dict[str, Any]:
    """Fits a method, and returns its scores by kind of query and target, and its seconds.

    Arguments:
        scenario: The data.
        seed: The seed.
        name: The method.
        networks: The number of networks of the imputer.
        cells: Whether to ask for cells as well.
    """
    train, test = split(*scenario, seed)
    method = Ours(networks) if name == OURS else OPPONENTS[name]()
    start = time.process_time()
    method.fit(train, seed)
    fitted = time.process_time()
    shown = hide_cells(test, CELLS, seed)
    found: dict[str, Any] = {}
    for kind, given, target in queries(test, cells=cells and method.fills_cells):
        if kind == "cells":
            rows, truth = shown, np.where(np.isnan(shown[target]), test[target], np.nan)
        else:
            known = has(test[target]) & np.any([has(test[name]) for name in given], axis=0)
            rows, truth = rows_of(test, known), test[target][known]
            rows = rows | {target: np.full_like(truth, np.nan)}  # nothing can be seen of it
        prediction = method.predict(rows, given, target)
        found.setdefault(kind, {})[target] = scores(prediction, truth, joint=kind != "cells")
    return {
        "fit": round(fitted - start, 2),
        "predict": round(time.process_time() - fitted, 2),
        **found,
    }
