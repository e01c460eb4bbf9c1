"""Looks at an index and at all its files before anything is trained on them."""

from __future__ import annotations

__all__ = ["Check", "run"]

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import (
    Case,
    CaseError,
    Subject,
    axis_codes,
    check_training,
    load_subject,
    missingness_table,
    planes_of,
    read_index,
)
from examples.medical_mri_us.data.alignment import doubts
from examples.medical_mri_us.data.columns import image_columns
from examples.medical_mri_us.data.orientation import mixed
from examples.medical_mri_us.missingness_figure import draw_missingness
from examples.medical_mri_us.modalities import LABELS, MODALITIES
from examples.medical_mri_us.outputs import open_folder
from mmpoe.training import write_file


@dataclass(frozen=True)
class Check:
    """Read every file of an index and say what is there, what is missing and what is wrong.

    Prints grids, leaks between splits, what is missing, and a warning where images of a case may
    not lie on each other; exits with 3 if training on these data would fail or deceive.
    """

    index: tyro.conf.Positional[Path]
    """The index, a CSV file."""
    out: Path | None = None
    """A folder for missingness.json and missingness.png."""
    modalities: tuple[str, ...] | None = None
    """The names of the modalities; by default, those that the index has."""
    train: str = "train"
    """The split that is trained on."""


def run(options: Check) -> int:
    """Checks an index and returns 0, or 3 if something is wrong with the data.

    Raises:
        ValueError: If the index itself cannot be used.
    """
    cases = read_index(options.index, options.modalities or image_columns(options.index))
    modalities = options.modalities or _shown(cases)
    table = missingness_table(cases, modalities)
    grids: dict[str, Counter[str]] = defaultdict(Counter)
    planes: dict[str, list[str]] = defaultdict(list)
    images: dict[tuple[str, bytes], list[Case]] = defaultdict(list)
    problems, warnings = [], []
    for case in tqdm(cases, desc="Checking", unit="case", disable=not sys.stderr.isatty()):
        try:
            subject = load_subject(case)
        except CaseError as error:
            problems.append(str(error))
            continue
        grids[_words(subject)][axis_codes(subject.affine)] += 1
        for plane, names in planes_of([subject]).items():
            planes[plane] += names
        warnings += [f"case {case.name}: {doubt}." for doubt in doubts(subject)]
        for modality, volume in subject.images.items():
            images[modality, hashlib.sha256(volume.tobytes()).digest()].append(case)
    problems += _copies(images)
    try:
        check_training([c for c in cases if c.split == options.train], modalities)
    except ValueError as error:
        problems.append(f"split {options.train}: {error}")
    if len(planes) > 1:
        problems.append(f"slices do not lie in one plane: {mixed(planes)}.")

    print(f"{options.index}: {counted(len(cases), 'case')}.")
    print("\nGrids, and where the axes of the files point to:")
    for words, codes in sorted(grids.items(), key=lambda g: -g[1].total()):
        listed = ", ".join(f"{code} {count}" for code, count in codes.most_common(4))
        listed += ", ..." if len(codes) > 4 else ""
        print(f"  {codes.total():4d}  {words} ({listed})")
    _print_differences(grids)
    print(f"\n{_missingness(table)}")
    if options.out is not None:
        open_folder(options.out)
        text = json.dumps(table, indent=1) + "\n"
        write_file(options.out / "missingness.json", text.encode())
        write_file(options.out / "missingness.png", draw_missingness(table))
        print(f"\nWrote {options.out / 'missingness.json'} and missingness.png.")
    if warnings:
        print(f"\n{counted(len(warnings), 'warning')}:", *warnings, sep="\n  ")
    if problems:
        print(f"\n{counted(len(problems), 'problem')}:", *problems, sep="\n  ", file=sys.stderr)
        return 3
    print("\nNo problem found: no file damaged, no NaN, no case or patient in two splits.")
    return 0


def _shown(cases: Sequence[Case]) -> tuple[str, ...]:
    """The modalities that some case has, in the order of the columns."""
    found = {m: None for case in cases for m in case.images}
    return (*(m for m in MODALITIES if m in found), *(m for m in found if m not in MODALITIES))


def _print_differences(grids: Iterable[str]) -> None:
    """Says which of the grids differ in a way that training does something about, or does not."""
    sizes, pixels = (
        {words.partition(" of ")[2].split(" voxels, ")[part] for words in grids} for part in (0, 1)
    )
    if len(sizes) > 1:
        print(
            f"  Slices have {len(sizes)} sizes; training cuts or pads them to that of the model."
        )
    if len({p.split(" mm, ")[0] for p in pixels}) > 1:
        print("  Pixels differ in size, and so does what the model sees: prepare with --spacing.")


def _words(subject: Subject) -> str:
    """The grid of a subject in words."""
    slices, height, width = subject.fov.shape
    between, *pixel = subject.spacing
    return (
        f"{counted(slices, 'slice')} of {height} x {width} voxels, "
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
        lines += [
            f"Split {split}: {counted(n, 'case')}, of which "
            f"{counted(incomplete, 'lacks', 'lack')} a modality ({share:.0f} %)."
        ]
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
