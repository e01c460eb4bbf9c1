"""A self-contained HTML report of a run: what was trained on what, and how well it does."""

from __future__ import annotations

__all__ = ["Facts", "write_report"]

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.evaluation import SUBSETS, Cell, cross_modal_gain
from examples.medical_mri_us.modalities import LABELS, MODALITIES
from examples.medical_mri_us.writing import Content, Tag, page, tag

from .tables import facts_table

MR = {"t2", "cet1", "flair"}


@dataclass(frozen=True)
class Facts:
    """The facts of a report beside its scores."""

    train: Sequence[Subject]
    test: Sequence[Subject]
    problems: Sequence[Exception]
    """The faults of the cases that were left out."""
    settings: dict[str, Any]
    """How the model was trained, and on which machine."""
    credit: str
    """Whom the anatomy is owed to."""
    calibration: str
    """How far the spread of draws is known to match errors."""
    stopped: str
    """The notice that training stopped early, if it did."""


def write_report(
    path: Path, cells: Sequence[Cell], panel: bytes, training: bytes, facts: Facts
) -> None:
    """Writes the report, with its pictures inside.

    Arguments:
        path: The HTML file to write.
        cells: The scores, as of `evaluate`.
        panel: The panel, a PNG.
        training: The training curve, a PNG.
        facts: Everything else.
    """
    parts = [
        tag("h1", "Synthesis of missing MRI and ultrasound"),
        tag(
            "p",
            "These are ",
            tag("b", "phantom"),
            " images, made by a simulation on a real anatomy. Nothing here was measured on "
            "patients; for research only, not for clinical use.",
            class_="notice",
        ),
        tag("p", tag("b", facts.stopped), class_="notice") if facts.stopped else None,
        _summary(cells, facts),
        tag("h2", "Panel"),
        tag(
            "p",
            "A held-out subject. Framed images were given to the model; all others were "
            "synthesised. The standard deviation is that of whole predictions, two of which are "
            "shown, on the colour scale of the error. ",
            facts.calibration,
        ),
        _image(panel, "Truth, synthesis from several subsets, error, deviation and two draws"),
        tag("h2", "Cross-modal synthesis"),
        tag(
            "p",
            "The target was not given. PSNR in dB with its gain over the mean image of the "
            "training subjects, and SSIM, inside the field of view, per subject, then averaged.",
        ),
        _table(cells, "cross"),
        tag("h2", "Self-reconstruction"),
        tag(
            "p",
            "The target was among the inputs, so this measures how much the latents keep, not "
            "synthesis. It is kept apart because averages over both kinds flatter a model.",
        ),
        _table(cells, "self"),
        tag("h2", "Data"),
        _data(facts),
        tag("h2", "Training"),
        _image(training, "The bound during training"),
        facts_table(facts.settings),
        tag("p", facts.credit, class_="small"),
    ]
    title = "mmpoe: synthesis of missing MRI and ultrasound (phantom)"
    text = page([tag("title", title), tag("style", STYLE)], tag("main", parts))
    path.write_text(text, encoding="utf-8")


def _summary(cells: Sequence[Cell], facts: Facts) -> Content:
    mr = cross_modal_gain(cells, MR, MR)
    ultrasound = cross_modal_gain(cells, {"us"}, MR)
    back = cross_modal_gain(cells, MR, {"us"})
    cards = [
        _card(mr, "MR from other MR"),
        _card(ultrasound, "MR from ultrasound alone"),
        _card(back, "ultrasound from MR"),
    ]
    return [
        tag(
            "p",
            f"One model learnt from {len(facts.train)} subjects with missing modalities and "
            f"synthesises any modality from any subset of the others, here for {len(facts.test)} "
            "held-out subjects. Mean gain over the mean image:",
        ),
        tag("div", cards, class_="cards"),
        tag("p", _verdict(mr, ultrasound)),
    ]


def _verdict(mr: float, ultrasound: float) -> str:
    """Says in words where ultrasound to MR stands, from the numbers."""
    if ultrasound <= 0.5:
        level = "hardly better than the mean image"
    elif ultrasound < mr:
        level = "above the mean image, but less"
    else:
        level = "no less"
    return (
        f"MR from ultrasound alone gains {ultrasound:.1f} dB, against {mr:.1f} dB for MR from "
        f"other MR: {level}. The other way round, speckle is random: no model can predict it."
    )


