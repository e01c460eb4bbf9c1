"""The configuration of a training run: a tree of dataclasses, read from TOML and written to it."""

from __future__ import annotations

__all__ = ["Config", "Matching", "read_config", "write_config"]

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmpoe.extras import needs
from mmpoe.models import is_out_of_memory
from mmpoe.training import write_file

from .checks import check_choice, check_integer, check_number, check_positive
from .critics import Critics
from .modalities import MODALITIES
from .models import DEFAULT, MOST_SLICES, Network, build_model
from .names import check_modalities
from .settings import Settings
from .tables import from_table, to_table

with needs("medical"):
    import tomli_w

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]

CONFIGS = Path(__file__).parent / "configs"
"""The configurations that come with the example."""


@dataclass(frozen=True)
class Matching:
    """How matched experts, and a spread, are fitted, so that samples spread as they should."""

    steps: int = 400
    """The largest number of steps of matched experts; 0 for none."""
    batch: int = 16
    """The number of slices in a batch."""
    lr: float = 2e-3
    """The learning rate at the start."""
    teacher: Literal["complete", "bootstrap"] = "complete"
    """Whether complete slices alone teach, or incomplete ones too in the second half."""
    held_out: float = 0.2
    """The share of the complete slices that tells which fit is kept."""
    spread_steps: int = 300
    """The number of steps of the spread; 0 for none."""

    def check(self) -> None:
        """Raises a ValueError that names the setting, if there is one that cannot be used."""
        check_integer("steps", self.steps, 0)
        check_integer("spread_steps", self.spread_steps, 0)
        check_integer("batch", self.batch, 1)
        check_positive("lr", self.lr)
        check_choice("teacher", self.teacher, ("complete", "bootstrap"))
        check_number("held_out", self.held_out, 0, 1)


@dataclass(frozen=True)
class Config:
    """All that a training run depends on, but for the data."""

    modalities: tuple[str, ...] = MODALITIES
    """The names of the modalities: columns of the index."""
    size: int = 64
    """The height and width of the model's slices; larger images are cut, smaller ones padded."""
    slices: int = 1
    """The number of slices of an input: with 3, its neighbours are further channels of each."""
    covariates: tuple[str, ...] = ()
    """Further columns of the index that the model depends on, such as age and site."""
    model: Network = DEFAULT
    training: Settings = field(default_factory=Settings)
    adversary: Critics = field(default_factory=Critics)
    calibration: Matching = field(default_factory=Matching)

    def check(self) -> None:
        """Raises a ValueError that names the entry, if there is one that cannot be used."""
        check_integer("size", self.size, 4)
        if check_integer("slices", self.slices, 1) % 2 == 0 or self.slices > MOST_SLICES:
            raise ValueError(
                f"'slices' should be odd, from 1 to {MOST_SLICES}, but is {self.slices}."
            )
        for part in (self.training, self.adversary, self.calibration):
            part.check()
        check_modalities(self.modalities)
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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} should be TOML, but is not: {error}.") from error
    for change in changes:
        _apply(content, change)
    try:
        config = from_table(Config, content, source)
        config.check()
    except Exception as error:  # of any type: what builds a model expects no odd numbers
        if is_out_of_memory(error):
            raise
        said = str(error) or type(error).__name__
        raise ValueError(
            said if str(source) in said else f"{source} (or --set): {said}"
        ) from error
    return config


def write_config(path: Path, config: Config) -> None:
    """Writes a configuration, with all its entries, for `read_config`."""
    write_file(path, tomli_w.dumps(to_table(asdict(config))).encode())


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
    except (ValueError, RecursionError):
        value = text.strip()  # a string without quotes
    for table in tables:
        content = content.setdefault(table, {})
        if not isinstance(content, dict):
            raise ValueError(f"'set' should change an entry of a table, but {table!r} is none.")
    content[name] = value
