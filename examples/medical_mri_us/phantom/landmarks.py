"""Points on the borders of tissues, known exactly in ultrasound and in MR."""

import csv
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .motion import Motion
from .tissues import TISSUE_NAMES

__all__ = ["LANDMARK_COLUMNS", "Landmarks", "place_landmarks"]

COUNT = 25
MARGIN = 4.0
"""How far from the edge of the field of view landmarks stay, in pixels."""

LANDMARK_COLUMNS = ("landmark", "x_us", "y_us", "z_us", "x_mr", "y_mr", "z_mr", "border")
"""The header of `landmarks.csv`: RAS mm, as the images' affine gives them, and the two tissues."""


@dataclass(frozen=True)
class Landmarks:
    """Corresponding points."""

    us: npt.NDArray[np.float64]
    """Positions in the ultrasound image, mm, with shape (N, 3)."""
    mr: npt.NDArray[np.float64]
    """Positions of the same tissue in the MR images, mm, with shape (N, 3)."""
    border: list[str]
    """The tissues on both sides."""

    def __len__(self) -> int:
        return len(self.border)

    def to_csv(self) -> str:
        """Returns the text of `landmarks.csv`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(LANDMARK_COLUMNS)
        for number, (us, mr, border) in enumerate(zip(self.us, self.mr, self.border, strict=True)):
            writer.writerow([number, *(f"{value:.4f}" for value in (*us, *mr)), border])
        return text.getvalue()


def place_landmarks(
    rng: np.random.Generator,
    tissue: npt.NDArray[np.uint8],
    fov: npt.NDArray[np.bool_],
    affine: npt.NDArray[np.float64],
    shift: Motion | None = None,
    misalignment: Motion | None = None,
) -> Landmarks:
    """Chooses 25 landmarks, spread as evenly as the borders of tissues allow.

    Candidates lie half-way between two neighbouring pixels of a slice that belong to different
    tissues. In ultrasound and in MR they are inside both the volume and the field of view, at
    least four pixels from the edge of the latter. Each chosen one is farthest from those before.

    Arguments:
        rng: The source of randomness.
        tissue: Tissue labels, 0 outside the brain, with axes (depth, lateral, slice).
        fov: The field of view, with the same shape.
        affine: Voxel indices to mm.
        shift: The motion between ultrasound and head, if there is any.
        misalignment: The motion between MR and head, if there is any.

    Returns:
        The landmarks; fewer than 25 where a coarse or thin volume offers fewer candidates.
    """
    inner = np.stack([_depth(fov[..., k]) for k in range(fov.shape[2])], axis=2)
    found, sides = [], []
    for axis in (0, 1):
        first = np.moveaxis(np.moveaxis(tissue, axis, 0)[:-1], 0, axis)
        second = np.moveaxis(np.moveaxis(tissue, axis, 0)[1:], 0, axis)
        where = np.argwhere((first != second) & (first > 0) & (second > 0))
        sides.append(np.stack([array[tuple(where.T)] for array in (first, second)], axis=1))
        found.append(where + 0.5 * np.eye(3)[axis])
    voxels, between = np.concatenate(found), np.concatenate(sides)  # (N, 3), (N, 2)

    us = voxels @ affine[:3, :3].T + affine[:3, 3]
    head = us if shift is None else shift.to_head(us.T).T
    mr = head if misalignment is None else misalignment.from_head(head.T).T
    mr_voxels = (mr - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    usable = _deep_inside(inner, voxels) & _deep_inside(inner, mr_voxels)
    us, mr, between = us[usable], mr[usable], between[usable]
    chosen = _spread(rng, us)
    border = ["/".join(TISSUE_NAMES[label - 1] for label in between[i]) for i in chosen]
    return Landmarks(us[chosen], mr[chosen], border)


def _depth(plane: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Returns how far each pixel in view is from the nearest one that is not, in pixels."""
    return np.asarray(ndimage.distance_transform_edt(np.pad(plane, 1)))[1:-1, 1:-1]


def _deep_inside(inner: npt.NDArray[np.floating], voxels: npt.NDArray[np.float64]) -> np.ndarray:
    """Returns which points keep the margin: all four pixels around them, in the nearest slice."""
    enough = np.ones(len(voxels), dtype=bool)
    slices = np.rint(voxels[:, 2]).astype(int)
    within = (slices >= 0) & (slices < inner.shape[2])
    for rounding in (np.floor, np.ceil):
        for other in (np.floor, np.ceil):
            row = rounding(voxels[:, 0]).astype(int)
            column = other(voxels[:, 1]).astype(int)
            inside = within & (row >= 0) & (row < inner.shape[0])
            inside &= (column >= 0) & (column < inner.shape[1])
            depth = inner[row * inside, column * inside, slices * inside]
            enough &= inside & (depth > MARGIN)
    return enough


def _spread(rng: np.random.Generator, points: npt.NDArray[np.float64]) -> list[int]:
    """Chooses points one after the other, each as far from the former as possible."""
    if len(points) == 0:
        return []
    chosen = [int(rng.integers(len(points)))]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < min(COUNT, len(points)):
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(nearest.argmax()))
    return chosen
