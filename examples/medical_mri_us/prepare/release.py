"""Preparing the cases of a release: one that fails does not stop the others."""

from __future__ import annotations

__all__ = ["prepare_all"]

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

import mmpoe
from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import Grid
from examples.medical_mri_us.data.stored import FOLDER
from examples.medical_mri_us.names import check_name
from mmpoe.training import lock, sweep, write_file

from .sources import Findings, Source
from .space import widest
from .write import prepare_case, read_reference

MULTIPLE = 16
"""The number that a size which was not asked for is a multiple of: networks halve it."""

UNFINISHED = "unfinished.jsonl"
"""The file that lists, while cases are prepared, what was asked for and those that are done."""


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

    Until then, ``unfinished.jsonl`` lists the cases that are done, so that a process that was
    stopped can be run again, and goes on with the next case.

    Arguments:
        findings: The cases.
        out: An empty folder, or none, or one in which the same was begun.
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
        ValueError: If the folder holds anything else, or another process writes there.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"'out' should be an empty folder or none, but is {out}.")
    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        done = _begin(out, asked)
        sources, left_out = _chosen(findings, split)
        spacing, size = fit_grid(sources, spacing, size, progress=progress)
        made, failed = _prepare(sources, out, (spacing, size), done, progress=progress)
        shown = [m for m in modalities if any(m in result["cells"] for result in made.values())]
        splits = {source.name: source.split for source in sources}
        record = {
            "mmpoe": mmpoe.__version__,
            "asked": asked,
            "modalities": shown,
            "spacing": spacing,
            "size": size,
            "cases": {n: {"split": splits[n], **result["record"]} for n, result in made.items()},
            "failed": {**findings.failed, **failed},
            "left_out": left_out,
        }
        write_file(out / "prepare.json", (json.dumps(record, indent=1) + "\n").encode())
        if made:
            rows = [_row(s, made[s.name]["cells"]) for s in sources if s.name in made]
            further = list(dict.fromkeys(c for s in findings.sources for c in s.further))
            write_file(out / "index.csv", _index(rows, shown, further).encode())
        (out / UNFINISHED).unlink()
    return record


def _chosen(
    findings: Findings, split: dict[str, str] | None
) -> tuple[list[Source], dict[str, str]]:
    """Returns the cases, each in the split that was asked for, and reasons to leave others out."""
    if split is None:
        return findings.sources, {}
    names = {*(source.name for source in findings.sources), *findings.failed}
    left_out = {
        case: "the split names it, but there are no data of it."
        for case in split
        if case not in names
    }
    chosen = []
    for source in findings.sources:
        if source.name in split:
            chosen.append(replace(source, split=split[source.name]))
        else:
            left_out[source.name] = "the split does not name it."
    return chosen, left_out


def _prepare(
    sources: Sequence[Source],
    out: Path,
    grid: tuple[float, int],
    done: dict[str, Any],
    *,
    progress: bool,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Prepares cases that are not done, of a spacing and a size; one that fails stops no other.

    Returns:
        What `prepare_case` returns, by case, and why others failed.
    """
    made, failed = {}, {}
    for source in tqdm(sources, desc="Preparing", unit="case", disable=not progress):
        try:
            check_name("case", source.name)
            made[source.name] = done.get(source.name) or _prepare_anew(source, out, *grid)
        except ValueError as error:
            failed[source.name] = str(error)
            tqdm.write(f"Failed: case {source.name}: {error}")
    return made, failed


def _row(source: Source, cells: dict[str, str]) -> dict[str, str]:
    """The row of a case in the index."""
    patient = source.patient or source.name
    return {
        "case": source.name,
        "split": source.split,
        "patient": patient,
        **cells,
        **source.further,
    }


def _prepare_anew(source: Source, out: Path, spacing: float, size: int) -> dict[str, Any]:
    """Prepares a case, and notes that it is done."""
    shutil.rmtree(out / source.name, ignore_errors=True)  # made, but not noted
    result = prepare_case(source, out, spacing, size)
    with (out / UNFINISHED).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"case": source.name, **result}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return result


def _begin(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Begins in an empty folder, or returns what was done by a process that was stopped there."""
    sweep(out, locked=True)
    sweep(out / FOLDER, locked=True)
    same = json.loads(json.dumps({k: v for k, v in asked.items() if k != "out"}))
    file = out / UNFINISHED
    if not file.is_file():
        if any(path.name != ".lock" for path in out.iterdir()):
            raise ValueError(f"'out' should be an empty folder or none, but is {out}.")
        write_file(file, (json.dumps(same) + "\n").encode())
        return {}
    first, *lines = file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    begun = json.loads(first)
    for name in [*same, *begun]:
        if same.get(name) != begun.get(name):
            raise ValueError(
                f"{name!r} should be {begun.get(name)!r}, as in what was begun in {out}, but is "
                f"{same.get(name)!r}; for anything else, take another folder."
            )
    write_file(file, "".join(f"{line}\n" for line in (first, *lines)).encode())
    done = {entry.pop("case"): entry for entry in map(json.loads, lines)}
    print(f"Going on in {out}, where {counted(len(done), 'case is', 'cases are')} done.")
    return done


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
