"""Preparing one case: everything on one grid, in a folder that is whole or not there."""

from __future__ import annotations

__all__ = ["prepare_case", "read_reference"]

from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.data import (
    Case,
    CaseError,
    Grid,
    Image,
    ImageError,
    Volume,
    fill_slices,
    remove_background,
    resample,
    store_subject,
    write_image,
)
from examples.medical_mri_us.data.stored import FOLDER
from mmpoe.training import scratch, write_file

from .sources import Input, Source
from .space import label_on, reference_grid, slices_last


def read_reference(source: Source) -> tuple[Image, str]:
    """Reads the image whose grid the others of a case are brought to.

    Returns:
        The image, whose background is 0, and what was done to it, see `remove_background`.

    Raises:
        ImageError: If it cannot be used.
    """
    image, note = _read(source.images[source.reference], source.reference)
    return (slices_last(image) if source.turned else image), note


def prepare_case(source: Source, out: Path, spacing: float, size: int) -> dict[str, Any]:
    """Brings a case to one grid and writes it into a folder with its name.

    Ultrasound is stored as it is, in 0 to 255. MR is stored with a background of 0, see
    `remove_background`. The field of view, unless one was given, is where the reference is above
    0, and the holes therein. What training reads is stored beside it, see `store_subject`.

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
    raw, said = read_reference(source)
    name = source.images[source.reference].name
    try:
        grid, cropped = reference_grid(raw, spacing, size)
    except ValueError as error:
        raise ImageError(f"{name}: {error}") from error
    notes = [*source.notes, *_note(source.reference, said)]
    if cropped:
        notes.append(
            f"{max(0.1, 100 * cropped):.2g} % of what {source.reference} shows is cropped by the "
            f"grid, {grid}; a larger --size holds it"
        )
    reference = resample(raw, grid)
    shown = fill_slices(reference > 0)
    with scratch(out) as partial:

        def brought(found: Input, column: str, modality: str) -> str:
            image, said = _read(found, modality)
            notes.extend(_note(column, said))
            return _store(partial, column, _brought(image, found, grid), grid)

        cells = {source.reference: _store(partial, source.reference, reference, grid)}
        for modality, found in source.images.items():
            if modality != source.reference:
                cells[modality] = brought(found, modality, modality)
        for modality, found in source.targets.items():
            cells[f"target_{modality}"] = brought(found, f"target_{modality}", modality)
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
    case = Case(
        source.name,
        source.split,
        {m: folder / cells[m] for m in source.images},
        fov=folder / cells["fov"],
        targets={m: folder / cells[f"target_{m}"] for m in source.targets},
    )
    try:
        store_subject(case, out / FOLDER)
    except CaseError as error:
        notes.append(f"training cannot use it: {error}")
    return {
        "cells": {column: f"{source.name}/{file}" for column, file in cells.items()},
        "record": {
            "from": {m: found.name for m, found in source.images.items()},
            "label": None if source.label is None else source.label.name,
            "reference": source.reference,
            "grid": str(grid),
            "affine": np.round(grid.affine, 6).tolist(),
            "cropped": round(cropped, 4),
            "notes": notes,
        },
    }


def found_fov(fov: Input) -> Image:
    """Reads a field of view as ones and zeros."""
    image = fov.read()
    return Image((image.data > 0).astype(np.float32), image.affine)


def _note(column: str, said: str) -> list[str]:
    return [f"{column}: {said}"] if said else []


def _read(found: Input, modality: str) -> tuple[Image, str]:
    """Reads an image whose background is to be 0, and says what that took."""
    image = found.read()
    low, high = float(image.data.min()), float(image.data.max())
    if low == high:
        raise ImageError(f"{found.name} is constant; leave it out if it is missing.")
    if modality != "us":
        data, note = remove_background(image.data)
        return Image(data, image.affine), note
    if low < 0 or not 1 < high <= 255:
        raise ImageError(
            f"{found.name} should be ultrasound in 0 to 255, but lies in {low:.4g} to {high:.4g}; "
            "rescale it."
        )
    return image, ""


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
