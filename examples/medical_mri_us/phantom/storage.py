"""The files of one case, written so that a folder under its final name is always whole."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.modalities import MODALITIES

from .patient import Patient

__all__ = ["PARTIAL", "write_bytes", "write_case", "write_text"]

PARTIAL = ".partial-"
"""How the names of unfinished files and folders begin."""


def write_text(file: Path, text: str) -> None:
    """Writes a text file in one step, and leaves it alone if it already says the same."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Writes a file in one step, and leaves it alone if it already holds the same."""
    if file.is_file() and file.read_bytes() == data:
        return
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=PARTIAL, delete=False) as stream:
        stream.write(data)
    partial = Path(stream.name)
    try:
        partial.chmod(0o644)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


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
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{PARTIAL}{folder.name}-"))
    try:
        partial.chmod(0o755)
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
        partial.rename(folder)
    except OSError:
        if not (folder / "patient.json").is_file():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_nifti(file: Path, data: np.ndarray, affine: npt.NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    if data.ndim == 5:
        image.header.set_intent("vector")
    image.to_filename(file)
