"""One phantom patient, from a seed to four aligned images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.checks import check_integer, check_positive
from examples.medical_mri_us.modalities import MODALITIES

from .anatomy import Anatomy, build_anatomy, random_lesion
from .atlas import Atlas
from .deformation import random_warp
from .mri import render_mri
from .probe import ProbeGrid, choose_pose, random_fan
from .tissues import Array
from .tumour import grow_tumour
from .ultrasound import UltrasoundSettings, render_ultrasound

__all__ = ["FIELD_OF_VIEW", "Patient", "render_patient"]

FIELD_OF_VIEW = 96.0
"""The side of an image, mm, unless a spacing is asked for."""

_FINEST = 0.75  # mm, pixels are drawn at least this small and averaged


@dataclass(frozen=True)
class Patient:
    """The images of one patient, all on the same grid with axes (depth, lateral, slice).

    `matplotlib.pyplot.imshow(image[:, :, k])` shows the fan as scanners do, probe at the top.
    Everything is zero outside the fan.
    """

    images: dict[str, Array]
    """By modality: ultrasound in 0..255, MR in arbitrary units, white matter at a few hundred."""
    fov: npt.NDArray[np.bool_]
    """The ultrasound fan: pixels that lie wholly inside."""
    tumour: npt.NDArray[np.uint8]
    """Tumour labels, see `TUMOUR_LABELS`."""
    tissue: npt.NDArray[np.uint8]
    """1 + the row of the tissue table, 0 outside the brain."""
    affine: npt.NDArray[np.float64]
    """Voxel indices to mm, RAS, oblique; NIfTI's convention, in the world of the atlas."""
    info: dict[str, Any]
    """What was drawn, ready for JSON."""


def render_patient(
    seed: int | Sequence[int],
    atlas: Atlas,
    *,
    size: int = 64,
    spacing: float | None = None,
    slices: int = 8,
    slice_spacing: float = 2.0,
    oversampling: int | None = None,
) -> Patient:
    """Draws a patient.

    The same seed gives the same head, tumour, probe and scanner settings at every size; noise,
    speckle and texture differ.

    Arguments:
        seed: One or more integers of at least 0, all that the result depends on.
        atlas: The anatomy to deform, see `load_atlas`.
        size: The number of pixels along depth and along lateral.
        spacing: The spacing of those pixels, mm; by default the image is 96 mm wide.
        slices: The number of slices.
        slice_spacing: The distance between slices, mm.
        oversampling: How many times finer the image is drawn in plane before it is averaged; by
            default as many as bring the spacing to 0.75 mm or less.

    Returns:
        The patient, complete: nothing is missing.
    """
    entropy = _check_seed(seed)
    size = check_integer("size", size, 16)
    slices = check_integer("slices", slices, 1)
    slice_spacing = check_positive("slice_spacing", slice_spacing)
    spacing = FIELD_OF_VIEW / size if spacing is None else check_positive("spacing", spacing)
    if oversampling is None:
        oversampling = int(np.ceil(spacing / _FINEST))
    oversampling = check_integer("oversampling", oversampling, 1)

    streams = np.random.SeedSequence(entropy).spawn(7)
    lesion_rng, warp_rng, tumour_rng, probe_rng, tissue_rng, mri_rng, us_rng = map(
        np.random.default_rng, streams
    )
    lesion = random_lesion(lesion_rng)
    centre = atlas.tumour_sites[lesion_rng.integers(len(atlas.tumour_sites))]
    tumour = grow_tumour(tumour_rng, atlas, centre, lesion.volume_ml)

    distance = np.linalg.norm(atlas.surface - centre, axis=1)
    contact = atlas.surface[np.argsort(distance, kind="stable")[probe_rng.integers(60)]]
    warp = random_warp(warp_rng, atlas.origin, atlas.upper, contact)
    directions = choose_pose(probe_rng, contact, warp.push(centre))
    fan = random_fan(probe_rng)
    setting = UltrasoundSettings.random(us_rng)

    grid = ProbeGrid(
        contact=contact,
        directions=directions,
        size=size * oversampling,
        spacing=spacing / oversampling,
        slices=slices,
        slice_spacing=slice_spacing,
    )
    anatomy = build_anatomy(tissue_rng, atlas, warp, tumour, lesion, grid)
    images, sequences = render_mri(mri_rng, anatomy, grid)
    images["us"] = render_ultrasound(us_rng, anatomy, grid, fan, setting)

    fov = _pool(fan.contains(grid)[..., None].astype(np.float32), oversampling) > 1 - 1e-6
    fov = np.repeat(fov, slices, axis=2)
    pooled = Anatomy(
        fractions=np.stack([_pool(part, oversampling) for part in anatomy.fractions]),
        brain=_pool(anatomy.brain, oversampling),
        lesion=np.stack([_pool(part, oversampling) for part in anatomy.lesion]),
    )
    labels = pooled.tumour_labels() * fov
    voxel_ml = spacing**2 * slice_spacing / 1000
    info = {
        "seed": entropy,
        "spacing_mm": spacing,
        "slice_spacing_mm": slice_spacing,
        "oversampling": oversampling,
        "volume_ml": tumour.volume_ml,
        "volume_in_view_ml": float(np.isin(labels, (1, 3, 4)).sum() * voxel_ml),
        "enhancing": lesion.enhancing,
        "min_jacobian": warp.min_jacobian,
        "lesion": asdict(lesion),
        "fan": asdict(fan),
        "ultrasound": asdict(setting),
        "mri": sequences,
    }
    coarse = ProbeGrid(contact, directions, size, spacing, slices, slice_spacing)
    return Patient(
        images={name: _pool(images[name], oversampling) * fov for name in MODALITIES},
        fov=fov,
        tumour=labels,
        tissue=pooled.tissue_labels() * fov,
        affine=coarse.affine,
        info=info,
    )


def _check_seed(seed: int | Sequence[int]) -> int | list[int]:
    """Returns the seed in a form that both NumPy and JSON take."""
    if isinstance(seed, Sequence) and not isinstance(seed, str) and len(seed) > 0:
        return [check_integer("seed", part, 0) for part in seed]
    return check_integer("seed", seed, 0)


def _pool(volume: Array, factor: int) -> Array:
    """Averages blocks of `factor` times `factor` pixels in plane."""
    rows, columns, slices = volume.shape
    blocks = volume.reshape(rows // factor, factor, columns // factor, factor, slices)
    return blocks.mean(axis=(1, 3), dtype=np.float32)
