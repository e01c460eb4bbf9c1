"""Numbers of things in messages."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, one: str, several: str | None = None) -> str:
    """Returns a number and what it counts, in the singular or the plural.

    Arguments:
        number: The number.
        one: The words for one thing.
        several: Those for none or more; by default, with an s at the end.

    Example:
        >>> counted(1, "case"), counted(2, "case"), counted(1, "case was", "cases were")
        ('1 case', '2 cases', '1 case was')
    """
    return f"{number} {one if number == 1 else several or f'{one}s'}"
