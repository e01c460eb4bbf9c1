"""One self-contained HTML page of an evaluation, with a viewer that needs no server."""

from __future__ import annotations

__all__ = ["make_page"]

from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.evaluation import BASELINE, PROTOCOLS, note
from examples.medical_mri_us.facts import stopped_early
from examples.medical_mri_us.writing import Content, Tag, page, script_data, tag

from .results import Evaluation
from .sections import cards, coverage, data, environment, training
from .sprites import make_sprites
from .tables import facts_table, metric_tables, tests_table
from .viewer import viewer

LIMIT = 0.4
"""The largest end of the colour scale of errors and deviations; images run from 0 to 1."""


def make_page(evaluation: Evaluation) -> str:
    """Returns the page, with its pictures, styles and script inside."""
    facts, labels = evaluation.facts, evaluation.labels
    protocols = [PROTOCOLS[name] for name in facts["protocols"]]
    cells = facts["cells"]
    title = "Synthesis of missing " + " and ".join(_families(labels))
    pictures, views = _split_pictures(
        {name: make_sprites(view, list(labels)) for name, view in evaluation.views.items()}
    )
    shown = {
        "cases": {
            name: {**view, "why": facts["views"]["cases"][name]} for name, view in views.items()
        },
        "labels": labels,
        "limit": _limit(evaluation),
        "spread_limit": facts["views"]["spread_limit"],
        "protocol": protocols[0].name,
        "scores": _case_scores(evaluation, protocols[0].name),
    }
    tables = {
        kind: [
            [
                tag("h3", "Protocol ", tag("code", p.name)),
                metric_tables(cells, kind, p, labels),
            ]
            for p in protocols
        ]
        for kind in ("cross", "self")
    }
    definitions = [[tag("h3", tag("code", p.name)), tag("p", p.definition)] for p in protocols]
    main = [
        tag(
            "header",
            tag("h1", title),
            tag("p", _lead(facts), class_="lead"),
            tag("p", _notice(facts), class_="notice"),
            _stopped(facts["description"]),
            _contents(),
        ),
        cards(evaluation),
        _heading("images", "Images"),
        viewer(shown, facts),
        _heading("cross", "Cross-modal synthesis"),
        tag(
            "p",
            "The target was not given. ★ marks the 8 input sets of the published table. The best "
            "of each target is bold, and more colour is better. The first row, ",
            tag("i", BASELINE),
            ", predicts the mean training image for everybody.",
        ),
        tables["cross"],
        _heading("self", "Self-reconstruction"),
        tag(
            "p",
            "The target was among the inputs: this measures what the latents keep, not synthesis. "
            "It stands apart because averages over both kinds flatter a model.",
        ),
        tables["self"],
        _heading("tests", "Tests"),
        tag(
            "p",
            "Wilcoxon signed-rank tests, two-sided, on pairs of cases: the mean of a case over "
            "all inputs without the target, since slices of one case are not independent. "
            "Bonferroni-corrected over targets and models for each metric, p < 0.01. The effect "
            "is the matched-pairs rank-biserial correlation, positive where the model is better.",
        ),
        tests_table(evaluation.tests, labels),
        _heading("uncertainty", "Uncertainty"),
        coverage(evaluation),
        _heading("data", "Data"),
        data(facts, labels),
        _heading("training", "Training"),
        training(facts),
        _heading("protocols", "Protocols"),
        definitions,
        _heading("environment", "Environment"),
        facts_table(environment(facts)),
    ]
    here = Path(__file__).parent
    style = (here / "style.css").read_text(encoding="utf-8")
    script = "\n".join(
        (here / name).read_text(encoding="utf-8") for name in ("planes.js", "viewer.js")
    )
    name = f"mmpoe: {title}{' (phantom)' if facts['phantom'] else ''}"
    return page(
        [tag("title", name), tag("style", style)],
        [tag("main", main), pictures, script_data(shown, "views"), tag("script", script)],
    )


def _heading(place: str, name: str) -> Tag:
    return tag("h2", name, id=place)


def _families(labels: dict[str, str]) -> list[str]:
    mr = [label for m, label in labels.items() if m in ("t2", "cet1", "flair")]
    named = (["MRI"] if mr else []) + (["ultrasound"] if "us" in labels else [])
    return named + [label for m, label in labels.items() if m not in ("us", "t2", "cet1", "flair")]


