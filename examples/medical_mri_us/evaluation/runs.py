"""Facts beside the numbers of a report: models, data, training and machine, as plain values."""

from __future__ import annotations

__all__ = ["about_data", "about_models"]

import csv
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mmpoe
from examples.medical_mri_us.data import Case
from examples.medical_mri_us.models import is_calibrated

from .models import Trained
from .whole import Results


def about_models(models: Sequence[Trained], run: Path, device: torch.device) -> dict[str, Any]:
    """Returns what there is to know about the models, the first of them above all.

    Arguments:
        models: The models.
        run: The folder of the first one's training, where its log is, and what it was trained on,
            if there is any.
        device: Where they ran.
    """
    first = models[0]
    return {
        "model": first.name,
        "models": {t.name: {"folder": str(t.folder), "sha256": t.sha256} for t in models},
        "description": first.description,
        "modalities": list(first.model.modalities),
        "calibrated": is_calibrated(first.model),
        "log": _read_log(run),
        "trained_on": _read_data(run),
        "environment": _environment(device),
    }


def about_data(
    index: Path, split: str, cases: Sequence[Case], results: Results, *, phantom: bool
) -> dict[str, Any]:
    """Returns what was scored, by which protocols, and what was left out.

    Arguments:
        index: The index file.
        split: The split that was scored.
        cases: All cases of the index.
        results: What was measured.
        phantom: Whether the images that are scored are made by a simulation.
    """
    return {
        "phantom": phantom,
        "data": str(index),
        "split": split,
        "patterns": _patterns(cases),
        "problems": [str(problem) for problem in results.problems],
        "protocols": {
            p.name: {
                "definition": p.definition,
                "unit": p.unit,
                "not available": results.missing[p.name],
            }
            for p in results.protocols
        },
    }


def _read_log(run: Path) -> dict[str, list[float | None]]:
    """Returns the columns of the training log, empty if there is none."""
    path = run / "log.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def _read_data(run: Path) -> dict[str, Any] | None:
    """Returns the record of the training data, but for the cases one by one."""
    path = run / "data.json"
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        table = data["missingness"]
        return {
            **{key: data[key] for key in ("index", "split", "phantom")},
            **{key: table[key] for key in ("cases", "incomplete", "patterns")},
            "left_out": len(data["problems"]),
        }
    except Exception as error:  # of any type, for what was edited
        raise ValueError(
            f"{path} should be what `train` wrote, but is damaged: {error}."
        ) from error


def _patterns(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Counts which modalities cases have together, by split, the most frequent first."""
    counts: dict[tuple[str, tuple[str, ...]], int] = {}
    for case in cases:
        key = case.split, tuple(case.images)
        counts[key] = counts.get(key, 0) + 1
    return [
        {"split": split, "held": list(held), "cases": count}
        for (split, held), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1]))
    ]


def _environment(device: torch.device) -> dict[str, str]:
    """Returns the software and the machine that made the numbers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "mmpoe": mmpoe.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "device": f"{device.type}, {name}",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
    }


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None
