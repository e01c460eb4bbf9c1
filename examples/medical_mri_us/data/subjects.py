"""Cases in memory: volumes on one grid, normalised, with what is wrong said by name."""

from __future__ import annotations

__all__ = ["CaseError", "Subject", "load_subject", "load_subjects"]

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
from .normalise import normalise


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
    unit = {m: _normalised(case, case.images[m], v, inside, m) for m, v in images.items()}
    targets = {
        m: _normalised(case, path, placed(path, _read(case, path)), inside, m)
        for m, path in case.targets.items()
    }
    label = None
    if case.label is not None:
        values = placed(case.label, _read(case, case.label))
        if not (np.isin(values, range(256))).all():
            raise CaseError(
                f"case {case.name}: {case.label} should hold labels, integers from 0 to 255, but "
                f"lies between {values.min():.4g} and {values.max():.4g}."
            )
        label = _slices_first(values.astype(np.uint8))
    depth, lateral, between = Grid.of(reference).spacing
    return Subject(
        case.name,
        unit,
        _slices_first(inside),
        label,
        spacing=(between, depth, lateral),
        affine=reference.affine,
        targets=targets,
        further=case.further,
    )


def _normalised(case: Case, path: Path, volume: Volume, inside: Mask, modality: str) -> Volume:
    if np.ptp(volume[inside]) == 0:
        raise CaseError(
            f"case {case.name}: {path} is constant in view; leave its cell empty if missing."
        )
    try:
        return _slices_first(normalise(volume, inside, modality))
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
