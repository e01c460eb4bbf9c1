"""The parts of the report beside tables and images: summary, uncertainty, data, training."""

from __future__ import annotations

__all__ = ["cards", "coverage", "data", "environment", "training"]

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.medical_mri_us.evaluation import BASELINE

from .charts import coverage_plot, line_plot, missingness_plot
from .results import Evaluation
from .tables import facts_table

SAID = ("model", "modalities", "steps", "seconds", "interrupted", "skipped", "format")
"""The entries of a model's description that stand elsewhere."""


def cards(evaluation: Evaluation) -> str:
    """Returns how much better than the mean image cross-modal synthesis is."""
    facts, labels = evaluation.facts, evaluation.labels
    protocol = next(iter(facts["protocols"]))
    cells = {
        (c["model"], tuple(c["given"]), c["target"]): c["mean"]
        for c in facts["cells"]
        if c["protocol"] == protocol and c["metric"] == "psnr"
    }
    mr = set(labels) - {"us"}
    groups = [
        ("MRI from other MRI", mr, mr),
        ("MRI from ultrasound alone", {"us"}, mr),
        ("ultrasound from MRI", mr, {"us"}),
    ]
    if "us" not in labels:
        groups = [("from other modalities", mr, mr)]
    cards = []
    for what, given, targets in groups:
        gains = [
            mean - cells[BASELINE, (), target]
            for (model, inputs, target), mean in cells.items()
            if model == facts["model"]
            and inputs
            and set(inputs) <= given
            and target in targets
            and target not in inputs
            and mean is not None
            and cells.get((BASELINE, (), target)) is not None
        ]
        if gains:
            cards.append(
                f"<div class=card><b>{np.mean(gains):+.1f} dB</b><span>{what}</span>"
                f"<small>PSNR over the {BASELINE}, <code>{protocol}</code>, mean of "
                f"{len(gains)} cross-modal cells</small></div>"
            )
    return f"<div class=cards>{''.join(cards)}</div>" if cards else ""


def coverage(evaluation: Evaluation) -> str:
    """Returns how often intervals hold the truth."""
    found, labels = evaluation.coverage, evaluation.labels
    model = evaluation.facts["model"]
    rows: dict[str, dict[tuple[str, float], float]] = {}
    for m, label in labels.items():
        places: dict[tuple[str, float], list[float]] = {}
        for c in found["cells"]:
            if (c["model"], c["kind"], c["target"]) == (model, "cross", m):
                places.setdefault((c["intervals"], c["level"]), []).append(c["coverage"])
        if places:
            rows[label] = {place: float(np.mean(v)) for place, v in places.items()}
    if not rows:
        return "<p>No intervals: they need latent samples, and cases whose truth is known.</p>"
    kinds = list(found["intervals"])
    words = {"mean": "ring", "predictive": "disc"}
    keys = "".join(
        f"<span class='key {words[kind]}'></span><b>{kind}</b>: {html.escape(text)}. "
        for kind, text in found["intervals"].items()
    )
    state = "was" if evaluation.facts["calibrated"] else "was <b>not</b>"
    plot = coverage_plot(rows, found["levels"], kinds, "Nominal and found coverage by target")
    return (
        f"<p>How often central intervals of {found['samples']} samples hold the truth, over "
        "voxels in view, averaged over cases and cross-modal inputs; the dashed line is what they "
        f"say. The model {state} calibrated.</p>{plot}<p class=small>{keys}</p>"
    )


def data(facts: dict[str, Any], labels: dict[str, str]) -> str:
    """Returns which modalities cases have, of training and scored, and which were left out."""
    trained = facts.get("trained_on")
    own = [p for p in facts["patterns"] if p["split"] == facts["split"]]
    parts = [_patterns("Scored on", facts["data"], facts["split"], own, labels)]
    if trained is not None:
        held = [
            {
                "held": [m for m, there in zip(labels, p["observed"], strict=True) if there],
                "cases": p["cases"],
            }
            for p in trained["patterns"]
        ]
        some = "The model was trained on"
        parts.insert(0, _patterns(some, trained["index"], trained["split"], held, labels))
    else:
        parts.insert(0, "<p>What the model was trained on is not written down beside it.</p>")
    text = f"<div class=two>{''.join(parts)}</div>"
    if trained is not None and trained["left_out"]:
        text += f"<p>{trained['left_out']} training cases were left out: data.json says why.</p>"
    if facts["problems"]:
        items = "".join(f"<li>{html.escape(problem)}</li>" for problem in facts["problems"])
        text += f"<p>Left out of the scores:</p><ul>{items}</ul>"
    return text


def training(facts: dict[str, Any]) -> str:
    """Returns how the model was trained."""
    log, description = facts["log"], facts["description"]
    rest = {k: v for k, v in description.items() if not isinstance(v, dict) and k not in SAID}
    tables = {
        "Network": {"model": description.get("model"), **description.get("architecture", {})},
        "Settings of training": description.get("settings", {}),
        "Discriminators": description.get("critics", {}),
        "Calibration": description.get("calibration", {}),
        "Images and files": rest,
    }
    table = "".join(
        f"<div><h3>{title}</h3>{facts_table(known)}</div>"
        for title, about in tables.items()
        if (known := {k: v for k, v in about.items() if v is not None})
    )
    table = f"{_course(description)}<div class=many>{table}</div>"
    if not log:
        return f"<p>There is no training log beside the model.</p>{table}"

    def points(column: str) -> list[tuple[float, float]]:
        pairs = zip(log["step"], log[column], strict=True)
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    bound = line_plot(
        {"bound": points("bound")},
        title="The bound during training",
        x_label="step",
        y_label="bound",
    )
    levels = {f"level {c[3:]}": points(c) for c in log if c.startswith("kl_")}
    kl = line_plot(
        levels,
        title="The divergence of each latent group during training",
        x_label="step",
        y_label="KL, nats per sample",
        logarithmic=True,
    )
    short = "" if bound else "<p>Training was too short for a curve.</p>"
    return (
        f"<div class=two><div><h3>Bound</h3>{bound or short}</div><div>"
        f"<h3>KL per latent level</h3>{kl or short}<p class=small>Level 1 is the coarsest. "
        "A level near 0 is not in use.</p></div></div>"
        f"{table}"
    )


def _course(description: dict[str, Any]) -> str:
    """The duration of training, and whether it came to its end."""
    if "seconds" not in description:
        return ""
    stopped = " It was stopped before its end." if description["interrupted"] else ""
    return (
        f"<p>{description['steps']} steps in {description['seconds'] / 60:.1f} minutes, "
        f"{description['skipped']} of them skipped.{stopped}</p>"
    )


def _patterns(
    what: str,
    index: str,
    split: str,
    patterns: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
) -> str:
    total = sum(p["cases"] for p in patterns)
    plot = missingness_plot(patterns, labels, f"Which modalities the {total} cases have")
    return (
        f"<div><h3>{what} {total} cases</h3><p class=small>Split "
        f"<code>{html.escape(split)}</code> of <code>{html.escape(index)}</code>.</p>{plot}</div>"
    )


def environment(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns what the numbers were made with."""
    weights = {
        f"weights of {name}": f"{about['folder']}, SHA-256 {about['sha256']}"
        for name, about in facts["models"].items()
    }
    return {
        **facts["environment"],
        **weights,
        "seed": facts["seed"],
        "evaluated in": f"{facts['minutes']:.1f} minutes",
    }
