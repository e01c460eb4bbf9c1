"""The grid of a prepared case: around what the ultrasound shows, with square slices."""

from __future__ import annotations

__all__ = ["label_on", "reference_grid", "slices_last", "widest"]

import numpy as np

from examples.medical_mri_us.data import Grid, Image, axis_codes, reorient, resample
from examples.medical_mri_us.data.foreign import check_voxels
from examples.medical_mri_us.data.geometry import SHEAR, Affine, spacing_of

ANISOTROPIC = 2.0
"""A third axis at least this much coarser than the others keeps its spacing."""

PLANES = {"S": "PLS", "A": "ILA", "R": "IPR"}
"""The directions of rows, columns and slices, by the axis along which slices are counted."""


def reference_grid(image: Image, spacing: float, size: int) -> tuple[Grid, float]:
    """Finds the grid that all images of a case are brought to.

    The image is cropped to what is above 0, brought to the spacing, cropped again, and its first
    two axes are cropped or padded around the centre to one size; the third counts slices. Axes
    that are sheared become the nearest ones at right angles.

    Arguments:
        image: The reference, usually the ultrasound; its background is 0.
        spacing: The distance between voxels, mm; slices that are much further apart stay so.
        size: The number of voxels along the first two axes.

    Returns:
        The grid, and the share of what is above 0 that is cropped by the size.

    Raises:
        ValueError: If the image shows nothing, or has too many voxels at that spacing.
    """
    image = _straight(image)
    first = _cropped(image.data > 0, image.affine)
    found = spacing_of(image.affine)
    steps = [spacing, spacing, spacing]
    if found[2] >= ANISOTROPIC * max(found[0], found[1]):
        steps[2] = found[2]
    finer = _respaced(first, steps)
    shown = resample(image, finer) > 0
    grid = _squared(_cropped(shown, finer.affine), size)
    places = np.rint(np.linalg.solve(finer.affine, grid.affine)[:2, 3]).astype(int)
    rows, columns = (slice(max(0, p), max(0, p + size)) for p in places)
    return grid, float(1 - shown[rows, columns].sum() / shown.sum())


def widest(image: Image) -> float:
    """Returns how far an image shows something above 0 along its first two axes, mm."""
    image = _straight(image)
    grid = _cropped(image.data > 0, image.affine)
    return max(n * s for n, s in zip(grid.shape[:2], grid.spacing[:2], strict=True))


def slices_last(image: Image) -> Image:
    """Turns an image until its last axis counts slices, in the same order for all images.

    Slices are those that are much further apart than their pixels, or axial ones if there are
    none. No voxel changes.

    Example:
        >>> sagittal = Image(np.ones((4, 4, 4), np.float32), np.diag([1.0, 1.0, 1.0, 1.0]))
        >>> axis_codes(slices_last(sagittal).affine)
        'PLS'
    """
    spacing = spacing_of(image.affine)
    coarse = int(np.argmax(spacing))
    letter = "S"
    if spacing[coarse] >= ANISOTROPIC * max(s for k, s in enumerate(spacing) if k != coarse):
        letter = axis_codes(image.affine)[coarse].translate(str.maketrans("LPI", "RAS"))
    return reorient(image, PLANES[letter])


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


def _straight(image: Image) -> Image:
    """Resamples an image whose axes are sheared to a grid whose axes are not."""
    spacing = np.array(spacing_of(image.affine))
    axes = image.affine[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() <= SHEAR:
        return image
    left, _, right = np.linalg.svd(axes)
    affine = np.eye(4)
    affine[:3, :3] = left @ right * spacing  # the nearest right angles
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(image.data.shape) - 1)
    moved = np.linalg.solve(affine, image.affine)
    places = corners @ moved[:3, :3].T + moved[:3, 3]
    low = np.floor(places.min(axis=0))
    x, y, z = (np.ceil(places.max(axis=0)) - low + 1).astype(int).tolist()
    grid = Grid((x, y, z), _shifted(affine, low))
    return Image(resample(image, grid), grid.affine)


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
