"""One self-contained HTML page of an evaluation, with a viewer that needs no server."""

from __future__ import annotations

__all__ = ["make_page"]

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.evaluation import BASELINE, PROTOCOLS, note

from .results import Evaluation
from .sections import cards, coverage, data, environment, training
from .sprites import make_sprites
from .tables import facts_table, metric_tables, tests_table
from .viewer import viewer

ERROR_LIMIT = 0.4
"""The end of the colour scale of errors; images run from 0 to 1."""


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
        "error_limit": ERROR_LIMIT,
        "spread_limit": facts["views"]["spread_limit"],
        "spread_shown": _spread_shown(evaluation),
        "protocol": protocols[0].name,
        "scores": _case_scores(evaluation, protocols[0].name),
    }
    tables = {
        kind: "".join(
            f"<h3>Protocol <code>{p.name}</code></h3>{metric_tables(cells, kind, p, labels)}"
            for p in protocols
        )
        for kind in ("cross", "self")
    }
    definitions = "".join(
        f"<h3><code>{p.name}</code></h3><p>{html.escape(p.definition)}</p>" for p in protocols
    )
    parts = [
        f"<header><h1>{html.escape(title)}</h1><p class=lead>{html.escape(_lead(facts))}</p>",
        f"<p class=notice>{_notice(facts)}</p>",
        _contents(),
        "</header>",
        cards(evaluation),
        "<h2 id=images>Images</h2>",
        viewer(shown, facts),
        "<h2 id=cross>Cross-modal synthesis</h2><p>The target was not given. &#9733; marks the 8 "
        "input sets of the published table. The best of each target is bold, and more colour is "
        "better. "
        f"The first row, <i>{BASELINE}</i>, predicts the mean training image for everybody.</p>",
        tables["cross"],
        "<h2 id=self>Self-reconstruction</h2><p>The target was among the inputs: this measures "
        "what the latents keep, not synthesis. It stands apart because averages over both kinds "
        "flatter a model.</p>",
        tables["self"],
        "<h2 id=tests>Tests</h2><p>Wilcoxon signed-rank tests, two-sided, on pairs of cases: the "
        "mean of a case over all inputs without the target, since slices of one case are not "
        "independent. Bonferroni-corrected over targets and models for each metric, p &lt; 0.01. "
        "The effect is the matched-pairs rank-biserial correlation, positive where the model is "
        "better.</p>",
        tests_table(evaluation.tests, labels),
        "<h2 id=uncertainty>Uncertainty</h2>",
        coverage(evaluation),
        "<h2 id=data>Data</h2>",
        data(facts, labels),
        "<h2 id=training>Training</h2>",
        training(facts),
        f"<h2 id=protocols>Protocols</h2>{definitions}",
        "<h2 id=environment>Environment</h2>",
        facts_table(environment(facts)),
    ]
    here = Path(__file__).parent
    embedded = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f"<title>mmpoe: {html.escape(title)}{' (phantom)' if facts['phantom'] else ''}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>{(here / 'style.css').read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{''.join(parts)}</main>{pictures}"
        f"<script type='application/json' id=views>{embedded}</script>"
        f"<script>{(here / 'viewer.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _families(labels: dict[str, str]) -> list[str]:
    mr = [label for m, label in labels.items() if m in ("t2", "cet1", "flair")]
    named = (["MRI"] if mr else []) + (["ultrasound"] if "us" in labels else [])
    return named + [label for m, label in labels.items() if m not in ("us", "t2", "cet1", "flair")]


def _split_pictures(
    sprites: dict[str, dict[str, Any]],
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Takes the pictures out, as images of the page: browsers load these before scripts ask."""
    images = []
    for case, view in sprites.items():
        for m, about in view["targets"].items():
            key = html.escape(f"{case}/{m}", quote=True)
            source = f"data:image/png;base64,{about.pop('picture')}"
            images.append(f"<img hidden alt='' data-picture='{key}' src='{source}'>")
    return "".join(images), sprites


def _contents() -> str:
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
    links = "".join(f"<a href='#{place}'>{name}</a>" for place, name in names.items())
    return f"<nav aria-label=Contents>{links}</nav>"


def _spread_shown(evaluation: Evaluation) -> float:
    """The end of the colour scale of standard deviations, above nearly all that is shown."""
    stored = [v for view in evaluation.views.values() for n, v in view.items() if n[:4] == "std_"]
    limit = evaluation.facts["views"]["spread_limit"]
    top = max((float(np.quantile(v, 0.999)) for v in stored), default=255.0) / 255 * limit
    return next((step for step in (0.02, 0.05, 0.1) if top <= step), limit)


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


def _notice(facts: dict[str, Any]) -> str:
    return f"<b>{'Phantom study. ' if facts['phantom'] else ''}</b>{_note(facts)}"


def _note(facts: dict[str, Any]) -> str:
    return note(facts["phantom"], bool(facts["description"].get("phantom")))


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
