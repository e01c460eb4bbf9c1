"""Columns of an index that hold images, found without being told the modalities."""

from __future__ import annotations

__all__ = ["image_columns"]

import csv
from pathlib import Path

from examples.medical_mri_us.modalities import MODALITIES

from .index import EMPTY, IDENTIFIER, TARGET

OTHERS = frozenset({"case", "split", "patient", "fov", "label", "landmarks", IDENTIFIER})
"""The columns of an index that are no modality unless somebody says so."""


def image_columns(path: Path) -> tuple[str, ...]:
    """Returns the columns of an index that are modalities.

    These are the default ones, in their order, and after them those of which some cell names a
    file that exists. An index that cannot be read has the default ones: `read_index` says why.

    Arguments:
        path: The CSV file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        header, *rows = ([cell.strip() for cell in row] for row in csv.reader(text.splitlines()))
    except (OSError, ValueError, csv.Error):
        return MODALITIES

    def holds_files(column: int) -> bool:
        cells = {row[column] for row in rows if column < len(row)}
        return any((path.parent / c).exists() for c in cells if c and c.lower() not in EMPTY)

    default = tuple(m for m in MODALITIES if m in header)
    own = tuple(
        name for k, name in enumerate(header)
        if name not in {"", *OTHERS, *default} and not name.startswith(TARGET) and holds_files(k)
    )  # fmt: skip
    return (*default, *own) or MODALITIES
