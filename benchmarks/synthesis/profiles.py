"""The sizes of the synthesis benchmark, and the patients of each."""

from __future__ import annotations

__all__ = ["OUT", "PROFILES", "Profile", "load"]

from dataclasses import dataclass
from pathlib import Path

from examples.medical_mri_us.data import Subject, load_subjects, read_index
from examples.medical_mri_us.phantom import cached_dataset

OUT = Path("runs/synthesis")
"""The folder of all profiles; each has one of its name there."""


@dataclass(frozen=True)
class Profile:
    """How large a comparison is."""

    patients: int
    held_out: int
    size: int
    slices: int
    seconds: float
    """The processor time of each training run."""
    seeds: int
    batch: int = 8
    trial: int = 25
    """The number of trial steps that tell how many steps to take."""


PROFILES = {
    "smoke": Profile(8, 2, 32, 2, seconds=2, seeds=1, batch=4, trial=2),
    "quick": Profile(200, 20, 64, 8, seconds=120, seeds=1),
    "full": Profile(200, 20, 64, 8, seconds=240, seeds=3),
}


def load(profile: Profile) -> tuple[list[Subject], list[Subject]]:
    """Returns training patients, of whom most are incomplete, and complete held-out ones."""
    index = cached_dataset(
        train=profile.patients, test=profile.held_out, size=profile.size, slices=profile.slices
    )
    cases = read_index(index)
    train, _ = load_subjects([c for c in cases if c.split == "train"])
    test, _ = load_subjects([c for c in cases if c.split == "test"])
    return train, test
