"""A tumour that grows into the atlas: fast along white matter, slowly in grey, not through CSF."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .atlas import Atlas
from .deformation import smooth_noise
from .tissues import Array

__all__ = ["VISIBLE_DENSITY", "Tumour", "grow_tumour", "growth_step"]

VISIBLE_DENSITY = 0.6
"""Cell density, relative to the densest possible, above which tissue counts as solid tumour."""

_SPACING = 2.0  # mm
_HALF_WIDTH = 18  # voxels
_TIME_STEP = 4.0  # days
_MAX_STEPS = 1500


@dataclass(frozen=True)
class Tumour:
    """A cell density on a cubic grid around its centre, in the space of the atlas."""

    density: Array
    r"""Relative cell density in [0, 1], with shape :math:`(N, N, N)`."""
    centre: Array
    """The position of the middle voxel, mm."""
    spacing: float
    """The spacing of the grid, mm."""
    volume_ml: float
    """The volume with a density above `VISIBLE_DENSITY`, ml."""

    def density_at(self, points: Array) -> Array:
        r"""Interpolates the density at points of the atlas, with shape :math:`(3, *)` in mm."""
        centre = self.centre.reshape((3,) + (1,) * (points.ndim - 1))
        index = (points - centre) / self.spacing + len(self.density) // 2
        return ndimage.map_coordinates(self.density, index, order=1, mode="constant")


def growth_step(density: Array, diffusivity: Array, rate: Array, *, time: float) -> Array:
    r"""Advances the Fisher-KPP equation by one explicit step, with no flux over the border.

    .. math:: \partial_t c = \nabla \cdot (D \nabla c) + \rho\, c\, (1 - c)

    Arguments:
        density: The relative cell density :math:`c`, with shape :math:`(X, Y, Z)`.
        diffusivity: The diffusivity :math:`D`, voxel²/day. A flux needs tissue on both sides, so
            two neighbours share the harmonic mean.
        rate: The proliferation rate :math:`\rho`, 1/day.
        time: The length of the step, days; stable up to :math:`1 / (6 \max D)`.

    Returns:
        The density after the step, in [0, 1].
    """
    change = rate * density * (1 - density)
    for axis in range(density.ndim):
        here = tuple(slice(0, -1) if i == axis else slice(None) for i in range(density.ndim))
        there = tuple(slice(1, None) if i == axis else slice(None) for i in range(density.ndim))
        total = diffusivity[here] + diffusivity[there]
        shared = 2 * diffusivity[here] * diffusivity[there] / np.maximum(total, 1e-12)
        flux = shared * (density[there] - density[here])
        change[here] += flux
        change[there] -= flux
    return np.clip(density + time * change, 0, 1)


def grow_tumour(rng: np.random.Generator, atlas: Atlas, centre: Array, volume_ml: float) -> Tumour:
    """Grows a tumour until its solid part fills the asked volume.

    Diffusivity and proliferation vary from place to place and the tumour may start at several
    nearby points, so that shapes come out lobulated. The rates (up to 0.08 mm²/day, 0.02/day)
    are of the order that Swanson et al., Cell Prolif. 33:317 (2000), give for gliomas.

    Arguments:
        rng: The source of randomness.
        atlas: The anatomy to grow in.
        centre: Where the first cells are, mm.
        volume_ml: The volume to reach, ml.

    Returns:
        The tumour. Its `volume_ml` falls short of the asked one only where no tissue is left.
    """
    count = 2 * _HALF_WIDTH + 1
    offset = ((np.arange(count) - _HALF_WIDTH) * _SPACING).astype(np.float32)
    relative = np.stack(np.meshgrid(offset, offset, offset, indexing="ij"))
    points = relative + centre.reshape(3, 1, 1, 1)
    csf, grey, white = (atlas.sample(name, points) for name in ("csf", "grey", "white"))
    tissue = (csf < 0.6) & (csf + grey + white > 0.5)

    invasiveness = rng.uniform(0.012, 0.08)  # mm²/day in white matter
    radius = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    foci = [np.zeros(3)] + [rng.normal(0, 0.55 * radius, 3) for _ in range(rng.poisson(1.6))]
    patchy = 1 + 0.7 * smooth_noise(rng, (count,) * 3, (3, 3, 3))
    diffusivity = invasiveness / _SPACING**2 * (white + 0.22 * grey + 0.01 * csf)
    diffusivity = diffusivity * np.clip(patchy, 0.1, 2) * tissue
    patchy = 1 + 0.7 * smooth_noise(rng, (count,) * 3, (3, 3, 3))
    rate = 0.02 * np.clip(patchy, 0.05, 3) * tissue

    density = np.zeros((count,) * 3, dtype=np.float32)
    for focus in foci:
        distance2 = ((relative - focus.astype(np.float32).reshape(3, 1, 1, 1)) ** 2).sum(0)
        density = np.maximum(density, np.exp(-distance2 / (2 * 2.5**2)))
    density *= tissue

    volume = 0.0
    for _ in range(_MAX_STEPS):
        volume = (density > VISIBLE_DENSITY).sum() * _SPACING**3 / 1000
        if volume >= volume_ml:
            break
        density = growth_step(density, diffusivity, rate, time=_TIME_STEP)
    return Tumour(density.astype(np.float32), centre, _SPACING, float(volume))
