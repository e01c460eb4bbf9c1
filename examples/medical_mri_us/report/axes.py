"""Ticks along the axes of a drawing, and their labels."""

from __future__ import annotations

__all__ = ["apart", "number_text", "powers", "ticks"]

import math
from collections.abc import Mapping


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two others, about so many of them."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """The logarithms of 1, 2 and 5 times powers of ten between two others; of powers if many."""
    steps = (1, 2, 5) if high - low < 2 else (1,)
    whole = range(math.floor(low), math.ceil(high) + 1)
    found = [power + math.log10(step) for power in whole for step in steps]
    return [y for y in found if low <= y <= high]


def number_text(value: float) -> str:
    """Writes a number beside an axis, shortly."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def apart(places: Mapping[str, float], distance: float) -> dict[str, float]:
    """Moves labels down where they would overlap."""
    moved: dict[str, float] = {}
    last = -math.inf
    for name in sorted(places, key=places.__getitem__):
        last = max(places[name], last + distance)
        moved[name] = last
    return moved
