"""Studies of DICOM series: which series is which modality, by what their descriptions say."""

from __future__ import annotations

__all__ = ["find_studies", "modality_of"]

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from examples.medical_mri_us.data import Series, read_series

from .rules import best
from .sources import Findings, Input, Source
from .tcia import case_name, series_spacing

OTHERS = (
    "adc dwi dti diff diffusion trace swi swan perf perfusion dsc dce asl localizer localiser "
    "scout survey loc mip sub subtraction star map tof angio spectro csi bold fmri phase b0 "
    "b1000 calibration"
)
"""The words of series that are none of the modalities."""

CONTRAST = "gd gad gado gadolinium post postcontrast contrast ce km c+ +c postgd"
"""The words of a T1 with contrast agent."""

WITHOUT = re.compile(r"\b(pre|non|no|without|w/?o)\b|precontrast|noncontrast")
"""The words of a T1 before contrast agent."""

T1 = "t1 t1w mprage mp2rage spgr bravo vibe fspgr tfe tfl"
"""The words of a T1."""

T2 = "t2 t2w"
"""The words of a T2."""

FLAIR = "flair darkfluid tirm"
"""The words of a FLAIR."""


def find_studies(series: Sequence[Series], folder: Path) -> Findings:
    """Finds one case for each study of each patient.

    Of several series that may be a modality, the finest is taken.

    Arguments:
        series: The series.
        folder: The folder that holds them.
    """
    studies: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        studies[one.tag("PatientID"), one.tag("StudyInstanceUID")].append(one)
    findings = Findings()
    numbers: dict[str, int] = defaultdict(int)
    for (patient, _), found in sorted(studies.items()):
        name = case_name(patient) if patient else folder.name
        numbers[name] += 1
        case = name if numbers[name] == 1 else f"{name}_{numbers[name]}"
        source = _source(case, patient or name, found)
        if isinstance(source, str):
            findings.failed[case] = source
        else:
            findings.sources.append(source)
    return findings


def modality_of(series: Series) -> str | None:
    """Returns the modality of a series, by its tags; None if it is none of those known."""
    if series.tag("Modality") == "US":
        return "us"
    if series.tag("Modality") != "MR":
        return None
    text = series.tag("SeriesDescription").lower().replace("t2*", "star")
    words = {w for w in re.split(r"[^a-z0-9+]+", text) if w}
    words |= {part for w in words for part in re.findall(r"t[12]|flair|post|mprage|[a-z]+|\+c", w)}
    if _any(words, OTHERS):
        return None
    if _any(words, FLAIR) and "t1" not in words:
        return "flair"
    if _any(words, T1):
        if WITHOUT.search(text.replace("_", " ")):
            return "t1"
        agent = series.tag("ContrastBolusAgent").lower() not in ("", "none", "no")
        return "cet1" if agent or _any(words, CONTRAST) else "t1"
    return "t2" if _any(words, T2) else None


def _any(words: set[str], of: str) -> bool:
    return not words.isdisjoint(of.split())


def _source(case: str, patient: str, series: Sequence[Series]) -> Source | str:
    fitting: dict[str, list[Series]] = defaultdict(list)
    notes = []
    for one in series:
        modality = modality_of(one)
        if modality is None:
            notes.append(f"{one} is left out: its description names no modality")
        else:
            fitting[modality].append(one)
    images = {}
    for modality, several in fitting.items():
        chosen = best((series_spacing(s), s.tag("SeriesDescription") + s.uid, s) for s in several)
        assert chosen is not None  # there are series
        images[modality] = Input(str(chosen), partial(read_series, chosen), files=chosen.files)
        notes += [f"{s} is left out: it is coarser" for s in several if s is not chosen]
    if not images:
        listed = "; ".join(str(s) for s in series)
        return f"no series is a modality by its description: {listed}."
    order = [m for m in ("us", "t2", "cet1", "flair", "t1") if m in images]
    return Source(
        case, "train", {m: images[m] for m in order}, reference=order[0], turned=order[0] != "us",
        patient=patient, notes=tuple(notes),
    )  # fmt: skip
