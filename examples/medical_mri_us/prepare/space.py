"""The grid of a prepared case: around what the ultrasound shows, with square slices."""

from __future__ import annotations

__all__ = ["label_on", "reference_grid"]

import numpy as np

from examples.medical_mri_us.data import Grid, Image, resample
from examples.medical_mri_us.data.foreign import check_voxels
from examples.medical_mri_us.data.geometry import Affine, spacing_of

ANISOTROPIC = 2.0
"""A third axis at least this much coarser than the others keeps its spacing."""


def reference_grid(image: Image, spacing: float, size: int) -> Grid:
    """Returns the grid that all images of a case are brought to.

    The image is cropped to what is above 0, brought to the spacing, cropped again, and its first
    two axes are cropped or padded around the centre to one size; the third counts slices.

    Arguments:
        image: The reference, usually the ultrasound; its background is 0.
        spacing: The distance between voxels, mm; slices that are much further apart stay so.
        size: The number of voxels along the first two axes.

    Raises:
        ValueError: If the image shows nothing, or has too many voxels at that spacing.
    """
    first = _cropped(image.data > 0, image.affine)
    found = spacing_of(image.affine)
    steps = [spacing, spacing, spacing]
    if found[2] >= ANISOTROPIC * max(found[0], found[1]):
        steps[2] = found[2]
    finer = _respaced(first, steps)
    second = _cropped(resample(image, finer) > 0, finer.affine)
    return _squared(second, size)


def label_on(label: Image, grid: Grid, through: Affine | None) -> np.ndarray:
    """Looks labels up at the voxels of a grid: each is interpolated, and the largest one wins.

    Edges are smoother than those of the nearest voxel, and no label appears that was not there.
    """
    values = np.unique(label.data)
    if not np.isin(values, range(256)).all():
        raise ValueError(
            f"labels should be integers from 0 to 255, but lie between {values.min():.4g} and "
            f"{values.max():.4g}."
        )
    shown = Image((label.data != 0).astype(np.float32), label.affine)
    best = 1 - resample(shown, grid, through=through)  # the share of the background
    found = np.zeros(grid.shape, np.uint8)
    for value in values[values != 0]:
        one = Image((label.data == value).astype(np.float32), label.affine)
        share = resample(one, grid, through=through)
        found[share > best] = value
        best = np.maximum(best, share)
    return found


def _cropped(shown: np.ndarray, affine: Affine) -> Grid:
    """The smallest box of voxels that holds all that are shown."""
    if not shown.any():
        raise ValueError("it shows nothing: no voxel is above 0.")
    low, shape = [], []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        where = np.flatnonzero(shown.any(axis=others))
        low.append(int(where[0]))
        shape.append(int(where[-1] - where[0] + 1))
    return Grid((shape[0], shape[1], shape[2]), _shifted(affine, low))


def _respaced(grid: Grid, steps: list[float]) -> Grid:
    """A grid over the same box, with another spacing: both have their centre in one place."""
    scale = np.array(steps) / grid.spacing
    old = np.array(grid.shape)
    new = np.maximum(1, np.rint(old / scale)).astype(int)
    affine = _shifted(grid.affine, (old - 1) / 2 - scale * (new - 1) / 2)
    affine[:3, :3] *= scale
    check_voxels(new.tolist())
    return Grid((int(new[0]), int(new[1]), int(new[2])), affine)


def _squared(grid: Grid, size: int) -> Grid:
    offsets = [(n - size) // 2 for n in grid.shape[:2]]
    return Grid((size, size, grid.shape[2]), _shifted(grid.affine, [*offsets, 0]))


def _shifted(affine: Affine, voxels: np.ndarray | list[int]) -> Affine:
    """An affine whose voxel 0 is where another has the given voxel."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(voxels, float)
    return moved
