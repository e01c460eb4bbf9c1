"""The folders of BraSyn, the BraTS challenge of missing modalities: cases in, images out."""

from __future__ import annotations

__all__ = ["in_brats", "write_brats"]

from collections.abc import Sequence
from pathlib import Path

from examples.medical_mri_us.data import write_image
from examples.medical_mri_us.prepare import recognise
from mmpoe.training import scratch

from .case import Synthesis
from .jobs import Job

SUFFIXES = {"t1": "t1n", "cet1": "t1c", "t2": "t2w", "flair": "t2f"}
"""The names of modalities in files of BraTS since 2023."""


def in_brats(folder: Path, modalities: Sequence[str]) -> list[Job]:
    """Returns the cases of a folder in the layout of BraTS, each with what it lacks.

    A case is a folder such as ``BraTS-GLI-00001-000`` with ``BraTS-GLI-00001-000-t1n.nii.gz``,
    ``-t1c``, ``-t2w`` and ``-t2f``, of which BraSyn leaves one out. Complete cases are left out
    here, and so are files of modalities that the model does not have.

    Arguments:
        folder: The folder of the cases, or of one.
        modalities: The modalities of the model.

    Raises:
        ValueError: If there is no such folder, or it has another layout.
    """
    if not folder.is_dir():
        raise ValueError(f"'input-dir' should be a folder, but is {folder}.")
    name, findings = recognise(folder, modalities=tuple(SUFFIXES))
    if name != "BraTS":
        raise ValueError(
            f"'input-dir' should be in the layout of BraTS, with --layout brats, but {folder} is "
            f"{name}."
        )
    jobs = []
    for source in findings.sources:
        lacking = tuple(m for m in SUFFIXES if m not in source.images)
        images = {m: source.images[m] for m in modalities if m in source.images}
        if lacking:
            jobs.append(Job(source.name, images, further=source.further, wanted=lacking))
        else:
            print(f"Nothing is missing of {source.name}.")
    return jobs


def write_brats(folder: Path, case: str, synthesis: Synthesis) -> list[Path]:
    """Writes ``<case>-t1n.nii.gz`` and so on, the images at the mean, all of them or none.

    Arguments:
        folder: The folder to write to, which is there.
        case: The name of the case.
        synthesis: What to write.

    Raises:
        OSError: If they cannot be written.
    """
    made = []
    with scratch(folder) as aside:
        for m, volume in synthesis.mean.items():
            file = f"{case}-{SUFFIXES[m]}.nii.gz"
            said = f"synthetic {m}, mean; research only"
            write_image(aside / file, volume, synthesis.grid.affine, description=said)
            made.append(file)
        return [(aside / file).replace(folder / file) for file in made]
