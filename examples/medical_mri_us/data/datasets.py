"""DICOM files one by one: what is one, its header, and the numbers that it stores."""

from __future__ import annotations

__all__ = ["frames_of", "is_dicom", "read_dataset", "read_frames"]

import tempfile
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from .foreign import check_voxels, inflate_raw, read_bytes
from .planes import functional_group
from .volumes import ImageError

PREAMBLE = 132
"""The number of bytes in front of a file's first element, which end in ``DICM``."""

DEFLATED = "1.2.840.10008.1.2.1.99"
"""The transfer syntax whose data set is compressed, without a checksum."""

RAW = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED})
"""The transfer syntaxes whose pixels are not encapsulated."""

LAYOUT = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
          "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")  # fmt: skip
"""The attributes that say how pixels are stored."""


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, with or without a preamble.

    Files of old archives begin with their first element, of group 2 or 8.
    """
    with path.open("rb") as file:
        start = file.read(PREAMBLE)
    if start[128:] == b"DICM":
        return True
    group, element = (int.from_bytes(start[k : k + 2], "little") for k in (0, 2))
    kind, length = start[4:6], int.from_bytes(start[4:8], "little")
    first = element == 0 if group == 2 else group == 8 and element < 0x100
    return len(start) > 8 and first and ((kind.isalpha() and kind.isupper()) or length < 2**10)


def frames_of(header: Dataset) -> int:
    """Returns the number of frames of a file."""
    return int(header.get("NumberOfFrames", 1) or 1)


def read_dataset(path: Path, *, pixels: bool = True) -> Dataset:
    """Reads a file, whose pixels are all there unless they are encapsulated.

    Arguments:
        path: The file.
        pixels: Whether to read the pixels too.

    Raises:
        ImageError: If there are fewer or more pixels than its attributes say.
        Exception: Of any type, if it is damaged.
    """
    with path.open("rb") as file:
        deflated = DEFLATED.encode() in file.read(2**12)
    if deflated:  # pydicom would inflate it whatever its size
        content = read_bytes(path)
        length = read_file_meta_info(path).FileMetaInformationGroupLength
        inflate_raw(content[PREAMBLE + 12 + length :])
    dataset = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:  # of old archives: pydicom found it out
        implicit, _ = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    if pixels:
        _check_pixels(dataset, path)
    return dataset


def read_frames(path: Path) -> np.ndarray:
    """Reads the frames of a file, (frame, row, column), with intensities as the file scales them.

    Each frame has a slope and an intercept of its own, or those of all frames.

    Raises:
        ImageError: If they are colours, or not as many as its attributes say.
        Exception: Of any type, if it is damaged.
    """
    dataset = read_dataset(path)
    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if dataset.get("SamplesPerPixel", 1) != 1 or not kind.startswith("MONOCHROME"):
        raise ImageError(
            f"{path} cannot be used: its pixels are colours ({kind}), not grey; export it without."
        )
    stored = _stored(dataset)
    wanted = frames_of(dataset), dataset.Rows, dataset.Columns
    if stored.shape != wanted:
        raise ImageError(f"{path} should hold {wanted} grey pixels, but has {stored.shape}.")
    if kind == "MONOCHROME1":  # small numbers are bright
        bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
        stored = (-1 if signed else 2**bits - 1) - stored.astype(np.int64)
    scaled = np.empty(stored.shape, np.float32)
    for k, frame in enumerate(stored):
        said = functional_group(dataset, k, "PixelValueTransformation") or dataset
        slope, intercept = said.get("RescaleSlope") or 1, said.get("RescaleIntercept") or 0
        scaled[k] = frame * float(slope) + float(intercept)
    return scaled


def _stored(dataset: Dataset) -> np.ndarray:
    """The numbers as they are stored, (frame, row, column)."""
    if dataset.file_meta.TransferSyntaxUID in RAW:
        stored = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        bits = int(dataset.BitsAllocated)
        above = bits - 1 - int(dataset.get("HighBit", bits - 1))
        unused = bits - int(dataset.get("BitsStored", bits))
        return (stored << above) >> unused if unused else stored  # old overlays lie there
    plain = Dataset()  # without a scale, which SimpleITK would apply, that of the first frame
    for name in LAYOUT:
        if name in dataset:
            plain[name] = dataset[name]
    plain["PixelData"], plain.PhotometricInterpretation = dataset["PixelData"], "MONOCHROME2"
    plain.SOPClassUID, plain.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "1.dcm"
        plain.save_as(file, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def _check_pixels(dataset: Dataset, path: Path) -> None:
    """Raises an ImageError unless as many bytes of pixels are there as attributes say."""
    frames = frames_of(dataset)
    shape = (frames, dataset.Rows, dataset.Columns, dataset.get("SamplesPerPixel", 1))
    bits = check_voxels(shape) * int(dataset.BitsAllocated)
    stored = len(dataset.PixelData)
    wanted = -(-bits // 16) * 2  # an even number of bytes
    if dataset.file_meta.TransferSyntaxUID in RAW and stored != wanted:
        raise ImageError(
            f"{path} cannot be read as DICOM: it should hold {wanted} bytes of pixels, {frames} x "
            f"{dataset.Rows} x {dataset.Columns}, but holds {stored}; export it again."
        )
