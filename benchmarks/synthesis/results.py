"""The scores that the runs of the synthesis benchmark keep, averaged, ranked and counted.

The unit is the patient: scores are averaged over seeds before anything is tested, and over cells
where a table says so.
"""

from __future__ import annotations

__all__ = [
    "CROSS",
    "METRICS",
    "OWN",
    "REFERENCE",
    "Metric",
    "Place",
    "Result",
    "by_system",
    "content",
    "ranking",
    "read",
    "standard_deviation",
    "verdict",
]

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.evaluation import is_published
from examples.medical_mri_us.modalities import MODALITIES

from .scoring import BASELINE, SUBSETS, absent
from .statistics import mean_ranks, standing, testable
from .systems import LABELS, SYSTEMS

REFERENCE = LABELS["mmhvae"]
Place = tuple[tuple[str, ...], str]
"""The inputs, and the target."""
CROSS: list[Place] = [(given, m) for given in SUBSETS for m in MODALITIES if m not in given]
OWN: list[Place] = [(given, m) for given in SUBSETS for m in MODALITIES if m in given]


@dataclass(frozen=True)
class Metric:
    """A number to show."""

    protocol: str
    key: str
    heading: str
    factor: float
    digits: int
    higher: bool
    """Whether higher is better."""

    @property
    def name(self) -> str:
        """The protocol and the key."""
        return f"{self.protocol}/{self.key}"


METRICS = (
    Metric("strict", "psnr", "PSNR, dB", 1.0, 2, True),
    Metric("strict", "ssim", "SSIM, %", 100.0, 1, True),
    Metric("strict", "st_lpips", "ST-LPIPS, %", 100.0, 2, False),
    Metric("strict", "lpips", "LPIPS, %", 100.0, 1, False),
    Metric("mmhvae-2026", "psnr", "PSNR, dB", 1.0, 2, True),
    Metric("mmhvae-2026", "ssim", "row-wise SSIM, %", 100.0, 1, True),
    Metric("mmhvae-2026", "lpips", "LPIPS, %", 100.0, 1, False),
)


@dataclass(frozen=True)
class Result:
    """The runs of one system."""

    system: str
    """As it is written in tables."""
    runs: list[dict[str, Any]]
    """The facts of each run."""
    patients: list[str]
    cells: dict[Place, dict[str, np.ndarray]]
    """The scores by the name of the metric, with shape (runs, patients)."""

    def score(self, metric: Metric, places: Sequence[Place]) -> np.ndarray | None:
        """Returns the mean over cells and runs of each patient, None unless all are there."""
        seeds = self.by_seed(metric, places)
        return None if seeds is None else seeds.mean(axis=0)

    def by_seed(self, metric: Metric, places: Sequence[Place]) -> np.ndarray | None:
        """Returns the mean over cells, with shape (runs, patients), None unless all are there."""
        if not all(place in self.cells for place in places):
            return None
        found = np.mean([self.cells[place][metric.name] for place in places], axis=0)
        return found if np.isfinite(found).all() else None


