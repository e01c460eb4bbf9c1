"""Preparing the cases of a release: one that fails does not stop the others."""

from __future__ import annotations

__all__ = ["prepare_all"]

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import mmpoe
from examples.medical_mri_us.data.images import write_bytes
from examples.medical_mri_us.names import check_name

from .sources import Findings
from .write import prepare_case


def prepare_all(
    findings: Findings,
    out: Path,
    modalities: Sequence[str],
    *,
    spacing: float,
    size: int,
    split: dict[str, str] | None,
    asked: dict[str, Any],
    progress: bool = True,
) -> dict[str, Any]:
    """Prepares all cases and writes ``index.csv`` and ``prepare.json``, these last.

    Arguments:
        findings: The cases.
        out: An empty folder, or none.
        modalities: The modalities, in the order of the columns.
        spacing: The distance between voxels, mm.
        size: The number of voxels along the first two axes.
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
    for source in tqdm(findings.sources, desc="Preparing", unit="case", disable=not progress):
        if split is not None and source.name not in split:
            left_out[source.name] = "the split does not name it."
            continue
        try:
            check_name("case", source.name)
            result = prepare_case(source, out, spacing, size)
        except ValueError as error:
            failed[source.name] = str(error)
            tqdm.write(f"Failed: case {source.name}: {error}")
            continue
        part = source.split if split is None else split[source.name]
        row = {"case": source.name, "split": part, "patient": source.patient or source.name}
        rows.append({**row, **result["cells"]})
        records[source.name] = {"split": part, **result["record"]}
    record = {
        "mmpoe": mmpoe.__version__,
        "asked": asked,
        "modalities": list(modalities),
        "cases": records,
        "failed": failed,
        "left_out": left_out,
    }
    write_bytes(out / "prepare.json", (json.dumps(record, indent=1) + "\n").encode())
    if rows:
        write_bytes(out / "index.csv", _index(rows, modalities).encode())
    return record


def _index(rows: Sequence[dict[str, str]], modalities: Sequence[str]) -> str:
    optional = ["label", "landmarks", *(f"target_{m}" for m in modalities)]
    used = [column for column in optional if any(column in row for row in rows)]
    text = io.StringIO()
    header = ["case", "split", "patient", *modalities, "fov", *used]
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
