"""Random smooth fields and random invertible deformations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from .tissues import Array

__all__ = ["Warp", "random_warp", "smooth_noise"]


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], sigma: Sequence[float] | Array
) -> Array:
    """Draws a Gaussian random field with zero mean and unit variance over the volume.

    White noise is blurred on a grid about half as coarse as the blur and interpolated linearly,
    which costs a fraction of a blur at full resolution.

    Arguments:
        rng: The source of randomness.
        shape: The shape of the volume, three axes.
        sigma: The standard deviation of the blur along each axis, in voxels.

    Returns:
        The field, with the given shape.
    """
    margin = 4  # coarse voxels beyond the volume, so that no border effect is seen
    steps = [max(1.0, width / 2) for width in sigma]
    coarse = [int(np.ceil(n / step)) + margin for n, step in zip(shape, steps, strict=True)]
    blur = [width / step for width, step in zip(sigma, steps, strict=True)]
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), blur)
    fine = [int(np.ceil(n * c / (c - margin))) for n, c in zip(shape, coarse, strict=True)]
    if fine != coarse:
        field = F.interpolate(torch.from_numpy(noise)[None, None], size=fine, mode="trilinear")
        noise = field[0, 0].numpy()
    field = noise[tuple(slice(0, n) for n in shape)]
    return (field - field.mean()) / (field.std() + 1e-6)


@dataclass(frozen=True)
class Warp:
    r"""A map from a patient's space to the atlas, both in mm.

    .. math:: x \mapsto a + s^{-1} \odot (x + u(x) - u(a) - a)

    with a displacement :math:`u`, a scale :math:`s` per axis and an anchor :math:`a` that stays
    where it is: the point on the brain surface that the probe touches.
    """

    displacement: Array
    r"""The displacement :math:`u` on a coarse grid, mm, with shape :math:`(3, X, Y, Z)`."""
    origin: Array
    """The position of the first voxel of the coarse grid, mm."""
    step: float
    """The spacing of the coarse grid, mm."""
    scale: Array
    """The size of the patient relative to the atlas, along each axis."""
    anchor: Array
    """The fixed point, mm."""
    min_jacobian: float
    r"""The smallest determinant of :math:`\mathrm{d}(x + u)/\mathrm{d}x`; positive: no folds."""

    def pull(self, points: Array) -> Array:
        r"""Maps points of the patient, with shape :math:`(3, *)` in mm, to the atlas."""
        axis = (3,) + (1,) * (points.ndim - 1)
        anchor = self.anchor.reshape(axis)
        moved = points + self._displacement_at(points) - self._displacement_at(anchor)
        return anchor + (moved - anchor) / self.scale.reshape(axis)

    def push(self, point: Array, iterations: int = 40) -> Array:
        r"""Finds the point of the patient that `pull` maps to one point of the atlas.

        The fixed-point iteration :math:`x \leftarrow x + \frac{1}{2} (y - \mathrm{pull}(x))`.
        """
        target = point[:, None]  # (3, 1)
        found = target
        for _ in range(iterations):
            found = found + 0.5 * (target - self.pull(found))
        return found[:, 0]

    def _displacement_at(self, points: Array) -> Array:
        axis = (3,) + (1,) * (points.ndim - 1)
        index = (points - self.origin.reshape(axis)) / self.step
        return np.stack(
            [ndimage.map_coordinates(u, index, order=1, mode="nearest") for u in self.displacement]
        )


def random_warp(
    rng: np.random.Generator,
    lower: Array,
    upper: Array,
    anchor: Array,
    *,
    step: float = 5.0,
    amplitude: float = 4.0,
    smoothness: float = 18.0,
    scale_spread: float = 0.05,
    squarings: int = 6,
) -> Warp:
    r"""Draws a diffeomorphism as the flow of a smooth stationary velocity :math:`v`.

    .. math:: \mathrm{id} + u = \exp(v) = (\mathrm{id} + 2^{-n} v)^{\circ 2^n}

    is computed by scaling and squaring (Arsigny et al., MICCAI 2006).

    Arguments:
        rng: The source of randomness.
        lower: The corner of the volume with the smallest coordinates, mm.
        upper: The opposite corner, mm.
        anchor: The point that the warp leaves in place, mm.
        step: The spacing of the grid that carries the displacement, mm.
        amplitude: The standard deviation of each component of the velocity, mm.
        smoothness: The standard deviation of the blur of the velocity, mm.
        scale_spread: The standard deviation of the scale along each axis.
        squarings: How often the flow is composed with itself, :math:`n`.

    Returns:
        The warp, with its smallest Jacobian determinant.
    """
    shape = [int(np.ceil(extent / step)) + 1 for extent in upper - lower]
    scale = np.clip(rng.normal(1, scale_spread, 3), 0.85, 1.15).astype(np.float32)
    velocity = rng.standard_normal((3, *shape), dtype=np.float32)
    velocity = ndimage.gaussian_filter(velocity, (0, *[smoothness / step] * 3))
    velocity *= amplitude / velocity.std() / step  # in coarse voxels
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    flow = velocity / 2**squarings
    for _ in range(squarings):
        position = grid + flow
        flow = flow + np.stack(
            [ndimage.map_coordinates(u, position, order=1, mode="nearest") for u in flow]
        )
    gradient = np.stack([np.stack(np.gradient(component)) for component in grid + flow])
    determinant = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))
    return Warp(flow * step, lower, step, scale, anchor, float(determinant.min()))
