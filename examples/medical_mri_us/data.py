"""From an index of NIfTI files to normalised slices, for training and for evaluation."""

from __future__ import annotations

__all__ = ["Case", "CaseError", "Slices", "Subject", "load_subjects", "normalise", "read_index"]

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mmpoe.missing import collate

from .modalities import MODALITIES

MEDIANS = {"t2": 0.30, "cet1": 0.40, "flair": 0.45}
"""Where the median of an MR volume's field of view is put, on a scale from 0 to 1."""

TOLERANCE = 1e-3
"""How far the grids of one case may lie apart, mm."""

UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)
"""What goes wrong when a file is not the image that it should be."""

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class CaseError(ValueError):
    """A case whose files cannot be used: the message names the case, the file and the reason."""


@dataclass(frozen=True)
class Case:
    """One row of an index: where the files of a case are. A modality that is absent is missing."""

    name: str
    split: str
    images: dict[str, Path]
    fov: Path
    label: Path | None


@dataclass(frozen=True)
class Subject:
    """One case in memory: normalised volumes with axes (slice, depth, lateral)."""

    name: str
    images: dict[str, Volume]
    """The observed modalities, between -1 and 1, -1 outside the field of view."""
    fov: Mask
    """Where the images are to be looked at and scored."""
    label: npt.NDArray[np.uint8] | None
    """Tumour labels, if there are any."""


def read_index(path: str | Path) -> list[Case]:
    """Reads an index: a CSV file with one row per case and one column per file.

    The columns are ``case``, ``split``, the modalities, ``fov``, ``label`` and ``landmarks``
    (which is not read here). Files are relative to the index; an empty cell is a missing file.

    Arguments:
        path: The CSV file.

    Raises:
        ValueError: If the file is not text in UTF-8, a column is missing or unknown, a case stands
            twice or has no modality, or a file lies outside the folder of the index. The message
            names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"'path' should be an index file, but there is none at {path}.")
    known = ["case", "split", *MODALITIES, "fov", "label", "landmarks"]
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    header = list(reader.fieldnames or [])
    wrong = [column for column in header if column not in known]
    lacking = [column for column in ("case", "split", "fov") if column not in header]
    if wrong or lacking:
        raise ValueError(
            f"{path} should have columns among {', '.join(known)}, with case, split and fov, "
            f"but has {', '.join(header)}."
        )
    cases: dict[str, Case] = {}
    for row in reader:
        case = _case(row, path, reader.line_num)
        if case.name in cases:
            raise ValueError(f"{path}, line {reader.line_num}: case {case.name} stands twice.")
        cases[case.name] = case
    return list(cases.values())


def load_subjects(
    cases: Sequence[Case], *, progress: bool = True
) -> tuple[list[Subject], list[CaseError]]:
    """Loads cases; a case whose files are broken is reported by name, and the rest go on.

    Arguments:
        cases: The cases.
        progress: Whether to show a progress bar.

    Returns:
        The cases that could be loaded, and what was wrong with the others.
    """
    subjects, problems = [], []
    for case in tqdm(cases, desc="Loading", unit="case", disable=not progress):
        try:
            subjects.append(_load(case))
        except CaseError as error:
            problems.append(error)
            tqdm.write(f"Left out: {error}")
    return subjects, problems


def normalise(image: Volume, fov: Mask, modality: str) -> Volume:
    """Maps intensities to [-1, 1], -1 outside the field of view.

    Ultrasound, in 0 to 255, is divided by 255. MR has no unit: it is scaled so that the median of
    the tissue in view lands on `MEDIANS`, and clipped. The median is robust where a high
    percentile follows vessels, rims and fluid and makes the gain of a volume unpredictable.

    Arguments:
        image: The intensities, non-negative in view.
        fov: The field of view, with the same shape.
        modality: The name of the modality.

    Raises:
        ValueError: If intensities in view are negative, or too faint to be scaled.
    """
    inside = image[fov]
    if not (inside >= 0).all():
        raise ValueError(
            f"'image' should not be negative in view, but its minimum is {inside.min():.4g}."
        )
    if modality == "us":
        unit = image / 255
    else:
        tissue = inside[inside > 0.02 * np.percentile(inside, 99.5)]
        median = np.median(tissue) if tissue.size else 0.0
        if median < np.finfo(np.float32).tiny:
            raise ValueError(
                f"'image' should show tissue in view, but the median there is {median:.4g}."
            )
        unit = image * (MEDIANS[modality] / median)
    return np.where(fov, 2 * np.clip(unit, 0, 1) - 1, -1).astype(np.float32)


class Slices(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """The slices of some subjects, each a mapping of what was observed and its field of view.

    Arguments:
        subjects: The subjects.
        flip: Whether to mirror every other slice at random, left to right.
    """

    def __init__(self, subjects: Sequence[Subject], *, flip: bool = False) -> None:
        self.subjects, self.flip = subjects, flip
        self.places = [
            (s, k)
            for s, subject in enumerate(subjects)
            for k in range(len(subject.fov))
            if subject.fov[k].any()
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        s, k = self.places[index]
        subject = self.subjects[s]
        images = {m: torch.from_numpy(v[k])[None] for m, v in subject.images.items()}
        fov = torch.from_numpy(subject.fov[k])[None]
        if self.flip and torch.rand(()) < 0.5:
            images = {m: image.flip(-1) for m, image in images.items()}
            fov = fov.flip(-1)
        return images, fov

    def weights(self, share: float) -> list[float]:
        """Weights for sampling slices, with a share of draws from who has the rarest modality.

        Arguments:
            share: The share of draws, between 0 and 1, that go to subjects with that modality; the
                others go to all subjects alike.
        """
        counts = {m: sum(m in s.images for s in self.subjects) for m in MODALITIES}
        rarest = min((m for m in MODALITIES if counts[m]), key=lambda m: counts[m])
        holds = [rarest in self.subjects[s].images for s, _ in self.places]
        return [(1 - share) / len(holds) + share * h / sum(holds) for h in holds]


def batch_slices(
    slices: Sequence[tuple[dict[str, Tensor], Tensor]],
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Makes a batch: images by modality (B, 1, H, W), what was observed (B, M), fields of view."""
    x, observed = collate([images for images, _ in slices], MODALITIES)
    return x, observed, torch.stack([fov for _, fov in slices])


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}: the index should be text in UTF-8, but is not ({error.reason})."
        ) from error


