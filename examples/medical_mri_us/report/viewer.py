"""The controls and frames of the viewer; `viewer.js` brings them to life."""

from __future__ import annotations

__all__ = ["viewer"]

import html
from typing import Any


def viewer(data: dict[str, Any], facts: dict[str, Any]) -> str:
    """Returns the viewer's HTML.

    Arguments:
        data: What the script reads: the pictures of each case, and limits of colour scales.
        facts: What was evaluated.
    """
    if not data["cases"]:
        return "<p>No images were kept: `evaluate` with --views keeps some.</p>"
    labels = data["labels"]
    cases = "".join(f"<option value='{_text(c)}'>{_text(c)}</option>" for c in data["cases"])
    targets = "".join(
        f"<label><input type=radio name=target id='target-{_text(m)}' value='{_text(m)}'>"
        f"<span>{_text(label)}</span></label>"
        for m, label in labels.items()
    )
    overlays = "".join(
        f"<label><input type=radio name=overlay value={name}><span>{name}</span></label>"
        for name in ("none", "error", "uncertainty")
    )
    inputs = "".join(
        f"<label><canvas id='input-{_text(m)}' role=img aria-label='{_text(label)}, as acquired'>"
        "</canvas><span class=tag>"
        f"<input type=checkbox id='given-{_text(m)}'>{_text(label)}</span></label>"
        for m, label in labels.items()
    )
    calibrated = "calibrated" if facts["calibrated"] else "not calibrated"
    spread = f"{facts['views']['samples']} samples, {calibrated}"
    error_scale = _scale("inferno", data["error_limit"])
    spread_scale = _scale("viridis", data["spread_shown"])
    return (
        "<p>Tick what is given, choose what is wanted. Point at an image for its values; the "
        "wheel or the slider goes through slices. The standard deviation is that of the "
        "decoder's mean over latent samples.</p>"
        "<noscript><p class=notice>The viewer needs JavaScript; the tables do not.</p></noscript>"
        "<section id=viewer hidden aria-label='Viewer of synthesised images'><div class=bar>"
        f"<label><span class=head>Case</span><select id=case>{cases}</select></label>"
        f"<fieldset><legend>Target</legend><div class=pills>{targets}</div></fieldset>"
        "<label><span class=head>Slice <span id=slice-number></span></span>"
        "<input type=range id=slice min=0 value=0></label>"
        f"<fieldset><legend>Overlay on the synthesis</legend><div class=pills>{overlays}</div>"
        "</fieldset><label><span class=head>Opacity</span>"
        "<input type=range id=opacity min=0 max=100 step=5></label></div>"
        "<div class=stage><fieldset><legend>Given</legend>"
        f"<div class=inputs>{inputs}</div></fieldset><div><div class=views>"
        f"{_frame('truth', 'Truth', '')}{_frame('synthesis', 'Synthesis', 'at the mean')}"
        f"{_frame('error', 'Absolute error', '', error_scale)}"
        f"{_frame('spread', 'Standard deviation', spread, spread_scale)}</div></div></div>"
        "<div class=status><p aria-live=polite><b id=what></b></p><p id=numbers></p>"
        "<p class=soft>Shown for its <span id=why></span>. <span id=readout></span></p></div>"
        "<div class=head>The same slice from every subset: framed images were given</div>"
        "<div class=scroll><div id=sheet></div></div></section>"
    )


def _frame(name: str, title: str, about: str, scale: str = "") -> str:
    return (
        f"<figure><figcaption><span>{title}</span><i>{about}</i></figcaption><div class=frame>"
        f"<canvas id={name} role=img aria-label='{title}'></canvas><div class=cross></div></div>"
        f"{scale}</figure>"
    )


def _scale(colours: str, limit: float) -> str:
    return f"<div class=scale>0<div class={colours}></div>{limit:g}</div>"


def _text(value: str) -> str:
    return html.escape(value, quote=True)
