"""The files of one case, written so that a folder under its final name is always whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.training import scratch, write_file

from .patient import Patient

__all__ = ["write_bytes", "write_case", "write_text"]


def write_text(file: Path, text: str) -> None:
    """Writes a text file in one step, and leaves it alone if it already says the same."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Writes a file in one step, and leaves it alone if it already holds the same."""
    if file.is_file() and file.read_bytes() == data:
        return
    write_file(file, data)


def write_case(
    folder: Path, patient: Patient, observed: Sequence[bool], info: dict[str, Any]
) -> None:
    """Writes a case: images, labels and facts.

    Ultrasound is stored as uint8, MR as int16, labels and the field of view as uint8; where MR
    and ultrasound disagree also the displacement, as NIfTI vectors, and the tumour in MR.

    Arguments:
        folder: The folder to make. If another process makes it first, that one stays.
        patient: What to write.
        observed: Which modalities get a file, in the order of `MODALITIES`.
        info: What `patient.json` says.
    """
    with scratch(folder.parent) as partial:
        for name, present in zip(MODALITIES, observed, strict=True):
            if present:
                highest, kind = (255, np.uint8) if name == "us" else (32767, np.int16)
                stored = np.clip(np.rint(patient.images[name]), 0, highest).astype(kind)
                _write_nifti(partial / f"{name}.nii.gz", stored, patient.affine)
        labels = ["fov", "tumour", "tissue"]
        if patient.displacement is not None:
            labels.append("tumour_mr")
            vectors = np.moveaxis(patient.displacement, 0, -1)[:, :, :, None]  # (D, L, S, 1, 3)
            _write_nifti(partial / "displacement.nii.gz", vectors, patient.affine)
        for name in labels:
            stored = getattr(patient, name).astype(np.uint8)
            _write_nifti(partial / f"{name}.nii.gz", stored, patient.affine)
        (partial / "landmarks.csv").write_text(patient.landmarks.to_csv())
        (partial / "patient.json").write_text(json.dumps(info, indent=2) + "\n")
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "patient.json").is_file():
                raise


def _write_nifti(file: Path, data: np.ndarray, affine: npt.NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    if data.ndim == 5:
        image.header.set_intent("vector")
    image.to_filename(file)