def _case(row: dict[str, str], path: Path, line: int) -> Case:
    root = path.parent.resolve()

    def file(column: str) -> Path | None:
        cell = (row.get(column) or "").strip()
        if not cell:
            return None
        found = (root / cell).resolve()
        if not found.is_relative_to(root):
            raise ValueError(f"{path}, line {line}: {cell} lies outside the folder of the index.")
        return found

    name, split = (row["case"] or "").strip(), (row["split"] or "").strip()
    images = {m: f for m in MODALITIES if (f := file(m)) is not None}
    fov = file("fov")
    if not name or not split or not images or fov is None:
        raise ValueError(
            f"{path}, line {line}: a case should have a name, a split, a field of view and at "
            f"least one modality, but holds {row}."
        )
    return Case(name, split, images, fov, file("label"))


def _load(case: Case) -> Subject:
    fov, affine = _read(case, case.fov)
    inside = fov > 0
    if not inside.any():
        raise CaseError(f"case {case.name}: {case.fov} marks no voxel as in view.")

    images = {}
    for m, path in case.images.items():
        image, grid = _read(case, path)
        _check_grid(case, path, image.shape, grid, fov.shape, affine)
        if not np.isfinite(image).all():
            raise CaseError(f"case {case.name}: {path} holds NaN or infinity.")
        if np.ptp(image[inside]) == 0:
            raise CaseError(
                f"case {case.name}: {path} is constant in view; leave its cell empty if missing."
            )
        try:
            images[m] = _slices_first(normalise(image, inside, m))
        except ValueError as error:
            raise CaseError(f"case {case.name}: {path} cannot be used: {error}") from error

    label = None
    if case.label is not None:
        values, grid = _read(case, case.label)
        _check_grid(case, case.label, values.shape, grid, fov.shape, affine)
        label = _slices_first(values.astype(np.uint8))
    return Subject(case.name, images, _slices_first(inside), label)


def _read(case: Case, path: Path) -> tuple[Volume, npt.NDArray[np.float64]]:
    """Reads a NIfTI file whole, checksum included: lazy reading would miss a damaged archive."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        image = nib.Nifti1Image.from_bytes(content)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CaseError(f"case {case.name}: {path} cannot be read: {reason}") from error
    if data.ndim != 3:
        raise CaseError(
            f"case {case.name}: {path} should be a volume, but has shape {data.shape}."
        )
    affine = image.affine
    assert affine is not None  # NIfTI files always have one
    return data, affine


def _check_grid(
    case: Case,
    path: Path,
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    wanted_shape: tuple[int, ...],
    wanted: npt.NDArray[np.float64],
) -> None:
    if shape != wanted_shape or np.abs(affine - wanted).max() > TOLERANCE:
        raise CaseError(
            f"case {case.name}: {path} should lie on the grid of {case.fov.name}, "
            f"{wanted_shape}, but has shape {shape} and an affine that differs by up to "
            f"{np.abs(affine - wanted).max():.4g}."
        )


def _slices_first(volume: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(volume, -1, 0))
