"""The cases of an index that a task can use, and the reasons against the others."""

from __future__ import annotations

__all__ = ["ANY_MR", "Chosen", "choose_cases"]

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.data import Case, CaseError, Subject, load_subjects
from examples.medical_mri_us.windows import pad_subject

from .registration import landmarks
from .segmentation import tumour_ml

LEAST_SLICES = 4
"""How many slices registration needs: what it takes to blur a volume."""

ANY_MR = "*"
"""Any modality but ultrasound, in place of a name; no modality is called so."""


@dataclass
class Chosen:
    """The cases that a task can use, and what became of the others."""

    subjects: list[Subject] = field(default_factory=list)
    """At the size of the model or larger."""
    points: list[npt.NDArray[np.float64]] = field(default_factory=list)
    """Their landmarks, mm along (slice, depth, lateral), if the task needs them."""
    skipped: dict[str, str] = field(default_factory=dict)
    """The reasons against the others, by name."""
    problems: list[CaseError] = field(default_factory=list)
    """The faults of cases with damaged files."""


def choose_cases(
    cases: Sequence[Case],
    size: int,
    *,
    modalities: Sequence[str],
    labels: bool = False,
    least_ml: float = 0.0,
    points: bool = False,
) -> Chosen:
    """Loads the cases that a task can use.

    Arguments:
        cases: The cases.
        size: The height and width that smaller slices are padded to, in pixels.
        modalities: What a case has to have; `ANY_MR` for any but ultrasound.
        labels: Whether it has to have labels.
        least_ml: The least volume of tumour in view that it has to have, ml.
        points: Whether it has to have landmarks, and slices enough to be registered.
    """
    chosen = Chosen()
    for case in cases:
        lacks = ["MR" if m == ANY_MR else m for m in modalities if not _has(case, m)]
        lacks += ["labels"] * (labels and case.label is None)
        lacks += ["landmarks"] * (points and case.landmarks is None)
        if lacks:
            chosen.skipped[case.name] = f"no {', no '.join(lacks)}"
            continue
        subjects, problems = load_subjects([case], progress=False)
        chosen.problems += problems
        for subject in subjects:
            if points and len(subject.fov) < LEAST_SLICES:
                chosen.skipped[case.name] = f"fewer than {LEAST_SLICES} slices"
                continue
            try:
                where = [_points(case, subject, size)] if points else []
            except (OSError, ValueError) as error:
                chosen.problems.append(CaseError(f"case {case.name}: {case.landmarks}: {error}"))
                continue
            fitted = pad_subject(subject, size)
            if least_ml > 0 and (found := tumour_ml(fitted)) < least_ml:
                chosen.skipped[case.name] = f"{found:.1f} ml of tumour in view"
                continue
            chosen.subjects.append(fitted)
            chosen.points += where
    return chosen


def _has(case: Case, modality: str) -> bool:
    if modality == ANY_MR:
        return any(m != "us" for m in case.images)
    return modality in case.images


def _points(case: Case, subject: Subject, size: int) -> npt.NDArray[np.float64]:
    """The landmarks of a case, from the corner of its padded slices."""
    found = landmarks(case, subject)
    if not np.isfinite(found).all() or not len(found):
        raise ValueError("there should be landmarks, of finite coordinates.")
    before = [(max(size, side) - side) // 2 for side in subject.fov.shape[1:]]
    return found + np.array([0, *before]) * subject.spacing
