"""Complete patients from whom images are dropped at random."""

from __future__ import annotations

__all__ = ["Left", "complete", "complete_index", "complete_patients", "drop", "left"]

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.synthesis.profiles import Profile
from examples.medical_mri_us.data import Subject, load_subjects, read_index
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import cached_dataset


class Left(NamedTuple):
    """Numbers of images and patients that are left."""

    images: int
    """The number of images: one of each modality that a patient has."""
    patients: int
    """The number of patients who have any."""
    complete: int
    """The number of patients who have all."""


def complete_index(profile: Profile) -> Path:
    """Returns the index of complete patients: those who are scored, then those to drop from.

    Arguments:
        profile: The size of the comparison.
    """
    number = profile.held_out + profile.patients
    return cached_dataset(train=0, test=number, size=profile.size, slices=profile.slices)


def complete_patients(profile: Profile) -> list[Subject]:
    """Returns as many complete patients as the comparison trains on, none of whom it scores.

    Arguments:
        profile: The size of the comparison.
    """
    cases = read_index(complete_index(profile))[profile.held_out :]
    return load_subjects(cases, progress=False)[0]


def drop(subjects: Sequence[Subject], share: float) -> list[Subject]:
    """Drops a share of all images, at random; what a larger share leaves, a smaller one leaves.

    Arguments:
        subjects: Complete patients.
        share: The share of the images to drop.

    Returns:
        The patients who have anything left, in the same order.
    """
    kept = _kept(len(subjects), share)
    dropped = [
        replace(s, images={m: s.images[m] for m, k in zip(MODALITIES, row, strict=True) if k})
        for s, row in zip(subjects, kept.tolist(), strict=True)
    ]
    return [s for s in dropped if s.images]


def complete(subjects: Sequence[Subject]) -> list[Subject]:
    """Returns the patients who have all modalities.

    Arguments:
        subjects: The patients.
    """
    return [s for s in subjects if len(s.images) == len(MODALITIES)]


def left(patients: int, share: float) -> Left:
    """Counts what :func:`drop` leaves.

    Arguments:
        patients: The number of complete patients.
        share: The share of the images to drop.
    """
    kept = _kept(patients, share)
    return Left(int(kept.sum()), int(kept.any(axis=1).sum()), int(kept.all(axis=1).sum()))


def _kept(patients: int, share: float) -> np.ndarray:
    """A mask of the images that are kept, (patients, modalities)."""
    number = patients * len(MODALITIES)
    order = np.random.default_rng(0).permutation(number)
    return (order >= round(share * number)).reshape(patients, -1)
