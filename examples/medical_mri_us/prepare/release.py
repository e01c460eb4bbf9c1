"""Preparing the cases of a release: one that fails does not stop the others."""

from __future__ import annotations

__all__ = ["prepare_all"]

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

import mmpoe
from examples.medical_mri_us.data import Grid
from examples.medical_mri_us.data.images import write_bytes

from .sources import Findings, Source
from .space import widest
from .write import prepare_case, read_reference

MULTIPLE = 16
"""The number that a size which was not asked for is a multiple of: networks halve it."""


def prepare_all(
    findings: Findings,
    out: Path,
    modalities: Sequence[str],
    *,
    spacing: float | None,
    size: int | None,
    split: dict[str, str] | None,
    asked: dict[str, Any],
    progress: bool = True,
) -> dict[str, Any]:
    """Prepares all cases and writes ``index.csv`` and ``prepare.json``, these last.

    Arguments:
        findings: The cases.
        out: An empty folder, or none.
        modalities: The modalities, in the order of the columns.
        spacing: The distance between voxels, mm; None for the median of the references' pixels.
        size: The number of voxels along the first two axes; None for as many as it takes to hold
            all that any reference shows.
        split: Which case is in which split, or None to keep what the release says; cases that it
            does not name are left out.
        asked: What was asked for, for the record.
        progress: Whether to show a progress bar.

    Returns:
        What ``prepare.json`` says: ``cases`` with sources and notes, ``failed`` and ``left_out``
        with reasons.

    Raises:
        ValueError: If the folder is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"'out' should be an empty folder or none, but is {out}.")
    out.mkdir(parents=True, exist_ok=True)
    failed, left_out = dict(findings.failed), {}
    rows, records = [], {}
    names = {source.name for source in findings.sources} | set(failed)
    for case in split or {}:
        if case not in names:
            left_out[case] = "the split names it, but there are no data of it."
    sources = [s for s in findings.sources if split is None or s.name in split]
    for source in findings.sources:
        if source not in sources:
            left_out[source.name] = "the split does not name it."
    spacing, size = fit_grid(sources, spacing, size, progress=progress)
    for source in tqdm(sources, desc="Preparing", unit="case", disable=not progress):
        try:
            result = prepare_case(source, out, spacing, size)
        except ValueError as error:
            failed[source.name] = str(error)
            tqdm.write(f"Failed: case {source.name}: {error}")
            continue
        part = source.split if split is None else split[source.name]
        row = {"case": source.name, "split": part, "patient": source.patient or source.name}
        rows.append({**row, **result["cells"], **source.further})
        records[source.name] = {"split": part, **result["record"]}
    shown = [m for m in modalities if any(m in row for row in rows)]
    record = {
        "mmpoe": mmpoe.__version__,
        "asked": asked,
        "modalities": shown,
        "spacing": spacing,
        "size": size,
        "cases": records,
        "failed": failed,
        "left_out": left_out,
    }
    write_bytes(out / "prepare.json", (json.dumps(record, indent=1) + "\n").encode())
    if rows:
        further = list(dict.fromkeys(c for source in sources for c in source.further))
        write_bytes(out / "index.csv", _index(rows, shown, further).encode())
    return record


def fit_grid(
    sources: Sequence[Source], spacing: float | None, size: int | None, *, progress: bool = True
) -> tuple[float, int]:
    """Returns a spacing and a size that fit the references of all cases, where they are None.

    Arguments:
        sources: The cases; those whose reference cannot be used are passed over.
        spacing: See `prepare_all`.
        size: See `prepare_all`.
        progress: Whether to show a progress bar.
    """
    if spacing is not None and size is not None:
        return spacing, size
    pixels, widths = [], []
    for source in tqdm(sources, desc="Measuring", unit="case", disable=not progress):
        try:
            image, _ = read_reference(source)
            widths.append(widest(image))
        except ValueError:
            continue  # preparing it says why
        pixels.append(min(Grid.of(image).spacing[:2]))
    if spacing is None:
        spacing = float(f"{median(pixels or [1.0]):.4g}")
    if size is None:
        needed = math.ceil(max(widths, default=0) / spacing) + 2  # interpolation widens the view
        size = MULTIPLE * max(1, math.ceil(needed / MULTIPLE))
    return spacing, size


def _index(
    rows: Sequence[dict[str, str]], modalities: Sequence[str], further: Sequence[str]
) -> str:
    optional = ["label", "landmarks", *(f"target_{m}" for m in modalities)]
    used = [column for column in optional if any(column in row for row in rows)]
    text = io.StringIO()
    header = ["case", "split", "patient", *modalities, "fov", *used, *further]
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
