"""The tables of the comparison of fusion rules, as text."""

from __future__ import annotations

__all__ = ["markdown"]

import math
from collections.abc import Mapping
from typing import Any

from benchmarks._comparison import Column, interval, table

from .rules import LEARNED

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
            table("rule", truths["independent"], ORACLES),
            f"Learned weights put {interval(weights, 2)} on the subset of all three.",
            "## Modalities that share noise",
            "The same, where all modalities see z through one noise.",
            table("rule", truths["shared noise"], ORACLES),
            "## Six views of digits: how likely",
            f"{seeds} seeds, {steps['digits']} steps of 64 digits. Bound and evidence are of "
            "complete digits, in nats; views that are predicted from one view or from five have "
            "their log-density in nats per feature.",
            table("rule", content["digits"], LIKELY),
            "## Six views of digits: predictions",
            "Coherence is the share of predicted views that a classifier of real ones tells the "
            "right digit of; coverage is that of 90 % intervals.",
            table("rule", content["digits"], PREDICTED),
        ]
    )
