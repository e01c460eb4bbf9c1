"""How a tumour looks: its kind, its parts, what it is made of, and what it pushes aside."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .missingness import ENHANCING
from .tissues import Array

__all__ = ["Lesion", "lesion_parts", "lesion_texture", "push_aside", "random_lesion"]


@dataclass(frozen=True)
class Lesion:
    """How one patient's tumour looks, apart from its shape.

    The share of enhancing (66 of 114) and oedematous (73 of 114) tumours follows the clinical
    table of ReMIND; the volumes are log-normal in its range.
    """

    volume_ml: float
    """The volume of the solid tumour to grow, ml."""
    enhancing: bool
    """Whether the rim takes up contrast agent."""
    necrotic: bool
    """Whether the centre is necrotic."""
    necrosis_density: float
    """The cell density above which the centre dies."""
    oedema_width: float
    """The blur that turns cell density into oedema, mm."""
    oedema_density: float
    """The blurred density at which oedema begins."""
    edge_slope: float
    """How sharply the solid part ends: change of fraction per change of density."""
    mass_effect: float
    """How far tissue is pushed outwards, as a fraction of the tumour's radius."""
    cystic: float
    """How readily cysts form: 0.1 makes some 2 per cent of the solid part fluid, 0.3 some 9."""

    @property
    def radius(self) -> float:
        """The radius of a sphere of that volume, mm."""
        return (3 * self.volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)


def random_lesion(rng: np.random.Generator) -> Lesion:
    """Draws the kind of tumour a patient has."""
    enhancing = bool(rng.random() < ENHANCING)
    oedematous = bool(rng.random() < 73 / 114)
    wide = rng.uniform(2, 9)
    return Lesion(
        volume_ml=float(np.clip(np.exp(rng.normal(2.5, 1.1)), 0.8, 70)),
        enhancing=enhancing,
        necrotic=bool(rng.random() < (1.0 if enhancing else 0.25)),
        necrosis_density=float(rng.uniform(0.86, 0.93)),
        oedema_width=float(wide if oedematous else 1.0),
        oedema_density=float(rng.uniform(0.12, 0.30)),
        edge_slope=float(rng.uniform(3.5, 7)),
        mass_effect=float(rng.uniform(0.10, 0.35)),
        cystic=float(rng.uniform(0.10, 0.30)),
    )


def push_aside(in_atlas: Array, centre: Array, lesion: Lesion) -> Array:
    r"""Finds where tissue was before the tumour pushed it outwards.

    .. math:: r \mapsto r - m R\, \frac{r}{r + R/2} \exp(-\tfrac{1}{2} (r / 1.6 R)^2)

    at the distance :math:`r` from the centre of a tumour of radius :math:`R`; the mass effect
    :math:`m < 1/2` keeps this increasing, thus invertible.
    """
    relative = in_atlas - centre.reshape(3, 1, 1, 1)
    distance = np.sqrt((relative**2).sum(0)) + np.float32(1e-3)
    size = lesion.radius
    push = lesion.mass_effect * size * np.exp(-0.5 * (distance / (1.6 * size)) ** 2)
    return in_atlas - relative * (push / (distance + 0.5 * size))


def lesion_parts(
    noise: Callable[[float], Array],
    cells: Array,
    brain: Array,
    grey: Array,
    white: Array,
    lesion: Lesion,
    voxel: Array,
) -> Array:
    """Divides the lesion by cell density: solid, oedema, necrosis, rim, shape (4, D, L, S).

    Arguments:
        noise: Draws a standard Gaussian field of some width, mm.
        cells: The cell density.
        brain: The fraction of each voxel inside the brain.
        grey: The fraction of grey matter where no tumour had grown.
        white: That of white matter, along which tumour and oedema spread.
        lesion: The kind of tumour.
        voxel: The spacing of the voxels, mm.
    """
    # Lobes, nodules and frayed edges; fingers follow white matter.
    rough = 0.11 * noise(4.5) + 0.08 * noise(2.2) + 0.05 * noise(1.1) + 0.05 * (white - 0.6)
    rough = cells + rough * np.clip(2 * cells, 0, 1)
    rough = ndimage.gaussian_filter(rough, 0.4 / voxel)
    mass = np.clip(lesion.edge_slope * (rough - 0.53) + 0.5, 0, 1) * brain
    spread = ndimage.gaussian_filter(cells, lesion.oedema_width / voxel)
    spread += (0.06 * noise(4.0) + 0.12 * (white - 0.6)) * np.clip(4 * spread, 0, 1)
    oedema = np.clip(6 * (spread - lesion.oedema_density), 0, 1)
    oedema *= np.clip(1.15 * white + 0.15 * grey, 0, 1) * (1 - mass)
    necrosis = np.clip(14 * (rough - lesion.necrosis_density), 0, 1) * mass * lesion.necrotic
    thickness = np.clip(
        1 + 0.5 * noise(4.0) + 0.3 * noise(1.6), 0, 1.6
    )  # thin here, nodular there
    band = np.clip(1 - 5 * np.abs(rough - 0.72) / np.maximum(thickness, 0.3), 0, 1)
    rim = np.minimum(1.3 * band * np.minimum(thickness, 1), 1) * (mass - necrosis)
    rim = rim * lesion.enhancing
    return np.stack([mass - necrosis - rim, oedema, necrosis, rim]).astype(np.float32)


def lesion_texture(noise: Callable[[float], Array], lesion: Lesion) -> tuple[Array, Array, Array]:
    """Draws what the solid part is made of, apart from densely packed tumour cells.

    Returns:
        The fractions of the solid part that are cysts (sharply bounded and of all sizes), loose
        tissue (healthy cells and water between those of the tumour), and enhancing patches.
    """
    pores = 0.75 * noise(3.2) + 0.65 * noise(1.3)
    cysts = np.clip(3.0 * (pores - 2.3 + 4.0 * lesion.cystic), 0, 0.9)
    fibres = noise(5.0) + 0.8 * noise(1.8)
    loose = np.clip(0.28 + 0.22 * fibres, 0, 0.75) * (1 - cysts)
    patches = np.clip(0.5 * (noise(4.0) + 0.7 * noise(1.5) - 1.0), 0, 0.45)
    patches = patches * (1 - cysts - loose) * lesion.enhancing
    return cysts, loose, patches
