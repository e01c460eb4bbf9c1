"""Planes of DICOM images in space: where slices and frames lie, and whether they are a stack."""

from __future__ import annotations

__all__ = ["frame_orientation", "frame_position", "plane_affine", "shared_or_frame", "stacked"]

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from .geometry import LPS_TO_RAS, Affine
from .volumes import ImageError

STEP = 0.01
"""By how much the distances between slices of a series may differ, relative."""


ASIDE = 0.1
"""How far a slice may be shifted within its plane against the others, mm."""


def stacked(
    positions: np.ndarray, orientation: Sequence[float] | np.ndarray, where: Path
) -> tuple[np.ndarray, float]:
    """Returns the order of slices along their normal, and the distance between them.

    The distance is 0 for a single slice.

    Raises:
        ImageError: If two slices are in one place, some are missing, or the stack is tilted.
    """
    right, down = np.reshape(np.asarray(orientation, float), (2, 3))
    normal = np.cross(right, down)
    along = positions @ normal
    beside = positions - np.outer(along, normal)
    if np.ptp(beside, axis=0).max() > ASIDE:
        raise ImageError(
            f"{where} cannot be used: its slices are not stacked at right angles (tilted gantry); "
            "resample it first."
        )
    order = np.argsort(along, kind="stable")
    return order, _even_steps(along[order], where)


def _even_steps(along: Sequence[float] | np.ndarray, where: Path) -> float:
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
    orientation: Sequence[float] | np.ndarray,
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


def frame_position(header: Dataset, frame: int) -> np.ndarray:
    """Returns where the first pixel of a frame lies, mm, in the patient or in the volume."""
    return _either(shared_or_frame(header, frame, "PlanePosition"), "ImagePosition")


def frame_orientation(header: Dataset) -> np.ndarray:
    """Returns the directions of rows and columns of the first frame."""
    return _either(shared_or_frame(header, 0, "PlaneOrientation"), "ImageOrientation")


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


def _either(group: Dataset, name: str) -> np.ndarray:
    """A place as MR says it, or as volumes of ultrasound do."""
    value = group.get(f"{name}Patient") or group.get(f"{name}Volume")
    if value is None:
        raise KeyError(f"its frames have no {name}Patient")
    return np.asarray(value, float)
