"""Background of images that have no unit, and the view: all that is not background."""

from __future__ import annotations

__all__ = ["fill_slices", "remove_background"]

import numpy as np
from scipy import ndimage

from .volumes import Mask, Volume

CORNER = 16
"""The side of a volume is this many times that of the cubes in its corners."""

SHARE = 0.5
"""The share of the voxels in the corners that have to be alike."""

RIPPLE = 0.01
"""How far values may be from the background that interpolation left uneven, in parts of the
range of a volume."""

TWO_SIDED = 0.1
"""The weight below the background, in parts of that above, from which on tissue lies there."""

ENDS = (0.5, 50.0, 99.5)
"""The percentiles of tissue that count as its lowest, middle and highest intensity."""

FLOOR = 1e-3
"""That lowest intensity, in parts of the range: above the background, which is 0."""


def remove_background(image: Volume) -> tuple[Volume, str]:
    """Sets the background of an image to 0, and tissue above it.

    The background is the value that most voxels in the corners share. Interpolation by splines
    leaves ripples around it, and negative values: they become 0 as well. If as much lies below the
    background as above, as with z-scores of the tissue alone, both sides are tissue: 0 is then as
    far below its median as the highest intensity is above it, or further, so that none saturates
    in `normalise`. Without a value that the corners share, the least value becomes 0.

    Arguments:
        image: The intensities, of any unit.

    Returns:
        The intensities, at least 0, and a sentence on what was done; empty if there is nothing
        that one would want to know.
    """
    found = _in_corners(image)
    if found is None:
        low = image.min()
        return (image, "") if low == 0 else (image - low, "")
    value, near = found
    above, below = image > value + near, image < value - near
    under, over = _weight(value - image, below), _weight(image - value, above)
    if under > TWO_SIDED * over:
        tissue = above | below
        lowest, middle, highest = np.percentile(image[tissue], ENDS)
        low = min(lowest, 2 * middle - highest)
        floor = FLOOR * (image.max() - low)
        shifted = np.where(tissue, np.maximum(image - low, floor), 0).astype(np.float32)
        return shifted, (
            f"intensities lie on both sides of the background, {value:.4g}, as z-scores do; "
            f"{low:.4g} became 0"
        )
    if not near and not below.any():
        return (image, "") if value == 0 else (image - np.float32(value), "")
    removed = np.where(above, image - np.float32(value), 0).astype(np.float32)
    if not below.any():
        return removed, ""
    share = 100 * below.sum() / below.size
    return removed, (
        f"{share:.2g} % of the voxels lie below the background, {value:.4g}, as interpolation "
        "leaves them; they became background"
    )


def fill_slices(shown: Mask, axis: int = -1) -> Mask:
    """Fills the holes of a mask slice by slice: what is dark inside a view belongs to it.

    Arguments:
        shown: The mask.
        axis: The axis that counts slices.
    """
    slices = np.moveaxis(shown, axis, 0)
    filled = [np.asarray(ndimage.binary_fill_holes(s), bool) for s in slices]
    return np.ascontiguousarray(np.moveaxis(np.stack(filled), 0, axis))


def _in_corners(image: Volume) -> tuple[float, float] | None:
    """Returns the value that the corners share, and how far from it is background too."""
    ends = [(slice(0, n), slice(-n, None)) for n in (max(1, s // CORNER) for s in image.shape)]
    corners = np.concatenate(
        [image[i, j, k].ravel() for i in ends[0] for j in ends[1] for k in ends[2]]
    )
    value = float(np.median(corners))
    if (corners == value).mean() >= SHARE:
        return value, 0.0
    near = RIPPLE * float(np.ptp(image))
    alike = (np.abs(corners - value) <= near).mean() >= SHARE
    return (value, near) if alike and image.min() < 0 else None


def _weight(distance: Volume, where: Mask) -> float:
    return float(distance[where].sum(dtype=np.float64))
