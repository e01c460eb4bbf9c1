"""Who trains and who is held out."""

from __future__ import annotations

__all__ = ["read_split"]

import csv
from pathlib import Path

NAMES = {"training": "train", "inference": "test"}
"""The names of the published splits, and those used here."""


def read_split(path: Path) -> dict[str, str]:
    """Reads a split: a CSV file with the columns ``case`` and ``split``.

    The published ones write ``Case001-``, with a dash at the end. It is left out, and names are
    compared whole: Case1 is not Case10.

    Raises:
        ValueError: If the file is another one, or a case stands twice.
    """
    if not path.is_file():
        raise ValueError(f"'split' should be a CSV file, but there is none at {path}.")
    try:
        return _read(path)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} should be a CSV file in UTF-8, but is not: {error}.") from error


def _read(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"case", "split"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path} should have the columns case and split, but has {reader.fieldnames}."
            )
        found: dict[str, str] = {}
        for row in reader:
            case, split = (
                (row["case"] or "").strip().removesuffix("-"),
                (row["split"] or "").strip(),
            )
            if not case or not split:
                raise ValueError(f"{path}, line {reader.line_num}: lacks a case or a split.")
            if case in found:
                raise ValueError(f"{path}, line {reader.line_num}: case {case} stands twice.")
            found[case] = NAMES.get(split, split)
    return found
