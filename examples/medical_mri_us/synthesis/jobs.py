"""Inputs of synthesis: the files of one case, a folder of cases, or an index."""

from __future__ import annotations

__all__ = ["Job", "choose", "in_folder", "in_index", "names", "stem"]

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.medical_mri_us.data import CaseError, read_index

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""The suffixes of the files in a folder of cases."""


@dataclass(frozen=True)
class Job:
    """The files of a case."""

    name: str
    images: dict[str, Path]
    fov: Path | None = None


def in_index(path: Path, modalities: Sequence[str]) -> list[Job]:
    """Returns the cases of an index, of all splits."""
    return [Job(case.name, case.images, case.fov) for case in read_index(path, modalities)]


def in_folder(folder: Path, modalities: Sequence[str]) -> list[Job]:
    """Returns the cases of a folder: folders of their own, with files named by modality.

    The file of a modality is ``<modality>.nii.gz`` or a file of another format that is read, or
    the folder ``<modality>`` of DICOM files; ``fov`` likewise.

    Raises:
        ValueError: If there is no such folder, or no case in it.
    """
    if not folder.is_dir():
        raise ValueError(f"'input-dir' should be a folder or an index, but is {folder}.")
    if (folder / "index.csv").is_file():
        return in_index(folder / "index.csv", modalities)
    jobs = []
    for case in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        images = {m: file for m in modalities if (file := _file(case, m)) is not None}
        if images:
            jobs.append(Job(case.name, images, _file(case, "fov")))
    if not jobs:
        raise ValueError(
            f"'input-dir' should hold an index.csv or a folder for each case, with files such as "
            f"{modalities[0]}.nii.gz, but {folder} holds neither."
        )
    return jobs


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


def _file(folder: Path, name: str) -> Path | None:
    if (folder / name).is_dir():
        return folder / name
    return next((p for s in SUFFIXES if (p := folder / f"{name}{s}").is_file()), None)
