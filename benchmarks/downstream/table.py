"""The tables of the downstream benchmark, from what `benchmarks.downstream.run` keeps."""

from __future__ import annotations

__all__ = ["label", "markdown", "results"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.synthesis.systems import LABELS, SYSTEMS
from examples.medical_mri_us.downstream import (
    NEAR,
    REFERENCE_LABELS,
    REGISTRATION_REFERENCES,
    SEGMENTATION_REFERENCES,
    registration_rows,
    registration_table,
    segmentation_row,
    segmentation_table,
)
from examples.medical_mri_us.modalities import LABELS as MODALITY_LABELS
from mmpoe.metrics import paired_table


def label(task: str, name: str) -> str:
    """Returns how a system or reference is written in the table of a task."""
    return LABELS.get(name) or REFERENCE_LABELS[task][name]


def results(folder: Path) -> dict[str, Any]:
    """Collects the runs of a profile: by system, scores of patients averaged over seeds.

    Arguments:
        folder: The folder of the profile.

    Returns:
        ``segmentation``, with ``dice`` and ``assd`` of each patient, and ``registration``, with
        the ``tre`` of each patient by target and bin. What a patient lacks is NaN.
    """
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*-[0-9]*.json")):
        run = json.loads(path.read_text())
        runs.setdefault((run["task"], run["system"]), []).append(run)
    found: dict[str, Any] = {"segmentation": {}, "registration": {}}
    average = {"segmentation": segmentation_row, "registration": registration_rows}
    for (task, name), several in runs.items():
        found[task][name] = average[task](several)
    return found


def markdown(found: dict[str, Any], profile: str) -> str:
    """Returns all tables.

    Arguments:
        found: What :func:`results` returns.
        profile: The name of the profile.
    """
    sections = [
        f"# Downstream tasks, phantom patients, profile '{profile}'",
        "**Phantom patients, not clinical ones.** Numbers are comparable with each other, not "
        "with those of publications on real patients.",
        *_segmentation(found["segmentation"], found.get("gate")),
        *_registration(found["registration"]),
    ]
    return "\n\n".join(sections) + "\n"


def _segmentation(found: dict[str, Any], problem: str | None) -> list[str]:
    """A row for each system: Dice and ASSD with their quartiles, best mean Dice first."""
    if not found:
        return []
    names = _order(found, SEGMENTATION_REFERENCES[:1], SEGMENTATION_REFERENCES[1:])
    first = found[names[0]]
    dice = {name: 100 * np.asarray(found[name]["dice"]) for name in names if name in SYSTEMS}
    distance = {name: np.asarray(found[name]["assd"], float) for name in names if name in SYSTEMS}
    return [
        "## Tumour segmentation in phantom ultrasound",
        "The same U-Net learns tumours from what each system synthesises of the MR that a "
        "training patient has, and is tested on true ultrasound of "
        f"{len(first['patients'])} held-out patients. Mean over patients [quartiles]; where "
        "nothing is found Dice is 0, and ASSD, which there is none of, does not count.",
        *([f"**{problem}**"] if problem else []),
        segmentation_table({label("segmentation", name): found[name] for name in names}),
        *_tests("segmentation", dice, "Dice, %", 1, higher=True),
        *_tests("segmentation", distance, "ASSD, mm", 2, higher=False),
    ]


def _registration(found: dict[str, Any]) -> list[str]:
    """For each target a row for each system, and three columns for each bin."""
    if not found:
        return []
    sections = [
        "## Registration of phantom MR to ultrasound",
        "Ultrasound is moved within slices, by affine and B-spline motions of a mean "
        "displacement of the landmarks in three bins, and registered, rigidly and then "
        "affinely, to true MR: itself by mutual information, MR synthesised from it by "
        "correlation. Volumes are three-dimensional, but thin. Mean over patients [quartiles] "
        f"of the target registration error (TRE); share of patients with one below {NEAR:g} mm; "
        "share for whom it is larger than without registration, or there was no result. What "
        "an affine motion cannot undo remains.",
    ]
    targets = list(dict.fromkeys(c["target"] for c in found["none"]["cells"]))
    for target in targets:
        cells = {
            name: [c for c in kept["cells"] if c["target"] == target]
            for name, kept in found.items()
        }
        cells = {name: c for name, c in cells.items() if c}
        names = _order(
            {name: {"dice": [-c["tre"] for c in _plain(cells[name])]} for name in cells},
            REGISTRATION_REFERENCES[:2],
            REGISTRATION_REFERENCES[2:],
        )
        error = {
            name: np.mean([c["tre"] for c in cells[name]], axis=0)
            for name in names
            if name in SYSTEMS
        }
        sections += [
            f"### To {MODALITY_LABELS[target]}",
            registration_table({label("registration", name): cells[name] for name in names}),
            *_tests("registration", error, "TRE, mm, mean of the bins", 2, higher=False),
        ]
    return sections


def _plain(cells: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    return [{"tre": float(np.mean(c["tre"]))} for c in cells]


def _tests(
    task: str, scores: dict[str, np.ndarray], what: str, digits: int, *, higher: bool
) -> list[str]:
    """The systems beside the best of them."""
    scores = {name: v for name, v in scores.items() if np.isfinite(v).any()}
    if len(scores) < 2:
        return []
    sign = 1 if higher else -1
    best = max(scores, key=lambda name: sign * np.nanmean(scores[name]))
    labelled = {label(task, name): values for name, values in scores.items()}
    try:
        table = paired_table(labelled, reference=label(task, best), higher_is_better=higher)
    except ValueError as error:  # too few patients
        return [f"{what}: not tested, {error}"]
    return [f"{what}, beside the best system:", table.markdown(digits)]


def _order(found: dict[str, Any], first: Sequence[str], last: Sequence[str]) -> list[str]:
    """References first and last, and systems between them, the best first."""
    systems = [name for name in SYSTEMS if name in found]
    systems.sort(key=lambda name: -np.mean(found[name]["dice"]))
    return [n for n in first if n in found] + systems + [n for n in last if n in found]
