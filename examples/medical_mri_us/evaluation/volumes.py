"""Whole volumes of a case, with what a model makes of them, on axes of the body."""

from __future__ import annotations

__all__ = ["MOST", "SPREAD_LIMIT", "make_volumes", "spread"]

from collections.abc import Sequence

import numpy as np
import torch
from nibabel import orientations

from examples.medical_mri_us.data import Subject
from mmpoe.models import MMHVAE

from .synthesis import draw, synthesise, to_unit, truths

SPREAD_LIMIT = 0.15
"""The standard deviation that is stored as 255; images run from 0 to 1."""

MOST = 8_000_000
"""The number of pixels of all that is kept of a case, for slices and for volumes each."""


def make_volumes(
    model: MMHVAE, subject: Subject, samples: int, seed: int = 0, *, size: int | None = None
) -> dict[str, np.ndarray]:
    """Returns all slices of each modality, and of what the model makes of all others.

    Axes point down, back and to the left, nearly: `volume[k, j, i]` lies further up with `k`,
    further back with `j`, and further left with `i`. Volumes are halved along the axes with the
    smallest voxels until they are small enough to be kept.

    Arguments:
        model: The model.
        subject: The case, with two modalities or more; else there is nothing.
        samples: See `make_view`.
        seed: See `make_view`.
        size: See `make_view`.

    Returns:
        Arrays (K, J, I): ``volume_fov``, and for each modality ``volume_truth_<modality>``,
        ``volume_mean_<modality>`` and ``volume_std_<modality>``, as whole numbers as of
        `make_view`; ``volume_spacing``, mm, along the same axes; and ``volume_tilt``, the angle
        between these axes and those of the body, degrees.
    """
    held = [m for m in model.modalities if m in subject.images]
    given = {m: [o for o in held if o != m] for m in model.modalities}
    given = {m: others for m, others in given.items() if others}
    found: dict[str, tuple[np.ndarray, float]] = {"fov": (subject.fov.astype(np.float32), 1.0)}
    for m in given:
        if m in subject.images:
            found[f"truth_{m}"] = (to_unit(truths(subject)[m], subject), 1.0)
        found[f"mean_{m}"] = (synthesise(model, subject, given[m], size=size)[m], 1.0)
        if samples >= 2:
            values = spread(model, subject, given[m], samples, seed, size=size)[m]
            found[f"std_{m}"] = (values, SPREAD_LIMIT)
    if len(found) == 1:
        return {}
    seen = tuple(
        slice(places[0], places[-1] + 1)
        for axis in range(3)
        if (places := np.flatnonzero(subject.fov.any(axis=tuple({0, 1, 2} - {axis})))).size
    )
    volumes: dict[str, np.ndarray] = {}
    spacing = np.array(subject.spacing)
    for name, (volume, limit) in found.items():
        placed, spacing = _placed(volume[seen], subject.affine, np.array(subject.spacing))
        placed, spacing = _fitted(placed, spacing, MOST // len(found))
        if name == "fov":
            volumes["volume_fov"] = placed > 0.5
        else:
            volumes[f"volume_{name}"] = (255 * np.clip(placed / limit, 0, 1)).round().astype("u1")
    return {
        **volumes, "volume_spacing": spacing, "volume_tilt": np.array(_tilt(subject.affine)),
    }  # fmt: skip


def spread(
    model: MMHVAE,
    subject: Subject,
    given: Sequence[str],
    samples: int,
    seed: int,
    *,
    size: int | None = None,
) -> dict[str, np.ndarray]:
    """Standard deviations of the decoders' means over latent samples, on the scale from 0 to 1."""
    torch.manual_seed(seed)
    parts = [drawn for _, drawn in draw(model, subject, given, samples, size=size)]
    return {
        m: np.where(
            subject.fov, torch.cat([part[m][0].std(dim=0) for part in parts]).numpy() / 2, 0
        )
        for m in model.modalities
    }


def _placed(
    volume: np.ndarray, affine: np.ndarray, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turns axes to up, back and left: the volume, slices first, and its spacing."""
    files = np.moveaxis(volume, 0, -1)  # the axes of the affine
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt("LPS")
    )
    turned = orientations.apply_orientation(files, turn)
    apart = spacing[[1, 2, 0]][np.argsort(turn[:, 0])]
    return np.ascontiguousarray(turned.transpose(2, 1, 0)), apart[::-1].copy()


def _fitted(volume: np.ndarray, spacing: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Halves a volume along the axis with the smallest voxels, until it is small enough."""
    spacing = spacing.copy()
    while volume.size > most:
        axis = int(np.argmin(np.where(np.array(volume.shape) > 1, spacing, np.inf)))
        even = volume.shape[axis] // 2 * 2
        first = np.moveaxis(volume, axis, 0)[:even]
        halved = first.reshape(even // 2, 2, *first.shape[1:]).mean(axis=1)
        volume = np.moveaxis(halved, 0, axis)
        spacing[axis] *= 2
    return volume, spacing


def _tilt(affine: np.ndarray) -> float:
    """The largest angle between an axis of voxels and the nearest axis of the body, degrees."""
    cosines = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).max(axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))))
