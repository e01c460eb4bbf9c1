"""The files of an evaluation, each of them whole or not there."""

from __future__ import annotations

__all__ = ["FORMAT", "write_cases", "write_evaluation"]

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.outputs import open_folder
from examples.medical_mri_us.writing import csv_text
from mmpoe.training import write_file

from .scores import Scores

FORMAT = 1
"""The version of the files."""


def write_evaluation(
    out: Path,
    *,
    cells: Mapping[str, Any],
    cases: str,
    statistics: Mapping[str, Any],
    coverage: Mapping[str, Any],
    tables: str,
    views: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Writes all files of an evaluation over those of an earlier one, ``cells.json`` at the end.

    Arguments:
        out: The folder, which is there.
        cells: What ``cells.json`` holds.
        cases: The text of ``cases.csv``.
        statistics: What ``statistics.json`` holds.
        coverage: What ``coverage.json`` holds.
        tables: The text of ``tables.md``.
        views: The arrays of each case in ``views``.
    """
    (out / "cells.json").unlink(missing_ok=True)  # what is half new says nothing
    folder = out / "views"
    open_folder(folder)
    for old in folder.glob("*.npz"):
        old.unlink()
    for name, view in views.items():
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **dict(view))
        write_file(folder / f"{name}.npz", content.getvalue())
    write_file(out / "cases.csv", cases.encode())
    write_file(out / "tables.md", tables.encode())
    for name, value in (
        ("statistics.json", statistics),
        ("coverage.json", coverage),
        ("cells.json", cells),
    ):
        text = json.dumps({"format": FORMAT, **value}, indent=1, allow_nan=False)
        write_file(out / name, (text + "\n").encode())


def write_cases(scores: Sequence[Scores]) -> str:
    """Returns a CSV text with one row per case, inputs, target and metric.

    The value is the mean over the ``n`` units (one, or the case's slices) that are finite.
    """
    rows = [["protocol", "model", "case", "kind", "given", "target", "metric", "value", "n"]]
    for s in scores:
        for metric, values in s.values.items():
            finite = values[np.isfinite(values)]
            value = f"{finite.mean():.8g}" if finite.size else ""
            place = [s.protocol, s.model, s.case, s.kind, "+".join(s.given), s.target, metric]
            rows.append([*place, value, str(finite.size)])
    return csv_text(rows)
