"""One phantom patient, from a seed to four aligned images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.checks import check_integer, check_number, check_positive
from examples.medical_mri_us.modalities import MODALITIES

from .anatomy import Anatomy, Head, build_anatomy, supply_head
from .atlas import Atlas
from .deformation import random_warp
from .landmarks import Landmarks, place_landmarks
from .lesion import Lesion, random_lesion
from .motion import BrainShift, Motion, Rigid, random_misalignment, random_shift
from .mri import render_mri
from .probe import ProbeGrid, choose_pose, random_fan
from .tissues import Array
from .tumour import grow_tumour
from .ultrasound import UltrasoundSettings, render_ultrasound

__all__ = [
    "FIELD_OF_VIEW",
    "LARGEST_MISALIGNMENT",
    "LARGEST_SHIFT",
    "Patient",
    "default_slices",
    "draw_lesion",
    "render_patient",
]

FIELD_OF_VIEW = 96.0
"""The side of an image, mm, unless a spacing is asked for."""

_FINEST = 0.75  # mm, pixels are drawn at least this small and averaged

LARGEST_SHIFT, LARGEST_MISALIGNMENT = 15.0, 20.0
"""The limits of `brain_shift_mm` and `misalign_mm`: beyond, tissue leaves the view or folds."""


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
    tumour_mr: npt.NDArray[np.uint8]
    """The tumour labels as the MR images show them; the same if nothing moved."""
    landmarks: Landmarks
    """Corresponding points of ultrasound and MR."""
    displacement: Array | None
    r"""From the place of tissue in the ultrasound image to that in the MR images, mm RAS, with
    shape :math:`(3, D, L, S)`; None if nothing moved."""
    affine: npt.NDArray[np.float64]
    """Voxel indices to mm, RAS, oblique; NIfTI's convention, in the world of the atlas."""
    info: dict[str, Any]
    """The parameters that were drawn, ready for JSON."""


def render_patient(
    seed: int | Sequence[int],
    atlas: Atlas,
    *,
    size: int = 64,
    spacing: float | None = None,
    slices: int | None = None,
    slice_spacing: float = 2.0,
    oversampling: int | None = None,
    brain_shift_mm: float = 0.0,
    misalign_mm: float = 0.0,
) -> Patient:
    """Draws a patient.

    The same seed gives the same head, tumour, probe and scanner settings at every size; noise,
    speckle and texture differ.

    Arguments:
        seed: One or more integers of at least 0, all that the result depends on.
        atlas: The anatomy to deform, see `load_atlas`.
        size: The number of pixels along depth and along lateral.
        spacing: The spacing of those pixels, mm; by default the image is 96 mm wide.
        slices: The number of slices; by default `default_slices` of the size.
        slice_spacing: The distance between slices, mm.
        oversampling: How many times finer the image is drawn in plane before it is averaged; by
            default as many as bring the spacing to 0.75 mm or less.
        brain_shift_mm: The largest displacement of tissue in view between MR and ultrasound.
        misalign_mm: The root mean square over the view of a rigid error of registration.

    Returns:
        The patient, complete: nothing is missing.
    """
    entropy = _check_seed(seed)
    size = check_integer("size", size, 16)
    slices = default_slices(size) if slices is None else check_integer("slices", slices, 1)
    slice_spacing = check_positive("slice_spacing", slice_spacing)
    spacing = FIELD_OF_VIEW / size if spacing is None else check_positive("spacing", spacing)
    if oversampling is None:
        oversampling = int(np.ceil(spacing / _FINEST))
    oversampling = check_integer("oversampling", oversampling, 1)

    brain_shift_mm = check_number("brain_shift_mm", brain_shift_mm, 0, LARGEST_SHIFT)
    misalign_mm = check_number("misalign_mm", misalign_mm, 0, LARGEST_MISALIGNMENT)

    streams = np.random.SeedSequence(entropy).spawn(11)
    lesion_rng, warp_rng, tumour_rng, probe_rng = map(np.random.default_rng, streams[:4])
    mri_rng, us_rng, shift_rng, misalign_rng, landmark_rng, vessel_rng = map(
        np.random.default_rng, streams[5:]
    )
    lesion = random_lesion(lesion_rng)
    centre = atlas.tumour_sites[lesion_rng.integers(len(atlas.tumour_sites))]
    tumour = grow_tumour(tumour_rng, atlas, centre, lesion.volume_ml)

    distance = np.linalg.norm(atlas.surface - centre, axis=1)
    contact = atlas.surface[np.argsort(distance, kind="stable")[probe_rng.integers(60)]]
    warp = random_warp(warp_rng, atlas.origin, atlas.upper, contact)
    directions = choose_pose(probe_rng, contact, warp.push(centre))
    fan = random_fan(probe_rng)
    head = Head(atlas, warp, tumour, lesion)
    head = supply_head(vessel_rng, head, contact, directions)
    setting = UltrasoundSettings.random(us_rng)

    grid = ProbeGrid(
        contact=contact,
        directions=directions,
        size=size * oversampling,
        spacing=spacing / oversampling,
        slices=slices,
        slice_spacing=slice_spacing,
    )
    coarse = ProbeGrid(contact, directions, size, spacing, slices, slice_spacing)
    fov = _pool(fan.contains(grid)[..., None].astype(np.float32), oversampling) > 1 - 1e-6
    fov = np.repeat(fov, slices, axis=2)
    view = coarse.points()[:, fov] if fov.any() else coarse.points().reshape(3, -1)
    shift = misalignment = None
    if brain_shift_mm > 0:
        shift = random_shift(shift_rng, contact, directions[:, 0], view, brain_shift_mm)
    if misalign_mm > 0:
        misalignment = random_misalignment(misalign_rng, view, misalign_mm)

    def build(motion: Motion | None) -> Anatomy:
        rng = np.random.default_rng(streams[4])
        return build_anatomy(rng, head, grid, motion)

    in_mr = build(misalignment)
    images, sequences = render_mri(mri_rng, in_mr, grid)
    in_us = in_mr if shift is None and misalignment is None else build(shift)
    images["us"] = render_ultrasound(us_rng, in_us, grid, fan, setting)

    pooled = _pool_anatomy(in_us, oversampling)
    pooled_mr = pooled if in_us is in_mr else _pool_anatomy(in_mr, oversampling)
    labels = pooled.tumour_labels() * fov
    tissue = pooled.tissue_labels() * fov
    landmarks = place_landmarks(landmark_rng, tissue, fov, coarse.affine, shift, misalignment)
    voxel_ml = spacing**2 * slice_spacing / 1000
    info = {
        "seed": entropy,
        "anatomy": atlas.name,
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
        "brain_shift": _describe_shift(shift, brain_shift_mm, view),
        "misalignment": _describe_misalignment(misalignment, misalign_mm),
        "landmarks": len(landmarks),
    }
    return Patient(
        images={name: _pool(images[name], oversampling) * fov for name in MODALITIES},
        fov=fov,
        tumour=labels,
        tissue=tissue,
        tumour_mr=pooled_mr.tumour_labels() * fov,
        landmarks=landmarks,
        displacement=_displacement(coarse.points(), shift, misalignment),
        affine=coarse.affine,
        info=info,
    )


