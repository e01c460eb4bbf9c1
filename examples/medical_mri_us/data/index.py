"""The index of a data set: a CSV file with one row per case and one column per file."""

from __future__ import annotations

__all__ = ["Case", "read_index"]

import csv
import difflib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.names import check_modalities, check_name

from .foreign import read_bytes

EMPTY = frozenset({"", "nan", "na", "n/a", "none", "null", "-"})
"""The spellings of an empty cell, in small letters."""

TARGET = "target_"
"""How the columns of harmonised targets begin."""

IDENTIFIER = "id"
"""A column that is text although its cells may be the names of folders."""

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
"""The endings of files in a column that cannot be a further one."""

SHOWN = 12
"""How many problems of an index are listed."""


@dataclass(frozen=True)
class Case:
    """One row of an index: where the files of a case are. A modality that is absent is missing."""

    name: str
    split: str
    images: dict[str, Path]
    fov: Path | None = None
    label: Path | None = None
    landmarks: Path | None = None
    targets: dict[str, Path] = field(default_factory=dict)
    """Harmonised images to synthesise instead, for some modalities or none."""
    patient: str = ""
    """Whom the images show; the case itself unless the index says otherwise."""
    further: dict[str, str] = field(default_factory=dict)
    """The text of further columns, such as an age or a site."""


