"""Intensities that networks can learn from."""

from __future__ import annotations

__all__ = ["MEDIANS", "at_level", "level_of", "normalise"]

import numpy as np

from .images import Mask, Volume

MEDIANS = {"t2": 0.30, "cet1": 0.40, "flair": 0.45}
"""The median in view of a normalised MR volume, on a scale from 0 to 1."""

OTHER = 0.40
"""The median in view of a normalised volume of any other modality."""


def normalise(image: Volume, fov: Mask, modality: str) -> Volume:
    """Maps intensities to [-1, 1], -1 outside the field of view.

    Arguments:
        image: The intensities, non-negative in view.
        fov: The field of view, with the same shape.
        modality: The name of the modality, see `level_of`.

    Raises:
        ValueError: As of `level_of`.
    """
    unit = at_level(image, level_of(image, fov, modality))
    unit[~fov] = -1
    return unit.astype(np.float32, copy=False)


def at_level(image: Volume, level: float) -> Volume:
    r"""Maps intensities from 0 to a level to [-1, 1], and clips what lies outside.

    .. math:: 2 \min(\max(x / \ell, 0), 1) - 1

    Arguments:
        image: The intensities :math:`x`.
        level: The level :math:`\ell`.
    """
    unit = image / level
    np.clip(unit, 0, 1, out=unit)
    unit *= 2
    unit -= 1
    return unit


def level_of(image: Volume, fov: Mask, modality: str) -> float:
    """Returns the intensity that normalisation maps to 1.

    It is 255 for ultrasound. MR has no unit: its level puts the median of the tissue in view on
    `MEDIANS`. The median is robust where a high percentile follows vessels, rims and fluid and
    makes the gain of a volume unpredictable.

    Arguments:
        image: The intensities, non-negative in view.
        fov: The field of view, with the same shape.
        modality: The name of the modality; "us" is ultrasound, all others are scaled like MR.

    Raises:
        ValueError: If intensities in view are negative, or too faint to be scaled, or if the
            maximum of ultrasound is at most 1 or above 255.
    """
    inside = image[fov]
    if not (inside >= 0).all():
        raise ValueError(
            f"'image' should not be negative in view, but its minimum is {inside.min():.4g}."
        )
    if modality == "us":
        if not 1 < inside.max() <= 255.5:
            raise ValueError(
                "'image' should be ultrasound in 0 to 255, but its maximum in view is "
                f"{inside.max():.4g}; rescale it."
            )
        return 255.0
    tissue = inside[inside > 0.02 * np.percentile(inside, 99.5)]
    median = np.median(tissue) if tissue.size else 0.0
    if median < np.finfo(np.float32).tiny:
        raise ValueError(
            f"'image' should show tissue in view, but the median there is {median:.4g}."
        )
    return float(median / MEDIANS.get(modality, OTHER))
