"""Cases on disk: arrays by modality, of which a slice is read when it is asked for."""

from __future__ import annotations

__all__ = ["FOLDER", "StoredSubject", "pad", "store_subject", "store_subjects"]

import json
import math
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel import orientations
from tqdm import tqdm

from mmpoe.training import scratch, sweep, write_file

from .geometry import Affine
from .grids import Grid, turn_to
from .images import Mask, Volume, image_files
from .index import Case
from .normalise import at_level
from .subjects import CaseError, Volumes, read_volumes

FOLDER = "slices"
"""The name of the folder, beside an index, of the cases that are stored."""

FORMAT = 1
"""Raised by one whenever what is stored changes; cases of another format are stored anew."""


@dataclass(frozen=True, eq=False)
class StoredSubject:
    """One case on disk. It gives the slices of a `Subject`, bit for bit, and holds none of them.

    A file is opened for each slice and closed behind it, so that no memory stays mapped, any
    number of cases is open to a process, and processes that load batches share nothing.
    """

    name: str
    folder: Path
    """The folder of the arrays, with axes (slice, depth, lateral)."""
    images: Mapping[str, float]
    """The intensities that become 1, by observed modality."""
    targets: Mapping[str, float]
    """The levels of images to synthesise instead."""
    grid: Grid
    """The grid of the files of the case."""
    visible: npt.NDArray[np.bool_]
    """Whether a slice shows something, in the order of the files."""
    checksums: Mapping[str, npt.NDArray[np.uint32]]
    """The CRC-32 of each slice, by array."""
    further: Mapping[str, str] = field(default_factory=dict)
    """The text of further columns of the index."""
    axes: str | None = None
    """The directions that the axes are turned to, if they are, see `turned`."""
    least: int = 0
    """The least height and width of slices; smaller ones are padded."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of slices, and their height and width."""
        height, width, slices = self._turned.shape
        return slices, max(height, self.least), max(width, self.least)

    @property
    def shown(self) -> npt.NDArray[np.bool_]:
        """Whether a slice shows something, one entry for each."""
        return self.visible[:: int(self._turn[2, 1])]

    @property
    def affine(self) -> Affine:
        """Voxel indices, whose last axis counts slices, to mm, RAS."""
        return self._turned.affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The distances between voxels, mm: the one between slices first."""
        rows, columns, between = self._turned.spacing
        return between, rows, columns

    def cut(self, k: int) -> tuple[dict[str, Volume], dict[str, Volume], Mask]:
        """Returns slice `k`: images, targets of those that have one, and the field of view.

        Raises:
            CaseError: If a file is not what was stored.
        """
        k = int(np.arange(len(self.visible))[:: int(self._turn[2, 1])][k])
        images = {m: self._image(m, level, k) for m, level in self.images.items()}
        targets = {m: self._image(f"target_{m}", level, k) for m, level in self.targets.items()}
        fov = np.unpackbits(self._read("fov", k), axis=-1, count=self.grid.shape[1]).astype(bool)
        return images, targets, self._placed(fov, False)

    @property
    def _turn(self) -> np.ndarray:
        if self.axes is None:
            return np.array([[0, 1], [1, 1], [2, 1]])
        turn = turn_to(self.grid.affine, self.axes)
        if turn[2, 0] != 2:
            raise ValueError(
                f"'axes' should turn slices of {self.name} within their plane, but is {self.axes}."
            )
        return turn

    @property
    def _turned(self) -> Grid:
        """The grid of slices as they are turned, before they are padded."""
        if self.axes is None:
            return self.grid
        turn, shape = self._turn, self.grid.shape
        affine = self.grid.affine @ orientations.inv_ornt_aff(turn, shape)
        height, width = (shape[int(k)] for k in np.argsort(turn[:2, 0]))
        return Grid((height, width, shape[2]), affine)

    def _image(self, column: str, level: float, k: int) -> Volume:
        stored = self._read(column, k).astype(np.float32)
        return self._placed(at_level(stored, level), -1)

    def _placed(self, image: np.ndarray, fill: float) -> np.ndarray:
        if self.axes is not None:
            image = orientations.apply_orientation(image, self._turn[:2])
        return np.ascontiguousarray(pad(image, self.least, fill))

    def _read(self, column: str, k: int) -> np.ndarray:
        path = self.folder / f"{column}.npy"
        try:
            stored = np.array(np.load(path, mmap_mode="r")[k])
            intact = zlib.crc32(stored.data) == self.checksums[column][k]
        except (OSError, ValueError, IndexError, TypeError) as error:
            raise CaseError(f"case {self.name}: {path} cannot be read: {error}.") from error
        if not intact:
            raise CaseError(
                f"case {self.name}: {path} is damaged in slice {k}; remove {self.folder}, and it "
                "is made again from the files of the case."
            )
        return stored


def pad(slices: np.ndarray, least: int, fill: float) -> np.ndarray:
    """Puts slices that are smaller than a size in the middle of larger ones.

    Arguments:
        slices: Slices, (*, height, width).
        least: The least height and width.
        fill: The value around them.
    """
    missing = [max(0, least - side) for side in slices.shape[-2:]]
    if not any(missing):
        return slices
    edges = [(0, 0)] * (slices.ndim - 2) + [(n // 2, n - n // 2) for n in missing]
    return np.pad(slices, edges, constant_values=fill)


def store_subjects(
    cases: Sequence[Case], folder: Path, *, progress: bool = True
) -> tuple[list[StoredSubject], list[CaseError]]:
    """Opens cases that were stored, and stores the others.

    A case is stored anew if one of its files has changed: its size, the checksum at the end of a
    compressed one, or the date of any other.

    Arguments:
        cases: The cases.
        folder: The folder of the stored cases.
        progress: Whether to show a progress bar.

    Returns:
        The cases that could be stored, and what was wrong with the others.

    Raises:
        OSError: If the folder cannot be written to.
    """
    subjects, problems = [], []
    sweep(folder)
    for case in tqdm(cases, desc="Opening", unit="case", disable=not progress):
        try:
            subjects.append(_opened(case, folder) or store_subject(case, folder))
        except CaseError as error:
            problems.append(error)
            tqdm.write(f"Left out: {error}")
    return subjects, problems


def store_subject(case: Case, folder: Path) -> StoredSubject:
    """Reads a case and writes its arrays, one for each modality, in a folder with its name.

    Intensities are stored as they are, 0 out of view: as 16-bit integers if all are whole numbers
    from 0 to 65535, and otherwise as 32-bit floating-point numbers, so that nothing is lost. The
    field of view has one bit for each voxel. `case.json` holds the rest.

    Arguments:
        case: The case.
        folder: The folder of the stored cases.

    Raises:
        CaseError: If the case cannot be used, see `read_volumes`.
        OSError: If the folder cannot be written to.
    """
    sources = _sources(case)
    found = read_volumes(case)
    folder.mkdir(parents=True, exist_ok=True)
    with scratch(folder) as partial:
        checksums = {}
        for column, stored in _arrays(found).items():
            np.save(partial / f"{column}.npy", stored, allow_pickle=False)
            checksums[column] = [zlib.crc32(image.data) for image in stored]
        about = {
            "format": FORMAT,
            "sources": sources,
            "levels": found.levels,
            "target_levels": found.target_levels,
            "shape": found.grid.shape,
            "affine": found.grid.affine.tolist(),
            "visible": found.fov.any(axis=(0, 1)).nonzero()[0].tolist(),
            "checksums": checksums,
        }
        write_file(partial / "case.json", json.dumps(about).encode())
        if (other := _opened(case, folder)) is not None:  # by another process, which may read it
            return other
        shutil.rmtree(folder / case.name, ignore_errors=True)
        partial.rename(folder / case.name)
    return _subject(case, folder / case.name, about)


def _arrays(found: Volumes) -> dict[str, np.ndarray]:
    """The arrays to store, slices first."""
    volumes = {**found.images, **{f"target_{m}": v for m, v in found.targets.items()}}
    arrays = {}
    for column, volume in volumes.items():
        shown = np.where(found.fov, volume, np.float32(0))
        whole = shown.min() >= 0 and shown.max() <= 65535 and np.array_equal(shown, np.rint(shown))
        arrays[column] = shown.astype(np.uint16) if whole else shown
    arrays = {c: np.ascontiguousarray(np.moveaxis(v, -1, 0)) for c, v in arrays.items()}
    return {**arrays, "fov": np.packbits(np.moveaxis(found.fov, -1, 0), axis=-1)}


def _opened(case: Case, folder: Path) -> StoredSubject | None:
    """Returns a case if it was stored, and its files are as they were then."""
    place = folder / case.name
    try:
        about = json.loads((place / "case.json").read_bytes())
        if about["format"] != FORMAT or not _same(about["sources"], _sources(case)):
            return None
        subject = _subject(case, place, about)
        for column in subject.checksums:
            np.load(place / f"{column}.npy", mmap_mode="r")  # as long as its header says
    except CaseError:
        raise
    except Exception:  # of any type, for what was damaged: it is stored anew
        return None
    return subject


def _subject(case: Case, place: Path, about: Mapping[str, Any]) -> StoredSubject:
    height, width, slices = map(int, about["shape"])
    visible = np.zeros(slices, bool)
    visible[about["visible"]] = True
    columns = [*case.images, *(f"target_{m}" for m in case.targets), "fov"]
    levels = {m: float(about["levels"][m]) for m in case.images}
    target_levels = {m: float(about["target_levels"][m]) for m in case.targets}
    if not all(0 < level < math.inf for level in [*levels.values(), *target_levels.values()]):
        raise ValueError(f"levels should be positive and finite, but are {about['levels']}")
    return StoredSubject(
        case.name,
        place,
        levels,
        target_levels,
        Grid((height, width, slices), np.array(about["affine"], np.float64)),
        visible,
        {column: np.array(about["checksums"][column], np.uint32) for column in columns},
        case.further,
    )


def _sources(case: Case) -> dict[str, list[list[Any]]]:
    """The name and size of all files of a case, and what tells a change of each, by column.

    Raises:
        CaseError: If one is not there, or is a header that cannot be read.
    """
    paths = {**case.images, **{f"target_{m}": path for m, path in case.targets.items()}}
    if case.fov is not None:
        paths["fov"] = case.fov
    found = {}
    for column, path in paths.items():
        try:
            found[column] = [_mark(file) for file in image_files(path)]
        except (OSError, ValueError) as error:
            raise CaseError(f"case {case.name}: {path} cannot be read: {error}") from error
    return found


def _mark(file: Path) -> list[Any]:
    stat = file.stat()
    if file.suffix.lower() != ".gz" or stat.st_size < 8:
        return [file.name, stat.st_size, int(stat.st_mtime)]
    with file.open("rb") as stream:  # a copy of a data set has other dates
        stream.seek(-8, os.SEEK_END)
        return [file.name, stat.st_size, stream.read().hex()]


def _same(stored: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a case was stored from the same files; without a view of its own, from no others."""
    return all(stored.get(c) == now[c] for c in now) and ("fov" in now or len(stored) == len(now))