def _card(value: float, what: str) -> Tag:
    return tag("div", tag("b", f"{value:+.1f} dB"), tag("span", what), class_="card")


def _table(cells: Sequence[Cell], kind: str) -> Tag:
    by_place = {(tuple(c["given"]), c["target"]): c for c in cells if c["kind"] == kind}
    rows = []
    for given in SUBSETS:
        if not any((given, m) in by_place for m in MODALITIES):
            continue
        marks = tag("th", " + ".join(LABELS[m] for m in given), class_="given")
        rows.append(tag("tr", marks, [_entry(by_place.get((given, m))) for m in MODALITIES]))
    head = tag("tr", tag("th", "given", class_="given"), _labels())
    return tag("table", tag("thead", head), tag("tbody", rows))


def _labels() -> list[Tag]:
    return [tag("th", LABELS[m]) for m in MODALITIES]


def _entry(cell: Cell | None) -> Tag:
    if cell is None:
        return tag("td", "·", class_="none")
    gain = cell["psnr"] - cell["baseline_psnr"]
    strength = float(np.clip(gain / 4, 0, 1)) if cell["kind"] == "cross" else 0.0
    return tag(
        "td",
        f"{cell['psnr']:.1f}",
        tag("small", f"{gain:+.1f}"),
        tag("i", f"{cell['ssim']:.2f}"),
        style=f"background:rgba(20,120,200,{0.45 * strength:.2f})",
    )


def _data(facts: Facts) -> Content:
    patterns: dict[tuple[bool, ...], int] = {}
    for subject in facts.train:
        key = tuple(m in subject.images for m in MODALITIES)
        patterns[key] = patterns.get(key, 0) + 1
    rows = [
        tag("tr", [_mark(there) for there in key], tag("td", count))
        for key, count in sorted(patterns.items(), key=lambda item: -item[1])
    ]
    totals = [tag("td", sum(m in s.images for s in facts.train)) for m in MODALITIES]
    rows.append(tag("tr", totals, tag("td", len(facts.train)), class_="total"))
    head = tag("tr", _labels(), tag("th", "subjects"))
    parts = [
        tag(
            "p",
            "Which modalities the training subjects have. Held-out subjects are complete, so that "
            "the truth of every synthesis is known.",
        ),
        tag("table", tag("thead", head), tag("tbody", rows), class_="patterns"),
    ]
    if facts.problems:
        items = [tag("li", str(problem)) for problem in facts.problems]
        parts += [tag("p", "Left out:"), tag("ul", items)]
    return parts


def _mark(there: bool) -> Tag:
    return tag("td", "■" if there else None, class_="yes" if there else "no")


def _image(png: bytes, text: str) -> Tag:
    data = base64.b64encode(png).decode()
    return tag("img", alt=text, src=f"data:image/png;base64,{data}")


STYLE = """
body{margin:0;background:#f4f5f7;color:#1c2430;font:16px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:2rem 1.5rem;background:#fff}
h1{margin:.2rem 0 1rem;font-size:1.9rem}
h2{margin:2.2rem 0 .6rem;font-size:1.25rem;border-bottom:1px solid #dfe3e8;padding-bottom:.3rem}
img{max-width:100%;display:block;margin:1rem auto;border-radius:4px}
.notice{background:#fff6dd;border-left:4px solid #e5a50a;padding:.6rem .9rem}
.cards{display:flex;gap:1rem;flex-wrap:wrap}
.card{flex:1;min-width:180px;background:#eef4fb;border-radius:6px;padding:.8rem 1rem}
.card b{display:block;font-size:1.6rem}
.card span{color:#4a5665}
table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .8rem;text-align:center;border-bottom:1px solid #e6e9ee}
th.given{text-align:left;font-weight:600}
td small{color:#4a5665;margin-left:.45em}
td i{color:#4a5665;margin-left:.6em;font-size:.85em}
td.none{color:#c3cad3}
td.yes{color:#1478c8}
tr.total td{font-weight:600;border-top:2px solid #c3cad3}
.facts th,.facts td{text-align:left}
.small{color:#4a5665;font-size:.85rem}
"""
