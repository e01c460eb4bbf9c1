"""Series of DICOM files: told apart by their tags, never by the names of files or folders."""

from __future__ import annotations

__all__ = ["Series", "list_series", "read_folder", "read_picture", "read_series"]

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import MediaStorageDirectoryStorage
from tqdm import tqdm

from examples.medical_mri_us.counts import counted

from .datasets import frames_of, is_dicom, read_dataset, read_frames
from .foreign import check_voxels, walled
from .geometry import Affine
from .planes import Plane, even_step, plane_affine, plane_of, said, stacked
from .repeats import check_repeats
from .volumes import Image, ImageError

TAGS = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality", "SeriesDescription",
        "StudyDescription", "SeriesNumber")  # fmt: skip
"""The attributes that tell series apart."""

NO_IMAGES = ("SEG", "SR", "PR", "KO", "DOC", "REG", "FID", "PLAN", "RTSTRUCT", "RTPLAN")
"""The modalities of series without images, and of segmentations."""

MOSAIC = (0x0019, 0x100A)
"""Siemens' attribute for the number of slices in one picture."""

CM = 3
"""The code of a centimetre, as the unit of an ultrasound region."""

ENDINGS = (".dcm", ".ima")
"""The endings of files that should be DICOM."""


@dataclass(frozen=True, eq=False)
class Series:
    """The files with one SeriesInstanceUID, and what their tags say."""

    uid: str
    files: tuple[Path, ...]
    header: Dataset
    """All tags of the first file, without pixels."""
    damaged: tuple[Path, ...] = ()
    """DICOM files in the same folders that do not even say which series they belong to."""

    def tag(self, name: str) -> str:
        """Returns a tag as text, empty if there is none."""
        return str(self.header.get(name, "") or "").strip()

    def __str__(self) -> str:
        """Returns what a person needs to find the series again."""
        what = self.tag("SeriesDescription") or "without description"
        return f"{self.tag('Modality')} '{what}', {counted(len(self.files), 'file')}, {self.uid}"


