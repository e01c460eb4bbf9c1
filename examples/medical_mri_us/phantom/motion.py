"""How ultrasound and MR come to disagree: the brain shifts, and the registration is not exact."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .tissues import Array

__all__ = ["BrainShift", "Motion", "Rigid", "random_misalignment", "random_shift"]

_WIDEST = 34.0  # mm, standard deviations of the bumps that a shift is made of
_NARROWEST = 18.0


class Motion(Protocol):
    """Maps the grid of an image to the head of the patient as it was before the operation."""

    def to_head(self, points: Array) -> Array:
        r"""Maps points of the image, with shape :math:`(3, *)` in mm, to the head."""
        ...

    def from_head(self, points: Array) -> Array:
        """The inverse of `to_head`."""
        ...


@dataclass(frozen=True)
class BrainShift:
    r"""A smooth displacement between MR and ultrasound: tissue at :math:`x - u(x)` moved to x.

    .. math:: u(x) = \sum_k v_k \exp\left(-\tfrac{1}{2} |x - c_k|^2 / w_k^2\right)
    """

    centres: Array
    r"""The centres :math:`c_k`, mm, with shape :math:`(K, 3)`."""
    vectors: Array
    r"""The displacements :math:`v_k`, mm, with shape :math:`(K, 3)`."""
    widths: Array
    r"""The widths :math:`w_k`, mm, with shape :math:`(K)`."""

    def displacement(self, points: Array) -> Array:
        r"""Returns :math:`u` at points with shape :math:`(3, *)`."""
        axis = (3,) + (1,) * (points.ndim - 1)
        total = np.zeros_like(points)
        for centre, vector, width in zip(self.centres, self.vectors, self.widths, strict=True):
            distance2 = ((points - centre.reshape(axis)) ** 2).sum(0)
            total += vector.reshape(axis) * np.exp(-0.5 * distance2 / width**2)
        return total

    def min_jacobian(self, points: Array) -> float:
        r"""Returns the smallest determinant of :math:`\mathrm{d}(x - u)/\mathrm{d}x` at points.

        Arguments:
            points: Where to look, with shape (3, N); positive everywhere means no folds.
        """
        jacobian = np.tile(np.eye(3), (points.shape[1], 1, 1))  # (N, 3, 3)
        for centre, vector, width in zip(self.centres, self.vectors, self.widths, strict=True):
            relative = (points - centre[:, None]).T  # (N, 3)
            bump = np.exp(-0.5 * (relative**2).sum(1) / width**2)
            jacobian += vector[:, None] * relative[:, None, :] * (bump / width**2)[:, None, None]
        return float(np.linalg.det(jacobian).min())

    def to_head(self, points: Array) -> Array:
        """Returns where the tissue at points of the ultrasound image was before the shift."""
        return points - self.displacement(points)

    def from_head(self, points: Array) -> Array:
        """Finds where tissue moved to, by the fixed-point iteration of x = p + u(x)."""
        found = points
        for _ in range(30):
            found = points + self.displacement(found)
        return found


@dataclass(frozen=True)
class Rigid:
    r"""A registration error :math:`x \mapsto R (x - c) + c + t`, from the MR image to the head."""

    rotation: npt.NDArray[np.float64]
    """The rotation matrix, shape (3, 3)."""
    centre: npt.NDArray[np.float64]
    """The point to turn about, mm."""
    translation: npt.NDArray[np.float64]
    """The translation, mm."""

    def to_head(self, points: Array) -> Array:
        """Returns where the MR image at some points was taken from."""
        axis = (3,) + (1,) * (points.ndim - 1)
        turned = _turn(self.rotation, points - self.centre.reshape(axis))
        return turned + (self.centre + self.translation).reshape(axis)

    def from_head(self, points: Array) -> Array:
        """Returns where points of the head appear in the MR image."""
        axis = (3,) + (1,) * (points.ndim - 1)
        moved = points - (self.centre + self.translation).reshape(axis)
        return _turn(self.rotation.T, moved) + self.centre.reshape(axis)


def _turn(rotation: npt.NDArray[np.float64], points: Array) -> Array:
    return np.einsum("ij,j...->i...", rotation, points)


def random_shift(
    rng: np.random.Generator, contact: Array, inward: Array, points: Array, size: float
) -> BrainShift:
    """Draws a brain shift that is largest around the craniotomy.

    The brain sinks along gravity, within some 40 degrees of inward, or in one case of four bulges
    out of the opening; two smaller bumps elsewhere make it less regular.

    Arguments:
        rng: The source of randomness.
        contact: The middle of the craniotomy, mm.
        inward: The unit vector from there into the brain.
        points: Where the shift is measured, with shape (3, N), mm.
        size: The largest displacement among those points, mm.
    """
    gravity = inward + 0.35 * rng.standard_normal(3)
    gravity *= (-1 if rng.random() < 0.25 else 1) / np.linalg.norm(gravity)
    offsets = np.stack([np.zeros(3), *rng.normal(0, 20, (2, 3))])
    raw = BrainShift(
        centres=contact + 15 * inward + offsets,
        vectors=np.stack([gravity, *(0.25 * gravity + rng.normal(0, 0.15, (2, 3)))]),
        widths=rng.uniform(_NARROWEST, _WIDEST, 3) + np.array([6.0, 0.0, 0.0]),
    )
    largest = np.sqrt((raw.displacement(points) ** 2).sum(0)).max()
    return BrainShift(raw.centres, raw.vectors * (size / largest), raw.widths)


def random_misalignment(rng: np.random.Generator, points: Array, size: float) -> Rigid:
    r"""Draws a rigid motion that displaces points by a given root mean square.

    A rotation by :math:`\theta` about an axis through the centre of the points displaces them by
    the mean square :math:`4 \sin^2(\theta/2)\, \mathrm{tr}(P C)`, with their covariance :math:`C`
    and the projection :math:`P` onto the plane of rotation. It makes up a random part, below one
    half, of the mean square; a translation in a random direction the rest.

    Arguments:
        rng: The source of randomness.
        points: Where the displacement is measured, with shape (3, N), mm.
        size: Its root mean square over those points, mm.
    """
    axis, direction = rng.standard_normal((2, 3))
    axis /= np.linalg.norm(axis)
    direction /= np.linalg.norm(direction)
    share = rng.uniform(0, 0.5)
    covariance = np.cov(points.astype(np.float64), bias=True)
    spread = np.trace(covariance) - axis @ covariance @ axis
    half = np.arcsin(min(1.0, np.sqrt(share * size**2 / (4 * spread))))
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])  # Rodrigues' formula
    rotation = np.eye(3) + np.sin(2 * half) * cross + (1 - np.cos(2 * half)) * cross @ cross
    centre = points.astype(np.float64).mean(axis=1)
    return Rigid(rotation, centre, direction * size * np.sqrt(1 - share))
