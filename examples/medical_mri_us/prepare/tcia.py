"""ReMIND as The Cancer Imaging Archive delivers it: DICOM, in folders whose names say nothing."""

from __future__ import annotations

__all__ = ["case_name", "find_tcia", "series_spacing"]

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from examples.medical_mri_us.data import Series, list_series, read_series
from examples.medical_mri_us.names import made_name

from .rules import RULES, best, plain
from .segmentation import read_segmentation
from .sources import Findings, Input, Source
from .transforms import Registrations

SEGMENTATION = re.compile(r"^(?P<what>tumor(_target)?)\s+seg\b.*MR\s+ref\s*:\s*(?P<of>.+)$", re.I)
"""The SeriesDescription of a tumour's segmentation, which ends in the MR it was drawn on."""


def find_tcia(root: Path, transforms: Path | None, modalities: Sequence[str]) -> Findings:
    """Finds the cases of ReMIND in any tree of DICOM files, by their tags.

    Arguments:
        root: The folder; it and all below are searched.
        transforms: The folder of transforms made for the nrrd release, which fit the series of the
            same name; or None to take the coordinates of all series as they are.
        modalities: Which modalities to look for, of those that `RULES` knows.

    Raises:
        ValueError: If there is no DICOM, or no rule finds a modality.
    """
    unknown = [m for m in modalities if m not in RULES]
    if unknown:
        raise ValueError(
            f"'modalities' should be among {', '.join(RULES)}, but holds {', '.join(unknown)}."
        )
    patients: dict[str, list[Series]] = {}
    for series in list_series(root, progress=True):
        patients.setdefault(series.tag("PatientID"), []).append(series)
    if not patients:
        raise ValueError(f"'tcia' should be a folder with DICOM files, but {root} has none.")
    registrations = None if transforms is None else Registrations.find(transforms, root)
    names = Counter(case_name(patient) for patient in patients)
    findings = Findings()
    for patient, series in sorted(patients.items()):
        case = case_name(patient)
        if names[case] > 1:
            findings.failed[case] = "several patients have this name."
            continue
        try:
            source = _source(case, patient, series, registrations, modalities)
            findings.sources.append(source)
        except Exception as error:  # of any type, for tags that are damaged
            findings.failed[case] = str(error) or type(error).__name__
    return findings


def case_name(patient: str) -> str:
    """Returns the name of a case in the nrrd release.

    Example:
        >>> case_name("ReMIND-007")
        'Case007'
    """
    number = re.fullmatch(r"ReMIND-(\d+)", patient)
    return f"Case{int(number[1]):03d}" if number else made_name(re.sub(r"[^\w-]+", "_", patient))


def _source(
    case: str,
    patient: str,
    series: Sequence[Series],
    registrations: Registrations | None,
    modalities: Sequence[str],
) -> Source:
    ultrasound = [
        s for s in series
        if s.tag("Modality") == "US" and RULES["us"].fits(s.tag("SeriesDescription"))
    ]  # fmt: skip
    if len(ultrasound) != 1:
        listed = "; ".join(str(s) for s in series if s.tag("Modality") == "US") or "none"
        raise ValueError(
            "there should be one series of ultrasound before opening the dura, but there are "
            f"{len(ultrasound)}; those of ultrasound are: {listed}."
        )
    images = {"us": Input(str(ultrasound[0]), partial(read_series, ultrasound[0]))}
    preop = [
        s for s in series
        if s.tag("Modality") == "MR" and "preop" in plain(s.tag("StudyDescription"))
    ]  # fmt: skip
    notes = [] if registrations else ["no transforms: coordinates are taken as they are"]

    def usable(found: Series) -> bool:
        return registrations is None or registrations.knows(case, _stem(case, found))

    def taken(found: Series) -> Input:
        through = registrations.chain(case, _stem(case, found)) if registrations else None
        return Input(str(found), partial(read_series, found), through)

    for modality in modalities:
        if modality == "us":
            continue
        fitting = [s for s in preop if RULES[modality].fits(s.tag("SeriesDescription"))]
        notes += [f"{s} has no transform" for s in fitting if not usable(s)]
        chosen = best(
            (series_spacing(s), s.tag("SeriesDescription") + s.uid, s)
            for s in fitting
            if usable(s)
        )
        if chosen is not None:
            images[modality] = taken(chosen)
    label = None
    for seg, mr in _segmentations(series):
        if usable(mr):
            label = Input(str(seg), partial(read_segmentation, seg, mr), taken(mr).through)
            break
        notes.append(f"{seg} has no transform")
    who = made_name(patient)
    return Source(case, "train", images, label=label, patient=who, notes=tuple(notes))


def _segmentations(series: Sequence[Series]) -> list[tuple[Series, Series]]:
    """Pairs the segmentations of tumours with their MR: the same study, and the name they give."""
    pairs = []
    for seg in series:
        said = SEGMENTATION.match(seg.tag("SeriesDescription"))
        if seg.tag("Modality") != "SEG" or said is None:
            continue
        for mr in series:
            if (
                mr.tag("Modality") == "MR"
                and mr.tag("StudyInstanceUID") == seg.tag("StudyInstanceUID")
                and plain(mr.tag("SeriesDescription")) == plain(said["of"])
            ):
                pairs.append((plain(said["what"]) != "tumor", seg, mr))
    return [(seg, mr) for _, seg, mr in sorted(pairs, key=lambda p: (p[0], p[1].uid))]


def _stem(case: str, series: Series) -> str:
    return f"{case}-preop-MR-{series.tag('SeriesDescription')}"


def series_spacing(series: Series) -> float:
    """Returns the mean distance between voxels, mm, which tags say in two ways."""
    header = series.header
    if "SharedFunctionalGroupsSequence" in header:
        header = header.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence", [header])[0]
    between = header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1
    return float(np.mean([*header.get("PixelSpacing", [1, 1]), between]))
