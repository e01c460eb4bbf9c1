"""The ultrasound probe: its pose, the voxel grid that it defines, and its fan."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .tissues import Array

__all__ = ["STANDOFF", "Fan", "ProbeGrid", "choose_pose", "random_fan"]

STANDOFF = 6.0
"""How far the images reach above the point that the probe touches, mm."""


@dataclass(frozen=True)
class ProbeGrid:
    """The voxel grid of all images of a patient: axes (depth, lateral, slice)."""

    contact: Array
    """The point on the brain that the probe touches, mm."""
    directions: Array
    """The unit vectors along depth, lateral and elevation as columns, shape (3, 3)."""
    size: int
    """The number of pixels along depth and along lateral."""
    spacing: float
    """The spacing of those pixels, mm."""
    slices: int
    """The number of slices."""
    slice_spacing: float
    """The distance between slices, mm."""

    @property
    def voxel(self) -> tuple[float, float, float]:
        """The spacing along each axis, mm."""
        return (self.spacing, self.spacing, self.slice_spacing)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of voxels along each axis."""
        return (self.size, self.size, self.slices)

    @property
    def depths(self) -> Array:
        """The depth of each row below the point of contact, mm."""
        return ((np.arange(self.size) + 0.5) * self.spacing - STANDOFF).astype(np.float32)

    @property
    def laterals(self) -> Array:
        """The lateral position of each column, mm, zero in the middle."""
        return ((np.arange(self.size) + 0.5 - self.size / 2) * self.spacing).astype(np.float32)

    @property
    def elevations(self) -> Array:
        """The position of each slice, mm, zero in the middle."""
        return ((np.arange(self.slices) - (self.slices - 1) / 2) * self.slice_spacing).astype(
            np.float32
        )

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """The map from voxel indices to mm in the world of the atlas (RAS), shape (4, 4)."""
        first = np.array([self.depths[0], self.laterals[0], self.elevations[0]])
        affine = np.eye(4)
        affine[:3, :3] = self.directions * np.array(self.voxel)
        affine[:3, 3] = self.contact + self.directions @ first
        return affine

    def points(self) -> Array:
        """Returns the position of every voxel, mm, with shape (3, depth, lateral, slice)."""
        axes = (
            self.depths[:, None, None],
            self.laterals[None, :, None],
            self.elevations[None, None, :],
        )
        points = np.empty((3, *self.shape), dtype=np.float32)
        for i in range(3):
            points[i] = self.contact[i] + sum(self.directions[i, j] * axes[j] for j in range(3))
        return points

    def to_voxels(self, points: Array) -> Array:
        r"""Returns the voxel indices of points with shape :math:`(3, *)` in mm; the inverse."""
        axis = (3,) + (1,) * (points.ndim - 1)
        first = np.array([self.depths[0], self.laterals[0], self.elevations[0]])
        relative = np.einsum("ji,j...->i...", self.directions, points - self.contact.reshape(axis))
        return (relative - first.reshape(axis)) / np.array(self.voxel).reshape(axis)


@dataclass(frozen=True)
class Fan:
    """The sector that a curved array sees, in the plane of the image."""

    apex: float
    """The depth of the centre of curvature, mm; above the image, hence negative."""
    radius: float
    """The radius of the array, mm."""
    reach: float
    """How far the beams go from the array, mm."""
    half_angle: float
    """Half the opening angle, radians."""

    def polar(self, grid: ProbeGrid) -> tuple[Array, Array]:
        """Returns the distance from the apex (mm) and the beam angle of every pixel."""
        down = grid.depths[:, None] - np.float32(self.apex)
        across = grid.laterals[None, :]
        return np.hypot(down, across), np.arctan2(across, down)

    def contains(self, grid: ProbeGrid) -> npt.NDArray[np.bool_]:
        """Returns which pixels of an image lie in the fan."""
        distance, angle = self.polar(grid)
        near, far = self.radius, self.radius + self.reach
        return (distance >= near) & (distance <= far) & (np.abs(angle) <= self.half_angle)


def choose_pose(
    rng: np.random.Generator, contact: Array, target: Array
) -> npt.NDArray[np.float32]:
    """Points the beam from the craniotomy roughly at the tumour, with a random roll.

    Arguments:
        rng: The source of randomness.
        contact: The point of the brain surface that the probe touches, mm.
        target: The centre of the tumour, mm.

    Returns:
        The unit vectors along depth, lateral and elevation as columns: a rotation matrix.
    """
    beam = (target - contact) / np.linalg.norm(target - contact) + 0.15 * rng.standard_normal(3)
    beam /= np.linalg.norm(beam)
    helper = np.eye(3)[np.argmin(np.abs(beam))]
    first = np.cross(beam, helper)
    first /= np.linalg.norm(first)
    second = np.cross(beam, first)
    roll = rng.uniform(0, 2 * np.pi)
    lateral = np.cos(roll) * first + np.sin(roll) * second
    return np.stack([beam, lateral, np.cross(beam, lateral)], axis=1).astype(np.float32)


def random_fan(rng: np.random.Generator) -> Fan:
    """Draws a curved array of a neurosurgical scanner, its cap just above the brain."""
    half_angle = np.deg2rad(rng.uniform(32, 44))
    radius = rng.uniform(14, 24)
    cap = rng.uniform(0.5, 4) - STANDOFF
    return Fan(
        apex=float(cap - radius * np.cos(half_angle)),
        radius=float(radius),
        reach=float(rng.uniform(70, 90)),
        half_angle=float(half_angle),
    )
