"""The controls and frames of the viewer; `viewer.js` brings them to life."""

from __future__ import annotations

__all__ = ["viewer"]

from typing import Any

from examples.medical_mri_us.writing import Content, Tag, tag


def viewer(data: dict[str, Any], facts: dict[str, Any]) -> Content:
    """Returns the viewer's elements.

    Arguments:
        data: What the script reads: the pictures of each case, and limits of colour scales.
        facts: What was evaluated.
    """
    if not data["cases"]:
        return tag(
            "p", "No images were kept: ", tag("code", "evaluate"), " with --views keeps some."
        )
    labels = data["labels"]
    targets = [_radio("target", m, label, id=f"target-{m}") for m, label in labels.items()]
    overlays = [_radio("overlay", name, name) for name in ("none", "error", "uncertainty")]
    inputs = [_input(m, label) for m, label in labels.items()]
    calibrated = "calibrated" if facts["calibrated"] else "not calibrated"
    spread = f"{facts['views']['samples']} samples, {calibrated}"
    views = [
        _frame("truth", "Truth", ""),
        _frame("synthesis", "Synthesis", "at the mean"),
        _frame("error", "Absolute error", "", _scale(data["limit"])),
        _frame("spread", "Standard deviation", spread, _scale(data["limit"])),
    ]
    given = tag("fieldset", tag("legend", "Given"), tag("div", inputs, class_="inputs"))
    viewer = [
        _bar(list(data["cases"]), targets, overlays),
        _display(),
        tag("div", given, tag("div", tag("div", views, class_="views")), class_="stage"),
        _status(),
        tag("div", "The same slice from every subset: framed images were given", class_="head"),
        tag("div", tag("div", id="sheet"), class_="scroll"),
        _planes(),
    ]
    without = tag("p", "The viewer needs JavaScript; the tables do not.", class_="notice")
    about = "Viewer of synthesised images"
    return [
        tag(
            "p",
            "Tick what is given, choose what is wanted. Point at an image for its values; the "
            "wheel or the slider goes through slices. The standard deviation is that of the "
            "decoder's mean over latent samples, in the colours of the error. MR is shown as "
            "radiologists look at it, the patient's right (R) on the left; slices of cases with "
            "ultrasound lie as the probe saw them. Letters say where the sides point to, nearly; "
            "the bar is in mm.",
        ),
        tag("noscript", without),
        tag("section", viewer, id="viewer", hidden=True, aria_label=about),
    ]


def _bar(cases: list[str], targets: list[Tag], overlays: list[Tag]) -> Tag:
    """The controls above the images."""
    options = [tag("option", case, value=case) for case in cases]
    slices = tag("input", type="range", id="slice", min=0, value=0)
    opacity = tag("input", type="range", id="opacity", min=0, max=100, step=5)
    return tag(
        "div",
        tag("label", _head("Case"), tag("select", options, id="case")),
        tag("fieldset", tag("legend", "Target"), tag("div", targets, class_="pills")),
        tag("label", _head("Slice ", tag("span", id="slice-number")), slices),
        tag(
            "fieldset",
            tag("legend", "Overlay on the synthesis"),
            tag("div", overlays, class_="pills"),
        ),
        tag("label", _head("Opacity"), opacity),
        class_="bar",
    )


def _display() -> Tag:
    """The controls of how images are shown."""
    compare = [_radio("compare", name, name) for name in ("none", "swipe", "blink")]
    smooth = tag("input", type="checkbox", id="smooth")
    truth = tag("legend", "Truth in the synthesis")
    return tag(
        "div",
        _slider("window", "Window", 2, 100),
        _slider("level", "Level", 0, 100),
        _slider("zoom", "Zoom", 1, 8),
        tag("label", _head("Pixels"), tag("span", smooth, " smooth"), class_="check"),
        tag("fieldset", truth, tag("div", compare, class_="pills")),
        _slider("swipe", "Swipe", 0, 100),
        class_="bar",
    )


def _slider(name: str, label: str, low: int, high: int) -> Tag:
    return tag("label", _head(label), tag("input", type="range", id=name, min=low, max=high))


def _planes() -> Tag:
    """Three planes through a volume, with a cross that all share."""
    layers = [_radio("layer", n, n) for n in ("truth", "synthesis", "error", "uncertainty")]
    planes = [_plane(name) for name in ("axial", "coronal", "sagittal")]
    return tag(
        "div",
        tag(
            "div",
            "Three planes of the whole volume, ",
            tag("span", id="planes-what"),
            class_="head",
        ),
        tag(
            "div",
            tag("fieldset", tag("legend", "Shown"), tag("div", layers, class_="pills")),
            tag("p", id="planes-value", class_="soft"),
            class_="bar",
        ),
        tag("div", planes, class_="planes"),
        id="planes",
        hidden=True,
    )


def _plane(name: str) -> Tag:
    canvas = tag("canvas", id=f"plane-{name}", role="img", aria_label=f"{name} plane")
    lines = [tag("div", class_="across"), tag("div", class_="down")]
    box = tag("div", canvas, lines, _marks(), class_="plane", data_plane=name)
    slices = tag("input", type="range", id=f"at-{name}", min=0)
    about = tag("span", name, " ", tag("span", id=f"where-{name}"))
    return tag("figure", box, tag("label", about, slices))


def _marks() -> list[Tag]:
    """The letters at the four sides of an image, and a bar of some mm."""
    sides = [tag("span", class_=f"side {s}") for s in ("left", "right", "top", "bottom")]
    return [*sides, tag("span", class_="mm")]


def _status() -> Tag:
    """The words about the images that are shown."""
    why = "Shown for its ", tag("span", id="why"), ". ", tag("span", id="readout")
    return tag(
        "div",
        tag("p", tag("b", id="what"), aria_live="polite"),
        tag("p", id="numbers"),
        tag("p", why, class_="soft"),
        class_="status",
    )


def _head(*content: Content) -> Tag:
    return tag("span", content, class_="head")


def _radio(group: str, value: str, label: str, id: str | None = None) -> Tag:
    choice = tag("input", type="radio", name=group, id=id, value=value)
    return tag("label", choice, tag("span", label))


def _input(modality: str, label: str) -> Tag:
    about = f"{label}, as acquired"
    canvas = tag("canvas", id=f"input-{modality}", role="img", aria_label=about)
    box = tag("input", type="checkbox", id=f"given-{modality}")
    return tag("label", canvas, tag("span", box, label, class_="tag"))


def _frame(name: str, title: str, about: str, scale: Content = None) -> Tag:
    canvas = tag("canvas", id=name, role="img", aria_label=title)
    frame = tag(
        "div", canvas, tag("div", class_="cross"), _marks(), class_="frame", data_view=name
    )
    return tag("figure", tag("figcaption", tag("span", title), tag("i", about)), frame, scale)


def _scale(limit: float) -> Tag:
    return tag("div", 0, tag("div", class_="inferno"), f"{limit:g}", class_="scale")
