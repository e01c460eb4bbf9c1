"""Series of DICOM files: told apart by their tags, never by the names of files or folders."""

from __future__ import annotations

__all__ = ["Series", "list_series", "read_folder", "read_series"]

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from .formats import from_itk
from .geometry import LPS_TO_RAS, Affine
from .volumes import Image, ImageError

STEP = 0.01
"""By how much the distances between slices of a series may differ, relative."""


@dataclass(frozen=True, eq=False)
class Series:
    """The files with one SeriesInstanceUID, and what their tags say."""

    uid: str
    files: tuple[Path, ...]
    header: Dataset
    """All tags of the first file, without pixels."""

    def tag(self, name: str) -> str:
        """Returns a tag as text, empty if there is none."""
        return str(self.header.get(name, "") or "").strip()

    def __str__(self) -> str:
        """Returns what a person needs to find the series again."""
        what = self.tag("SeriesDescription") or "without description"
        return f"{self.tag('Modality')} '{what}', {len(self.files)} files, {self.uid}"


def list_series(folder: str | Path) -> list[Series]:
    """Finds the series in a folder and the folders below, in the order of their numbers.

    Files that are not DICOM are passed over.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    headers: dict[str, Dataset] = {}
    for file in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except (InvalidDicomError, OSError, EOFError):
            continue
        uid = str(header.get("SeriesInstanceUID", ""))
        if uid:
            found[uid].append(file)
            headers.setdefault(uid, header)
    series = [Series(uid, tuple(files), headers[uid]) for uid, files in found.items()]
    return sorted(series, key=lambda s: (int(s.tag("SeriesNumber") or 0), s.uid))


def read_folder(folder: Path) -> Image:
    """Reads the one series of images in a folder.

    Raises:
        ImageError: If there is none, there are several, or it cannot be read.
    """
    series = [s for s in list_series(folder) if s.tag("Modality") not in ("SEG", "SR", "PR")]
    if not series:
        raise ImageError(f"{folder} cannot be read: there is no series of DICOM images in it.")
    if len(series) > 1:
        listed = "; ".join(str(s) for s in series)
        raise ImageError(
            f"{folder} should hold one series of DICOM images, but holds {len(series)}: {listed}. "
            "Move each to a folder of its own."
        )
    return read_series(series[0])


def read_series(series: Series) -> Image:
    """Reads a series of slices, or one file of many frames, in the order of their positions.

    Raises:
        ImageError: If files are damaged or contradict one another, or slices are missing.
    """
    where = series.files[0].parent
    try:
        if len(series.files) == 1 and int(series.header.get("NumberOfFrames", 1) or 1) > 1:
            return _read_frames(series)
        headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in series.files]
        normal = _normal(headers[0])
        along = np.array([np.dot(normal, _position(h)) for h in headers])
        order = np.argsort(along, kind="stable")
        even_steps(along[order], where)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(series.files[k]) for k in order])
        image = from_itk(reader.Execute(), where)
    except (
        RuntimeError,
        KeyError,
        AttributeError,
        TypeError,
        InvalidDicomError,
        OSError,
    ) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ImageError(
            f"{where} cannot be read as DICOM: {reason[0]}; export it again."
        ) from error
    return image


def even_steps(along: Sequence[float] | np.ndarray, where: Path) -> float:
    """Returns the distance between slices, given their sorted places along the normal, mm.

    Raises:
        ImageError: If two slices are in one place, or the distances differ.
    """
    steps = np.diff(along)
    if not steps.size:
        return 0.0
    if steps.min() <= 0 or np.ptp(steps) > STEP * np.median(steps) + 1e-3:
        raise ImageError(
            f"{where} cannot be used: its slices are {steps.min():.4g} to {steps.max():.4g} mm "
            "apart; some are missing or stand twice."
        )
    return float((along[-1] - along[0]) / len(steps))


def plane_affine(
    orientation: Sequence[float],
    position: Sequence[float] | np.ndarray,
    pixel: Sequence[float],
    step: float,
) -> Affine:
    """Returns the affine, RAS, of slices stacked along the normal, indexed (column, row, slice).

    Arguments:
        orientation: ImageOrientationPatient, the directions of rows and columns.
        position: ImagePositionPatient of the first slice.
        pixel: PixelSpacing, between rows and between columns.
        step: The distance between slices.
    """
    right, down = np.reshape(np.asarray(orientation, float), (2, 3))
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = right * float(pixel[1]), down * float(pixel[0])
    lps[:3, 2] = np.cross(right, down) * step
    lps[:3, 3] = np.asarray(position, float)
    return LPS_TO_RAS @ lps


def _read_frames(series: Series) -> Image:
    """Reads one file of many frames, by the position that each frame says."""
    header = series.header
    path = series.files[0]
    if "PerFrameFunctionalGroupsSequence" not in header:
        raise ImageError(f"{path} cannot be used: its frames say nothing of where they lie.")
    positions = np.array([frame_position(header, k) for k in range(int(header.NumberOfFrames))])
    orientation = shared_or_frame(header, 0, "PlaneOrientation").ImageOrientationPatient
    measures = shared_or_frame(header, 0, "PixelMeasures")
    right, down = np.reshape(np.asarray(orientation, float), (2, 3))
    along = positions @ np.cross(right, down)
    order = np.argsort(along, kind="stable")
    step = even_steps(along[order], path)
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # (frame, row, column)
    if frames.ndim != 3 or len(frames) != len(order):
        raise ImageError(f"{path} should hold {len(order)} grey frames, but has {frames.shape}.")
    data = np.ascontiguousarray(frames[order].T.astype(np.float32))
    first = positions[order[0]]
    return Image(data, plane_affine(orientation, first, measures.PixelSpacing, step))


def frame_position(header: Dataset, frame: int) -> np.ndarray:
    """Returns ImagePositionPatient of a frame."""
    return np.asarray(shared_or_frame(header, frame, "PlanePosition").ImagePositionPatient, float)


def shared_or_frame(header: Dataset, frame: int, group: str) -> Dataset:
    """Returns a functional group of a frame, its own or that of all frames.

    Raises:
        KeyError: If there is none.
    """
    own = header.PerFrameFunctionalGroupsSequence[frame]
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for name in (f"{group}Sequence", f"{group}VolumeSequence"):
        for place in (own, shared[0]):
            if name in place:
                return place[name].value[0]
    raise KeyError(f"its frames have no {group}Sequence")


def _normal(header: Dataset) -> np.ndarray:
    right, down = np.reshape(np.asarray(header.ImageOrientationPatient, float), (2, 3))
    return np.cross(right, down)


def _position(header: Dataset) -> np.ndarray:
    return np.asarray(header.ImagePositionPatient, float)
