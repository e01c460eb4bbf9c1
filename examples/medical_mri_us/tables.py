"""Tables of TOML into dataclasses and back; what does not fit is named."""

from __future__ import annotations

__all__ = ["from_table", "to_table"]

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")

NONE = "none"
"""How TOML, which has no null, says that there is no limit or no choice."""


def from_table(kind: type[T], content: Mapping[str, Any], source: object) -> T:
    """Builds a dataclass, and those of its fields, from a table; defaults fill what is not there.

    A field that may be one of several dataclasses is the one whose ``name`` the table has.

    Arguments:
        kind: The dataclass.
        content: The table.
        source: Where it comes from, for messages.

    Raises:
        ValueError: If a key is unknown, with similar names, or a value has another type.
    """
    return _table(kind, content, "", source, list(_entries(kind, "")))


def to_table(value: Any) -> Any:  # noqa: ANN401
    """Returns what TOML can hold, for `from_table`."""
    if isinstance(value, dict):
        return {key: to_table(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_table(entry) for entry in value]
    return NONE if value is None else value


def _table(
    kind: type[T], content: Mapping[str, Any], place: str, source: object, everything: list[str]
) -> T:
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # pyright: ignore[reportArgumentType]
    for key in content:
        if key not in known:
            near = [entry for entry in everything if entry.split(".")[-1] == key]
            near = near or [place + n for n in difflib.get_close_matches(key, known, cutoff=0.5)]
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
            raise ValueError(f"{source} (or --set) has an unknown entry, {place}{key}: {hint}")
    values = {
        key: _value(hints[key], value, f"{place}{key}", source, everything)
        for key, value in content.items()
    }
    return kind(**values)


def _value(kind: Any, value: Any, place: str, source: object, everything: list[str]) -> Any:  # noqa: ANN401
    """Returns a value of the type that a field has, or says what it should be."""

    def wrong(wanted: str) -> ValueError:
        return ValueError(f"{source}: '{place}' should be {wanted}, but is {value!r}.")

    choices = typing.get_args(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if type(None) in choices:
            if value in (NONE, None):
                return None
            return _value(choices[0], value, place, source, everything)
        if not isinstance(value, dict):
            raise wrong("a table")
        by_name = {choice().name: choice for choice in choices}
        name = value.get("name", next(iter(by_name)))
        if name not in by_name:
            raise ValueError(
                f"{source}: '{place}.name' should be one of {', '.join(by_name)}, but is {name!r}."
            )
        return _table(by_name[name], value, f"{place}.", source, everything)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise wrong("a table")
        return _table(kind, value, f"{place}.", source, everything)
    if typing.get_origin(kind) is Literal:
        if value not in choices:
            raise wrong(f"one of {', '.join(map(repr, choices))}")
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong("a list")
        return tuple(_value(choices[0], entry, place, source, everything) for entry in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise wrong({int: "an integer", float: "a number", str: "a string"}.get(kind, str(kind)))
    return value


def _entries(kind: Any, place: str) -> Iterator[str]:  # noqa: ANN401
    """The names of all entries, for hints."""
    for name, hint in typing.get_type_hints(kind).items():
        parts = [c for c in (hint, *typing.get_args(hint)) if is_dataclass(c)]
        for part in parts:
            yield from _entries(part, f"{place}{name}.")
        if not parts:
            yield f"{place}{name}"
