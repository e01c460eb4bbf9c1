"""ReMIND as its nrrd release lies on disk, with the transforms of the published MMHVAE."""

from __future__ import annotations

__all__ = ["find_remind"]

import csv
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from examples.medical_mri_us.data import read_image
from examples.medical_mri_us.data.foreign import walled
from examples.medical_mri_us.data.headers import read_header

from .rules import RULES, best
from .sources import Findings, Input, Source
from .transforms import Registrations

MR = re.compile(r"-preop-MR-(?P<sequence>.+)$")
SEGMENTATION = re.compile(r"-preop-SEG-(?P<what>tumor|tumor_target)-MR-(?P<sequence>.+)$")


def find_remind(root: Path, transforms: Path, modalities: Sequence[str]) -> Findings:
    """Finds the cases of ReMIND's nrrd release.

    Arguments:
        root: The folder with ``nrrd/CaseNNN``, or with ``CaseNNN`` itself.
        transforms: The folder with ``affine/CaseNNN`` and ``rigid/CaseNNN``.
        modalities: Which modalities to look for, of those that `RULES` knows.

    Raises:
        ValueError: If one of the folders is another one, or no rule finds a modality.
    """
    unknown = [m for m in modalities if m not in RULES]
    if unknown:
        raise ValueError(
            f"'modalities' should be among {', '.join(RULES)}, but holds {', '.join(unknown)}."
        )
    folders = sorted(p for p in [*root.glob("nrrd/Case*"), *root.glob("Case*")] if p.is_dir())
    if not folders:
        raise ValueError(f"'remind' should be a folder with nrrd/CaseNNN, but {root} has none.")
    registrations = Registrations.find(transforms, root, root / "nrrd", root.parent)
    targets = _targets(root, transforms)
    findings = Findings()
    for folder in folders:
        try:
            source = _source(folder, registrations, modalities, targets.get(folder.name))
            findings.sources.append(source)
        except ValueError as error:
            findings.failed[folder.name] = str(error)
    return findings


def _source(
    folder: Path, registrations: Registrations, modalities: Sequence[str], target: str | None
) -> Source:
    case = folder.name
    ultrasound = [p for p in _volumes(folder / "Intraop-US") if RULES["us"].fits(p.stem)]
    if len(ultrasound) != 1:
        raise ValueError(f"there should be one ultrasound before opening the dura, but there are "
                         f"{len(ultrasound)}.")  # fmt: skip
    images = {"us": Input(str(ultrasound[0]), partial(read_image, ultrasound[0]))}
    found = {m["sequence"]: p for p in _volumes(folder / "Preop-MR") if (m := MR.search(p.stem))}
    notes = []
    for modality in modalities:
        if modality == "us":
            continue
        fitting = {s: p for s, p in found.items() if RULES[modality].fits(s)}
        usable = [p for p in fitting.values() if registrations.knows(case, p.stem)]
        notes += [f"{p.name} has no transform" for p in fitting.values() if p not in usable]
        chosen = best((mean_spacing(p), p.name, p) for p in usable)
        if chosen is not None:
            through = registrations.chain(case, chosen.stem)
            images[modality] = Input(str(chosen), partial(read_image, chosen), through)
    label = _label(folder, registrations, target, notes)
    return Source(case, "train", images, label=label, patient=case, notes=tuple(notes))


def _label(
    folder: Path, registrations: Registrations, target: str | None, notes: list[str]
) -> Input | None:
    """Finds the segmentation of the tumour: the one that a table names, else the first."""
    case = folder.name
    fitting = {
        p: m for p in _volumes(folder / "Annotations") if (m := SEGMENTATION.search(p.stem))
    }
    order = sorted(
        fitting, key=lambda p: (p.stem != target, fitting[p]["what"] != "tumor", p.name)
    )
    for path in order:
        name = f"{case}-preop-MR-{fitting[path]['sequence']}"
        if registrations.knows(case, name):
            return Input(str(path), partial(read_image, path), registrations.chain(case, name))
        notes.append(f"{path.name} has no transform")
    return None


def _volumes(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.nrrd"))


def _targets(root: Path, transforms: Path) -> dict[str, str]:
    """Reads which segmentation each case is to use, if ``choice_target.csv`` is there."""
    for place in (root, root / "nrrd", root.parent, transforms, transforms.parent):
        if (place / "choice_target.csv").is_file():
            with (place / "choice_target.csv").open(newline="", encoding="utf-8-sig") as file:
                return {row[0]: row[1] for row in csv.reader(file) if len(row) >= 2 and row[0]}
    return {}


def mean_spacing(path: Path) -> float:
    """Returns the mean distance between voxels, mm, from the header alone.

    Raises:
        ImageError: If the file cannot be read.
    """
    with walled(path):
        read_header(path)  # which knows whether its voxels are in the folder
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        return float(np.mean(reader.GetSpacing()))
