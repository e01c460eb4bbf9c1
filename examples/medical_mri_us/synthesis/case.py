"""One case: from images on some grid to synthetic images on the same grid."""

from __future__ import annotations

__all__ = ["Synthesis", "synthesise_case"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from examples.medical_mri_us.covariates import carrying
from examples.medical_mri_us.data import (
    CaseError,
    Grid,
    Image,
    Mask,
    Volume,
    fill_slices,
    remove_background,
    resample,
    same_grid,
)
from examples.medical_mri_us.windows import Tiles
from mmpoe.models import MMHVAE

from .frame import Frame
from .intensities import SCALE, to_model
from .slices import predict_tiles, tile_stride


@dataclass(frozen=True, eq=False)
class Synthesis:
    """Synthetic volumes by target, on the grid of the input, from 0 to 255; 0 out of view."""

    grid: Grid
    """The grid of the first input."""
    images: dict[str, Volume]
    """The inputs on it, normalised, from 0 to 1."""
    fov: Mask
    """The field of view on it."""
    mean: dict[str, Volume]
    """The prediction at the mean of the latents."""
    std: dict[str, Volume]
    """Standard deviations; too small unless the model is calibrated."""
    samples: dict[str, list[Volume]]
    """Samples at the temperature asked for."""
    record: dict[str, Any]
    """How the grid was brought to the model's, and how much of the view that cut off."""


def synthesise_case(
    model: MMHVAE,
    description: Mapping[str, Any],
    images: Mapping[str, Image],
    *,
    targets: Sequence[str],
    samples: int = 8,
    temperature: float = 0.5,
    seed: int = 0,
    fov: Image | None = None,
    to_first: bool = False,
    batch: int = 8,
    further: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Synthesis:
    """Synthesises the targets from all of some images.

    Of MR, the background is removed, as `prepare` does. Slices that are larger than the model's go
    through it in tiles, which are blended.

    Arguments:
        model: The model, in any mode, on any device.
        description: Its description, as of `models.load_model`.
        images: The inputs by modality. Their grid is that of the model's first modality among
            them.
        targets: What to synthesise; a target that is an input is reconstructed.
        samples: The number of samples.
        temperature: Their temperature; at 0, there are none but the mean.
        seed: What they are drawn from.
        fov: The field of view, where it is above 0. By default, it is where ultrasound is above
            0, or else where any image is not background; holes in a slice belong to it.
        to_first: Whether to resample images that lie on another grid, rather than refuse them.
        batch: The number of slices at a time.
        further: What else is known of the case, for the covariates of the model.
        progress: Whether to show a progress bar.

    Raises:
        CaseError: If an image lies on another grid, nothing is in view, or intensities cannot be
            normalised; the message names the modality. If a covariate of the model is not known.
    """
    try:
        carrying(model, {"": torch.zeros(1)}, further or {})
    except ValueError as error:
        raise CaseError(str(error)) from error
    inputs = {m: images[m] for m in model.modalities if m in images}
    first = next(iter(inputs))
    grid = Grid.of(inputs[first])
    described = dict(description)
    frame = Frame.of(grid, described)
    volumes, notes = {}, []
    for m, image in inputs.items():
        if m != "us":
            data, note = remove_background(image.data)
            image = Image(data, image.affine)
            notes += [f"{m}: {note}"] if note else []
        volumes[m] = _on(image, grid, m, first, to_first)
    if fov is not None:
        inside = _on(fov, grid, "fov", first, to_first, order=0) > 0
    else:
        shown = [volumes["us"] > 0] if "us" in volumes else [v > 0 for v in volumes.values()]
        inside = fill_slices(np.logical_or.reduce(shown), frame.slice_axis)
    if not inside.any():
        raise CaseError("nothing is in view: every voxel is 0; give the field of view by --fov.")

    unit, x = {}, {}
    view = frame.forward(inside.astype(np.float32)) > 0.5
    for m, volume in volumes.items():
        try:
            normalised = to_model(volume, inside, m, described)
        except ValueError as error:
            raise CaseError(f"{m} cannot be used: {str(error).rstrip('.')}.") from error
        unit[m] = (normalised + 1) / 2
        x[m] = np.where(view, frame.forward(normalised), np.float32(-1))
    size = int(described["architecture"]["size"])
    tiles = Tiles.over(view, size, tile_stride(model, size))
    found, covered = predict_tiles(
        model,
        x,
        view,
        targets,
        tiles,
        samples=samples,
        temperature=temperature,
        seed=seed,
        batch=batch,
        further=further,
        progress=progress,
    )

    seen = frame.back(np.broadcast_to(covered, view.shape).astype(np.float32)) > 0.5

    def place(slices: Volume, zero: int) -> Volume:
        values = frame.back((slices - np.float32(zero)) * np.float32(SCALE / 2))
        return np.where(inside & seen, np.clip(values, 0, SCALE), 0).astype(np.float32)

    lost = float((inside & ~seen).sum() / inside.sum())
    return Synthesis(
        grid=grid,
        images=unit,
        fov=inside,
        mean={m: place(v, -1) for m, v in found.mean.items()},
        std={m: place(v, 0) for m, v in found.std.items()},
        samples={m: [place(s, -1) for s in v] for m, v in found.samples.items()},
        record={
            **frame.record(),
            "window_size": size,
            "window_starts": [list(starts) for starts in tiles.starts],
            "view_cut_off": round(lost, 4),
            "notes": notes,
        },
    )


def _on(image: Image, grid: Grid, name: str, first: str, to_first: bool, order: int = 1) -> Volume:
    own = Grid.of(image)
    if same_grid(own, grid):
        return image.data
    if not to_first:
        raise CaseError(
            f"{name} should lie on the grid of {first}, {grid}, but lies on {own}; "
            "--resample-to us brings it there."
        )
    return resample(image, grid, order)
