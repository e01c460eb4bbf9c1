"""``phantom``: a data set of simulated patients."""

from __future__ import annotations

__all__ = ["Phantom", "run"]

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from examples.medical_mri_us.phantom import make_dataset


@dataclass(frozen=True)
class Phantom:
    """Make a data set of phantom patients: NIfTI files and index.csv.

    The same arguments give the same patients. A run that was stopped goes on where it was.
    """

    out: Path
    """The folder to write."""
    train: int = 100
    """The number of training patients, with missing modalities."""
    test: int = 20
    """The number of test patients, complete."""
    size: int = 64
    """The height and width of the slices, in pixels over 96 mm."""
    slices: int = 8
    """The number of slices, 2 mm apart."""
    missingness: Literal["remind-files", "paper-87"] = "remind-files"
    """How modalities go missing: as in the files of ReMIND, or in 87 % of patients."""
    seed: int = 0
    """What the patients are drawn from."""
    workers: int = 2
    """The number of processes."""


def run(options: Phantom) -> int:
    """Makes the patients."""
    index = make_dataset(
        options.out,
        train=options.train,
        test=options.test,
        size=options.size,
        slices=options.slices,
        missingness=options.missingness,
        seed=options.seed,
        workers=options.workers,
    )
    print(f"Wrote {index}.")
    return 0
