"""The tissues of each voxel of a patient: healthy ones, vessels, tumour, oedema, necrosis."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .atlas import Atlas
from .deformation import Warp, smooth_noise
from .lesion import Lesion, lesion_parts, lesion_texture, push_aside
from .motion import Motion
from .probe import ProbeGrid
from .tissues import TISSUE_NAMES, Array, tissue_index
from .tumour import Tumour
from .vessels import Vessels, draw_vessels, grow_vessels, tree_grid

__all__ = ["TUMOUR_LABELS", "Anatomy", "Head", "build_anatomy", "supply_head"]

TUMOUR_LABELS = {
    "background": 0,
    "solid tumour": 1,
    "oedema": 2,
    "necrosis": 3,
    "enhancing rim": 4,
}
"""The values of the tumour label map."""


@dataclass(frozen=True)
class Head:
    """A patient before the operation, as a function of place."""

    atlas: Atlas
    """The anatomy that the patient deforms."""
    warp: Warp
    """The deformation."""
    tumour: Tumour
    """The tumour, in the space of the atlas."""
    lesion: Lesion
    """How the tumour looks."""
    vessels: Vessels | None = None
    """The vessels, if they have grown yet."""

    def tissues(self, points: Array) -> tuple[Array, dict[str, Array]]:
        r"""Returns where points of the head are in the atlas, and what healthy tissue is there.

        Arguments:
            points: Where to look, with shape :math:`(3, *)`, mm.
        """
        in_atlas = self.warp.pull(points)
        displaced = push_aside(in_atlas, self.tumour.centre, self.lesion)
        names = ("csf", "grey", "white", "ventricle", "falx")
        return in_atlas, {name: self.atlas.sample(name, displaced) for name in names}


@dataclass(frozen=True)
class Anatomy:
    """The tissues of every voxel."""

    fractions: Array
    r"""The partial volume of each tissue, in the order of the tissue table, with shape
    :math:`(T, D, L, S)`; they sum to `brain`."""
    brain: Array
    r"""The fraction of each voxel that is inside the brain, with shape :math:`(D, L, S)`."""
    lesion: Array
    """Masks of the solid part, oedema, necrosis and rim, in the order of the labels 1..4 and
    with shape (4, D, L, S); unlike the fractions this ignores what is scattered in the solid."""

    def tumour_labels(self) -> npt.NDArray[np.uint8]:
        """Returns the label of each voxel, see `TUMOUR_LABELS`.

        The lesion is where its parts together fill more than half. There, oedema is what is more
        oedema than tumour, and the rest is the largest part of the tumour.
        """
        solid, oedema, necrosis, rim = self.lesion
        tumour = solid + necrosis + rim
        names = np.array([TUMOUR_LABELS[n] for n in ("solid tumour", "necrosis", "enhancing rim")])
        labels = names[np.argmax([solid, necrosis, rim], axis=0)]
        labels = np.where(oedema > tumour, TUMOUR_LABELS["oedema"], labels)
        return np.where(oedema + tumour > 0.5, labels, 0).astype(np.uint8)

    def tissue_labels(self) -> npt.NDArray[np.uint8]:
        """Returns 1 + the row of the most frequent tissue, and 0 outside the brain."""
        winner = 1 + np.argmax(self.fractions, axis=0)
        return np.where(self.brain < 0.5, 0, winner).astype(np.uint8)


def supply_head(rng: np.random.Generator, head: Head, contact: Array, directions: Array) -> Head:
    """Grows the vessels of a head in the reach of a probe."""
    points = tree_grid(contact, directions)
    in_atlas, maps = head.tissues(points)
    cells = head.tumour.density_at(in_atlas)
    vessels = grow_vessels(
        rng,
        points,
        sulcus=np.clip(maps["csf"] - maps["ventricle"], 0, 1),
        tissue=maps["grey"] + maps["white"],
        rim=np.clip(1 - 4 * np.abs(cells - 0.6), 0, 1),
        enhancing=head.lesion.enhancing,
    )
    return Head(head.atlas, head.warp, head.tumour, head.lesion, vessels)


def build_anatomy(
    rng: np.random.Generator, head: Head, grid: ProbeGrid, motion: Motion | None = None
) -> Anatomy:
    """Samples a head on the grid of the probe.

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

    in_atlas, maps = head.tissues(points)
    csf, grey, white = maps["csf"], maps["grey"], maps["white"]
    brain = np.clip(csf + grey + white, 0, 1)
    sulcus = np.clip(csf - maps["ventricle"], 0, 1)

    wobble = np.stack([1.6 * noise(3.5) for _ in range(3)])  # mm
    cells = head.tumour.density_at(in_atlas + wobble) * (1 - 0.8 * csf)
    parts = lesion_parts(noise, cells, brain, grey, white, head.lesion, voxel)
    solid, oedema, necrosis, rim = parts
    healthy = np.clip(1 - parts.sum(0), 0, 1)
    cysts, loose, patches = (solid * part for part in lesion_texture(noise, head.lesion))

    lumen, wall = _vessel_parts(head.vessels, grid, motion)
    fluid = csf * healthy
    plexus = np.clip(3 * (noise(2.2) - 1.3), 0, 1) * maps["ventricle"] * fluid
    covered = np.clip(2.5 * sulcus, 0, 1) * np.clip(0.7 + 0.3 * noise(2.0), 0.1, 1)
    pia = (fluid - plexus) * covered * (maps["ventricle"] < 0.3)

    fractions = np.zeros((len(TISSUE_NAMES), *grid.shape), dtype=np.float32)
    for name, fraction in {
        "csf": fluid - plexus - pia,
        "grey_matter": grey * healthy + 0.25 * loose,
        "white_matter": white * healthy + 0.25 * loose,
        "oedema": oedema + 0.5 * loose,
        "tumour": solid - cysts - loose - patches,
        "enhancing_rim": rim + patches,
        "necrosis": necrosis + cysts,
        "pia": pia,
        "dura": 0.9 * maps["falx"] * healthy,
        "choroid_plexus": plexus,
    }.items():
        fractions[tissue_index(name)] = np.clip(fraction, 0, 1)
    fractions *= (brain * (1 - lumen - wall)) / np.maximum(fractions.sum(0), 1e-6)
    fractions[tissue_index("vessel")] = brain * lumen
    fractions[tissue_index("pia")] += brain * wall
    return Anatomy(fractions, brain, parts)


def _vessel_parts(
    vessels: Vessels | None, grid: ProbeGrid, motion: Motion | None
) -> tuple[Array, Array]:
    """Returns the fractions of blood, and of walls and the tissue that sheathes them."""
    if vessels is None:
        return np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    depth = draw_vessels(vessels, grid, motion)  # mm
    lumen = np.clip(depth / grid.spacing + 0.5, 0, 1)
    wall = 0.5 * np.clip(1 - np.abs(depth + 0.2) / 0.6, 0, 1) * (1 - lumen)
    return lumen, wall