def read_index(
    path: str | Path, modalities: Sequence[str] = MODALITIES, *, anywhere: bool = False
) -> list[Case]:
    """Reads an index.

    The columns are ``case``, ``split``, the modalities, and optionally ``fov``, ``label``,
    ``landmarks``, ``patient`` and ``target_<modality>``. Files are relative to the index and lie
    in its folder; an empty cell, or one that says NaN, is a missing one. Further columns are kept
    as text, unless they name files or are nearly called as one of these.

    Arguments:
        path: The CSV file.
        modalities: The names of the modalities.
        anywhere: Whether files may lie outside the folder of the index, by their paths or links.

    Raises:
        ValueError: If the file is not text in UTF-8, a column is missing or unknown, a case stands
            twice or has no modality, a name is refused, a patient is in two splits, or a file lies
            outside the folder of the index. The message names the file and the lines, all that
            are wrong.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    check_modalities(modalities)
    if not path.is_file():
        inside = path / "index.csv"
        hint = f" Did you mean {inside}?" if inside.is_file() else ""
        raise ValueError(f"'path' should be an index file, but there is none at {path}.{hint}")
    rows = _rows(path, modalities)
    cases: dict[str, Case] = {}
    lines: dict[str, int] = {}
    problems = []
    for line, row in rows:
        try:
            case = _case(row, path.parent.resolve(), modalities, anywhere)
            if case.name in cases:
                raise ValueError(
                    f"case {case.name} stands twice, first in line {lines[case.name]}."
                )
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        cases[case.name], lines[case.name] = case, line
    problems += _leaks(list(cases.values()), lines)
    if not cases and not problems:
        problems.append("there is no case in it.")
    if problems:
        more = [f"... and {len(problems) - SHOWN} more."] if len(problems) > SHOWN else []
        raise ValueError("\n".join([f"{path}, {p}" for p in problems[:SHOWN]] + more))
    return list(cases.values())


def _rows(path: Path, modalities: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Returns the rows that are not blank, with their lines and the spaces around cells gone."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows = []
    try:
        header = [cell.strip() for cell in next(reader, [])]
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: should have {len(header)} cells, as the "
                    f"header has, but has {len(cells)}."
                )
            row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: no CSV, {error}.") from error
    _check_header(path, header, modalities, [row for _, row in rows])
    return rows


def _known(modalities: Sequence[str]) -> list[str]:
    files = ["fov", "label", "landmarks", *(TARGET + m for m in modalities)]
    return ["case", "split", "patient", *modalities, *files]


def _further(
    column: str, root: Path, rows: Sequence[dict[str, str]], known: Sequence[str]
) -> bool:
    """Whether an unknown column says something of cases, and is no modality by another name."""
    if column in (IDENTIFIER, *MODALITIES, *(TARGET + m for m in MODALITIES)):
        return True  # text, or what is left out
    cells = {row[column] for row in rows} - {""}
    near = difflib.get_close_matches(column.lower(), known, cutoff=0.75)
    files = any(c.lower().endswith(ENDINGS) or (root / c).exists() for c in cells)
    return bool(column and cells) and not near and not files


def _check_header(
    path: Path, header: Sequence[str], modalities: Sequence[str], rows: Sequence[dict[str, str]]
) -> None:
    known = _known(modalities)
    wrong = [c for c in header if c not in known and not _further(c, path.parent, rows, known)]
    lacking = [column for column in ("case", "split") if column not in header]
    twice = [column for column, count in Counter(header).items() if count > 1]
    if wrong or lacking or twice:
        hints = [
            f" Instead of {column!r}, did you mean {' or '.join(map(repr, near))}?"
            for column in wrong
            if (near := difflib.get_close_matches(column.lower(), known, n=2, cutoff=0.5))
        ]
        commas = " Columns are separated by commas." if ";" in "".join(header) else ""
        again = f" {', '.join(twice)} stands twice." if twice else ""
        raise ValueError(
            f"{path}, line 1: should have columns among {', '.join(known)}, with case and split, "
            f"but has {', '.join(header)}.{''.join(hints)}{commas}{again}"
        )


def _text(path: Path) -> str:
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}: the index should be text in UTF-8, but is not ({error.reason})."
        ) from error


def _case(row: dict[str, str], root: Path, modalities: Sequence[str], anywhere: bool) -> Case:
    def file(column: str) -> Path | None:
        cell = row.get(column, "")
        if cell.lower() in EMPTY:
            return None
        try:
            found = (root / cell).resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, or no path at all
            return root / cell  # which cannot be read, and is an error of this case alone
        if not anywhere and not found.is_relative_to(root):
            raise ValueError(f"{cell!r} lies outside the folder of the index.")
        return found

    name, split = row["case"], row["split"]
    if name.lower() in EMPTY or split.lower() in EMPTY:
        raise ValueError(
            f"a case should have a name and a split, but these are {name!r}, {split!r}."
        )
    patient = row.get("patient", "")
    patient = name if patient.lower() in EMPTY else patient
    for what, value in (("case", name), ("split", split), ("patient", patient)):
        check_name(what, value)
    images = {m: f for m in modalities if (f := file(m)) is not None}
    targets = {m: f for m in modalities if (f := file(TARGET + m)) is not None}
    if not images:
        raise ValueError(f"case {name} should have at least one modality, but has none.")
    lost = [m for m in targets if m not in images]
    if lost:
        raise ValueError(f"case {name} has a target for {', '.join(lost)}, but no such image.")
    extra = [file(column) for column in ("fov", "label", "landmarks")]
    known = {*_known(modalities), *MODALITIES, *(TARGET + m for m in MODALITIES)}
    further = {column: cell for column, cell in row.items() if column not in known}
    return Case(name, split, images, *extra, targets=targets, patient=patient, further=further)


def _leaks(cases: Sequence[Case], lines: dict[str, int]) -> list[str]:
    """Lists the patients who are in two splits, and the files that two cases share."""
    problems = []
    seen: dict[str, Case] = {}
    files: dict[Path, Case] = {}
    for case in cases:
        other = seen.setdefault(case.patient, case)
        if other.split != case.split:
            problems.append(
                f"line {lines[case.name]}: patient {case.patient} is in the split {case.split}, "
                f"and in {other.split} in line {lines[other.name]}."
            )
        for file in case.images.values():
            other = files.setdefault(file, case)
            if other is not case and other.split != case.split:
                problems.append(
                    f"line {lines[case.name]}: {file.name} of case {case.name} ({case.split}) is "
                    f"also of case {other.name} ({other.split})."
                )
    return problems
