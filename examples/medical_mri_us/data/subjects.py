"""Cases in memory: volumes on one grid, normalised, with what is wrong said by name."""

from __future__ import annotations

__all__ = [
    "CaseError",
    "Subject",
    "Volumes",
    "load_subject",
    "load_subjects",
    "read_volumes",
]

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from .background import fill_slices
from .geometry import Affine
from .grids import Grid, same_grid
from .images import Image, ImageError, Mask, Volume, read_image
from .index import Case
from .normalise import at_level, level_of


class CaseError(ValueError):
    """A case whose files cannot be used: the message names the case, the file and the reason."""


@dataclass(frozen=True)
class Subject:
    """One case in memory: normalised volumes with axes (slice, depth, lateral)."""

    name: str
    images: dict[str, Volume]
    """The observed modalities, between -1 and 1, -1 outside the field of view."""
    fov: Mask
    """The field of view, inside which images are scored."""
    label: npt.NDArray[np.uint8] | None
    """Tumour labels, if there are any."""
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """The distances between voxels, mm, along the same axes: the one between slices first."""
    affine: Affine = field(default_factory=lambda: np.eye(4))
    """Voxel indices of the files, whose last axis counts slices, to mm, RAS."""
    targets: dict[str, Volume] = field(default_factory=dict)
    """Images to synthesise instead, where the index has them; normalised alike."""
    further: dict[str, str] = field(default_factory=dict)
    """The text of further columns of the index."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of slices, and their height and width."""
        slices, height, width = self.fov.shape
        return slices, height, width

    @property
    def shown(self) -> npt.NDArray[np.bool_]:
        """Whether a slice shows something, one entry for each."""
        return np.asarray(self.fov.any(axis=(1, 2)))

    def cut(self, k: int) -> tuple[dict[str, Volume], dict[str, Volume], Mask]:
        """Returns slice `k`: images, targets of those that have one, and the field of view."""
        images, targets = ({m: v[k] for m, v in of.items()} for of in (self.images, self.targets))
        return images, targets, self.fov[k]


@dataclass(frozen=True)
class Volumes:
    """The files of a case as they were read, in the order of their axes."""

    images: dict[str, Volume]
    """The intensities of observed modalities, which can be normalised."""
    targets: dict[str, Volume]
    """The intensities of images to synthesise instead."""
    levels: dict[str, float]
    """The intensities that normalisation maps to 1, see `level_of`, by modality."""
    target_levels: dict[str, float]
    """The levels of images to synthesise instead."""
    fov: Mask
    label: npt.NDArray[np.uint8] | None
    grid: Grid


def load_subjects(
    cases: Sequence[Case], *, progress: bool = True
) -> tuple[list[Subject], list[CaseError]]:
    """Loads cases; a case whose files are broken is reported by name, and the rest are loaded.

    Arguments:
        cases: The cases.
        progress: Whether to show a progress bar.

    Returns:
        The cases that could be loaded, and what was wrong with the others.
    """
    subjects, problems = [], []
    for case in tqdm(cases, desc="Loading", unit="case", disable=not progress):
        try:
            subjects.append(load_subject(case))
        except CaseError as error:
            problems.append(error)
            tqdm.write(f"Left out: {error}")
    return subjects, problems


def load_subject(case: Case) -> Subject:
    """Loads a case.

    Raises:
        CaseError: See `read_volumes`.
    """
    found = read_volumes(case)

    def normalised(volumes: dict[str, Volume], levels: dict[str, float]) -> dict[str, Volume]:
        return {
            m: _slices_first(np.where(found.fov, at_level(v, levels[m]), np.float32(-1)))
            for m, v in volumes.items()
        }

    depth, lateral, between = found.grid.spacing
    return Subject(
        case.name,
        normalised(found.images, found.levels),
        _slices_first(found.fov),
        None if found.label is None else _slices_first(found.label),
        spacing=(between, depth, lateral),
        affine=found.grid.affine,
        targets=normalised(found.targets, found.target_levels),
        further=case.further,
    )


def read_volumes(case: Case) -> Volumes:
    """Reads the files of a case, and checks that they can be used.

    Without a file for the field of view, it is where the ultrasound is above 0 or, without
    ultrasound, where any image is not 0; holes in a slice belong to it.

    Raises:
        CaseError: If a file cannot be read, lies on another grid than the others, is constant in
            view or cannot be normalised, or nothing is in view.
    """
    raw = {m: _read(case, path) for m, path in case.images.items()}
    fov = None if case.fov is None else _read(case, case.fov)
    first = case.images[next(iter(raw))] if case.fov is None else case.fov
    reference = next(iter(raw.values())) if fov is None else fov
    if fov is None:
        shown = [raw["us"].data > 0] if "us" in raw else [i.data != 0 for i in raw.values()]
    else:
        shown = [fov.data > 0]

    def placed(path: Path, image: Image) -> Volume:
        if not same_grid(Grid.of(image), Grid.of(reference)):
            raise CaseError(
                f"case {case.name}: {path} should lie on the grid of {first.name}, "
                f"{Grid.of(reference)}, but lies {_difference(image, reference)}; "
                "prepare with --resample-to brings images to one grid."
            )
        return image.data

    images = {m: placed(case.images[m], image) for m, image in raw.items()}
    inside = np.logical_or.reduce(shown)
    inside = fill_slices(inside) if case.fov is None else inside
    if not inside.any():
        raise CaseError(f"case {case.name}: {first} marks no voxel as in view.")
    levels = {m: _level(case, case.images[m], v, inside, m) for m, v in images.items()}
    targets = {m: placed(path, _read(case, path)) for m, path in case.targets.items()}
    target_levels = {m: _level(case, case.targets[m], v, inside, m) for m, v in targets.items()}
    label = None
    if case.label is not None:
        values = placed(case.label, _read(case, case.label))
        if not (np.isin(values, range(256))).all():
            raise CaseError(
                f"case {case.name}: {case.label} should hold labels, integers from 0 to 255, but "
                f"lies between {values.min():.4g} and {values.max():.4g}."
            )
        label = values.astype(np.uint8)
    return Volumes(images, targets, levels, target_levels, inside, label, Grid.of(reference))


def _level(case: Case, path: Path, volume: Volume, inside: Mask, modality: str) -> float:
    if np.ptp(volume[inside]) == 0:
        raise CaseError(
            f"case {case.name}: {path} is constant in view; leave its cell empty if missing."
        )
    try:
        return level_of(volume, inside, modality)
    except ValueError as error:
        raise CaseError(f"case {case.name}: {path} cannot be used: {error}") from error


def _read(case: Case, path: Path) -> Image:
    try:
        return read_image(path)
    except ImageError as error:
        raise CaseError(f"case {case.name}: {error}") from error


def _difference(image: Image, reference: Image) -> str:
    """Says how two grids differ, down to their origins where only these do."""
    if image.data.shape == reference.data.shape:
        far = np.abs(image.affine - reference.affine).max()
        return f"on {Grid.of(image)}, with an affine that differs by up to {far:.4g}"
    return f"on {Grid.of(image)}"


def _slices_first(volume: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(volume, -1, 0))
