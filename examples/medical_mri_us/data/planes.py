"""Planes of DICOM images in space: where slices and frames lie, and whether they are a stack."""

from __future__ import annotations

__all__ = [
    "Plane",
    "UnplacedError",
    "even_step",
    "functional_group",
    "plane_affine",
    "plane_of",
    "said",
    "stacked",
]

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from .geometry import LPS_TO_RAS, Affine
from .volumes import ImageError


class UnplacedError(ImageError):
    """Pictures that do not say where they lie."""


STEP = 0.01
"""By how much the distances between slices of a series may differ, relative."""

ASIDE = 0.1
"""How far a slice may be shifted within its plane against the others, mm."""

TURN = 1e-3
"""By how much the directions of two slices that are parallel may differ."""

NAMES = ("sagittal", "coronal", "axial")
"""The names of planes, by the axis of the patient that their normal is nearest to."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Plane:
    """The place of a slice or a frame, in the axes of DICOM (left, back, up), mm."""

    position: Vector
    """The place of the first pixel, (3)."""
    orientation: Vector
    """The directions of rows and of columns, (6)."""
    pixel: tuple[float, float]
    """The distance between rows, and between columns."""
    shape: tuple[int, int]
    """The numbers of rows and of columns."""

    @property
    def normal(self) -> Vector:
        """The direction at right angles to rows and columns."""
        right, down = np.reshape(self.orientation, (2, 3))
        return np.cross(right, down)

    @property
    def name(self) -> str:
        """The name of the plane, nearly."""
        return NAMES[int(np.abs(self.normal).argmax())]

    @property
    def pixels(self) -> str:
        """Its pixels in words."""
        (rows, columns), (down, right) = self.shape, self.pixel
        return f"{rows} x {columns} pixels of {down:g} x {right:g} mm"


def plane_of(header: Dataset, frame: int, where: Path) -> Plane:
    """Returns where a frame lies, as each frame says it or, in older files, the first one.

    Frames of older files lie along the normal of the first one.

    Arguments:
        header: The attributes of a file.
        frame: The number of the frame, from 0.
        where: What errors name.

    Raises:
        UnplacedError: If the file does not say so.
    """
    position = _any(header, frame, "ImagePositionPatient", "ImagePositionVolume")
    orientation = _any(header, frame, "ImageOrientationPatient", "ImageOrientationVolume")
    pixel = said(header, frame, "PixelSpacing")
    between = 0.0
    if frame and "PerFrameFunctionalGroupsSequence" not in header:
        between = header.get("SpacingBetweenSlices")
    if None in (position, orientation, pixel, between):
        raise UnplacedError(
            f"{where} cannot be used: it does not say where it lies in the patient, as 2-D "
            "ultrasound and screenshots never do; export a volume, or reconstruct one from a "
            "tracked sweep."
        )
    rows, columns = (float(n) for n in pixel)
    plane = Plane(
        np.asarray(position, float),
        np.asarray(orientation, float),
        (rows, columns),
        (int(header.Rows), int(header.Columns)),
    )
    if not between:
        return plane
    place = plane.position + frame * float(between) * plane.normal
    return Plane(place, plane.orientation, plane.pixel, plane.shape)


def stacked(planes: Sequence[Plane], where: Path) -> tuple[npt.NDArray[np.int64], Vector]:
    """Returns the order of slices along their normal, and their places there in that order, mm.

    Raises:
        ImageError: If slices lie in differing planes, or the stack is tilted.
    """
    first = planes[0]
    turned = [np.abs(p.orientation - first.orientation).max() > TURN for p in planes]
    if any(turned):
        counts = ", ".join(f"{n} {name}" for name, n in Counter(p.name for p in planes).items())
        raise ImageError(
            f"{where} holds slices of differing planes ({counts}), as a localizer does; take a "
            "series of parallel slices."
        )
    sizes = {p.pixels for p in planes}
    if len(sizes) > 1:
        raise ImageError(
            f"{where} holds slices of differing planes, {' and '.join(sorted(sizes))}; take a "
            "series of slices that are alike."
        )
    positions = np.array([p.position for p in planes])
    along = positions @ first.normal
    beside = positions - np.outer(along, first.normal)
    if np.ptp(beside, axis=0).max() > ASIDE:
        raise ImageError(
            f"{where} cannot be used: its slices are not stacked at right angles (tilted gantry); "
            "resample it first."
        )
    order = np.argsort(along, kind="stable")
    return order, along[order]


def even_step(along: Vector, where: Path) -> float:
    """Returns the distance between slices, given their sorted places along the normal, mm.

    It is 0 for a single slice.

    Raises:
        ImageError: If the distances differ.
    """
    steps = np.diff(along)
    if not steps.size:
        return 0.0
    if np.ptp(steps) > STEP * np.median(steps) + 1e-3:
        raise ImageError(
            f"{where} cannot be used: its slices are {steps.min():.4g} to {steps.max():.4g} mm "
            "apart; some are missing."
        )
    return float((along[-1] - along[0]) / len(steps))


def plane_affine(plane: Plane, step: float) -> Affine:
    """Returns the affine, RAS, of slices stacked along the normal, indexed (column, row, slice).

    Arguments:
        plane: The first slice.
        step: The distance between slices, mm.
    """
    right, down = np.reshape(plane.orientation, (2, 3))
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = right * plane.pixel[1], down * plane.pixel[0]
    lps[:3, 2] = plane.normal * step
    lps[:3, 3] = plane.position
    return LPS_TO_RAS @ lps


def functional_group(header: Dataset, frame: int, group: str) -> Dataset | None:
    """Returns a functional group of a frame, its own or that of all frames; None if none is."""
    for place in _groups(header, frame):
        found = place.get(f"{group}Sequence")
        if found:
            return found[0]
    return None


def said(header: Dataset, frame: int, name: str) -> Any:  # noqa: ANN401 - a value of DICOM
    """Returns what a file says of a frame: in its functional groups, in those of all, or at all.

    None if it says nothing.
    """
    for place in _groups(header, frame):
        for element in place:
            if element.VR == "SQ" and element.value:
                found = element.value[0].get(name)
                if found is not None and found != "":
                    return found
    return header.get(name) or None


def _groups(header: Dataset, frame: int) -> list[Dataset]:
    """The functional groups of a frame, and those of all frames."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    return [*own[frame : frame + 1], *shared[:1]]


def _any(header: Dataset, frame: int, *names: str) -> Any:  # noqa: ANN401 - a value of DICOM
    """The first of several attributes that is there: MR and volumes of ultrasound differ."""
    return next((v for n in names if (v := said(header, frame, n)) is not None), None)
