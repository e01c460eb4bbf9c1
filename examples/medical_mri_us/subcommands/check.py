"""Looks at an index and at all its files before anything is trained on them."""

from __future__ import annotations

__all__ = ["Check", "run"]

import hashlib
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from examples.medical_mri_us.data import (
    Case,
    CaseError,
    Subject,
    axis_codes,
    check_training,
    load_subject,
    missingness_table,
    read_index,
)
from examples.medical_mri_us.missingness_figure import draw_missingness
from examples.medical_mri_us.modalities import LABELS, MODALITIES
from examples.medical_mri_us.outputs import open_folder
from mmpoe.training import write_file


@dataclass(frozen=True)
class Check:
    """Read every file of an index and say what is there, what is missing and what is wrong.

    Prints grids, leaks between splits and what is missing; exits with 3 if training on these data
    would fail or deceive.
    """

    index: tyro.conf.Positional[Path]
    """The index, a CSV file."""
    out: Path | None = None
    """A folder for missingness.json and missingness.png."""
    modalities: tuple[str, ...] = MODALITIES
    """The names of the modalities."""
    train: str = "train"
    """The split that is trained on."""


def run(options: Check) -> int:
    """Checks an index and returns 0, or 3 if something is wrong with the data.

    Raises:
        ValueError: If the index itself cannot be used.
    """
    cases = read_index(options.index, options.modalities)
    table = missingness_table(cases, options.modalities)
    grids: dict[str, Counter[str]] = defaultdict(Counter)
    images: dict[tuple[str, bytes], list[Case]] = defaultdict(list)
    problems = []
    for case in tqdm(cases, desc="Checking", unit="case", disable=not sys.stderr.isatty()):
        try:
            subject = load_subject(case)
        except CaseError as error:
            problems.append(str(error))
            continue
        grids[_words(subject)][axis_codes(subject.affine)] += 1
        for modality, volume in subject.images.items():
            images[modality, hashlib.sha256(volume.tobytes()).digest()].append(case)
    problems += _copies(images)
    try:
        check_training([c for c in cases if c.split == options.train], options.modalities)
    except ValueError as error:
        problems.append(f"split {options.train}: {error}")

    print(f"{options.index}: {len(cases)} cases.")
    print("\nGrids, and where the axes of the files point to:")
    for words, codes in sorted(grids.items(), key=lambda g: -g[1].total()):
        listed = ", ".join(f"{code} {count}" for code, count in codes.most_common(4))
        listed += ", ..." if len(codes) > 4 else ""
        print(f"  {codes.total():4d}  {words} ({listed})")
    planes = {words.split(" slices of ")[1].split(" voxels")[0] for words in grids}
    if len(planes) > 1:
        print(f"  Slices have {len(planes)} sizes; training needs one: prepare with --size.")
    print(f"\n{_missingness(table)}")
    if options.out is not None:
        open_folder(options.out)
        text = json.dumps(table, indent=1) + "\n"
        write_file(options.out / "missingness.json", text.encode())
        write_file(options.out / "missingness.png", draw_missingness(table))
        print(f"\nWrote {options.out / 'missingness.json'} and missingness.png.")
    if problems:
        print(f"\n{len(problems)} problems:", *problems, sep="\n  ", file=sys.stderr)
        return 3
    print("\nNo problem found: no file damaged, no NaN, no case or patient in two splits.")
    return 0


def _words(subject: Subject) -> str:
    """The grid of a subject in words."""
    slices, height, width = subject.fov.shape
    between, *pixel = subject.spacing
    return (
        f"{slices} slices of {height} x {width} voxels, "
        f"{pixel[0]:.4g} x {pixel[1]:.4g} mm, {between:.4g} mm apart"
    )


def _copies(found: dict[tuple[str, bytes], list[Case]]) -> list[str]:
    """Lists images of different cases that hold the same voxels, under whatever name."""
    return [
        f"{modality} of cases {' and '.join(f'{c.name} ({c.split})' for c in same)} is one image: "
        "the same patient stands twice."
        for (modality, _), same in found.items()
        if len(same) > 1
    ]


def _missingness(table: dict[str, Any]) -> str:
    """The table of what is missing, in text."""
    modalities = table["modalities"]
    labels = [str(LABELS.get(m, m)) for m in modalities]
    lines = []
    for split, about in table["splits"].items():
        n, incomplete = about["cases"], about["incomplete"]
        share = 100 * incomplete / n
        lines += [f"Split {split}: {n} cases, {incomplete} ({share:.0f} %) lack a modality."]
        observed = [
            f"{label} {about['observed'][m]}" for label, m in zip(labels, modalities, strict=True)
        ]
        lines.append(f"  has: {', '.join(observed)}")
        for pattern in about["patterns"]:
            names = [
                label for label, there in zip(labels, pattern["observed"], strict=True) if there
            ]
            lines.append(f"  {pattern['cases']:4d}  {' + '.join(names)}")
    return "\n".join(lines)
