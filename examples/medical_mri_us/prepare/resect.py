"""RESECT and RESECT-SEG as they lie on disk."""

from __future__ import annotations

__all__ = ["find_resect", "read_tag"]

import csv
import io
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.data import read_image

from .sources import Findings, Input, Source

FILES = {
    "us": "US/{case}-US-before.nii.gz",
    "flair": "MRI/{case}-FLAIR.nii.gz",
    "t1": "MRI/{case}-T1.nii.gz",
}
"""The files of the modalities. RESECT has neither T2 nor contrast-enhanced T1."""

LABEL = "{case}/{case}-US-before-tumor.nii.gz"

COLUMNS = ("landmark", "x_us", "y_us", "z_us", "x_mr", "y_mr", "z_mr")


def find_resect(root: Path, labels: Path | None, modalities: Sequence[str]) -> Findings:
    """Finds the cases of RESECT: ultrasound before resection, FLAIR, landmarks.

    Arguments:
        root: The folder with ``NIFTI/CaseN``, or with ``CaseN`` itself.
        labels: The folder of RESECT-SEG, or None.
        modalities: Which modalities to look for; those that RESECT lacks are missing.

    Raises:
        ValueError: If the folder is another one.
    """
    folders = [p for p in [*root.glob("NIFTI/Case*"), *root.glob("Case*")] if p.is_dir()]
    if not folders:
        raise ValueError(f"'resect' should be a folder with NIFTI/CaseN, but {root} has none.")
    findings = Findings()
    for folder in sorted(folders, key=lambda p: (len(p.name), p.name)):
        case = folder.name
        images = {}
        for modality in modalities:
            file = folder / FILES.get(modality, "-").format(case=case)
            if file.is_file():
                images[modality] = Input(str(file), partial(read_image, file))
        try:
            if "us" not in images:
                raise ValueError(f"there is no {FILES['us'].format(case=case)}.")
            label = None if labels is None else _label(labels, case)
            landmarks = _landmarks(folder)
        except ValueError as error:
            findings.failed[case] = str(error)
            continue
        notes = () if labels is None or label is not None else ("it has no segmentation",)
        source = Source(case, "test", images, label=label, landmarks=landmarks, notes=notes)
        findings.sources.append(source)
    return findings


def read_tag(path: Path) -> npt.NDArray[np.float64]:
    """Reads an MNI tag file of points in two volumes: (points, 2, 3), mm, RAS.

    Raises:
        ValueError: If it is another file.
    """
    text = path.read_text(errors="replace")
    match = re.search(r"Points\s*=(.*?);", text, flags=re.DOTALL)
    if not text.startswith("MNI Tag Point File") or match is None:
        raise ValueError(f"{path} should be an MNI tag file with points, but is not.")
    volumes = re.search(r"Volumes\s*=\s*(\d+)\s*;", text)
    if volumes is not None and int(volumes[1]) != 2:
        raise ValueError(f"{path} should have points in two volumes, but has {volumes[1]}.")
    points = []
    for line in match[1].strip().splitlines():
        numbers = re.sub(r'"[^"]*"', "", line).split()
        if not numbers:
            continue
        try:
            points.append([float(n) for n in numbers[:6]])
        except ValueError as error:
            raise ValueError(f"{path} has a line that is no point: {line.strip()}.") from error
        if len(points[-1]) < 6:
            raise ValueError(f"{path} has a line that is no pair of points: {line.strip()}.")
    return np.reshape(points, (-1, 2, 3))


def _label(root: Path, case: str) -> Input | None:
    for place in (root, root / "RESECT_segmentation"):
        file = place / LABEL.format(case=case)
        if file.is_file():
            return Input(str(file), partial(read_image, file))
    return None


def _landmarks(folder: Path) -> str:
    """Returns landmarks.csv of a case: each point in ultrasound and in MR, mm, RAS."""
    name = f"{folder.name}-MRI-beforeUS.tag"
    files = [f for d in ("Landmarks", "Landmark") if (f := folder / d / name).is_file()]
    if not files:
        return ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, (mr, us) in enumerate(read_tag(files[0]), start=1):
        writer.writerow([number, *us.tolist(), *mr.tolist()])
    return text.getvalue()