def default_slices(size: int) -> int:
    """Returns how many slices go with a size: 8 for 64, 16 for 96, 32 for 192 pixels."""
    return min(32, max(8, (size - 32) // 4))


def draw_lesion(seed: int | Sequence[int]) -> Lesion:
    """Draws the kind of tumour that the patient with this seed has, and nothing else of it."""
    stream = np.random.SeedSequence(_check_seed(seed)).spawn(1)[0]
    return random_lesion(np.random.default_rng(stream))


def _displacement(
    points: Array, shift: BrainShift | None, misalignment: Rigid | None
) -> Array | None:
    """Returns where tissue at points of the ultrasound is in MR, relative to there."""
    if shift is None and misalignment is None:
        return None
    head = points if shift is None else shift.to_head(points)
    in_mr = head if misalignment is None else misalignment.from_head(head)
    return (in_mr - points).astype(np.float32)


def _describe_shift(shift: BrainShift | None, size: float, view: Array) -> dict[str, Any] | None:
    if shift is None:
        return None
    bumps = {name: value.tolist() for name, value in vars(shift).items()}
    return {"largest_mm": size, "min_jacobian": shift.min_jacobian(view), **bumps}


def _describe_misalignment(misalignment: Rigid | None, size: float) -> dict[str, Any] | None:
    if misalignment is None:
        return None
    motion = {name: value.tolist() for name, value in vars(misalignment).items()}
    return {"root_mean_square_mm": size, **motion}


def _check_seed(seed: int | Sequence[int]) -> int | list[int]:
    """Returns the seed in a form that both NumPy and JSON take."""
    if isinstance(seed, Sequence) and not isinstance(seed, str) and len(seed) > 0:
        return [check_integer("seed", part, 0) for part in seed]
    return check_integer("seed", seed, 0)


def _pool_anatomy(anatomy: Anatomy, factor: int) -> Anatomy:
    return Anatomy(
        fractions=np.stack([_pool(part, factor) for part in anatomy.fractions]),
        brain=_pool(anatomy.brain, factor),
        lesion=np.stack([_pool(part, factor) for part in anatomy.lesion]),
    )


def _pool(volume: Array, factor: int) -> Array:
    """Averages blocks of `factor` times `factor` pixels in plane."""
    rows, columns, slices = volume.shape
    blocks = volume.reshape(rows // factor, factor, columns // factor, factor, slices)
    return blocks.mean(axis=(1, 3), dtype=np.float32)
