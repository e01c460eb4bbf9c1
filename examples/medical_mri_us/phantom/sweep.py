"""A freehand sweep: overlapping frames, seen from several angles and joined into one volume."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .probe import Fan, ProbeGrid
from .tissues import Array

__all__ = ["Frame", "compound", "random_frames", "sweep_bands"]

_EDGE = 0.12  # radians, over which a frame fades in from the side of its fan


@dataclass(frozen=True)
class Frame:
    """The place of the probe for one frame, in the plane of a slice."""

    tilt: float
    """The rotation about the point of contact, radians."""
    offset: float
    """The shift along the skin, mm."""
    gain: float
    """How much brighter the frame is than others, dB: pressure on the probe varies."""

    def polar(self, fan: Fan, grid: ProbeGrid) -> tuple[Array, Array]:
        """Returns the distance from the apex (mm) and the beam angle of every pixel."""
        depth, lateral = grid.depths[:, None], grid.laterals[None, :] - np.float32(self.offset)
        cos, sin = np.float32(np.cos(self.tilt)), np.float32(np.sin(self.tilt))
        down = cos * depth + sin * lateral - np.float32(fan.apex)
        across = cos * lateral - sin * depth
        return np.hypot(down, across), np.arctan2(across, down)

    def pixels(
        self, fan: Fan, grid: ProbeGrid, ranges: Array, angles: Array
    ) -> tuple[Array, Array]:
        """Returns the row and the column of the points of every beam; inverse to `polar`."""
        along = (fan.radius + ranges)[:, None]
        down, across = fan.apex + along * np.cos(angles), along * np.sin(angles)
        cos, sin = np.float32(np.cos(self.tilt)), np.float32(np.sin(self.tilt))
        depth = cos * down - sin * across
        lateral = sin * down + cos * across + np.float32(self.offset)
        return (depth - grid.depths[0]) / grid.spacing, (lateral - grid.laterals[0]) / grid.spacing


def random_frames(rng: np.random.Generator, slices: int, count: int) -> list[list[Frame]]:
    """Draws the frames that each slice is compounded of.

    The first looks straight ahead and covers the whole fan; the others are tilted to either side,
    alike in all slices but for the unsteadiness of a hand and the error of the tracking.

    Arguments:
        rng: The source of randomness.
        slices: The number of slices.
        count: The number of frames per slice.
    """
    tilts = np.deg2rad(rng.uniform(3, 10, count)) * np.where(np.arange(count) % 2, 1, -1)
    offsets = rng.normal(0, 1.5, count)
    tilts[0] = offsets[0] = 0
    gains = rng.normal(0, 0.8, (slices, count))
    unsteady = rng.normal(0, 1, (slices, count, 2)) * [np.deg2rad(0.4), 0.25]
    return [
        [
            Frame(float(tilts[j] + unsteady[k, j, 0]), float(o + unsteady[k, j, 1]), float(g))
            for j, (o, g) in enumerate(zip(offsets, gains[k], strict=True))
        ]
        for k in range(slices)
    ]


def compound(decibel: Array, angle: Array, half_angle: float) -> Array:
    r"""Averages the displayed values of frames, those at the side of a fan with less weight.

    Arguments:
        decibel: The frames :math:`d_j`, dB, with shape :math:`(J, D, L)`.
        angle: The beam angle of each pixel in each frame, with the same shape.
        half_angle: Half the opening angle of the fan; beyond, only the first frame counts.

    Returns:
        The mean :math:`\sum_j w_j d_j / \sum_j w_j`, with shape :math:`(D, L)`.
    """
    weight = np.clip((half_angle - np.abs(angle)) / _EDGE, 0, 1)
    weight[0] = np.maximum(weight[0], 1e-3)
    return (weight * decibel).sum(0) / weight.sum(0)


def sweep_bands(rng: np.random.Generator, grid: ProbeGrid) -> Array:
    """Draws the stripes of a reconstruction, dB, with the shape of the grid.

    The slices of a volume cut the frames of a sweep at an angle, in bands a few mm wide. Each
    has a gain of its own, and where the hand moved fast a gap between two of them was filled
    from what lies around, too faint.
    """
    slant, advance = rng.uniform(-0.35, 0.35), rng.uniform(-1.5, 1.5)
    position = (
        grid.laterals[None, :, None]
        + slant * grid.depths[:, None, None]
        + advance * grid.elevations[None, None, :]
    )
    fine = np.arange(-160.0, 160.0, 0.25)  # mm
    borders = np.cumsum(rng.uniform(2.5, 7.0, 160)) - 170
    gains = rng.normal(0, 0.7, len(borders) + 1)
    profile = gains[np.searchsorted(borders, fine)]
    for gap in borders[rng.random(len(borders)) < 0.12]:
        width, loss = rng.uniform(0.3, 0.6), rng.uniform(2, 6)
        profile -= loss * np.exp(-0.5 * ((fine - gap) / width) ** 2)
    profile = ndimage.gaussian_filter1d(profile, 1.2)
    return np.interp(position, fine, profile).astype(np.float32)
