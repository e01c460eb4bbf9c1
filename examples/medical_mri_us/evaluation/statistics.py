"""Paired tests of the differences between models."""

from __future__ import annotations

__all__ = ["ALPHA", "compare", "signed_rank"]

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .protocols import PROTOCOLS
from .scores import Scores

ALPHA = 0.01
"""The level of the published tests: a corrected p-value below it is significant."""


def signed_rank(ours: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Wilcoxon's signed-rank test of paired numbers, two-sided, with its effect size.

    The effect size is the matched-pairs rank-biserial correlation, (W+ - W-) / (W+ + W-), with the
    sums of ranks of positive and negative differences: 1 if ours is larger in every pair, -1 if it
    is smaller. Pairs without a difference are left out of both. If no pair differs, p is 1.

    Arguments:
        ours: One number per case.
        others: One number for each of the same cases.

    Returns:
        ``n`` pairs, ``p``, ``rank_biserial``, ``median_difference``, ``identical`` (whether no
        pair differs) and ``smallest_p``, the least p that so many pairs that differ could have.
    """
    from scipy import stats

    change = np.asarray(ours, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    if change.ndim != 1 or not change.size or not np.isfinite(change).all():
        raise ValueError(
            "'ours' and 'others' should be finite numbers, one per case, of the same cases, "
            f"but their difference is {change}."
        )
    found = {"n": len(change), "median_difference": float(np.median(change))}
    change = change[change != 0]
    if not len(change):
        return {**found, "p": 1.0, "rank_biserial": 0.0, "identical": True, "smallest_p": 1.0}
    rank = stats.rankdata(np.abs(change))
    signed = float((rank * np.sign(change)).sum() / rank.sum())
    return {
        **found,
        "p": float(np.asarray(stats.wilcoxon(change))[1]),
        "rank_biserial": signed,
        "identical": False,
        "smallest_p": 2.0 ** (1 - len(change)),
    }


def compare(scores: Sequence[Scores], model: str) -> list[dict[str, Any]]:
    """Tests a model against all others, on the mean of each case, whatever the protocol's unit.

    Slices of one case are not independent, so they are averaged first. There are two families for
    each protocol and metric, cross-modal synthesis only: each cell by itself, and each target, for
    which a case's scores from all inputs are averaged. Bonferroni's correction counts the tests of
    a family, over all other models. Effects are positive where the model is better.

    Arguments:
        scores: The scores of all models on the same cases.
        model: The model to compare with the others.
    """
    table: dict[tuple[str, str, str, tuple[str, ...]], dict[str, dict[str, float]]] = {}
    for s in scores:
        for metric, values in s.values.items():
            finite = values[np.isfinite(values)]
            if finite.size:
                cell = table.setdefault((s.protocol, metric, s.target, s.given), {})
                cell.setdefault(s.model, {})[s.case] = float(finite.mean())

    tests: list[dict[str, Any]] = []
    for (protocol, metric, target, given), by_model in table.items():
        if not given or target in given or model not in by_model:
            continue
        baseline = table.get((protocol, metric, target, ()), {})
        place = {"protocol": protocol, "metric": metric, "target": target, "given": list(given)}
        for other, theirs in {**baseline, **by_model}.items():
            if other != model:
                tests += _test("cells", place, model, other, by_model[model], theirs)
    tests += _by_target(table, model)
    return _correct(tests)


def _by_target(table: dict[Any, dict[str, dict[str, float]]], model: str) -> list[dict[str, Any]]:
    cells: dict[tuple[str, str, str], dict[str, dict[str, list[float]]]] = {}
    for (protocol, metric, target, given), by_model in table.items():
        if target in given:
            continue
        pooled = cells.setdefault((protocol, metric, target), {})
        for name, by_case in by_model.items():
            for case, value in by_case.items():
                pooled.setdefault(name, {}).setdefault(case, []).append(value)
    tests: list[dict[str, Any]] = []
    for (protocol, metric, target), pooled in cells.items():
        means = {n: {c: float(np.mean(v)) for c, v in p.items()} for n, p in pooled.items()}
        place = {"protocol": protocol, "metric": metric, "target": target, "given": None}
        for other, theirs in means.items():
            if other != model and model in means:
                tests += _test("targets", place, model, other, means[model], theirs)
    return tests


def _test(
    family: str,
    place: dict[str, Any],
    model: str,
    other: str,
    ours: dict[str, float],
    theirs: dict[str, float],
) -> list[dict[str, Any]]:
    cases = sorted(ours.keys() & theirs.keys())
    if not cases:
        return []
    found = signed_rank(np.array([ours[c] for c in cases]), np.array([theirs[c] for c in cases]))
    metrics = {m.name: m for m in PROTOCOLS[place["protocol"]].metrics}
    if not metrics[place["metric"]].higher_is_better:
        found["rank_biserial"] *= -1
    return [{"family": family, **place, "model": model, "other": other, **found}]


def _correct(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    counts: dict[tuple[str, str, str], int] = {}
    for test in tests:
        key = test["family"], test["protocol"], test["metric"]
        counts[key] = counts.get(key, 0) + 1
    for test in tests:
        count = counts[test["family"], test["protocol"], test["metric"]]
        test["comparisons"] = count
        test["corrected"] = min(1.0, count * test["p"])
        test["significant"] = test["corrected"] < ALPHA
        test["cases_for_significance"] = math.floor(1 - math.log2(ALPHA / count)) + 1
    return tests
