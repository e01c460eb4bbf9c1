"""Markdown whose marks are those of the writer: what is filled in stays text."""

from __future__ import annotations

__all__ = ["Markdown", "code", "code_block", "fill", "joined", "table"]

import re
import string
from collections.abc import Iterable, Sequence
from typing import Any


class Markdown(str):
    """Text that is Markdown already; the functions of this module return it."""


def fill(template: str, *values: object, **named: object) -> Markdown:
    r"""Fills values into a template, as :meth:`str.format` does, on one line each and escaped.

    Arguments:
        template: Markdown, from the program itself.
        values: What to fill in; :class:`Markdown` stays as it is.
        named: What to fill in by name.

    Example:
        >>> print(fill("# {} of {:.1f} mm", "a|b\n# *c*", 2))
        # a\|b \# \*c\* of 2.0 mm
    """
    return Markdown(_Filler().vformat(template, values, named))


def code(value: object) -> Markdown:
    r"""Returns a code span, whatever the text holds.

    Example:
        >>> print(code("a`b"), code("a|b"))
        ``a`b`` `a\|b`
    """
    line = _one_line(str(value)).replace("|", "\\|")  # else it would end the cell of a table
    fence = _fence(line, 1)
    space = " " if line[:1] in ("`", "") or line[-1:] == "`" else ""
    return Markdown(f"{fence}{space}{line}{space}{fence}")


def code_block(text: str, language: str = "") -> Markdown:
    """Returns a block of code, which text that looks like its end does not end."""
    fence = _fence(text, 3)
    return Markdown(f"{fence}{language}\n{text}\n{fence}")


def joined(values: Iterable[object], separator: str = ", ") -> Markdown:
    """Returns escaped values with Markdown between them."""
    return Markdown(separator.join(map(_markdown, values)))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], right: str = "") -> Markdown:
    r"""Returns a table, whose cells are escaped.

    Arguments:
        head: The names of the columns.
        rows: The rows.
        right: A mark for each column: ``>`` for one of numbers, which stand at its right.

    Example:
        >>> print(table(["a", "n"], [["x|y", 3]], right=" >"))
        | a | n |
        |---|---:|
        | x\|y | 3 |
    """
    marks = [":" if mark == ">" else "" for mark in right.ljust(len(head))]
    line = f"|{'|'.join(f'---{mark}' for mark in marks)}|"
    first, *others = [f"| {joined(row, ' | ')} |" for row in (head, *rows)]
    return Markdown("\n".join([first, line, *others]))


class _Filler(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> Any:  # noqa: ANN401
        return value if isinstance(value, Markdown) else _escaped(format(value, format_spec))


def _markdown(value: object) -> str:
    return value if isinstance(value, Markdown) else _escaped(str(value))


def _escaped(text: str) -> str:
    """Escapes marks: not underscores between letters, signs of numbers, or "less than"."""
    marks = r"[\\`*\[\]|~#]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\b_|_\b|://|^>|^[-+=](?!\d)"
    return re.sub(marks, r"\\\g<0>", _one_line(text))


def _one_line(text: str) -> str:
    """Replaces line breaks and other characters that control a terminal by spaces."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


def _fence(text: str, least: int) -> str:
    runs = [len(run) for run in re.findall(r"`+", text)]
    return "`" * max(least, 1 + max(runs, default=0))
