"""Facts that a run records about its data, and a model about the images that it was trained on."""

from __future__ import annotations

__all__ = ["data_of", "facts_of", "is_phantom", "read_data", "stopped_early"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpoe.training import CheckpointError

from .data import Case, CaseError, StoredSubject, Subject, axis_codes, missingness_table
from .data.foreign import read_bytes
from .names import check_name
from .synthesis.intensities import FACTS


def data_of(
    index: Path,
    split: str,
    modalities: Sequence[str],
    cases: Sequence[Case],
    subjects: Sequence[Subject | StoredSubject],
    problems: Sequence[CaseError],
) -> dict[str, Any]:
    """Returns the data of a training run: its cases, what they lack, and those that were left out.

    Arguments:
        index: The index.
        split: The split of it.
        modalities: The names of the modalities.
        cases: The cases of the split.
        subjects: Those that could be used.
        problems: What was wrong with the others.
    """
    used = {s.name for s in subjects}
    table = missingness_table([c for c in cases if c.name in used], modalities)
    return {
        "index": str(index.resolve()),
        "split": split,
        "phantom": is_phantom(index),
        "cases": [{"name": s.name, "modalities": list(s.images)} for s in subjects],
        "missingness": table["splits"][split],
        "problems": [str(problem) for problem in problems],
    }


def read_data(run: Path) -> dict[str, Any]:
    """Reads the record of the training data of a run, ``data.json``, as of `data_of`.

    Raises:
        CheckpointError: If it is not there, or does not name an index and a split.
    """
    path = run / "data.json"
    try:
        data = json.loads(read_bytes(path))
        split = check_name("split", data["split"])
        return {**data, "index": str(data["index"]), "split": split}
    except Exception as error:  # of any type, for what was edited
        said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path} should be what `train` wrote, but cannot be read: {said}."
        ) from error


def facts_of(subjects: Sequence[Subject | StoredSubject]) -> dict[str, Any]:
    """Returns what synthesis has to know of the images that a model was trained on."""
    spacing = np.median([s.spacing for s in subjects], axis=0)  # slice, row, column
    axes = {axis_codes(s.affine) for s in subjects}
    return {
        "spacing": [round(float(spacing[k]), 6) for k in (1, 2, 0)],
        "axes": axes.pop() if len(axes) == 1 else None,
        "harmonised": sorted({m for s in subjects for m in s.targets}),
        "calibrated": False,
        **FACTS,
    }


def is_phantom(index: Path) -> bool:
    """Whether an index is of simulated patients: the phantom notes its arguments beside it."""
    try:
        recipe = json.loads((index.parent / "dataset.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(recipe, dict) and "missingness" in recipe


def stopped_early(steps: int, wanted: int) -> str:
    """Says in words that a training run took fewer steps than it was to; empty if it did not.

    Example:
        >>> stopped_early(852, 2800)
        'Training stopped at 852 of 2800 steps: a longer one may well do better.'
    """
    if steps >= wanted:
        return ""
    return f"Training stopped at {steps} of {wanted} steps: a longer one may well do better."
