"""The parameters that the patients of a data set depend on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.medical_mri_us.checks import check_choice, check_integer, check_number
from examples.medical_mri_us.modalities import MODALITIES

from .atlas import ANATOMIES, Atlas
from .cache import GENERATOR_VERSION
from .missingness import MISSINGNESS, draw_patterns
from .patient import (
    LARGEST_MISALIGNMENT,
    LARGEST_SHIFT,
    default_slices,
    draw_lesion,
    render_patient,
)
from .storage import write_case

__all__ = ["Recipe", "case_name", "check_recipe"]

_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Recipe:
    """The parameters that the patients of a data set depend on, but for their number."""

    size: int
    slices: int
    missingness: str
    seed: int
    anatomy: str = "mni"
    brain_shift_mm: float = 0.0
    misalign_mm: float = 0.0
    mnar: bool = False
    generator_version: int = GENERATOR_VERSION

    def observed(self, split: str, number: int) -> list[bool]:
        """Returns which modalities a patient has; test patients have them all."""
        if split == "test":
            return [True] * len(MODALITIES)
        rng = np.random.default_rng([*self.seed_of(split, number), 1])
        enhancing = draw_lesion(self.seed_of(split, number)).enhancing if self.mnar else None
        return draw_patterns(self.missingness, 1, rng, enhancing=enhancing)[0].tolist()

    def seed_of(self, split: str, number: int) -> list[int]:
        """Returns what the patient with a number in a split is drawn from."""
        return [self.seed, _SPLITS.index(split), number]

    def anatomies(self) -> tuple[str, ...]:
        """Returns the names of the atlases that are needed."""
        return ("mni", "colin27") if self.anatomy == "both" else (self.anatomy,)

    def make(self, folder: Path, atlases: list[Atlas], numbered: tuple[str, int]) -> None:
        """Renders the patient with a number in a split and writes it."""
        split, number = numbered
        case = folder / case_name(split, number)
        seed = self.seed_of(split, number)
        patient = render_patient(
            seed,
            atlases[np.random.default_rng([*seed, 2]).integers(len(atlases))],
            size=self.size,
            slices=self.slices,
            brain_shift_mm=self.brain_shift_mm,
            misalign_mm=self.misalign_mm,
        )
        observed = self.observed(split, number)
        info = {
            "case": case.name,
            "split": split,
            "observed": [n for n, there in zip(MODALITIES, observed, strict=True) if there],
            "generator_version": self.generator_version,
            **patient.info,
        }
        write_case(case, patient, observed, info)


def check_recipe(
    size: int,
    slices: int | None,
    missingness: str,
    seed: int,
    anatomy: str = "mni",
    brain_shift_mm: float = 0.0,
    misalign_mm: float = 0.0,
    mnar: bool = False,
) -> Recipe:
    """Returns the recipe with these arguments, those of `make_dataset`, if they can be used.

    Raises:
        ValueError: If one cannot; the message names it.
    """
    size = check_integer("size", size, 16)
    if not isinstance(mnar, bool):
        raise ValueError(f"'mnar' should be True or False, but is {mnar!r}.")
    return Recipe(
        size=size,
        slices=default_slices(size) if slices is None else check_integer("slices", slices, 1),
        missingness=check_choice("missingness", missingness, MISSINGNESS),
        seed=check_integer("seed", seed, 0),
        anatomy=check_choice("anatomy", anatomy, ANATOMIES),
        brain_shift_mm=check_number("brain_shift_mm", brain_shift_mm, 0, LARGEST_SHIFT),
        misalign_mm=check_number("misalign_mm", misalign_mm, 0, LARGEST_MISALIGNMENT),
        mnar=mnar,
    )


def case_name(split: str, number: int) -> str:
    """Returns the name of a patient, which is that of the folder too."""
    return f"{split}-{number:04d}"
