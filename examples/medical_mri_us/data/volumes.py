"""A volume with its place in the world, and the error of a file that is none."""

from __future__ import annotations

__all__ = ["Image", "ImageError", "Mask", "Volume"]

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .geometry import Affine

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class ImageError(ValueError):
    """A file that is no usable image: the message names it, the reason, and what to do."""


@dataclass(frozen=True, eq=False)
class Image:
    """A volume with its place in the world."""

    data: Volume
    """The intensities, with the three axes in the order of the file."""
    affine: Affine
    """Voxel indices to mm, RAS."""
