"""The LGG Segmentation Dataset: three sequences as the colours of one picture for each slice."""

from __future__ import annotations

__all__ = ["find_lgg", "lgg_folders", "read_stack"]

import re
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from examples.medical_mri_us.data import Image, ImageError

from .sources import Findings, Input, Source

CHANNELS = {"t1": 0, "flair": 1, "cet1": 2}
"""The colours of the pictures."""

SLICE = re.compile(r"(?P<case>TCGA_[A-Z0-9]+_[A-Z0-9]+_\d+)_(?P<number>\d+)\.tif$")
"""The name of a slice: institution, patient, date, and the number of the slice."""

SPACING = (0.94, 0.94, 5.0)
"""The spacing, mm, which is not in the files: about what most of them have."""


def lgg_folders(folder: Path) -> list[Path]:
    """Returns the folders of patients, of the data set or of its folder ``kaggle_3m``."""
    return sorted(p for d in ("TCGA_*", "kaggle_3m/TCGA_*") for p in folder.glob(d) if p.is_dir())


def find_lgg(folder: Path) -> Findings:
    """Finds the patients of the LGG Segmentation Dataset.

    A sequence that a patient lacks was replaced by a copy of FLAIR there: it is missing.
    """
    findings = Findings()
    for place in lgg_folders(folder):
        named = {file: m for file in place.glob("*.tif") if (m := SLICE.match(file.name))}
        files = tuple(sorted(named, key=lambda file: int(named[file]["number"])))
        if not files:
            continue
        try:
            copies = _copies(files)
        except ImageError as error:
            findings.failed[place.name] = str(error)
            continue
        images = {
            m: Input(f"{place}/*.tif, colour {c}", partial(read_stack, files, c), files=files)
            for m, c in CHANNELS.items() if m not in copies
        }  # fmt: skip
        masks = tuple(file.with_name(f"{file.stem}_mask.tif") for file in files)
        label = None
        if all(mask.is_file() for mask in masks):
            label = Input(f"{place}/*_mask.tif", partial(read_stack, masks, None), files=masks)
        notes = [f"{m} is a copy of flair: it is missing" for m in copies]
        reference = next(m for m in ("cet1", "flair") if m in images)
        findings.sources.append(
            Source(
                place.name,
                "train",
                {m: images[m] for m in ("cet1", "flair", "t1") if m in images},
                reference=reference,
                turned=True,
                label=label,
                patient="_".join(place.name.split("_")[:3]),
                notes=(*notes, "spacing is not in the files: 0.94 x 0.94 x 5 mm is assumed"),
            )
        )
    return findings


def read_stack(files: tuple[Path, ...], colour: int | None) -> Image:
    """Reads the pictures of a patient as a volume, axial, from the feet to the head.

    Arguments:
        files: The slices.
        colour: Which colour of them; None for masks, which become ones and zeros.

    Raises:
        ImageError: If a file is no such picture, or their sizes differ.
    """
    slices = [_picture(file) if colour is None else _colours(file)[..., colour] for file in files]
    if len({s.shape for s in slices}) > 1:
        raise ImageError(f"{files[0].parent} holds slices of differing sizes.")
    volume = np.stack(slices, axis=-1).transpose(1, 0, 2).astype(np.float32)
    volume = (volume > 0).astype(np.float32) if colour is None else volume
    return Image(np.ascontiguousarray(volume), np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1]))


def _copies(files: tuple[Path, ...]) -> list[str]:
    """The sequences that equal FLAIR in every slice."""
    copies = [m for m in CHANNELS if m != "flair"]
    for file in files:
        colours = _colours(file)
        flair = colours[..., CHANNELS["flair"]]
        copies = [m for m in copies if np.array_equal(colours[..., CHANNELS[m]], flair)]
        if not copies:
            break
    return copies


def _colours(file: Path) -> np.ndarray:
    picture = _picture(file)
    if picture.ndim != 3 or picture.shape[-1] != len(CHANNELS):
        raise ImageError(f"{file} should be a picture of three colours, but is {picture.shape}.")
    return picture


def _picture(file: Path) -> np.ndarray:
    try:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ImageError(f"{file} cannot be read: {reason}; copy it again.") from error