def read(folder: Path) -> list[Result]:
    """Reads the scores of a profile, systems in the order of `SYSTEMS`, the baseline first.

    Arguments:
        folder: The folder of the profile.

    Raises:
        ValueError: If there are none, or runs scored other patients than others did.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-[0-9]*.json")):
        run = json.loads(path.read_text())
        runs.setdefault(run["system"], []).append(run)
    if not runs:
        raise ValueError(f"'folder' should hold scores of benchmarks.synthesis.run: {folder}.")
    patients = next(iter(runs.values()))[0]["patients"]
    results = []
    for system in [BASELINE, *SYSTEMS]:
        if system not in runs:
            continue
        if any(run["patients"] != patients for run in runs[system]):
            raise ValueError(f"Runs of {system} in {folder} scored other patients than others.")
        label = LABELS.get(system, system)
        results.append(Result(label, runs[system], patients, _scores(runs[system])))
    return results


def by_system(
    results: Sequence[Result], metric: Metric, places: Sequence[Place]
) -> dict[str, np.ndarray]:
    """Returns one number per patient of each system that has all these cells.

    Arguments:
        results: The scores of the systems.
        metric: The metric.
        places: The cells to average.
    """
    scores = {r.system: r.score(metric, places) for r in results}
    return {system: value for system, value in scores.items() if value is not None}


def ranking(results: Sequence[Result], metric: Metric) -> dict[str, np.ndarray]:
    """Returns the mean rank of each patient over the cells of what was not given; 1 is the best.

    Arguments:
        results: The scores of all systems; those that lack cells, and the baseline, are left out.
        metric: The metric.
    """
    whole = [r for r in results if r.system != BASELINE and r.score(metric, CROSS) is not None]
    if len(whole) < 2:
        return {}
    cells = [by_system(whole, metric, [place]) for place in CROSS]
    return mean_ranks(cells, higher=metric.higher)


def verdict(
    results: Sequence[Result], metric: Metric, places: Sequence[Place]
) -> dict[str, Any] | None:
    """Counts the cells in which the reference is best or tied; None without scores of it.

    Arguments:
        results: The scores of all systems.
        metric: The metric.
        places: The cells to count.
    """
    cells = [scores for place in places if (scores := by_system(results, metric, [place]))]
    if not any(REFERENCE in scores for scores in cells):
        return None
    standings = [standing(scores, higher=metric.higher) for scores in cells if len(scores) > 1]
    return {
        "cells": len(standings),
        "best": sum(s.best == REFERENCE for s in standings),
        "tied": sum(REFERENCE in s.tied for s in standings),
        "uncorrected": sum(REFERENCE in s.uncorrected for s in standings),
        "tested": testable(len(results[0].patients), len(results)),
    }


def content(results: Sequence[Result], about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is kept as JSON: facts, runs, averages, verdicts, and every cell.

    Arguments:
        results: The scores of all systems.
        about: How they came about.
    """
    return {
        **about,
        "patients": len(results[0].patients),
        "absent": absent(),
        "runs": {r.system: [_brief(run) for run in r.runs] for r in results},
        "cross_modal": {m.name: _summaries(results, m, CROSS) for m in METRICS},
        "reconstruction": {m.name: _summaries(results, m, OWN) for m in METRICS},
        "verdict": {m.name: verdict(results, m, CROSS) for m in METRICS},
        "cells": [
            {
                "given": list(given),
                "target": target,
                "published": is_published(given),
                **{m.name: _summaries(results, m, [(given, target)]) for m in METRICS},
            }
            for given, target in [*CROSS, *OWN]
        ],
    }


def standard_deviation(values: np.ndarray) -> float:
    """Returns the standard deviation over patients, NaN for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _scores(runs: Sequence[Mapping[str, Any]]) -> dict[Place, dict[str, np.ndarray]]:
    """The scores of each cell, by metric, with shape (runs, patients)."""
    tables = [{(tuple(c["given"]), c["target"]): c for c in run["cells"]} for run in runs]
    return {
        place: {m.name: np.array([_entry(table[place], m) for table in tables]) for m in METRICS}
        for place in tables[0]
    }


def _entry(cell: Mapping[str, Any], metric: Metric) -> list[float]:
    return (cell if metric.protocol == "strict" else cell[metric.protocol])[metric.key]


def _summaries(
    results: Sequence[Result], metric: Metric, places: Sequence[Place]
) -> dict[str, list[float]]:
    """Mean and standard deviation over patients by system."""
    return {
        s: [_round(v.mean()), _round(standard_deviation(v))]
        for s, v in by_system(results, metric, places).items()
    }


def _brief(run: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in run.items() if k not in ("system", "cells", "patients", "profile")}


def _round(value: float) -> float:
    return float(f"{value:.5g}")
