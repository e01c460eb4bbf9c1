"""Scores of several methods over seeds, side by side: intervals, paired differences, tables."""

from __future__ import annotations

__all__ = [
    "Column",
    "Paired",
    "Verdict",
    "best",
    "interval",
    "paired",
    "strongest",
    "summary",
    "table",
    "verdicts",
]

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Scores = Mapping[str, Mapping[str, Sequence[Any]]]
"""For each method and score, one value for each seed; None where a method has no such score."""


class Column(NamedTuple):
    """A column of a table: a score, its title, and which values are good."""

    key: str
    title: str
    badness: Callable[[float], float] | None
    """A function that is least for the best; None if there is no best."""
    digits: int = 3


class Paired(NamedTuple):
    """A method beside another one, over the seeds that both have."""

    mean: float
    """The mean difference, the first minus the second."""
    half: float
    """Half of the 95 % interval of the mean, by Student's t; NaN for a single seed."""
    worse: float
    """By how much the first is worse, on average."""
    ahead: bool
    """Whether the interval says that the first is better."""
    behind: bool
    """Whether it says that the second is."""

    def text(self, digits: int) -> str:
        """Returns the mean difference and its interval, as tables have it."""
        if math.isnan(self.half):
            return _typeset(f"{self.mean:+.{digits}f}")
        return _typeset(f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}")


class Verdict(NamedTuple):
    """A method beside the strongest opponent in a score."""

    place: str
    """The data."""
    column: Column
    opponent: str
    difference: Paired
    winner: str
    """Who is better by the 95 % interval, ``"level"`` if it does not say; a dash without one."""


def interval(values: Sequence[float], digits: int) -> str:
    """Returns a mean, plus or minus half of its 95 % interval, by Student's t.

    Arguments:
        values: One value for each seed. There is no interval of a single one.
        digits: The number of decimal places.
    """
    if len(values) == 1:
        return _typeset(f"{values[0]:.{digits}f}")
    return _typeset(f"{np.mean(values):.{digits}f} ± {_half(values):.{digits}f}")


def best(scores: Scores, column: Column) -> str | None:
    """Returns the method with the best mean, None if there is no best.

    Arguments:
        scores: The scores.
        column: The column.
    """
    badness = column.badness
    if badness is None:
        return None
    means = {m: np.mean(v[column.key]) for m, v in scores.items() if None not in v[column.key]}
    return min(means, key=lambda m: badness(float(means[m]))) if means else None


def strongest(scores: Scores, column: Column, ours: str) -> str | None:
    """Returns the opponent that is furthest ahead, or least behind, on the seeds that both have.

    Arguments:
        scores: The scores.
        column: The column.
        ours: The method that it is an opponent of.
    """
    ahead = {
        method: paired(scores[ours][column.key], v[column.key], column).worse
        for method, v in scores.items()
        if method != ours and None not in v[column.key]
    }
    return max(ahead, key=lambda method: ahead[method]) if ahead else None


def paired(first: Sequence[float], second: Sequence[float], column: Column) -> Paired:
    """Returns how a method does beside another one, seed by seed.

    Arguments:
        first: The values of the first one, one for each seed.
        second: Those of the second one, which may have fewer seeds, the first of them.
        column: The column.
    """
    assert column.badness is not None
    count = min(len(first), len(second))
    change = np.subtract(first[:count], second[:count])
    worse = np.array([column.badness(v) for v in first[:count]])
    worse -= [column.badness(v) for v in second[:count]]
    middle, half = float(worse.mean()), _half(worse)
    return Paired(
        float(change.mean()), _half(change), middle, middle + half < 0, middle - half > 0
    )


def verdicts(place: str, scores: Scores, columns: Sequence[Column], ours: str) -> list[Verdict]:
    """Returns how a method does beside the strongest opponent in each score.

    Scores that the method does not have, or no opponent has, are left out.

    Arguments:
        place: The data.
        scores: The scores on them.
        columns: The scores to compare.
        ours: The method.
    """
    found = []
    for column in columns:
        if ours not in scores or None in scores[ours][column.key]:
            continue
        opponent = strongest(scores, column, ours)
        if opponent is None:
            continue
        first, second = (scores[method][column.key] for method in (ours, opponent))
        difference = paired(first, second, column)
        winner = ours if difference.ahead else opponent if difference.behind else "level"
        winner = "–" if math.isnan(difference.half) else winner
        found.append(Verdict(place, column, opponent, difference, winner))
    return found


def summary(head: str, found: Sequence[Verdict], ours: str) -> str:
    """Returns a count of who is ahead, where the method is behind, and a table of all verdicts.

    Arguments:
        head: The title of the data's column.
        found: The verdicts.
        ours: The method.
    """
    told = [v for v in found if v.winner != "–"]
    behind = [v for v in told if v.winner not in (ours, "level")]
    ahead = sum(v.winner == ours for v in found)
    text = f"By these intervals, {ours} is ahead of the strongest opponent in {ahead} of "
    text += f"{len(told)} scores, and behind in {len(behind)}"
    places = [f"{v.place} ({v.column.title}, {v.opponent})" for v in behind]
    text += f": {'; '.join(places)}." if behind else "."
    text = text if told else "A single seed was run: there are no intervals."
    lines = [
        f"| {head} | score | strongest opponent | difference | ahead |",
        "|---|---|---|---|---|",
    ]
    for v in found:
        difference = v.difference.text(v.column.digits)
        cells = [v.place, v.column.title, v.opponent, difference, v.winner]
        lines.append(f"| {' | '.join(cells)} |")
    return text + "\n\n" + "\n".join(lines)


def table(head: str, scores: Scores, columns: Sequence[Column]) -> str:
    """Returns a table of means and their intervals, in which the best mean is bold.

    Arguments:
        head: The title of the methods' column.
        scores: The scores.
        columns: The other columns.
    """
    bold = {column.key: best(scores, column) for column in columns}
    lines = [
        f"| {head} | " + " | ".join(column.title for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method, values in scores.items():
        cells = []
        for column in columns:
            found = values[column.key]
            text = "–" if None in found else interval(found, column.digits)
            cells.append(f"**{text}**" if bold[column.key] == method else text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _half(values: Sequence[float] | np.ndarray) -> float:
    count = len(values)
    if count == 1:
        return math.nan
    return float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def _typeset(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}").replace(" ", "\N{NO-BREAK SPACE}")
