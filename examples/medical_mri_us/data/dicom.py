"""Series of DICOM files: told apart by their tags, never by the names of files or folders."""

from __future__ import annotations

__all__ = ["Series", "list_series", "read_folder", "read_series"]

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from tqdm import tqdm

from .foreign import check_voxels, inflate_raw, read_bytes, walled
from .formats import from_itk
from .planes import frame_orientation, frame_position, plane_affine, shared_or_frame, stacked
from .volumes import Image, ImageError

SIMPLE = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing",
          "SpacingBetweenSlices")  # fmt: skip
"""The attributes that place the frames of older files."""

TAGS = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality", "SeriesDescription",
        "StudyDescription", "SeriesNumber")  # fmt: skip
"""The attributes that tell series apart."""

DEFLATED = "1.2.840.10008.1.2.1.99"
"""The transfer syntax whose data set is compressed, without a checksum."""

RAW = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED})
"""The transfer syntaxes whose pixels are not encapsulated."""


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
        return f"{self.tag('Modality')} '{what}', {len(self.files)} files, {self.uid}"


def list_series(folder: str | Path, *, progress: bool = False) -> list[Series]:
    """Finds the series in a folder and the folders below, in the order of their numbers.

    Files that are not DICOM are passed over.

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
            header = read_dataset(file, pixels=False)
            uid, *_ = (str(header.get(name, "") or "") for name in TAGS)
        except InvalidDicomError:
            continue
        except Exception:  # of any type, for what is damaged
            damaged.append(file)
            continue
        if uid:
            found[uid].append(file)
            headers.setdefault(uid, header)
        elif file.name != "DICOMDIR":
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
    if series.damaged:
        raise ImageError(f"{series.damaged[0]} cannot be read as DICOM; export it again.")
    with walled(where, " as DICOM"):
        if len(series.files) == 1 and int(series.header.get("NumberOfFrames", 1) or 1) > 1:
            return _read_frames(series)
        return _read_slices(series)


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
        inflate_raw(content[144 + length :])
    dataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
    if pixels:
        _check_pixels(dataset, path)
    return dataset


def _check_pixels(dataset: Dataset, path: Path) -> None:
    """Raises an ImageError unless as many bytes of pixels are there as attributes say."""
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    shape = (frames, dataset.Rows, dataset.Columns, dataset.get("SamplesPerPixel", 1))
    bits = check_voxels(shape) * int(dataset.BitsAllocated)
    stored = len(dataset.PixelData)
    wanted = -(-bits // 16) * 2  # an even number of bytes
    if dataset.file_meta.TransferSyntaxUID in RAW and stored != wanted:
        raise ImageError(
            f"{path} cannot be read as DICOM: it should hold {wanted} bytes of pixels, {frames} x "
            f"{dataset.Rows} x {dataset.Columns}, but holds {stored}; export it again."
        )


def _read_slices(series: Series) -> Image:
    """Reads one file per slice, by the position that each file says."""
    headers = []
    for file in series.files:
        headers.append(read_dataset(file))
        del headers[-1].PixelData
    first = headers[0]
    check_voxels((len(headers), first.Rows, first.Columns))
    orientation = np.asarray(first.ImageOrientationPatient, float)
    for header in headers:
        turned = np.abs(np.asarray(header.ImageOrientationPatient, float) - orientation).max()
        if turned > 1e-3 or header.PixelSpacing != first.PixelSpacing:
            raise ImageError(f"{series.files[0].parent} holds slices of differing planes.")
    positions = np.array([np.asarray(h.ImagePositionPatient, float) for h in headers])
    order, step = stacked(positions, orientation, series.files[0].parent)
    step = step or float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(series.files[k]) for k in order])
    data = from_itk(reader.Execute(), series.files[0].parent).data
    return Image(data, plane_affine(orientation, positions[order[0]], first.PixelSpacing, step))


def _read_frames(series: Series) -> Image:
    """Reads one file of many frames, by the position that each frame says.

    Older files say where the first one lies and how far apart the others are, along the normal.
    """
    header = series.header
    path = series.files[0]
    read_dataset(path)
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # (frame, row, column)
    count = int(header.NumberOfFrames)
    if frames.ndim != 3 or len(frames) != count:
        raise ImageError(f"{path} should hold {count} grey frames, but has {frames.shape}.")
    if "PerFrameFunctionalGroupsSequence" in header:
        positions = np.array([frame_position(header, k) for k in range(count)])
        orientation = frame_orientation(header)
        pixel = shared_or_frame(header, 0, "PixelMeasures").PixelSpacing
        order, step = stacked(positions, orientation, path)
        frames, first = frames[order], positions[order[0]]
    elif all(name in header for name in SIMPLE):
        orientation, first, pixel, step = (header[name].value for name in SIMPLE)
    else:
        raise ImageError(f"{path} cannot be used: its frames say nothing of where they lie.")
    data = np.ascontiguousarray(frames.T.astype(np.float32))
    return Image(data, plane_affine(orientation, first, pixel, float(step)))
