"""The tables of the comparison on omics, as text."""

from __future__ import annotations

__all__ = ["KINDS", "SCORES", "by_kind", "markdown", "verdicts"]

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks._comparison import Column, Paired, paired, strongest, table

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
TABLE = [Column("seeds", "seeds", None, 0), *SCORES, Column("seconds", "seconds", None, 1)]


class Verdict(NamedTuple):
    """The imputer beside the strongest opponent in a score."""

    scenario: str
    kind: str
    column: Column
    opponent: str
    difference: Paired
    winner: str
    """Who is better by the 95 % interval; ``"level"`` if it does not say."""


def by_kind(scenario: Mapping[str, Any], kind: str) -> dict[str, dict[str, list[Any]]]:
    """Returns the means over targets, for each method and score one for each seed.

    Arguments:
        scenario: The runs of each method.
        kind: The kind of query. Methods that do not answer it are left out.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for method, runs in scenario.items():
        if kind not in runs[0]:
            continue
        scores = found.setdefault(
            method, {"seconds": [run["fit"] + run["predict"] for run in runs]}
        )
        scores["seeds"] = [len(runs)]
        for column in SCORES:
            of_runs = [[t[column.key] for t in run[kind].values()] for run in runs]
            scores[column.key] = [None if None in v else float(np.mean(v)) for v in of_runs]
    return found


def verdicts(content: Mapping[str, Any], kind: str) -> list[Verdict]:
    """Returns how the imputer does beside the strongest opponent in each score but coverage.

    Arguments:
        content: The results.
        kind: The kind of query.
    """
    found = []
    for name, scenario in content["scenarios"].items():
        scores = by_kind(scenario, kind)
        if OURS not in scores:
            continue
        for column in SCORES:
            opponent = strongest(scores, column, OURS)
            if column.key == "coverage" or opponent is None:
                continue
            ours, theirs = (scores[m][column.key] for m in (OURS, opponent))
            if None in ours:
                continue
            difference = paired(ours, theirs, column)
            winner = OURS if difference.ahead else opponent if difference.behind else "level"
            found.append(Verdict(name, kind, column, opponent, difference, winner))
    return found


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
        "Seconds are of the processor, to choose settings, fit and predict everything."
        + _left_out(content["absent"]),
    ]
    for kind, title in KINDS.items():
        found = verdicts(content, kind)
        if found:
            parts += [f"## {title}: {OURS} beside the strongest opponent", _summary(found)]
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


def _summary(found: Sequence[Verdict]) -> str:
    lines = ["| data | score | strongest opponent | difference | ahead |", "|---|---|---|---|---|"]
    for v in found:
        text = v.difference.text(v.column.digits)
        lines.append(f"| {v.scenario} | {v.column.title} | {v.opponent} | {text} | {v.winner} |")
    return "\n".join(lines)
