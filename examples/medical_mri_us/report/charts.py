"""Drawings in SVG: lines over steps, which modalities cases have, coverage of intervals."""

from __future__ import annotations

__all__ = ["coverage_plot", "line_plot", "missingness_plot"]

import math
from collections.abc import Mapping, Sequence
from typing import Any

from examples.medical_mri_us.writing import Content, Tag, tag

from .axes import apart, number_text, powers, ticks

Series = Mapping[str, Sequence[tuple[float, float]]]


def line_plot(
    series: Series, *, title: str, x_label: str, y_label: str, logarithmic: bool = False
) -> Tag | None:
    """Draws lines with their names at the right; None if there is no line of two points.

    Arguments:
        series: The points of each line, by its name.
        title: What is drawn, for those who do not see it.
        x_label: The name of the horizontal axis.
        y_label: The name of the vertical axis.
        logarithmic: Whether the vertical axis is logarithmic; points at or below 0 are left out.
    """
    lines = {
        name: [
            (x, math.log10(y) if logarithmic else y) for x, y in points if y > 0 or not logarithmic
        ]
        for name, points in series.items()
    }
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    width, height, left, right, top, bottom = 560, 240, 70, 84, 14, 40
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x0, x1 = min(xs), max(xs)
    low, high = min(ys), max(ys)
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def across(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (width - left - right)

    def up(y: float) -> float:
        return height - bottom - (y - low) / (high - low) * (height - top - bottom)

    parts = []
    for y in powers(low, high) if logarithmic else ticks(low, high, 4):
        label = number_text(10**y) if logarithmic else number_text(y)
        parts += [
            _line("grid", left, width - right, up(y), up(y)),
            _text(left - 7, up(y) + 4, label, anchor="end"),
        ]
    parts += [_text(across(x), height - bottom + 17, number_text(x)) for x in ticks(x0, x1, 5)]
    places = apart({name: up(points[-1][1]) for name, points in lines.items()}, 14)
    for number, (name, points) in enumerate(lines.items(), start=1):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        colour = (number - 1) % 6 + 1
        parts += [
            tag("polyline", class_=f"line c{colour}", points=path),
            _text(width - right + 7, places[name] + 4, name, None, f"name t{colour}"),
        ]
    middle = top + (height - top - bottom) / 2
    turned = f"translate(12 {middle}) rotate(-90)"
    parts += [
        _text(left + (width - left - right) / 2, height - 5, x_label),
        tag("text", y_label, transform=turned, text_anchor="middle"),
    ]
    return _svg(width, height, title, parts)


def missingness_plot(
    patterns: Sequence[Mapping[str, Any]], modalities: Mapping[str, str], title: str
) -> Tag | None:
    """Draws which modalities cases have together, a row per pattern, and how many have each.

    Arguments:
        patterns: The patterns, each with the modalities that are ``held`` and the ``cases``.
        modalities: How the modalities are written, by name.
        title: What is drawn, for those who do not see it.
    """
    total = sum(p["cases"] for p in patterns)
    if not total:
        return None
    cell, left, top, bar = 38, 8, 82, 190
    grid = left + cell * len(modalities)
    width, height = grid + bar + 96, top + cell * len(patterns) + 10
    parts = []
    for column, (m, label) in enumerate(modalities.items()):
        count = sum(p["cases"] for p in patterns if m in p["held"])
        x = left + cell * (column + 0.5)
        tall = 34 * count / total
        parts += [
            _bar(x - 9, 52 - tall, 18, tall),
            _text(x, 47 - tall, count, class_="count"),
            _text(x, 70, label),
        ]
    most = max(p["cases"] for p in patterns)
    for row, pattern in enumerate(patterns):
        y = top + cell * (row + 0.5)
        for column, m in enumerate(modalities):
            state = "has" if m in pattern["held"] else "lacks"
            parts.append(_circle(state, left + cell * (column + 0.5), y, 9))
        long = max(2.0, bar * pattern["cases"] / most)
        share = tag("tspan", f"({100 * pattern['cases'] / total:.0f} %)", class_="count")
        parts += [
            _bar(grid + 14, y - 9, long, 18),
            _text(grid + 20 + long, y + 4, [f"{pattern['cases']} ", share], anchor=None),
        ]
    return _svg(width, height, title, parts)


def coverage_plot(
    rows: Mapping[str, Mapping[tuple[str, float], float]],
    levels: Sequence[float],
    intervals: Sequence[str],
    title: str,
) -> Tag | None:
    """Draws nominal against found coverage: a panel per level, a row per target.

    Arguments:
        rows: For each row the coverage by kind of interval and level.
        levels: The nominal coverages.
        intervals: The kinds of intervals: the first one as rings, the second one as discs.
        title: What is drawn, for those who do not see it.
    """
    if not rows or not levels:
        return None
    left, panel, gap, step, top = 62, 220, 34, 30, 34
    width, height = left + (panel + gap) * len(levels), top + step * len(rows) + 40
    parts = []
    for column, level in enumerate(levels):
        x0 = left + column * (panel + gap)
        base = top + step * len(rows)
        for share in (0, 0.25, 0.5, 0.75, 1):
            x = x0 + panel * share
            parts += [_line("grid", x, x, top, base), _text(x, base + 17, f"{share:g}")]
        nominal = x0 + panel * level
        parts += [
            _line("nominal", nominal, nominal, top - 4, base),
            _text(x0, top - 14, f"{100 * level:.0f} % intervals", None, "count"),
        ]
        for row, (name, found) in enumerate(rows.items()):
            y = top + step * (row + 0.5)
            if column == 0:
                parts.append(_text(left - 10, y + 4, name, anchor="end"))
            for mark, interval in zip(("ring", "disc"), intervals, strict=False):
                value = found.get((interval, level))
                if value is not None:
                    parts.append(_circle(mark, x0 + panel * value, y, 5.5))
    return _svg(width, height, title, parts)


def _svg(width: float, height: float, title: str, parts: Sequence[Tag]) -> Tag:
    return tag(
        "svg",
        tag("title", title),
        parts,
        class_="chart",
        viewBox=f"0 0 {width:g} {height:g}",
        style=f"max-width:{width:g}px",
        role="img",
        aria_label=title,
    )


def _line(class_: str, x1: float, x2: float, y1: float, y2: float) -> Tag:
    places = {"x1": x1, "x2": x2, "y1": y1, "y2": y2}
    return tag("line", class_=class_, **{name: f"{v:.1f}" for name, v in places.items()})


def _text(
    x: float, y: float, text: Content, anchor: str | None = "middle", class_: str | None = None
) -> Tag:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _bar(x: float, y: float, width: float, height: float) -> Tag:
    sides = {"x": x, "y": y, "width": width, "height": height}
    return tag("rect", class_="bar", rx=2, **{name: f"{v:.1f}" for name, v in sides.items()})


def _circle(class_: str, x: float, y: float, radius: float) -> Tag:
    return tag("circle", class_=class_, cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{radius:g}")
