"""CSV files that spreadsheets do not take for programs."""

from __future__ import annotations

__all__ = ["csv_rows", "csv_text"]

import csv
import io
import math
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""The beginnings of text that a spreadsheet computes, and of what is quoted already."""


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Returns rows as CSV; text that a spreadsheet would take for a formula is quoted.

    A quoted cell begins with an apostrophe. Numbers are not quoted, as text or not.

    Example:
        >>> print(csv_text([["=1+1", -2, "-2.5"]]).strip())
        '=1+1,-2,-2.5
    """
    text = io.StringIO()
    csv.writer(text).writerows([[_quoted(cell) for cell in row] for row in rows])
    return text.getvalue()


def csv_rows(text: str) -> list[dict[str, str]]:
    """Returns the rows of what :func:`csv_text` wrote, by the names in the first one.

    Raises:
        ValueError: If a row is longer or shorter than the first one.

    Example:
        >>> csv_rows(csv_text([["a"], ["=1+1"]]))
        [{'a': '=1+1'}]
    """
    lines = csv.reader(io.StringIO(text, newline=""))
    rows = [[cell.removeprefix("'") for cell in line] for line in lines if line]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def _quoted(cell: object) -> object:
    if isinstance(cell, str) and cell.startswith(FORMULA) and not _is_number(cell):
        return f"'{cell}"
    return cell


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
