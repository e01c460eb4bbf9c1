"""Drawings in SVG: lines over steps, which modalities cases have, coverage of intervals."""

from __future__ import annotations

__all__ = ["coverage_plot", "line_plot", "missingness_plot"]

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .axes import apart, number_text, powers, ticks

Series = Mapping[str, Sequence[tuple[float, float]]]


def line_plot(
    series: Series, *, title: str, x_label: str, y_label: str, logarithmic: bool = False
) -> str:
    """Draws lines with their names at the right; empty if there is no line of two points.

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
        return ""
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
        parts.append(
            f"<line class=grid x1={left} x2={width - right} y1={up(y):.1f} y2={up(y):.1f} />"
            f"<text x={left - 7} y={up(y) + 4:.1f} text-anchor=end>{label}</text>"
        )
    for x in ticks(x0, x1, 5):
        place = f"x={across(x):.1f} y={height - bottom + 17}"
        parts.append(f"<text {place} text-anchor=middle>{number_text(x)}</text>")
    places = apart({name: up(points[-1][1]) for name, points in lines.items()}, 14)
    for number, (name, points) in enumerate(lines.items(), start=1):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        parts.append(
            f"<polyline class='line c{(number - 1) % 6 + 1}' points='{path}' />"
            f"<text class='name t{(number - 1) % 6 + 1}' x={width - right + 7} "
            f"y={places[name] + 4:.1f}>{html.escape(name)}</text>"
        )
    middle = top + (height - top - bottom) / 2
    parts.append(
        f"<text x={left + (width - left - right) / 2} y={height - 5} text-anchor=middle>"
        f"{html.escape(x_label)}</text><text transform='translate(12 {middle}) rotate(-90)' "
        f"text-anchor=middle>{html.escape(y_label)}</text>"
    )
    return _svg(width, height, title, parts)


def missingness_plot(
    patterns: Sequence[Mapping[str, Any]], modalities: Mapping[str, str], title: str
) -> str:
    """Draws which modalities cases have together, a row per pattern, and how many have each.

    Arguments:
        patterns: The patterns, each with the modalities that are ``held`` and the ``cases``.
        modalities: How the modalities are written, by name.
        title: What is drawn, for those who do not see it.
    """
    total = sum(p["cases"] for p in patterns)
    if not total:
        return ""
    cell, left, top, bar = 38, 8, 82, 190
    grid = left + cell * len(modalities)
    width, height = grid + bar + 96, top + cell * len(patterns) + 10
    parts = []
    for column, (m, label) in enumerate(modalities.items()):
        count = sum(p["cases"] for p in patterns if m in p["held"])
        x = left + cell * (column + 0.5)
        tall = 34 * count / total
        parts.append(
            f"<rect class=bar x={x - 9:.1f} y={52 - tall:.1f} width=18 height={tall:.1f} rx=2 />"
            f"<text x={x:.1f} y={47 - tall:.1f} text-anchor=middle class=count>{count}</text>"
            f"<text x={x:.1f} y=70 text-anchor=middle>{html.escape(label)}</text>"
        )
    most = max(p["cases"] for p in patterns)
    for row, pattern in enumerate(patterns):
        y = top + cell * (row + 0.5)
        for column, m in enumerate(modalities):
            state = "has" if m in pattern["held"] else "lacks"
            x = left + cell * (column + 0.5)
            parts.append(f"<circle class={state} cx={x:.1f} cy={y:.1f} r=9 />")
        long = max(2.0, bar * pattern["cases"] / most)
        share = f"{100 * pattern['cases'] / total:.0f} %"
        parts.append(
            f"<rect class=bar x={grid + 14} y={y - 9:.1f} width={long:.1f} height=18 rx=2 />"
            f"<text x={grid + 20 + long:.1f} y={y + 4:.1f}>"
            f"{pattern['cases']} <tspan class=count>({share})</tspan></text>"
        )
    return _svg(width, height, title, parts)


def coverage_plot(
    rows: Mapping[str, Mapping[tuple[str, float], float]],
    levels: Sequence[float],
    intervals: Sequence[str],
    title: str,
) -> str:
    """Draws nominal against found coverage: a panel per level, a row per target.

    Arguments:
        rows: For each row the coverage by kind of interval and level.
        levels: The nominal coverages.
        intervals: The kinds of intervals: the first one as rings, the second one as discs.
        title: What is drawn, for those who do not see it.
    """
    if not rows or not levels:
        return ""
    left, panel, gap, step, top = 62, 220, 34, 30, 34
    width, height = left + (panel + gap) * len(levels), top + step * len(rows) + 40
    parts = []
    for column, level in enumerate(levels):
        x0 = left + column * (panel + gap)
        base = top + step * len(rows)
        for share in (0, 0.25, 0.5, 0.75, 1):
            x = x0 + panel * share
            parts.append(
                f"<line class=grid x1={x} x2={x} y1={top} y2={base} />"
                f"<text x={x} y={base + 17} text-anchor=middle>{share:g}</text>"
            )
        nominal = x0 + panel * level
        parts.append(
            f"<line class=nominal x1={nominal} x2={nominal} y1={top - 4} y2={base} />"
            f"<text class=count x={x0} y={top - 14}>{100 * level:.0f} % intervals</text>"
        )
        for row, (name, found) in enumerate(rows.items()):
            y = top + step * (row + 0.5)
            if column == 0:
                parts.append(
                    f"<text x={left - 10} y={y + 4} text-anchor=end>{html.escape(name)}</text>"
                )
            for mark, interval in zip(("ring", "disc"), intervals, strict=False):
                value = found.get((interval, level))
                if value is not None:
                    x = x0 + panel * value
                    parts.append(f"<circle class={mark} cx={x:.1f} cy={y} r=5.5 />")
    return _svg(width, height, title, parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    size = f"viewBox='0 0 {width:g} {height:g}' style='max-width:{width:g}px'"
    return (
        f"<svg class=chart {size} role=img aria-label='{html.escape(title, quote=True)}'>"
        f"<title>{html.escape(title)}</title>{''.join(parts)}</svg>"
    )
