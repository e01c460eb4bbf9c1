"""The subcommand `phantom`: make a data set of phantom patients, and a picture of it."""

from __future__ import annotations

__all__ = ["Phantom", "run"]

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from examples.medical_mri_us.phantom import draw_sheet, make_dataset, write_bytes


@dataclass(frozen=True)
class Phantom:
    """Make a data set of phantom patients: NIfTI files, labels, landmarks and index.csv.

    The same arguments give the same patients. A run that was stopped is resumed.
    """

    out: Path
    """The folder to write."""
    train: int = 100
    """The number of training patients, with missing modalities."""
    test: int = 20
    """The number of test patients, complete."""
    size: int = 64
    """The height and width of the slices, in pixels over 96 mm: 64, 96, 192 or another of at
    least 16; of others than multiples of 8, models see a part or a padded slice."""
    slices: int | None = None
    """The number of slices, 2 mm apart; by default 8, 16 and 32 at sizes of 64, 96 and 192."""
    missingness: Literal["remind-files", "paper-87"] = "remind-files"
    """How modalities go missing: as in the files of ReMIND, or in 87 % of patients."""
    mnar: bool = False
    """Whether ceT1 is present more often when the tumour enhances, as often overall."""
    anatomy: Literal["mni", "colin27", "both"] = "mni"
    """Whose brain to deform: the MNI average; one person, which needs Debian's mricron-data; or
    either at random."""
    brain_shift_mm: float = 0.0
    """How far the brain shifts between MR and ultrasound at most, from 0 to 15 mm."""
    misalign_mm: float = 0.0
    """The root mean square of a rigid registration error, from 0 to 20 mm."""
    seed: int = 0
    """The seed of the patients."""
    workers: int = 2
    """The number of processes."""
    sheet: bool = True
    """Whether to draw contact_sheet.png, some patients side by side."""


def run(options: Phantom) -> int:
    """Makes the data set and returns the exit code, 0.

    Raises:
        ValueError: If an argument cannot be used.
        OSError: If the folder cannot be written, or an anatomy is not installed.
    """
    index = make_dataset(
        options.out,
        train=options.train,
        test=options.test,
        size=options.size,
        slices=options.slices,
        missingness=options.missingness,
        mnar=options.mnar,
        anatomy=options.anatomy,
        brain_shift_mm=options.brain_shift_mm,
        misalign_mm=options.misalign_mm,
        seed=options.seed,
        workers=options.workers,
    )
    print(f"Wrote {index}.")
    if options.sheet:
        picture = index.with_name("contact_sheet.png")
        write_bytes(picture, draw_sheet(index))
        print(f"Look at {picture}.")
    return 0
