"""One case: from images on some grid to synthetic images on the same grid."""

from __future__ import annotations

__all__ = ["Synthesis", "synthesise_case"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from .shelf import Lazy, Row, Shelf, Shelved
from .slices import Made, predict_tiles, tile_stride


@dataclass(frozen=True, eq=False)
class Synthesis:
    """Synthetic volumes by target, on the grid of the input, from 0 to 255; 0 out of view.

    They are in a file, and each is read when it is asked for.
    """

    grid: Grid
    """The grid of the first input."""
    images: Mapping[str, Volume]
    """The inputs on it, normalised, from 0 to 1."""
    fov: Mask
    """The field of view on it."""
    mean: Mapping[str, Volume]
    """The prediction at the mean of the latents."""
    std: Mapping[str, Volume]
    """Standard deviations; too small unless the model is calibrated."""
    samples: Mapping[str, Sequence[Volume]]
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
    folder: Path | None = None,
    further: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Synthesis:
    """Synthesises the targets from all of some images.

    Of MR, the background is removed, as `prepare` does. Slices that are larger than the model's go
    through it in tiles, which are blended. Inputs and results are set aside in a file, so that the
    number of volumes in memory does not depend on how many there are of them.

    Arguments:
        model: The model, in any mode, on any device.
        description: Its description, as of `models.load_model`.
        images: The inputs by modality, each of which is asked for once. Their grid is that of the
            model's first modality among them.
        targets: What to synthesise; a target that is an input is reconstructed.
        samples: The number of samples.
        temperature: Their temperature; at 0, there are none but the mean.
        seed: What they are drawn from.
        fov: The field of view, where it is above 0. By default, it is where ultrasound is above
            0, or else where any image is not background; holes in a slice belong to it.
        to_first: Whether to resample images that lie on another grid, rather than refuse them.
        batch: The number of slices at a time.
        folder: Where there is room for the file; by default, where temporary files are.
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
    names = [m for m in model.modalities if m in images]
    described = dict(description)
    grid, given, seen, notes = _set_aside(images, names, to_first, folder)
    frame = Frame.of(grid, described)
    if fov is not None:
        inside = _on(fov, grid, "fov", names[0], to_first, order=0) > 0
    else:
        inside = fill_slices(seen, frame.slice_axis)
    if not inside.any():
        raise CaseError("nothing is in view: every voxel is 0; give the field of view by --fov.")

    view = frame.forward(inside.astype(np.float32)) > 0.5
    shelf = Shelf(view.shape, folder)
    for m in names:
        try:
            normalised = to_model(given.read(m), inside, m, described)
        except ValueError as error:
            raise CaseError(f"{m} cannot be used: {str(error).rstrip('.')}.") from error
        given.put(m, normalised)
        slices = frame.forward(normalised)
        del normalised
        slices[~view] = -1
        shelf.put(m, slices)
        del slices
    size = int(described["architecture"]["size"])
    tiles = Tiles.over(view, size, tile_stride(model, size))
    covered = predict_tiles(
        model,
        {m: Shelved(shelf, m) for m in names},
        view,
        targets,
        tiles,
        shelf.write,
        samples=samples,
        temperature=temperature,
        seed=seed,
        batch=batch,
        further=further,
        progress=progress,
    )

    seen = frame.back(np.broadcast_to(covered, view.shape).astype(np.float32)) > 0.5
    hidden = ~(inside & seen)

    def place(made: Made) -> Volume:
        values = shelf.read(made)
        values += made.what != "std"  # whose scale begins at 0, and not at -1
        values *= np.float32(SCALE / 2)
        values = frame.back(values)
        np.clip(values, 0, SCALE, out=values)
        values[hidden] = 0
        return values

    def unit(m: str) -> Volume:
        image = given.read(m)
        image += 1
        image /= 2
        return image

    def samples_of(m: str) -> Row:
        return Row(samples, lambda k: place(Made("sample", m, k)))

    lost = float((inside & ~seen).sum() / inside.sum())
    return Synthesis(
        grid=grid,
        images=Lazy(names, unit),
        fov=inside,
        mean=Lazy(targets, lambda m: place(Made("mean", m))),
        std=Lazy(targets if samples > 1 else [], lambda m: place(Made("std", m))),
        samples=Lazy(targets if temperature > 0 else [], samples_of),
        record={
            **frame.record(),
            "window_size": size,
            "window_starts": [list(starts) for starts in tiles.starts],
            "view_cut_off": round(lost, 4),
            "notes": notes,
        },
    )


def _set_aside(
    images: Mapping[str, Image], names: Sequence[str], to_first: bool, folder: Path | None
) -> tuple[Grid, Shelf, Mask, list[str]]:
    """The grid of the first input, all on it, where they show something, and what was done."""
    image = images[names[0]]
    grid, shown, notes = Grid.of(image), np.zeros(image.data.shape, bool), []
    given = Shelf(grid.shape, folder)
    for m in names:
        if m != names[0]:
            del image  # before the next one is read
            image = images[m]
        if m != "us":
            data, note = remove_background(image.data)
            image = Image(data, image.affine)
            notes += [f"{m}: {note}"] if note else []
        volume = _on(image, grid, m, names[0], to_first)
        if m == "us" or "us" not in names:
            shown |= volume > 0
        given.put(m, volume)
        del volume
    return grid, given, shown, notes


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
