"""A self-contained HTML report of a run: what was trained on what, and how well it does."""

from __future__ import annotations

__all__ = ["Facts", "write_report"]

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.evaluation import SUBSETS, Cell, cross_modal_gain
from examples.medical_mri_us.modalities import LABELS, MODALITIES

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
        "<h1>Synthesis of missing MRI and ultrasound</h1>",
        "<p class=notice>These are <b>phantom</b> images, made by a simulation on a real anatomy. "
        "Nothing here was measured on patients; for research only, not for clinical use.</p>",
        _summary(cells, facts),
        "<h2>Panel</h2>",
        "<p>A held-out subject. Framed images were given to the model; all others were "
        "synthesised. The standard deviation is that of the predicted mean over latent samples; "
        "it is <b>not calibrated</b>: compare its scale with that of the error.</p>",
        _image(panel, "Truth, synthesis from several subsets, error and standard deviation"),
        "<h2>Cross-modal synthesis</h2>",
        "<p>The target was not given. PSNR in dB with its gain over the mean image of the "
        "training subjects, and SSIM, inside the field of view, per subject, then averaged.</p>",
        _table(cells, "cross"),
        "<h2>Self-reconstruction</h2>",
        "<p>The target was among the inputs, so this measures how much the latents keep, not "
        "synthesis. It is kept apart because averages over both kinds flatter a model.</p>",
        _table(cells, "self"),
        "<h2>Data</h2>",
        _data(facts),
        "<h2>Training</h2>",
        _image(training, "The bound during training"),
        _facts(facts.settings),
        f"<p class=small>{html.escape(facts.credit)}</p>",
    ]
    title = "mmpoe: synthesis of missing MRI and ultrasound (phantom)"
    path.write_text(
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n",
        encoding="utf-8",
    )


def _summary(cells: Sequence[Cell], facts: Facts) -> str:
    mr = cross_modal_gain(cells, MR, MR)
    ultrasound = cross_modal_gain(cells, {"us"}, MR)
    back = cross_modal_gain(cells, MR, {"us"})
    return (
        f"<p>One model learnt from {len(facts.train)} subjects with missing modalities and "
        f"synthesises any modality from any subset of the others, here for {len(facts.test)} "
        "held-out subjects. Mean gain over the mean image:</p>"
        "<div class=cards>"
        f"{_card(mr, 'MR from other MR')}"
        f"{_card(ultrasound, 'MR from ultrasound alone')}"
        f"{_card(back, 'ultrasound from MR')}"
        "</div>"
        f"<p>{_verdict(mr, ultrasound)}</p>"
    )


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


def _card(value: float, what: str) -> str:
    return f"<div class=card><b>{value:+.1f} dB</b><span>{what}</span></div>"


def _table(cells: Sequence[Cell], kind: str) -> str:
    by_place = {(tuple(c["given"]), c["target"]): c for c in cells if c["kind"] == kind}
    head = "".join(f"<th>{LABELS[m]}</th>" for m in MODALITIES)
    rows = []
    for given in SUBSETS:
        if not any((given, m) in by_place for m in MODALITIES):
            continue
        marks = " + ".join(LABELS[m] for m in given)
        entries = "".join(_entry(by_place.get((given, m))) for m in MODALITIES)
        rows.append(f"<tr><th class=given>{marks}</th>{entries}</tr>")
    return (
        f"<table><thead><tr><th class=given>given</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _entry(cell: Cell | None) -> str:
    if cell is None:
        return "<td class=none>&middot;</td>"
    gain = cell["psnr"] - cell["baseline_psnr"]
    strength = float(np.clip(gain / 4, 0, 1)) if cell["kind"] == "cross" else 0.0
    return (
        f"<td style='background:rgba(20,120,200,{0.45 * strength:.2f})'>{cell['psnr']:.1f}"
        f"<small>{gain:+.1f}</small><i>{cell['ssim']:.2f}</i></td>"
    )


def _data(facts: Facts) -> str:
    patterns: dict[tuple[bool, ...], int] = {}
    for subject in facts.train:
        key = tuple(m in subject.images for m in MODALITIES)
        patterns[key] = patterns.get(key, 0) + 1
    head = "".join(f"<th>{LABELS[m]}</th>" for m in MODALITIES)
    rows = "".join(
        "<tr>"
        + "".join(f"<td class={'yes' if p else 'no'}>{'&#9632;' if p else ''}</td>" for p in key)
        + f"<td>{count}</td></tr>"
        for key, count in sorted(patterns.items(), key=lambda item: -item[1])
    )
    totals = "".join(f"<td>{sum(m in s.images for s in facts.train)}</td>" for m in MODALITIES)
    text = (
        "<p>Which modalities the training subjects have. Held-out subjects are complete, so that "
        "the truth of every synthesis is known.</p>"
        f"<table class=patterns><thead><tr>{head}<th>subjects</th></tr></thead><tbody>{rows}"
        f"<tr class=total>{totals}<td>{len(facts.train)}</td></tr></tbody></table>"
    )
    if facts.problems:
        items = "".join(f"<li>{html.escape(str(problem))}</li>" for problem in facts.problems)
        text += f"<p>Left out:</p><ul>{items}</ul>"
    return text


def _facts(settings: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th class=given>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in settings.items()
    )
    return f"<table class=facts><tbody>{rows}</tbody></table>"


def _image(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<img alt='{html.escape(text)}' src='data:image/png;base64,{data}'>"


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
.facts td{text-align:left}
.small{color:#4a5665;font-size:.85rem}
"""
