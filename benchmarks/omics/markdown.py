"""The tables of the comparison on omics, as text."""

from __future__ import annotations

__all__ = ["KINDS", "SCORES", "by_kind", "compare", "markdown"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks._comparison import Column, Verdict, summary, table, verdicts

from .ours import OURS
from .predictions import LEVEL

KINDS = {
    "all": "A modality from all others",
    "one": "A modality from the smallest alone",
    "cells": "Cells from the other cells of their rows",
}
SCORES = [
    Column("R2", "R2", lambda v: -v),
    Column("CRPS", "CRPS", lambda v: v),
    Column("NLL", "NLL", lambda v: v),
    Column("coverage", f"coverage of {LEVEL:.0%}", lambda v: abs(v - LEVEL)),
    Column("joint", "joint log-density", lambda v: -v),
]
TABLE = [Column("seeds", "seeds", None, 0), *SCORES, Column("fit", "seconds to fit", None, 1)]


def by_kind(scenario: Mapping[str, Any], kind: str) -> dict[str, dict[str, list[Any]]]:
    """Returns the means over targets, for each method and score one for each seed.

    Arguments:
        scenario: The runs of each method.
        kind: The kind of query. Methods that do not answer it are left out.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for method, runs in scenario.items():
        runs = [run for run in runs if kind in run]
        if not runs:
            continue
        scores = found.setdefault(method, {"fit": [run["fit"] or None for run in runs]})
        scores["seeds"] = [len(runs)]
        for column in SCORES:
            of_runs = [[t[column.key] for t in run[kind].values()] for run in runs]
            scores[column.key] = [None if None in v else float(np.mean(v)) for v in of_runs]
    return found


def compare(content: Mapping[str, Any], kind: str) -> list[Verdict]:
    """Returns how the imputer does beside the strongest opponent in each score but coverage.

    Arguments:
        content: The results.
        kind: The kind of query.
    """
    columns = [column for column in SCORES if column.key != "coverage"]
    return [
        verdict
        for name, scenario in content["scenarios"].items()
        for verdict in verdicts(name, by_kind(scenario, kind), columns, OURS)
    ]


def markdown(content: Mapping[str, Any]) -> str:
    """Returns all tables.

    Arguments:
        content: The results, with what `benchmarks._results.facts` says first.
    """
    machine = content["machine"]
    parts = [
        "# Omics, measured",
        f"`{content['command']}`, commit {content['commit']}, {content['date']}; "
        f"{machine['cpu']}, one thread, PyTorch {machine['torch']}. Means over modalities and "
        "seeds, plus or minus half of their 95 % interval over seeds (Student's t; none for a "
        "single seed); the best mean is bold. Columns are standardised by the rows that train; "
        "CRPS is in their deviations, NLL and the joint log-density are in nats per column. "
        "Seconds are of the processor, with the choice of settings; ridge and the "
        "forest fit when they are asked to predict, and have no seconds here."
        + _left_out(content["absent"]),
    ]
    for kind, title in KINDS.items():
        found = compare(content, kind)
        if found:
            parts += [
                f"## {title}: {OURS} beside the strongest opponent",
                summary("data", found, OURS),
            ]
    for name, scenario in content["scenarios"].items():
        for kind, title in KINDS.items():
            scores = by_kind(scenario, kind)
            if scores:
                parts += [
                    f"## {name}: {title[0].lower()}{title[1:]}",
                    table("method", scores, TABLE),
                ]
    return "\n\n".join(parts)


def _left_out(absent: Sequence[str]) -> str:
    return f" Not installed, and left out: {', '.join(absent)}." if absent else ""
