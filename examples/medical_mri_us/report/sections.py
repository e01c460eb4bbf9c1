"""The parts of the report beside tables and images: summary, uncertainty, data, training."""

from __future__ import annotations

__all__ = ["cards", "coverage", "data", "ending", "environment", "training"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.evaluation import BASELINE
from examples.medical_mri_us.writing import Content, Tag, tag

from .charts import coverage_plot, line_plot, missingness_plot
from .results import Evaluation
from .tables import facts_table

SAID = ("model", "modalities", "steps", "seconds", "interrupted", "skipped", "format")
"""The entries of a model's description that stand elsewhere."""


def ending(path: str) -> str:
    """Returns the end of a path: a page that is passed on says nothing of the machine.

    Example:
        >>> ending("/home/me/study/index.csv")
        'study/index.csv'
    """
    return "/".join(Path(path).parts[-2:])


def cards(evaluation: Evaluation) -> Content:
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
            about = tag(
                "small",
                f"PSNR over the {BASELINE}, ",
                tag("code", protocol),
                f", mean of {len(gains)} cross-modal cells",
            )
            gain = tag("b", f"{np.mean(gains):+.1f} dB")
            cards.append(tag("div", gain, tag("span", what), about, class_="card"))
    return tag("div", cards, class_="cards") if cards else None


def coverage(evaluation: Evaluation) -> Content:
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
        return tag("p", "No intervals: they need latent samples, and cases whose truth is known.")
    kinds = list(found["intervals"])
    words = {"mean": "ring", "predictive": "disc"}
    keys = [
        [tag("span", class_=f"key {words[kind]}"), tag("b", kind), f": {text}. "]
        for kind, text in found["intervals"].items()
    ]
    state = "was" if evaluation.facts["calibrated"] else ["was ", tag("b", "not")]
    plot = coverage_plot(rows, found["levels"], kinds, "Nominal and found coverage by target")
    return [
        tag(
            "p",
            f"How often central intervals of {found['samples']} samples hold the truth, over "
            "voxels in view, averaged over cases and cross-modal inputs; the dashed line is what "
            "they say. The model ",
            state,
            " calibrated.",
        ),
        plot,
        tag("p", keys, class_="small"),
    ]


def data(facts: dict[str, Any], labels: dict[str, str]) -> Content:
    """Returns which modalities cases have, of training and scored, and which were left out."""
    trained = facts.get("trained_on")
    folder = f"{Path(facts['data']).parent}/"
    own = [p for p in facts["patterns"] if p["split"] == facts["split"]]
    scored = _patterns("Scored on", facts["data"], facts["split"], own, labels)
    if trained is None:
        told = tag("p", "What the model was trained on is not written down beside it.")
    else:
        held = [
            {
                "held": [m for m, there in zip(labels, p["observed"], strict=True) if there],
                "cases": p["cases"],
            }
            for p in trained["patterns"]
        ]
        some = "The model was trained on"
        told = _patterns(some, trained["index"], trained["split"], held, labels)
    parts = [tag("div", told, scored, class_="two")]
    if trained is not None and trained["left_out"]:
        lost = counted(trained["left_out"], "training case was", "training cases were")
        parts.append(tag("p", f"{lost} left out: data.json says why."))
    if facts["problems"]:
        items = [tag("li", str(problem).replace(folder, "")) for problem in facts["problems"]]
        parts += [tag("p", "Left out of the scores:"), tag("ul", items)]
    return parts


def training(facts: dict[str, Any]) -> Content:
    """Returns how the model was trained."""
    log, description = facts["log"], facts["description"]
    rest = {k: v for k, v in description.items() if not isinstance(v, dict) and k not in SAID}
    if rest.get("init"):
        rest["init"] = ending(rest["init"])
    tables = {
        "Network": {"model": description.get("model"), **description.get("architecture", {})},
        "Settings of training": description.get("settings", {}),
        "Discriminators": description.get("critics", {}),
        "Calibration": description.get("calibration", {}),
        "Images and files": rest,
    }
    shown = [
        tag("div", tag("h3", title), facts_table(known))
        for title, about in tables.items()
        if (known := {k: v for k, v in about.items() if v is not None})
    ]
    table = [_course(description), tag("div", shown, class_="many")]
    if not log:
        return [tag("p", "There is no training log beside the model."), table]

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
    short = None if bound else tag("p", "Training was too short for a curve.")
    level = tag("p", "Level 1 is the coarsest. A level near 0 is not in use.", class_="small")
    curves = [
        tag("div", tag("h3", "Bound"), bound or short),
        tag("div", tag("h3", "KL per latent level"), kl or short, level),
    ]
    return [tag("div", curves, class_="two"), table]


def _course(description: dict[str, Any]) -> Content:
    """The duration of training, and whether it came to its end."""
    if "seconds" not in description:
        return None
    stopped = " It was stopped before its end." if description["interrupted"] else ""
    return tag(
        "p",
        f"{counted(description['steps'], 'step')} in {description['seconds'] / 60:.1f} minutes, "
        f"{description['skipped']} of them skipped.{stopped}",
    )


def _patterns(
    what: str,
    index: str,
    split: str,
    patterns: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
) -> Tag:
    total = sum(p["cases"] for p in patterns)
    plot = missingness_plot(
        patterns, labels, f"Which modalities {counted(total, 'case has', 'cases have')}"
    )
    source = ["Split ", tag("code", split), " of ", tag("code", ending(index)), "."]
    return tag(
        "div",
        tag("h3", f"{what} {counted(total, 'case')}"),
        tag("p", source, class_="small"),
        plot,
    )


def environment(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns what the numbers were made with."""
    weights = {
        f"weights of {name}": f"{ending(about['folder'])}, SHA-256 {about['sha256']}"
        for name, about in facts["models"].items()
    }
    return {
        **facts["environment"],
        **weights,
        "seed": facts["seed"],
        "evaluated in": f"{facts['minutes']:.1f} minutes",
    }
