"""The files of an evaluation, read for the report."""

from __future__ import annotations

__all__ = ["Evaluation", "EvaluationError", "read_evaluation"]

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.evaluation import FORMAT, PROTOCOLS
from examples.medical_mri_us.modalities import LABELS
from examples.medical_mri_us.writing import csv_rows


class EvaluationError(ValueError):
    """A folder that holds no evaluation, or a damaged one: the message names the file."""


@dataclass(frozen=True)
class Evaluation:
    """The content of the files of an evaluation."""

    facts: dict[str, Any]
    """``cells.json``: the cells, and what was evaluated."""
    tests: list[dict[str, Any]]
    coverage: dict[str, Any]
    cases: list[dict[str, str]]
    """The rows of ``cases.csv``."""
    views: dict[str, dict[str, np.ndarray]]
    """The kept slices of some cases."""

    @property
    def labels(self) -> dict[str, str]:
        """How the modalities are written."""
        return {str(m): LABELS.get(m, str(m)) for m in self.facts["modalities"]}


def read_evaluation(folder: Path) -> Evaluation:
    """Reads the files of an evaluation.

    Raises:
        EvaluationError: If a file is not there, damaged, or of another version.
    """
    facts = _json(folder / "cells.json")
    tests = _json(folder / "statistics.json")["tests"]
    coverage = _json(folder / "coverage.json")
    unknown = [name for name in facts["protocols"] if name not in PROTOCOLS]
    if unknown:
        raise EvaluationError(
            f"{folder / 'cells.json'} should hold numbers by {' or '.join(PROTOCOLS)}, "
            f"but holds some by {unknown[0]}."
        )
    path = folder / "cases.csv"
    try:
        cases = csv_rows(path.read_bytes().decode())
        views = {}
        for name in facts["views"]["cases"]:
            path = folder / "views" / f"{name}.npz"
            if path.parent != folder / "views":
                raise ValueError(f"{name!r} is no name of a case")
            with np.load(path, allow_pickle=False) as view:
                views[name] = dict(view)
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise EvaluationError(f"{path} cannot be read: {error}. Run 'evaluate' again.") from error
    return Evaluation(facts, tests, coverage, cases, views)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(
            f"{path} should be there, but is not: run 'evaluate' with --out {path.parent} first."
        ) from None
    except (OSError, RecursionError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}. Run 'evaluate' again.") from error
    if value.get("format") != FORMAT:
        raise EvaluationError(
            f"{path} should have format {FORMAT}, but has {value.get('format')}: "
            "run 'evaluate' again."
        )
    return value
