"""Inputs of synthesis: the files of one case, a folder of cases, or an index."""

from __future__ import annotations

__all__ = ["Job", "choose", "in_folder", "in_index", "input_of", "names", "stem"]

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from examples.medical_mri_us.data import CaseError, Image, read_image, read_index, read_picture
from examples.medical_mri_us.data.geometry import spacing_of
from examples.medical_mri_us.data.planes import UnplacedError
from examples.medical_mri_us.prepare import recognise
from examples.medical_mri_us.prepare.sources import Input

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""The suffixes of the files in a folder of cases."""


@dataclass(frozen=True)
class Job:
    """The images of a case."""

    name: str
    images: dict[str, Input]
    fov: Input | None = None
    further: Mapping[str, str] = field(default_factory=dict)
    """The text of further columns of an index, such as an age."""
    wanted: tuple[str, ...] = ()
    """The modalities that it lacks, where its layout says so."""


def input_of(path: Path, *, alone: bool = False) -> Input:
    """Returns a file, or a folder of DICOM, as an input.

    Arguments:
        path: The file or folder.
        alone: Whether it is the only image of its case, so that its place does not matter.
    """
    return Input(str(path), partial(_read_alone if alone else read_image, path), files=(path,))


def _read_alone(path: Path) -> Image:
    try:
        return read_image(path)
    except UnplacedError:
        image = read_picture(path)
        pixels = " x ".join(f"{s:.3g}" for s in spacing_of(image.affine)[:2])
        print(f"Note: {path} does not say where it lies; its pixels are of {pixels} mm.")
        return image


def in_index(path: Path, modalities: Sequence[str]) -> list[Job]:
    """Returns the cases of an index, of all splits."""
    return [
        Job(
            case.name,
            {m: input_of(f, alone=len(case.images) == 1) for m, f in case.images.items()},
            None if case.fov is None else input_of(case.fov),
            case.further,
        )
        for case in read_index(path, modalities, anywhere=True)
    ]


def in_folder(folder: Path, modalities: Sequence[str]) -> list[Job]:
    """Returns the cases of a folder, in any layout that `prepare.recognise` knows.

    Raises:
        ValueError: If there is no such folder, no case in it, or its images do not lie on each
            other before they are prepared.
    """
    if not folder.is_dir():
        raise ValueError(f"'input-dir' should be a folder or an index, but is {folder}.")
    if (folder / "index.csv").is_file():
        return in_index(folder / "index.csv", modalities)
    try:
        _, findings = recognise(folder, modalities=modalities)
    except ValueError as error:
        raise ValueError(
            f"'input-dir' should hold an index.csv or a folder for each case, with files such as "
            f"{modalities[0]}.nii.gz, or have another layout that prepare --from knows, but "
            f"{folder} does not: {error}"
        ) from error
    inputs = [i for source in findings.sources for i in source.images.values()]
    if any(i.through is not None for i in inputs):
        raise ValueError(
            f"'input-dir' should hold images that lie on each other, but those of {folder} need "
            "transforms: prepare it first."
        )
    return [Job(s.name, s.images, s.fov, s.further) for s in findings.sources]


def choose(
    held: Sequence[str],
    modalities: Sequence[str],
    given: Sequence[str],
    targets: Sequence[str],
    *,
    every: bool,
) -> list[tuple[list[str], list[str]]]:
    """Returns what to condition on, and what to synthesise from it.

    Without a choice, that is all that a case has and all that it has not. Images of what is to be
    synthesised are not conditioned on, unless they are chosen or there are no others.

    Arguments:
        held: What the case has.
        modalities: The modalities of the model.
        given: What to condition on, of what the case has; all if empty.
        targets: What to synthesise; what is not conditioned on if empty.
        every: Whether to take every non-empty subset of what to condition on.

    Raises:
        CaseError: If there is nothing to condition on, or nothing to synthesise.
    """
    chosen = [m for m in modalities if m in held and (not given or m in given)]
    if not chosen:
        raise CaseError(f"it has {', '.join(held)}, but should have one of {', '.join(given)}.")
    if not given and not every:
        chosen = [m for m in chosen if m not in targets] or chosen
    subsets = [chosen]
    if every:
        subsets = [
            list(subset)
            for count in range(1, len(chosen) + 1)
            for subset in itertools.combinations(chosen, count)
        ]
    pairs = [
        (subset, list(targets) or [m for m in modalities if m not in subset]) for subset in subsets
    ]
    pairs = [(subset, wanted) for subset, wanted in pairs if wanted]
    if not pairs:
        raise CaseError("it has every modality already; say what to synthesise by --target.")
    return pairs


def names(text: str, modalities: Sequence[str], option: str) -> list[str]:
    """Splits a list of modalities at its commas.

    Raises:
        ValueError: If one is unknown; the message names the nearest.
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    for name in found:
        if name not in modalities:
            near = difflib.get_close_matches(name.lower(), modalities, n=2, cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"'{option}' should be modalities of the model, {', '.join(modalities)}, but is "
                f"{name!r}.{hint}"
            )
    return list(dict.fromkeys(found))


def stem(path: Path) -> str:
    """Returns the name of a file without what it ends in."""
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)] or path.name
