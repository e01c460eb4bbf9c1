"""Syntheses as DICOM: a derived series of the same patient, study and frame of reference."""

from __future__ import annotations

__all__ = ["source_header", "write_series"]

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from examples.medical_mri_us.data import CaseError, Grid, Volume, list_series
from examples.medical_mri_us.data.datasets import is_dicom, read_dataset
from examples.medical_mri_us.data.geometry import LPS_TO_RAS
from examples.medical_mri_us.prepare.sources import Input

KEPT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientPosition",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "FrameOfReferenceUID", "BodyPartExamined",
)  # fmt: skip
"""The attributes that a derived series shares with its input."""

EMPTY = ("ContentDate", "ContentTime", "PositionReferenceIndicator", "Manufacturer", "EchoTime",
         "RepetitionTime", "EchoTrainLength", "MRAcquisitionType", "ScanOptions")  # fmt: skip
"""The attributes that have to be there, and that a synthetic image has no value of."""

MR, CAPTURE = UID("1.2.840.10008.5.1.4.1.1.4"), UID("1.2.840.10008.5.1.4.1.1.7")
"""The storage classes of MR images and of secondary captures."""

STEP = 0.01
"""The intensity of one stored level, of intensities from 0 to 255."""


def source_header(found: Input) -> Dataset:
    """Returns the attributes of the first file of an input.

    Raises:
        CaseError: If the input is no DICOM.
    """
    first = found.files[0]
    if first.is_dir():
        series = list_series(first)
        if series:
            return series[0].header
    elif first.is_file() and is_dicom(first):
        return read_dataset(first, pixels=False)
    raise CaseError(
        f"{found.name} should be DICOM for results in DICOM, which are of its patient and study."
    )


def write_series(
    folder: Path,
    header: Dataset,
    volume: Volume,
    grid: Grid,
    modality: str,
    made: Sequence[str],
) -> None:
    """Writes a volume as a series, one file for each slice along the last axis.

    Files are written aside: where the folder is, all of them are. The same content has the same
    identifiers.

    Arguments:
        folder: The folder of the series; one of an earlier run is replaced.
        header: The attributes of the input, see `source_header`.
        volume: The intensities, from 0 to 255.
        grid: The grid of the volume.
        modality: What it shows; ultrasound is stored as a secondary capture.
        made: What it was made from, which its identifiers depend on.
    """
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        aside.chmod(0o755)
        source = str(header.get("SeriesInstanceUID", ""))
        series = generate_uid(entropy_srcs=[source, modality, *made])
        for k in range(grid.shape[2]):
            file = _slice(header, grid, k, modality)
            file.SeriesInstanceUID = series
            uid = generate_uid(entropy_srcs=[series, str(k)])
            file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = uid
            pixels = np.rint(volume[..., k].T / STEP).clip(0, 65535).astype("<u2")
            file.Rows, file.Columns = pixels.shape
            file.PixelData = pixels.tobytes()
            file.save_as(aside / f"{k + 1:04d}.dcm", enforce_file_format=True)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _slice(header: Dataset, grid: Grid, k: int, modality: str) -> Dataset:
    """The attributes of a slice, but for its identifiers and pixels."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    kind = CAPTURE if modality == "us" else MR
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = kind
    for name in KEPT:
        setattr(file, name, header.get(name, ""))
    for name in EMPTY:
        setattr(file, name, "")
    file.Modality = "OT" if modality == "us" else "MR"
    file.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    file.ConversionType, file.BurnedInAnnotation = "WSD", "NO"
    file.ScanningSequence, file.SequenceVariant = "RM", "NONE"
    file.SeriesDescription = f"synthetic {modality}, research only"
    file.DerivationDescription = "Synthesised by mmpoe; for research only, not for clinical use"
    file.SeriesNumber, file.InstanceNumber = 9000, k + 1
    affine = LPS_TO_RAS @ grid.affine
    directions = affine[:3, :3] / grid.spacing
    file.ImageOrientationPatient = _decimals([*directions[:, 0], *directions[:, 1]])
    file.ImagePositionPatient = _decimals(affine[:3, :3] @ [0, 0, k] + affine[:3, 3])
    file.PixelSpacing = _decimals([grid.spacing[1], grid.spacing[0]])
    file.SliceThickness = file.SpacingBetweenSlices = _decimals([grid.spacing[2]])[0]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 0
    file.RescaleSlope, file.RescaleIntercept = f"{STEP:g}", "0"
    file.RescaleType = "US"
    file.WindowCenter, file.WindowWidth = "127.5", "255"
    return file


def _decimals(numbers: Sequence[float] | np.ndarray) -> list[str]:
    """Numbers in 16 letters at most."""
    return [f"{float(n):.10g}"[:16] for n in numbers]
