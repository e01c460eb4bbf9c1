"""The tables of the comparison of fusion rules, as text."""

from __future__ import annotations

__all__ = ["best", "interval", "markdown"]

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from .rules import LEARNED


class Column(NamedTuple):
    """A column of a table: a score, its title, and which values are good."""

    key: str
    title: str
    badness: Callable[[float], float] | None
    """A function that is least for the best; None if there is no best."""
    digits: int = 3


ORACLES = [
    Column("gap one", "gap, one", abs),
    Column("gap all", "gap, all", abs),
    Column("gap two", "gap, two (unseen)", abs),
    Column("mean", "error of mean, all", abs),
    Column("scale", "scale, all", lambda v: abs(math.log(v))),
]
LIKELY = [
    Column("bound", "bound", lambda v: -v, 1),
    Column("evidence", "evidence", lambda v: -v, 1),
    Column("likelihood one", "view from 1", lambda v: -v),
    Column("likelihood five", "view from 5", lambda v: -v),
]
PREDICTED = [
    Column("coherence one", "coherence, from 1", lambda v: -v),
    Column("coherence five", "from 5", lambda v: -v),
    Column("coverage one", "coverage, from 1", lambda v: abs(v - 0.9)),
    Column("coverage five", "from 5", lambda v: abs(v - 0.9)),
    Column("milliseconds", "ms a step", None, 1),
]


def markdown(content: Mapping[str, Any]) -> str:
    """Returns all tables.

    Arguments:
        content: The results, with what `benchmarks._results.facts` says first.
    """
    machine, steps, truths = content["machine"], content["steps"], content["oracles"]
    weights = truths["independent"][LEARNED]["weight of all"]
    seeds = len(next(iter(content["digits"].values()))["bound"])
    return "\n\n".join(
        [
            "# Measured",
            f"`{content['command']}`, commit {content['commit']}, {content['date']}; "
            f"{machine['cpu']}, one thread, PyTorch {machine['torch']}. Means over seeds, plus or "
            "minus half of their 95 % interval (Student's t); the best mean is bold.",
            "## Modalities that are independent given z",
            f"Three modalities, two latents, {len(weights)} seeds, {steps['oracles']} steps. Gaps "
            "are the divergences from the exact posteriors, in nats, given one modality, all "
            "three, and two, which training never saw. The error of the mean is in exact standard "
            "deviations, and scales are relative to the exact ones.",
            _table(truths["independent"], ORACLES),
            f"Learned weights put {interval(weights, 2)} on the subset of all three.",
            "## Modalities that share noise",
            "The same, where all modalities see z through one noise.",
            _table(truths["shared noise"], ORACLES),
            "## Six views of digits: how likely",
            f"{seeds} seeds, {steps['digits']} steps of 64 digits. Bound and evidence are of "
            "complete digits, in nats; views that are predicted from one view or from five have "
            "their log-density in nats per feature.",
            _table(content["digits"], LIKELY),
            "## Six views of digits: predictions",
            "Coherence is the share of predicted views that a classifier of real ones tells the "
            "right digit of; coverage is that of 90 % intervals.",
            _table(content["digits"], PREDICTED),
        ]
    )


def interval(values: Sequence[float], digits: int) -> str:
    """Returns a mean, plus or minus half of its 95 % interval, by Student's t.

    Arguments:
        values: One value for each seed.
        digits: The number of decimal places.
    """
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    text = f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}").replace(" ", "\N{NO-BREAK SPACE}")


def best(scores: Mapping[str, Mapping[str, Sequence[Any]]], column: Column) -> str | None:
    """Returns the rule with the best mean, None if there is no best.

    Arguments:
        scores: For each rule and score, one value for each seed.
        column: The column.
    """
    badness = column.badness
    if badness is None:
        return None
    means = {r: np.mean(v[column.key]) for r, v in scores.items() if None not in v[column.key]}
    return min(means, key=lambda rule: badness(float(means[rule])))


def _table(scores: Mapping[str, Mapping[str, Sequence[Any]]], columns: Sequence[Column]) -> str:
    bold = {column.key: best(scores, column) for column in columns}
    lines = [
        "| rule | " + " | ".join(column.title for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for rule, values in scores.items():
        cells = []
        for column in columns:
            found = values[column.key]
            text = "–" if None in found else interval(found, column.digits)
            cells.append(f"**{text}**" if bold[column.key] == rule else text)
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
