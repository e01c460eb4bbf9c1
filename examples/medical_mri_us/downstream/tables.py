"""The scores of both tasks as rows of Markdown tables."""

from __future__ import annotations

__all__ = [
    "NEAR",
    "REFERENCE_LABELS",
    "quartiles",
    "registration_rows",
    "registration_table",
    "segmentation_row",
    "segmentation_table",
    "write_tables",
]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.medical_mri_us.modalities import LABELS
from examples.medical_mri_us.writing import Markdown, fill, table

REFERENCE_LABELS = {
    "segmentation": {"true": "true iUS (upper reference)", "mr": "raw MR (lower reference)"},
    "registration": {
        "none": "no registration",
        "direct": "iUS itself",
        "true": "true MR (upper reference)",
    },
}
"""How the references of a task are written."""
NEAR = 3.0
"""The largest error of registration that counts as small, mm."""


def segmentation_row(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Averages the scores of patients over runs that differ by their seeds.

    Arguments:
        several: Scores of `segment_tumours`, of the same patients.

    Returns:
        The same, with ``dice`` and ``assd`` of each patient, NaN if there is none in any run.
    """
    return {
        "patients": several[0]["patients"],
        "seeds": len(several),
        "trained_on": several[0]["trained_on"],
        "dice": np.mean([r["dice"] for r in several], axis=0).tolist(),
        "assd": _mean([r["assd"] for r in several]),
        "empty": sum(r["empty"] for r in several),
    }


def segmentation_table(rows: Mapping[str, dict[str, Any]]) -> str:
    """Returns a table with Dice and ASSD, their means over patients and quartiles.

    Arguments:
        rows: Rows of :func:`segmentation_row`, by how they are labelled.
    """
    return table(
        ["network trained on", "patients", "Dice, %", "ASSD, mm", "nothing found"],
        [
            [
                label,
                kept["trained_on"],
                _quartiles(kept["dice"], 100, 1),
                _quartiles(kept["assd"], 1, 2),
                f"{kept['empty']} of {kept['seeds'] * len(kept['patients'])}",
            ]
            for label, kept in rows.items()
        ],
        right=" >  >",
    )


def registration_rows(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Averages the outcomes of patients over runs that differ by their seeds.

    Arguments:
        several: Outcomes of `register_ultrasound`, of the same patients.

    Returns:
        For each target and bin, the ``tre`` of each patient, the share of small ones, of those
        that diverged and of those that failed, and the mean processor time.
    """
    return {
        "patients": several[0]["patients"],
        "seeds": len(several),
        "cells": [
            {
                "target": cells[0]["target"],
                "bin": cells[0]["bin"],
                "initial": cells[0]["initial"],
                "tre": np.mean([c["tre"] for c in cells], axis=0).tolist(),
                "near": float(np.mean([np.less(c["tre"], NEAR) for c in cells])),
                "diverged": float(np.mean([c["diverged"] for c in cells])),
                "failed": float(np.mean([c["failed"] for c in cells])),
                "seconds": float(np.mean([c["seconds"] for c in cells])),
            }
            for cells in zip(*(r["cells"] for r in several), strict=True)
        ],
    }


def registration_table(rows: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Returns a table with three columns for each bin, and the time that a case takes.

    Arguments:
        rows: The cells of one target, as of :func:`registration_rows`, by how they are labelled.
    """
    bins = [tuple(c["bin"]) for c in next(iter(rows.values()))]
    head = ["registered"]
    for low, high in bins:
        head += [f"{low:g}-{high:g} mm: TRE, mm", f"< {NEAR:g} mm", "diverged"]
    body = []
    for label, cells in rows.items():
        row = [label]
        for c in cells:
            shares = f"{100 * c['near']:.0f} %", f"{100 * c['diverged']:.0f} %"
            row += [_quartiles(c["tre"], 1, 2), *shares]
        body.append([*row, f"{np.mean([c['seconds'] for c in cells]):.2f}"])
    return table([*head, "s a case"], body, right=" " + " >>" * len(bins) + ">")


def write_tables(found: Mapping[str, Any], model: str, note: str, problem: str | None) -> str:
    """Returns the tables of one model beside the references.

    Arguments:
        found: The scores of ``segmentation`` and ``registration``, or of one, by what they are of:
            a reference or ``model``.
        model: The name of the model.
        note: What to say first, such as that these are phantom numbers.
        problem: Why nothing is compared by segmentation, if so.
    """
    parts = ["# Downstream tasks", fill("{}", note)]
    if "segmentation" in found:
        labels = {**REFERENCE_LABELS["segmentation"], "model": f"synthetic iUS of {model}"}
        rows = {labels[k]: segmentation_row([v]) for k, v in found["segmentation"].items()}
        cases = len(next(iter(rows.values()))["patients"])
        parts += [
            "## Tumour segmentation in ultrasound",
            f"Tested on true ultrasound of {_held_out(cases)}: mean over cases [quartiles].",
            *([fill("**{}**", problem)] if problem else []),
            segmentation_table(rows),
        ]
    if "registration" in found:
        labels = {**REFERENCE_LABELS["registration"], "model": f"synthetic MR of {model}"}
        order = ("none", "direct", "model", "true")
        rows = {labels[k]: registration_rows([found["registration"][k]]) for k in order}
        first = next(iter(rows.values()))
        parts += [
            "## Registration of MR to ultrasound",
            f"Ultrasound of {_held_out(len(first['patients']))}, moved by a known motion: "
            "mean [quartiles] of the target registration error (TRE) at the landmarks, by how far "
            "these were moved. It diverged if the error is larger than before, or there was no "
            "result.",
        ]
        for target in dict.fromkeys(c["target"] for c in first["cells"]):
            cells = {
                label: [c for c in row["cells"] if c["target"] == target]
                for label, row in rows.items()
            }
            parts += [fill("### To {}", LABELS.get(target, target)), registration_table(cells)]
    return "\n\n".join(parts) + "\n"


def _quartiles(values: Sequence[float | None], factor: float, digits: int) -> Markdown:
    """Quartiles as Markdown, where brackets without an address are no link."""
    return Markdown(quartiles(values, factor, digits))


def _held_out(count: int) -> str:
    return "one held-out case" if count == 1 else f"{count} held-out cases"


def quartiles(values: Sequence[float | None], factor: float, digits: int) -> str:
    """Returns the mean [quartiles] of what is a number.

    Arguments:
        values: The values.
        factor: What to multiply them by.
        digits: The number of digits behind the point.

    Example:
        >>> quartiles([0.5, None, 1.0], 100, 1)
        '75.0 [62.5, 87.5]'
    """
    numbers = factor * np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size == 0:
        return "-"
    low, high = np.percentile(numbers, [25, 75])
    return f"{np.mean(numbers):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _mean(rows: Sequence[Sequence[float | None]]) -> list[float]:
    """The mean over rows of what is a number, NaN where nothing is."""
    values = np.asarray(rows, dtype=float)
    counted = np.isfinite(values)
    total = np.where(counted, values, 0).sum(axis=0)
    return np.where(counted.any(axis=0), total / counted.sum(axis=0).clip(1), np.nan).tolist()
