"""The configuration of a training: one tree of dataclasses, read from TOML and written to it."""

from __future__ import annotations

__all__ = ["Config", "Matching", "read_config", "write_config"]

import difflib
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmpoe.extras import needs
from mmpoe.missing import check_modalities
from mmpoe.training.files import write_file

from .checks import check_choice, check_integer, check_number, check_positive
from .critics import Critics
from .modalities import MODALITIES
from .models import DEFAULT, Network, build_model
from .train import Settings

with needs("medical"):
    import tomli_w

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]

T = TypeVar("T")

CONFIGS = Path(__file__).parent / "configs"
"""The configurations that come with the example."""

NONE = "none"
"""How TOML, which has no null, says that there is no limit or no choice."""


@dataclass(frozen=True)
class Matching:
    """How matched experts are fitted, so that samples spread as they should."""

    steps: int = 400
    """The largest number of steps."""
    batch: int = 16
    """The number of slices in a batch."""
    lr: float = 2e-3
    """The learning rate at the start."""
    teacher: Literal["complete", "bootstrap"] = "complete"
    """Whether complete slices alone teach, or incomplete ones too in the second half."""
    held_out: float = 0.2
    """The share of the complete slices that tells which fit is kept."""

    def check(self) -> None:
        """Raises a ValueError that names the setting, if there is one that cannot be used."""
        check_integer("steps", self.steps, 1)
        check_integer("batch", self.batch, 1)
        check_positive("lr", self.lr)
        check_choice("teacher", self.teacher, ("complete", "bootstrap"))
        check_number("held_out", self.held_out, 0, 1)


@dataclass(frozen=True)
class Config:
    """All that a training depends on, but for the data."""

    modalities: tuple[str, ...] = MODALITIES
    """The names of the modalities: columns of the index."""
    size: int = 64
    """The height and width of the model's slices; larger images are cut, smaller ones padded."""
    model: Network = DEFAULT
    training: Settings = field(default_factory=Settings)
    adversary: Critics = field(default_factory=Critics)
    calibration: Matching = field(default_factory=Matching)

    def check(self) -> None:
        """Raises a ValueError that names the entry, if there is one that cannot be used."""
        check_modalities(self.modalities)
        check_integer("size", self.size, 4)
        for part in (self.training, self.adversary, self.calibration):
            part.check()
        build_model(self.size, self.modalities, self.model)


def read_config(path: Path, changes: Sequence[str] = ()) -> Config:
    """Reads a configuration; what it does not say has its default.

    Arguments:
        path: The TOML file, or the name of one that comes with the example, such as ``tiny``.
        changes: Entries to change, as in ``training.steps=100``.

    Raises:
        ValueError: If there is no such file, it is no TOML, or an entry is unknown, which names
            the nearest ones, or cannot be used.
    """
    source = _find(path)
    try:
        content = tomllib.loads(source.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} should be TOML, but is not: {error}.") from error
    for change in changes:
        _apply(content, change)
    config = _table(Config, content, "", source)
    config.check()
    return config


def write_config(path: Path, config: Config) -> None:
    """Writes a configuration, with all its entries, for `read_config`."""
    write_file(path, tomli_w.dumps(_plain(asdict(config))).encode())


def _find(path: Path) -> Path:
    for candidate in (path, CONFIGS / path.name, CONFIGS / f"{path.name}.toml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
    raise ValueError(f"'config' should be a file, or one of {known}, but is {path}.")


def _apply(content: dict[str, Any], change: str) -> None:
    """Puts one change into the tables that a file holds."""
    key, equals, text = change.partition("=")
    *tables, name = key.strip().split(".")
    if not equals or not all((*tables, name)):
        raise ValueError(
            f"'set' should be an entry and its value, as training.steps=100, but is {change!r}."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a string without quotes
    for table in tables:
        content = content.setdefault(table, {})
        if not isinstance(content, dict):
            raise ValueError(f"'set' should change an entry of a table, but {table!r} is none.")
    content[name] = value


def _table(kind: type[T], content: dict[str, Any], place: str, source: Path) -> T:
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # pyright: ignore[reportArgumentType]
    for key in content:
        if key not in known:
            everything = list(_entries(Config, ""))
            near = [place + n for n in difflib.get_close_matches(key, known, n=3, cutoff=0.5)]
            near = near or [entry for entry in everything if entry.split(".")[-1] == key]
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
            raise ValueError(f"{source} (or --set) has an unknown entry, {place}{key}: {hint}")
    values = {
        key: _value(hints[key], value, f"{place}{key}", source) for key, value in content.items()
    }
    return kind(**values)


def _value(kind: Any, value: Any, place: str, source: Path) -> Any:  # noqa: ANN401
    """Returns a value of the type that a field has, or says what it should be."""

    def wrong(wanted: str) -> ValueError:
        return ValueError(f"{source}: '{place}' should be {wanted}, but is {value!r}.")

    choices = typing.get_args(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if type(None) in choices:
            if value in (NONE, None):
                return None
            return _value(choices[0], value, place, source)
        if not isinstance(value, dict):
            raise wrong("a table")
        by_name = {choice().name: choice for choice in choices}
        name = value.get("name", next(iter(by_name)))
        if name not in by_name:
            raise ValueError(
                f"{source}: '{place}.name' should be one of {', '.join(by_name)}, but is {name!r}."
            )
        return _table(by_name[name], value, f"{place}.", source)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise wrong("a table")
        return _table(kind, value, f"{place}.", source)
    if typing.get_origin(kind) is Literal:
        if value not in choices:
            raise wrong(f"one of {', '.join(map(repr, choices))}")
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong("a list")
        return tuple(_value(choices[0], entry, place, source) for entry in value)
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


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return NONE if value is None else value
