"""Reading volumes whole and writing them whole: NIfTI, NRRD, MetaImage and DICOM."""

from __future__ import annotations

__all__ = ["Image", "ImageError", "Mask", "Volume", "image_files", "read_image", "write_image"]

import gzip
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from mmpoe.training import write_file

from .dicom import read_folder
from .foreign import walled
from .formats import ITK_SUFFIXES, read_itk, read_nifti
from .geometry import Affine, affine_problem
from .headers import files_of
from .volumes import Image, ImageError, Mask, Volume

HIGHEST = {"uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
"""The ranges of the integers that are written."""


def read_image(
    path: str | Path,
    *,
    prefer: Literal["sform", "qform"] | None = None,
    zero_nonfinite: bool = False,
    sheared: bool = False,
) -> Image:
    """Reads a volume: a NIfTI, NRRD or MetaImage file, or a folder with one series of DICOM.

    Files are read whole, checksums included, so that a damaged archive is an error and not a
    volume with holes. What a header claims is compared with what is there before it is believed,
    and a header reads no file outside its own folder. Intensities are those that the header's
    scaling makes of the stored numbers.

    Arguments:
        path: The file or folder.
        prefer: Which of two affines to believe, where a NIfTI header has two that differ.
        zero_nonfinite: Whether NaN and infinity become 0, rather than errors.
        sheared: Whether axes that are not at right angles are fine.

    Raises:
        ImageError: If there is no such file, it is damaged or of another kind, it is no volume,
            voxels are not finite, or its affine is singular, sheared, ambiguous or in an
            unlikely unit.
    """
    path = Path(path)
    with walled(path):
        image = _read(path, prefer)
    problem = affine_problem(image.affine, sheared=sheared)
    if problem is not None:
        raise ImageError(f"{path} cannot be used: {problem}.")
    if not image.data.size:
        raise ImageError(f"{path} cannot be used: its shape is {image.data.shape}.")
    finite = np.isfinite(image.data)
    if not finite.all():
        if not zero_nonfinite:
            raise ImageError(
                f"{path} holds NaN or infinity in {(~finite).sum()} of {finite.size} voxels; "
                "prepare with --nonfinite zero sets them to 0."
            )
        image = Image(np.where(finite, image.data, np.float32(0)), image.affine)
    return image


def image_files(path: Path) -> list[Path]:
    """Returns all files that a volume is read from: a detached header's voxels are in another.

    Raises:
        ImageError: If the file is no header that can be read.
    """
    with walled(path):
        if path.is_dir():
            return sorted(p for p in path.rglob("*") if p.is_file())
        return files_of(path) if path.suffix.lower() in ITK_SUFFIXES else [path]


def _read(path: Path, prefer: Literal["sform", "qform"] | None) -> Image:
    if not path.exists():
        raise ImageError(f"{path} cannot be read: there is no such file.")
    if path.is_dir():
        return read_folder(path)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return read_nifti(path, prefer)
    if path.suffix.lower() in ITK_SUFFIXES:
        return read_itk(path)
    raise ImageError(
        f"{path} should end in .nii, .nii.gz, {', '.join(ITK_SUFFIXES)} or be a folder of DICOM "
        "files; unpack archives and convert other formats first."
    )


def write_image(
    path: str | Path,
    data: np.ndarray,
    affine: Affine,
    *,
    dtype: Literal["uint8", "int16", "uint16", "float32"] = "float32",
    description: str = "",
) -> None:
    """Writes a NIfTI file in one step: under its final name, it is whole or not there.

    Arguments:
        path: The file, .nii or .nii.gz.
        data: The volume; for an integer `dtype`, it is rounded.
        affine: Voxel indices to mm, RAS.
        dtype: How numbers are stored.
        description: What the header says of it, up to 79 letters.

    Raises:
        ValueError: If numbers are not finite or do not fit, or the affine cannot be one.
    """
    path = Path(path)
    problem = affine_problem(affine, sheared=True)
    if problem is not None:
        raise ValueError(f"'affine' cannot be written to {path}: {problem}.")
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise ValueError(f"'data' should be finite, but what should go to {path} is not.")
    if dtype in HIGHEST:
        data = np.rint(data)
        low, high = HIGHEST[dtype]
        if data.size and not low <= data.min() <= data.max() <= high:
            raise ValueError(
                f"'data' should lie in {low} to {high} for {dtype}, but what should go to {path} "
                f"lies in {data.min():g} to {data.max():g}."
            )
    image = nib.Nifti1Image(data.astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    content = image.to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    write_file(path, content)
