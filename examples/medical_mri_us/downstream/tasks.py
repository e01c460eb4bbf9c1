"""Both tasks as a whole: from cases, and something that makes images, to the scores of all."""

from __future__ import annotations

__all__ = [
    "REGISTRATION_REFERENCES",
    "SEGMENTATION_REFERENCES",
    "Synthesiser",
    "below_gate",
    "register_ultrasound",
    "segment_tumours",
    "training_volumes",
]

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.data import Mask, Subject, Volume

from .registration import BINS, draw_motion, score_registration
from .segmentation import Examples, score_volume, segment, train, tumour_of

SEGMENTATION_REFERENCES = ("true", "mr")
"""Training data beside synthetic ultrasound: true ultrasound, and raw MR."""
REGISTRATION_REFERENCES = ("none", "direct", "true")
"""References beside synthetic MR: no registration, ultrasound itself, and the true MR."""


@dataclass(frozen=True)
class Synthesiser:
    """Makes images of one modality from others, by any system."""

    handled: Sequence[str]
    """The modalities that it takes and makes, in their order."""
    make: Callable[[Subject, Sequence[str], str], Volume]
    """Makes a target of a subject from the modalities given, in [-1, 1], -1 out of view."""

    def given_for(self, subject: Subject, target: str) -> list[str]:
        """Returns what a target is made of: MR for ultrasound, and ultrasound for MR.

        Arguments:
            subject: The patient.
            target: The modality to make, which the patient may have.

        Returns:
            All MR that the patient has and that is handled, or ultrasound alone; nothing if the
            target is not handled, or nothing of the patient.
        """
        if target not in self.handled:
            return []
        from_us = target != "us"
        return [m for m in self.handled if m in subject.images and (m == "us") == from_us]


def training_volumes(
    source: str | Synthesiser, subjects: Sequence[Subject]
) -> tuple[list[Volume], list[Subject]]:
    """Returns what a network learns tumours from: volumes, and whom they show.

    Arguments:
        source: What makes ultrasound of all MR that a patient has; ``"true"`` for true
            ultrasound; ``"mr"`` for each MR of a patient, as a volume of its own.
        subjects: The patients; of whom nothing can be made are left out.
    """
    if isinstance(source, Synthesiser):
        givens = [(s, source.given_for(s, "us")) for s in subjects]
        pairs = [(source.make(s, given, "us"), s) for s, given in givens if given]
    elif source == "true":
        pairs = [(s.images["us"], s) for s in subjects]
    else:
        pairs = [(s.images[m], s) for s in subjects for m in s.images if m != "us"]
    return [volume for volume, _ in pairs], [subject for _, subject in pairs]


def segment_tumours(
    source: str | Synthesiser,
    learnt: Sequence[Subject],
    tested: Sequence[Subject],
    *,
    steps: int,
    seed: int,
) -> tuple[dict[str, Any], list[Mask]]:
    """Trains a network on what a source makes of patients, and scores it on true ultrasound.

    Arguments:
        source: What the network learns from, see :func:`training_volumes`.
        learnt: Whom it learns from.
        tested: Held-out patients, each with a tumour in view.
        steps: The number of training steps.
        seed: The seed of the network.

    Returns:
        The scores, plain values, and where the network sees tumour in each held-out patient.
    """
    volumes, subjects = training_volumes(source, learnt)
    start = time.process_time()
    network = train(Examples(volumes, subjects), steps=steps, seed=seed)
    seconds = time.process_time() - start
    found = [segment(network, s.images["us"], s.fov) for s in tested]
    scores = [score_volume(f, tumour_of(s), s.spacing) for f, s in zip(found, tested, strict=True)]
    kept = {
        "trained_on": len({s.name for s in subjects}),
        "processor_seconds": round(seconds, 1),
        "patients": [s.name for s in tested],
        "dice": [s.dice for s in scores],
        "assd": [s.assd if np.isfinite(s.assd) else None for s in scores],
        "empty": sum(not f.any() for f in found),
    }
    return kept, found


def below_gate(reached: float, gate: float) -> str | None:
    """Returns why segmentation cannot be compared, None if it can.

    Arguments:
        reached: The mean Dice coefficient of networks that learnt from true ultrasound.
        gate: What it has to be at least.
    """
    if reached >= gate:
        return None
    return (
        f"Trained on true ultrasound, the network reaches a Dice coefficient of {reached:.3f}, "
        f"below the gate of {gate:.2f}: nothing is compared by segmentation."
    )


def register_ultrasound(
    source: str | Synthesiser,
    subjects: Sequence[Subject],
    points: Sequence[npt.NDArray[np.float64]],
    targets: Sequence[str],
) -> dict[str, Any]:
    """Registers what a source makes of moved ultrasound to MR, for all patients and bins.

    Motions depend on the place of a patient in the list and on the bin alone, and are the same
    for all sources.

    Arguments:
        source: What makes MR of ultrasound; ``"none"`` for no registration, ``"direct"`` for
            ultrasound itself, or ``"true"`` for the true MR.
        subjects: The patients, who have ultrasound and all targets.
        points: The landmarks of each, with shape (N, 3).
        targets: The modalities to register to; those that are not handled are left out.

    Returns:
        The names of the patients, and for each target and bin the outcomes, plain values.
    """
    metric = "information" if source == "direct" else "correlation"
    cells = []
    for target in targets:
        if isinstance(source, Synthesiser) and target not in source.handled:
            continue
        sources = [_to_register(source, subject, target) for subject in subjects]
        for b, limits in enumerate(BINS):
            found = []
            for i, (s, where, image) in enumerate(zip(subjects, points, sources, strict=True)):
                _, rows, columns = s.fov.shape
                extent = rows * s.spacing[1], columns * s.spacing[2]
                motion = draw_motion(np.random.default_rng([i, b]), where, extent, limits)
                found.append(score_registration(s, where, motion, image, target, metric))
            cells.append(
                {
                    "target": target,
                    "bin": list(limits),
                    **{k: [getattr(o, k) for o in found] for k in asdict(found[0])},
                    "diverged": [o.diverged for o in found],
                }
            )
    return {"patients": [s.name for s in subjects], "cells": cells}


def _to_register(source: str | Synthesiser, subject: Subject, target: str) -> Volume | None:
    """The volume that stands for the ultrasound of a patient, in place."""
    if isinstance(source, Synthesiser):
        return source.make(subject, ["us"], target)
    known = {"none": None, "direct": "us", "true": target}[source]
    return None if known is None else subject.images[known]
