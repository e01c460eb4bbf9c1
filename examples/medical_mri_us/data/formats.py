"""Reading the formats of volumes: NIfTI through nibabel, NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

__all__ = ["ITK_SUFFIXES", "from_itk", "read_itk", "read_nifti"]

import gzip
import zlib
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from .geometry import LPS_TO_RAS, Affine, corner_distance
from .volumes import Image, ImageError

UNREADABLE = (
    OSError,
    EOFError,
    TypeError,
    ValueError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)
"""The exceptions for files that are not the images that they should be."""

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
"""The files that SimpleITK reads here."""

UNITS = {1: 1000.0, 3: 0.001}
"""The codes of a metre and of a micrometre in a NIfTI header, mm; others are taken as mm."""

TOLERANCE = 1e-3
"""How far apart two places may be that should be the same, mm."""


def read_nifti(path: Path, prefer: Literal["sform", "qform"] | None) -> Image:
    """Reads it whole, checksum included: lazy reading would miss a damaged archive."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        second = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
        image = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(content)
        kind = np.dtype(image.get_data_dtype())
        if kind.kind not in "iuf":
            raise ValueError(f"its voxels are {kind}, not plain numbers")
        with np.errstate(over="ignore"):  # what overflows is found as infinity
            data = np.asarray(image.dataobj, dtype=np.float32)
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(
            f"{path} cannot be read: {str(reason).rstrip('.')}; copy or export it again."
        ) from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ImageError(
            f"{path} should be a volume, but has shape {data.shape}; save one volume per file."
        )
    affine = _nifti_affine(path, image.header, prefer)
    affine[:3] *= UNITS.get(int(image.header["xyzt_units"]) % 8, 1.0)
    return Image(data, affine)


def _nifti_affine(
    path: Path, header: nib.Nifti1Header, prefer: Literal["sform", "qform"] | None
) -> Affine:
    """Returns the affine, if there is one and one only."""
    shape = header.get_data_shape()[:3]
    try:
        found = {
            "sform": header.get_sform(coded=True)[0],
            "qform": header.get_qform(coded=True)[0],
        }
    except (HeaderDataError, np.linalg.LinAlgError, ValueError) as error:
        raise ImageError(f"{path} cannot be used: its affine is no affine ({error}).") from error
    affines = {name: np.asarray(a, np.float64) for name, a in found.items() if a is not None}
    if not affines:
        raise ImageError(
            f"{path} does not say how it lies in space (its sform and qform have code 0); "
            "write its header again."
        )
    if len(affines) == 2 and prefer is None:
        sform, qform = affines.values()
        far = corner_distance(shape, sform, qform)
        if not far <= TOLERANCE:
            raise ImageError(
                f"{path} says twice how it lies in space, and differently: its sform and qform "
                f"are {far:.4g} mm apart; prepare with --prefer sform or --prefer qform."
            )
    name = prefer if prefer in affines else next(iter(affines))
    return affines[name]


def read_itk(path: Path) -> Image:
    """Reads a file of SimpleITK's, whose axes LPS become RAS."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ImageError(f"{path} cannot be read: {reason}; copy or export it again.") from error
    return from_itk(image, path)


def from_itk(image: sitk.Image, path: Path) -> Image:
    """Turns an image of SimpleITK into one of ours; errors name the path."""
    size = image.GetSize()
    if len(size) == 4 and size[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(
            f"{path} should be a volume, but has size {size} with "
            f"{image.GetNumberOfComponentsPerPixel()} numbers per voxel; save one volume per file."
        )
    lps = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    lps[:3, :3] = direction * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    data = sitk.GetArrayFromImage(image).astype(np.float32)  # (z, y, x)
    return Image(np.ascontiguousarray(data.T), LPS_TO_RAS @ lps)
