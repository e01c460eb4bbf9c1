"""What there is to know about a trained model: its folder read, as facts for the report."""

from __future__ import annotations

__all__ = ["environment", "patterns", "read_log"]

import csv
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mmpoe
from examples.medical_mri_us.data import Case


def read_log(run: Path) -> dict[str, list[float | None]]:
    """Returns the columns of the training's log, empty if there is none."""
    path = run / "log.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def patterns(cases: Sequence[Case], modalities: Sequence[str]) -> list[dict[str, Any]]:
    """Counts which modalities cases have together, by split, the most frequent first."""
    counts: dict[tuple[str, tuple[str, ...]], int] = {}
    for case in cases:
        key = case.split, tuple(m for m in modalities if m in case.images)
        counts[key] = counts.get(key, 0) + 1
    return [
        {"split": split, "held": list(held), "cases": count}
        for (split, held), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1]))
    ]


def environment(device: torch.device) -> dict[str, str]:
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
