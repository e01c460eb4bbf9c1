"""Voxel grids: comparing, resampling and turning volumes."""

from __future__ import annotations

__all__ = ["Grid", "axis_codes", "reorient", "resample", "same_grid", "turn_to"]

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel import orientations
from scipy import ndimage

from .geometry import Affine, corner_distance, spacing_of
from .volumes import Image, Volume


@dataclass(frozen=True, eq=False)
class Grid:
    """The places of the voxels of a volume. Compare grids with `same_grid`."""

    shape: tuple[int, int, int]
    affine: Affine
    """Voxel indices to mm, RAS."""

    @classmethod
    def of(cls, image: Image) -> Grid:
        """Returns the grid of an image."""
        x, y, z = image.data.shape
        return cls((x, y, z), image.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The distances between voxels, mm."""
        return spacing_of(self.affine)

    def __str__(self) -> str:
        """Returns the grid in words, as in ``192 x 192 x 32 of 0.5 x 0.5 x 2 mm (RAS)``."""
        shape = " x ".join(str(n) for n in self.shape)
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing)
        return f"{shape} of {spacing} mm ({axis_codes(self.affine)})"


def same_grid(a: Grid, b: Grid, tolerance_mm: float = 1e-3) -> bool:
    """Whether two grids have as many voxels in the same places, to within a tolerance.

    Arguments:
        a: A grid.
        b: The other.
        tolerance_mm: How far any voxel may be from its twin, mm.
    """
    return a.shape == b.shape and corner_distance(a.shape, a.affine, b.affine) <= tolerance_mm


def resample(image: Image, grid: Grid, order: int = 1, *, through: Affine | None = None) -> Volume:
    r"""Looks an image up at the voxels of a grid.

    Voxel :math:`i` of the grid, at :math:`G i`, shows voxel :math:`A^{-1} T G i` of the image.
    A voxel of the image is a box around its centre, so that places up to half a voxel beyond the
    outermost centres show what is nearest; further out the result is 0.

    Arguments:
        image: The image, with affine :math:`A`.
        grid: The grid, with affine :math:`G`.
        order: The degree of the interpolation: 0 nearest, 1 linear, 3 cubic.
        through: A (4, 4) matrix :math:`T` from points of the grid to points of the image, both in
            mm, RAS; by default they are the same points.

    Returns:
        The volume, with the shape of the grid.
    """
    moved = grid.affine if through is None else through @ grid.affine
    matrix = np.linalg.solve(image.affine, moved)
    found = np.empty(grid.shape, np.float32)
    ndimage.affine_transform(image.data, matrix, output=found, order=order, mode="nearest")
    i, j, k = (np.arange(n, dtype=float) for n in grid.shape)
    for row, size in zip(matrix, image.data.shape, strict=False):
        place = row[0] * i[:, None, None] + row[1] * j[:, None] + (row[2] * k + row[3])
        found[(place < -0.5 - EDGE) | (place > size - 0.5 + EDGE)] = 0
    return found


EDGE = 1e-6
"""How far beyond the edge of a voxel still counts as inside, in voxels: rounding errors."""


def axis_codes(affine: Affine) -> str:
    """Returns where the axes of voxels point to, nearly: ``"RAS"`` is right, front, up.

    Example:
        >>> axis_codes(np.diag([-1.0, 1.0, 2.0, 1.0]))
        'LAS'
    """
    return "".join(nib.aff2axcodes(affine))


def reorient(image: Image, axes: str) -> Image:
    """Permutes and mirrors the axes of an image until they point as asked; no voxel changes.

    ``reorient(reorient(image, "RAS"), axis_codes(image.affine))`` is the image again.

    Arguments:
        image: The image.
        axes: Where its axes shall point to, as of `axis_codes`.

    Raises:
        ValueError: If the axes are not one each of R or L, A or P, S or I.
    """
    turn = turn_to(image.affine, axes)
    data = np.ascontiguousarray(orientations.apply_orientation(image.data, turn))
    affine = image.affine @ orientations.inv_ornt_aff(turn, image.data.shape)
    return Image(data, affine)


def turn_to(affine: Affine, axes: str) -> np.ndarray:
    """Returns the axis that each axis of an image becomes, and its sign, as nibabel has it.

    Arguments:
        affine: Voxel indices to mm, RAS.
        axes: Where its axes shall point to, as of `axis_codes`.

    Raises:
        ValueError: If the axes are not one each of R or L, A or P, S or I.
    """
    if sorted(axes.translate(str.maketrans("LPI", "RAS"))) != sorted("RAS"):
        raise ValueError(
            f"'axes' should name one each of R or L, A or P, S or I, but is {axes!r}."
        )
    now = orientations.io_orientation(affine)
    return orientations.ornt_transform(now, orientations.axcodes2ornt(axes))
