"""Preparing one case: everything on one grid, in a folder that is whole or not there."""

from __future__ import annotations

__all__ = ["prepare_case"]

from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.data import Grid, Image, ImageError, Volume, resample, write_image
from mmpoe.training import scratch, write_file

from .sources import Input, Source
from .space import label_on, reference_grid


def prepare_case(source: Source, out: Path, spacing: float, size: int) -> dict[str, Any]:
    """Brings a case to one grid and writes it into a folder with its name.

    Ultrasound is stored as it is, in 0 to 255. Of MR, the minimum is subtracted, so that 0 is
    background. The field of view, unless one was given, is where the reference is above 0.

    Arguments:
        source: The case.
        out: The folder for the folder.
        spacing: See `reference_grid`.
        size: See `reference_grid`.

    Returns:
        The cells of the index, by column, and what is told of the case in ``prepare.json``.

    Raises:
        ImageError: If an image cannot be used.
    """
    raw = _read(source.images[source.reference], source.reference)
    try:
        grid = reference_grid(raw, spacing, size)
    except ValueError as error:
        raise ImageError(f"{source.images[source.reference].name}: {error}") from error
    reference = resample(raw, grid)
    shown = reference > 0
    with scratch(out) as partial:
        cells = {}
        for modality, found in source.images.items():
            same = modality == source.reference
            image = reference if same else _brought(_read(found, modality), found, grid)
            cells[modality] = _store(partial, modality, image, grid)
        for modality, found in source.targets.items():
            image = _brought(_read(found, modality), found, grid)
            cells[f"target_{modality}"] = _store(partial, f"target_{modality}", image, grid)
        if source.fov is not None:
            shown = resample(found_fov(source.fov), grid, 0, through=source.fov.through) > 0
        cells["fov"] = _store(partial, "fov", shown, grid, "uint8")
        if source.label is not None:
            cells["label"] = _store(partial, "label", _label(source.label, grid), grid, "uint8")
        if source.landmarks:
            write_file(partial / "landmarks.csv", source.landmarks.encode())
            cells["landmarks"] = "landmarks.csv"
        folder = out / source.name
        partial.rename(folder)
    return {
        "cells": {column: f"{source.name}/{file}" for column, file in cells.items()},
        "record": {
            "from": {m: found.name for m, found in source.images.items()},
            "label": None if source.label is None else source.label.name,
            "reference": source.reference,
            "grid": str(grid),
            "affine": np.round(grid.affine, 6).tolist(),
            "notes": list(source.notes),
        },
    }


def found_fov(fov: Input) -> Image:
    """Reads a field of view as ones and zeros."""
    image = fov.read()
    return Image((image.data > 0).astype(np.float32), image.affine)


def _read(found: Input, modality: str) -> Image:
    """Reads an image whose background is to be 0."""
    image = found.read()
    low, high = float(image.data.min()), float(image.data.max())
    if low == high:
        raise ImageError(f"{found.name} is constant; leave it out if it is missing.")
    if modality != "us":
        return Image(image.data - np.float32(low), image.affine)
    if low < 0 or not 1 < high <= 255:
        raise ImageError(
            f"{found.name} should be ultrasound in 0 to 255, but lies in {low:.4g} to {high:.4g}; "
            "rescale it."
        )
    return image


def _brought(image: Image, found: Input, grid: Grid) -> Volume:
    volume = resample(image, grid, through=found.through)
    if not volume.any():
        raise ImageError(
            f"{found.name} shows nothing where the reference lies; do they share a world?"
        )
    return volume


def _label(label: Input, grid: Grid) -> np.ndarray:
    try:
        return label_on(label.read(), grid, label.through)
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"{label.name}: {error}") from error


def _store(folder: Path, name: str, data: np.ndarray, grid: Grid, dtype: str = "float32") -> str:
    kind = "uint8" if dtype == "uint8" else "float32"
    write_image(folder / f"{name}.nii.gz", data, grid.affine, dtype=kind)
    return f"{name}.nii.gz"