def _split_pictures(
    sprites: dict[str, dict[str, Any]],
) -> tuple[list[Tag], dict[str, dict[str, Any]]]:
    """Takes the pictures out, as images of the page: browsers load these before scripts ask."""
    images = []
    for case, view in sprites.items():
        for m, about in view["targets"].items():
            source = f"data:image/png;base64,{about.pop('picture')}"
            images.append(tag("img", hidden=True, alt="", data_picture=f"{case}/{m}", src=source))
        planes = view["planes"] or {"targets": {}}
        for m, about in planes["targets"].items():
            source = f"data:image/png;base64,{about.pop('picture')}"
            name = f"{case}/{m}/planes"
            images.append(tag("img", hidden=True, alt="", data_picture=name, src=source))
    return images, sprites


def _contents() -> Tag:
    names = {
        "images": "Images",
        "cross": "Cross-modal synthesis",
        "self": "Self-reconstruction",
        "tests": "Tests",
        "uncertainty": "Uncertainty",
        "data": "Data",
        "training": "Training",
        "protocols": "Protocols",
        "environment": "Environment",
    }
    links = [tag("a", name, href=f"#{place}") for place, name in names.items()]
    return tag("nav", links, aria_label="Contents")


def _limit(evaluation: Evaluation) -> float:
    """The end of the colour scale of errors and deviations, above nearly all that is shown."""
    stored = [0.0]
    for view in evaluation.views.values():
        for m in evaluation.labels:
            if f"truth_{m}" in view:
                error = view[f"mean_{m}"].astype(float) - view[f"truth_{m}"]
                stored.append(float(np.quantile(np.abs(error)[:, view["fov"]], 0.98)) / 255)
    return next((step for step in (0.05, 0.1, 0.2) if max(stored) <= step), LIMIT)


def _lead(facts: dict[str, Any]) -> str:
    split, trained = facts["split"], facts.get("trained_on")
    scored = sum(p["cases"] for p in facts["patterns"] if p["split"] == split)
    scored -= len(facts["problems"])
    on = ""
    if trained is not None:
        who = "simulated patients" if trained["phantom"] else "cases"
        on = f" It was trained on {trained['cases']} {who}"
        on += (
            f", of whom {trained['incomplete']} lack a modality." if trained["incomplete"] else "."
        )
    return (
        f"Model “{facts['model']}”, one model for every subset of inputs.{on} "
        f"{scored} {'case' if scored == 1 else 'cases'} of the split “{split}” "
        f"{'was' if scored == 1 else 'were'} scored."
    )


def _notice(facts: dict[str, Any]) -> Content:
    said = note(facts["phantom"], bool(facts["description"].get("phantom")))
    return [tag("b", "Phantom study. ") if facts["phantom"] else None, said]


def _stopped(description: dict[str, Any]) -> Tag | None:
    """The notice that training ended before its last step, if it did."""
    steps, wanted = description.get("steps"), description.get("settings", {}).get("steps")
    if not isinstance(steps, int) or not isinstance(wanted, int):
        return None
    said = stopped_early(steps, wanted)
    return tag("p", tag("b", said), class_="notice") if said else None


def _case_scores(evaluation: Evaluation, protocol: str) -> dict[str, dict[str, str]]:
    """For each case that is shown, the scores of each inputs and target in words."""
    metrics = {m.name: m for m in PROTOCOLS[protocol].metrics}
    found: dict[str, dict[str, list[str]]] = {}
    for row in evaluation.cases:
        wanted = row["case"] in evaluation.views and row["model"] == evaluation.facts["model"]
        if wanted and row["protocol"] == protocol and row["value"] and row["given"]:
            metric = metrics[row["metric"]]
            name, _, unit = metric.label.partition(", ")
            text = f"{name} {float(row['value']):.{metric.digits}f} {unit}".strip()
            place = f"{row['given']}>{row['target']}"
            found.setdefault(row["case"], {}).setdefault(place, []).append(text)
    return {case: {k: ", ".join(v) for k, v in by.items()} for case, by in found.items()}
