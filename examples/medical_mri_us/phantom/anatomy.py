"""What each voxel of a patient is made of: healthy tissue, tumour, oedema, necrosis, rim."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .atlas import Atlas
from .deformation import Warp, smooth_noise
from .missingness import ENHANCING
from .motion import Motion
from .probe import ProbeGrid
from .tissues import TISSUE_NAMES, Array, tissue_index
from .tumour import Tumour

__all__ = ["TUMOUR_LABELS", "Anatomy", "Lesion", "build_anatomy", "random_lesion"]

TUMOUR_LABELS = {
    "background": 0,
    "solid tumour": 1,
    "oedema": 2,
    "necrosis": 3,
    "enhancing rim": 4,
}
"""The values of the tumour label map."""


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
    """The mean fraction of fluid that is scattered in the solid part."""

    @property
    def radius(self) -> float:
        """The radius of a sphere of that volume, mm."""
        return (3 * self.volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)


@dataclass(frozen=True)
class Anatomy:
    """The tissues of every voxel."""

    fractions: Array
    r"""The partial volume of each tissue, in the order of the tissue table, with shape
    :math:`(T, D, L, S)`; they sum to `brain`."""
    brain: Array
    r"""The fraction of each voxel that is inside the brain, with shape :math:`(D, L, S)`."""
    lesion: Array
    """Where the solid part, oedema, necrosis and rim are, in the order of the labels 1..4 and
    with shape (4, D, L, S); unlike the fractions this ignores what is scattered in the solid."""

    def tumour_labels(self) -> npt.NDArray[np.uint8]:
        """Returns the label of each voxel, see `TUMOUR_LABELS`: what fills more than half."""
        solid, oedema, necrosis, rim = self.lesion
        labels = np.zeros(solid.shape, dtype=np.uint8)
        labels[oedema > 0.5] = TUMOUR_LABELS["oedema"]
        labels[solid + rim + necrosis > 0.5] = TUMOUR_LABELS["solid tumour"]
        labels[rim > 0.5] = TUMOUR_LABELS["enhancing rim"]
        labels[necrosis > 0.5] = TUMOUR_LABELS["necrosis"]
        return labels

    def tissue_labels(self) -> npt.NDArray[np.uint8]:
        """Returns 1 + the row of the most frequent tissue, and 0 outside the brain."""
        winner = 1 + np.argmax(self.fractions, axis=0)
        return np.where(self.brain < 0.5, 0, winner).astype(np.uint8)


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


def build_anatomy(
    rng: np.random.Generator,
    atlas: Atlas,
    warp: Warp,
    tumour: Tumour,
    lesion: Lesion,
    grid: ProbeGrid,
    motion: Motion | None = None,
) -> Anatomy:
    """Samples the deformed atlas and the tumour on the grid of the probe.

    With a motion, the head is sampled where that finds the grid; the same state of `rng` then
    gives the same head, its fine structure included.
    """
    voxel = np.array(grid.voxel)
    points = grid.points()  # (3, D, L, S)
    points = points if motion is None else motion.to_head(points)
    places = None if motion is None else grid.to_voxels(points)

    def noise(width: float) -> Array:
        field = smooth_noise(rng, grid.shape, width / voxel)
        if places is None:
            return field
        return ndimage.map_coordinates(field, places, order=1, mode="mirror")

    in_atlas = warp.pull(points)
    displaced = _push_aside(in_atlas, tumour.centre, lesion)
    csf, grey, white, ventricle, falx = (
        atlas.sample(name, displaced) for name in ("csf", "grey", "white", "ventricle", "falx")
    )
    brain = np.clip(csf + grey + white, 0, 1)
    sulcus = np.clip(csf - ventricle, 0, 1)

    wobble = np.stack([1.6 * noise(3.5) for _ in range(3)])  # mm
    cells = tumour.density_at(in_atlas + wobble) * (1 - 0.8 * csf)
    parts = _lesion_parts(noise, cells, brain, grey, white, lesion, voxel)
    solid, oedema, necrosis, rim = parts
    healthy = np.clip(1 - parts.sum(0), 0, 1)
    # Pockets of fluid and patches of enhancement: a solid tumour is not one grey value.
    cystic = np.clip(lesion.cystic * (1 + noise(6.0) + 0.6 * noise(2.0)), 0, 0.4) * solid
    patchy = np.clip(0.10 * (1 + noise(5.0)), 0, 0.2) * solid * lesion.enhancing

    fluid = csf * healthy
    tube = np.exp(-0.5 * (noise(4.0) ** 2 + noise(4.0) ** 2) / 0.35**2)  # two zero sets cross
    vessel = np.clip(1.6 * tube - 0.4, 0, 1) * np.clip(3 * sulcus, 0, 1) * fluid
    plexus = np.clip(3 * (noise(2.2) - 1.3), 0, 1) * ventricle * (fluid - vessel)
    covered = np.clip(2.5 * sulcus, 0, 1) * np.clip(0.7 + 0.3 * noise(2.0), 0.1, 1)
    pia = (fluid - vessel - plexus) * covered * (ventricle < 0.3)

    fractions = np.zeros((len(TISSUE_NAMES), *grid.shape), dtype=np.float32)
    for name, fraction in {
        "csf": fluid - vessel - plexus - pia,
        "grey_matter": grey * healthy,
        "white_matter": white * healthy,
        "oedema": oedema,
        "tumour": solid - cystic - patchy,
        "enhancing_rim": rim + patchy,
        "necrosis": necrosis + cystic,
        "vessel": vessel,
        "pia": pia,
        "dura": 0.9 * falx * healthy,
        "choroid_plexus": plexus,
    }.items():
        fractions[tissue_index(name)] = np.clip(fraction, 0, 1)
    fractions *= brain / np.maximum(fractions.sum(0), 1e-6)
    return Anatomy(fractions, brain, parts)


def _push_aside(in_atlas: Array, centre: Array, lesion: Lesion) -> Array:
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


def _lesion_parts(
    noise: Callable[[float], Array],
    cells: Array,
    brain: Array,
    grey: Array,
    white: Array,
    lesion: Lesion,
    voxel: Array,
) -> Array:
    """Divides the lesion by cell density: solid, oedema, necrosis, rim, shape (4, D, L, S)."""
    rough = cells + 0.10 * noise(3.0) * np.clip(2 * cells, 0, 1)
    rough = ndimage.gaussian_filter(rough, 0.4 / voxel)
    mass = np.clip(lesion.edge_slope * (rough - 0.53) + 0.5, 0, 1) * brain
    spread = ndimage.gaussian_filter(cells, lesion.oedema_width / voxel)
    spread += 0.05 * noise(4.0) * np.clip(4 * spread, 0, 1)
    oedema = np.clip(7 * (spread - lesion.oedema_density), 0, 1)
    oedema *= np.clip(1.15 * white + 0.15 * grey, 0, 1) * (1 - mass)
    necrosis = np.clip(14 * (rough - lesion.necrosis_density), 0, 1) * mass * lesion.necrotic
    band = np.clip(1 - 5 * np.abs(rough - 0.72), 0, 1) * np.clip(1 + 0.6 * noise(4.0), 0, 1)
    rim = np.minimum(band, 1) * (mass - necrosis) * lesion.enhancing
    return np.stack([mass - necrosis - rim, oedema, necrosis, rim]).astype(np.float32)
