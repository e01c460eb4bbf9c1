"""Affines: their axes and spacing, and whether they can be true."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LPS_TO_RAS", "Affine", "affine_problem", "corner_distance", "spacing_of"]

Affine = npt.NDArray[np.float64]
"""A (4, 4) matrix from voxel indices to mm, in RAS: x to the right, y forwards, z upwards."""

LPS_TO_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the axes of DICOM and ITK to those of NIfTI, and back."""

SPACINGS = (0.1, 10.0)
"""The finest and the coarsest spacing of a voxel that is believed, mm."""

SHEAR = 1e-3
"""The largest cosine between two axes of voxels that counts as a right angle."""


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Returns the distances between voxels along the three axes, mm.

    Example:
        >>> spacing_of(np.diag([0.5, 0.5, 2.0, 1.0]))
        (0.5, 0.5, 2.0)
    """
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def corner_distance(shape: tuple[int, ...], a: Affine, b: Affine) -> float:
    """Returns how far apart two affines put the corners of a volume at most, mm."""
    corners = np.array([[*c, 1] for c in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in shape), 1]
    return float(np.linalg.norm(corners @ (a - b)[:3].T, axis=1).max())


def affine_problem(affine: Affine, *, sheared: bool = False) -> str | None:
    """Says what is wrong with an affine, and what to do about it; None if nothing is.

    Arguments:
        affine: The affine.
        sheared: Whether axes that are not at right angles are fine.
    """
    if not np.isfinite(affine).all():
        return "its affine holds NaN or infinity; write its header again"
    spacing = spacing_of(affine)
    finest, coarsest = SPACINGS
    written = " x ".join(f"{s:.4g}" for s in spacing)
    if min(spacing) < np.finfo(np.float32).tiny:
        return "its affine is singular, with two voxels in one place; write its header again"
    if not finest <= min(spacing) <= max(spacing) <= coarsest:
        return (
            f"its voxels are {written} mm, beyond {finest:g} to {coarsest:g} mm; "
            "check the unit of its header"
        )
    axes = affine[:3, :3] / spacing
    if abs(np.linalg.det(axes)) < 1e-6:
        return "its affine is singular, with two voxels in one place; write its header again"
    if not sheared and np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR:
        return "its axes are sheared, not at right angles; resample it first (prepare does)"
    return None