def list_series(folder: str | Path, *, progress: bool = False) -> list[Series]:
    """Finds the series in a folder and the folders below, in the order of their numbers.

    Files that are not DICOM, and directories of DICOM files, are passed over.

    Arguments:
        folder: The folder.
        progress: Whether to show a progress bar.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    headers: dict[str, Dataset] = {}
    damaged = []
    everything = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    for file in tqdm(everything, desc="Reading headers", unit="file", disable=not progress):
        try:
            if not is_dicom(file):
                if file.name.lower().endswith(ENDINGS) and not file.name.startswith("."):
                    damaged.append(file)
                continue
            header = read_dataset(file, pixels=False)
            uid, *_ = (str(header.get(name, "") or "") for name in TAGS)
        except Exception:  # of any type, for what is damaged
            damaged.append(file)
            continue
        if uid:
            found[uid].append(file)
            headers.setdefault(uid, header)
        elif header.file_meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
            damaged.append(file)
    series = []
    for uid, files in found.items():
        beside = {f.parent for f in files}
        lost = tuple(f for f in damaged if f.parent in beside)
        series.append(Series(uid, tuple(files), headers[uid], lost))
    return sorted(series, key=lambda s: (len(s.tag("SeriesNumber")), s.tag("SeriesNumber"), s.uid))


def read_folder(folder: Path) -> Image:
    """Reads the one series of images in a folder.

    Raises:
        ImageError: If there is none, there are several, or it cannot be read.
    """
    return read_series(_one_series(folder))


def read_picture(folder: Path) -> Image:
    """Reads the one picture of ultrasound in a folder, which does not say where it lies.

    The size of its pixels is that of its ultrasound regions; it is put at the origin.

    Raises:
        ImageError: If there are several pictures, its regions say no size, or it cannot be read.
    """
    series = _one_series(folder)
    file, header = series.files[0], series.header
    if len(series.files) > 1 or frames_of(header) > 1:
        raise ImageError(f"{folder} should hold one picture, but holds several.")
    with walled(file, " as DICOM"):
        frame = read_frames(file)
        _, rows, columns = frame.shape
        pixel = _region_pixel(header, file)
        plane = Plane(np.zeros(3), np.eye(3)[:2].ravel(), pixel, (rows, columns))
        return Image(np.ascontiguousarray(frame.T), plane_affine(plane, _thickness(header)))


def _one_series(folder: Path) -> Series:
    """Returns the series of a folder that holds images."""
    series = [s for s in list_series(folder) if s.tag("Modality") not in NO_IMAGES]
    if not series:
        raise ImageError(f"{folder} cannot be read: there is no series of DICOM images in it.")
    if len(series) > 1:
        listed = "; ".join(str(s) for s in series)
        raise ImageError(
            f"{folder} should hold one series of DICOM images, but holds {len(series)}: {listed}. "
            "Move each to a folder of its own."
        )
    return series[0]


def read_series(series: Series) -> Image:
    """Reads a series, of slices or of frames in one file or more, in the order of their places.

    Raises:
        ImageError: If files are damaged or contradict one another, slices are missing or stand
            twice, or they are no stack or do not say where they lie.
    """
    if series.damaged:
        raise ImageError(f"{series.damaged[0]} cannot be read as DICOM; export it again.")
    first, *others = files = series.files
    where = first.parent if others else first
    with walled(where, " as DICOM"):
        headers = [_header(file) for file in files]
        order, affine = _arranged(files, headers, where)
        data = np.empty((headers[0].Columns, headers[0].Rows, len(order)), np.float32)
        places = np.split(np.argsort(order), np.cumsum([frames_of(h) for h in headers])[:-1])
        for file, own in zip(files, places, strict=True):
            data[..., own] = read_frames(file).T
    return Image(data, affine)


def _header(file: Path) -> Dataset:
    """Reads a header that claims no more frames than there is room for in its file."""
    header = read_dataset(file, pixels=False)
    frames, size = frames_of(header), file.stat().st_size
    if not 0 < frames <= size:
        raise ImageError(
            f"{file} cannot be read as DICOM: its header says {frames} frames, in {size} bytes; "
            "export it again."
        )
    return header


def _arranged(
    files: Sequence[Path], headers: Sequence[Dataset], where: Path
) -> tuple[np.ndarray, Affine]:
    """Returns the order of the frames of all files along their normal, and their affine."""
    check_voxels((sum(map(frames_of, headers)), headers[0].Rows, headers[0].Columns))
    _check_mosaic(headers[0], where)
    frames = [
        (file.name, header, k)
        for file, header in zip(files, headers, strict=True)
        for k in range(frames_of(header))
    ]
    planes = [plane_of(header, k, where) for _, header, k in frames]
    order, along = stacked(planes, where)
    check_repeats([frames[k] for k in order], along, where)
    step = even_step(along, where) or _thickness(headers[0])
    return order, plane_affine(planes[order[0]], step)


def _check_mosaic(header: Dataset, where: Path) -> None:
    """Raises an ImageError for a picture that is made of slices side by side."""
    tiles = header[MOSAIC].value if MOSAIC in header else 1
    if "MOSAIC" in (header.get("ImageType") or ()) or tiles != 1:
        raise ImageError(
            f"{where} cannot be used: its pictures are Siemens mosaics, which hold all slices "
            "side by side; convert them to NIfTI first, with dcm2niix."
        )


def _region_pixel(header: Dataset, where: Path) -> tuple[float, float]:
    """Returns the distance between rows and between columns that ultrasound regions say, mm."""
    found = {
        (float(region.PhysicalDeltaY), float(region.PhysicalDeltaX))
        for region in header.get("SequenceOfUltrasoundRegions") or []
        if region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == CM
    }
    if len(found) != 1:
        raise ImageError(
            f"{where} cannot be used: it says neither where it lies nor, as an ultrasound region, "
            "how large its pixels are; save it as NIfTI with its spacing."
        )
    ((rows, columns),) = found
    return 10 * abs(rows), 10 * abs(columns)


def _thickness(header: Dataset) -> float:
    """Returns how thick a single slice is, mm."""
    found = said(header, 0, "SpacingBetweenSlices") or said(header, 0, "SliceThickness")
    return float(found or 1)
