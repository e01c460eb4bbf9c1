"""Reading the formats of volumes: NIfTI through nibabel, NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

__all__ = ["ITK_SUFFIXES", "from_itk", "read_itk", "read_nifti"]

import zlib
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import HeaderDataError

from .foreign import AUTOMATIC, check_voxels, inflate, read_bytes
from .geometry import LPS_TO_RAS, Affine, corner_distance
from .headers import read_voxels
from .volumes import Image, ImageError

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
"""The files that SimpleITK reads here."""

UNITS = {1: 1000.0, 3: 0.001}
"""The codes of a metre and of a micrometre in a NIfTI header, mm; others are taken as mm."""

TOLERANCE = 1e-3
"""How far apart two places may be that should be the same, mm."""


BEHIND = 2**20
"""The number of bytes behind the voxels of a compressed file that are put up with."""


def read_nifti(path: Path, prefer: Literal["sform", "qform"] | None) -> Image:
    """Reads it whole, checksum included: lazy reading would miss a damaged archive.

    Raises:
        ImageError: If it is no volume, or does not say where it lies.
        Exception: Of any type, if it is damaged.
    """
    content = _nifti_content(path)
    image = _nifti_kind(content).from_bytes(content)
    with np.errstate(over="ignore"):  # what overflows is found as infinity
        data = np.asarray(image.dataobj, dtype=np.float32)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ImageError(
            f"{path} should be a volume, but has shape {data.shape}; save one volume per file."
        )
    affine = _nifti_affine(path, image.header, prefer)
    affine[:3] *= UNITS.get(int(image.header["xyzt_units"]) % 8, 1.0)
    return Image(data, affine)


def _nifti_content(path: Path) -> bytes:
    """Returns the bytes of a file once all that its header claims is known to be there."""
    content = read_bytes(path)
    compressed = path.suffix.lower() == ".gz"
    start = zlib.decompressobj(AUTOMATIC).decompress(content, 540) if compressed else content[:540]
    if not start:
        raise ValueError("it is empty")
    kind = _nifti_kind(start).header_class
    header = kind(start[: kind.sizeof_hdr], check=False)  # which is said below, or by nibabel
    voxel = np.dtype(header.get_data_dtype())
    if voxel.kind not in "iuf":
        raise ValueError(f"its voxels are {voxel}, not plain numbers")
    offset = float(header["vox_offset"])
    if not kind.single_vox_offset <= offset < 2**31 or offset % 1:
        raise ValueError(
            f"its voxels are said to begin at byte {offset:g}, but should at "
            f"{kind.single_vox_offset} or later"
        )
    size = int(offset) + check_voxels(header.get_data_shape()) * voxel.itemsize
    if compressed:
        content = inflate(content, size + BEHIND)
    if len(content) < size:
        raise ValueError(f"its header says {size} bytes, but it holds {len(content)}")
    return content


def _nifti_kind(content: bytes) -> type[nib.Nifti1Image]:
    """Returns which of the two versions of NIfTI a file is of, by the size of its header."""
    second = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    return nib.Nifti2Image if second else nib.Nifti1Image


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
    """Reads a NRRD or MetaImage file, whose axes LPS become RAS.

    SimpleITK says from the header where it lies. Its voxels are read here, since SimpleITK
    verifies no checksum of what is compressed.

    Raises:
        ImageError: If it is no volume.
        Exception: Of any type, if it is damaged.
    """
    voxels = read_voxels(path)
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    if path.suffix.lower() in (".mha", ".mhd"):
        header.SetImageIO("MetaImageIO")  # which is not found where an ending is in capitals
    header.ReadImageInformation()
    size = header.GetSize()
    affine = _affine(header, header.GetNumberOfComponents(), path)
    if np.prod(size) != voxels.size:
        raise ValueError(f"its header says {size} voxels, but it holds {voxels.size}")
    with np.errstate(over="ignore"):  # what overflows is found as infinity
        data = np.ascontiguousarray(voxels.reshape(size[2::-1]).T, np.float32)  # (x, y, z)
    return Image(data, affine)


def from_itk(image: sitk.Image, path: Path) -> Image:
    """Turns an image of SimpleITK into one of ours; errors name the path."""
    affine = _affine(image, image.GetNumberOfComponentsPerPixel(), path)
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
    data = sitk.GetArrayFromImage(image).astype(np.float32)  # (z, y, x)
    return Image(np.ascontiguousarray(data.T), affine)


def _affine(image: sitk.Image | sitk.ImageFileReader, components: int, path: Path) -> Affine:
    """Returns where an image of SimpleITK lies, RAS, if it is a volume of numbers."""
    size = tuple(image.GetSize())
    if len(size) - (size[3:] == (1,)) != 3 or components != 1:
        raise ImageError(
            f"{path} should be a volume, but has size {size} with {components} numbers per voxel; "
            "save one volume per file."
        )
    lps = np.eye(4)
    direction = np.reshape(image.GetDirection(), (len(size), len(size)))[:3, :3]
    lps[:3, :3] = direction * image.GetSpacing()[:3]
    lps[:3, 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ lps
