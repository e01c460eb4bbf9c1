"""Layouts of folders, recognised by their names: BIDS, BraTS, a folder for each case, and more."""

from __future__ import annotations

__all__ = ["Reader", "describe", "recognise"]

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import Image, list_series, read_image
from examples.medical_mri_us.data.columns import image_columns
from examples.medical_mri_us.modalities import MODALITIES

from .lgg import find_lgg, lgg_folders
from .own import find_own
from .remind import find_remind, mean_spacing
from .resect import find_resect
from .rules import best
from .sources import Findings, Input, Source
from .study import find_studies
from .tcia import find_tcia

Reader = Callable[[Path], Image]

NAMES = {
    "us": "us", "t1": "t1", "t1n": "t1", "t1w": "t1", "t1c": "cet1", "t1ce": "cet1",
    "t1gd": "cet1", "cet1": "cet1", "t2": "t2", "t2w": "t2", "t2f": "flair", "flair": "flair",
}  # fmt: skip
"""The modalities, by how files are called, in small letters."""

FILE = re.compile(r"(?P<stem>.+?)\.(nii|nii\.gz|nrrd|nhdr|mha|mhd)$", re.IGNORECASE)
"""The name of a file that is read as an image."""

BIDS = re.compile(r"(?P<entities>sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*)_(?P<suffix>\w+)$")
"""The name of an image in BIDS, without its ending."""

BRATS = re.compile(
    r"(?P<case>.+)[-_](?P<name>t1n|t1c|t1ce|t1|t2w|t2f|t2|flair|seg)$", re.IGNORECASE
)
"""The name of an image of BraTS, old and new, without its ending."""

TIMEPOINT = re.compile(r"(?P<patient>BraTS-[A-Za-z]+-\d+)-\d+$")
"""The case of newer releases of BraTS: the last number counts the visits of a patient."""

RESERVED = frozenset({"case", "split", "patient", "fov", "label", "landmarks", *NAMES})
"""The columns of an index that nothing else may be called."""

SHOWN = 5
"""How many cases are listed on screen; of others, only what is left out is."""


def recognise(
    folder: Path,
    read: Reader = read_image,
    *,
    transforms: Path | None = None,
    modalities: Sequence[str] | None = None,
) -> tuple[str, Findings]:
    """Finds the cases of a folder, whatever its layout.

    Arguments:
        folder: The folder.
        read: How files are read.
        transforms: The transforms of ReMIND; without, they are looked for in the folder.
        modalities: Which modalities to look for; all if None.

    Returns:
        The name of the layout, and the cases.

    Raises:
        ValueError: If there is no such folder, or its layout is none of those that are known.
    """
    if not folder.is_dir():
        raise ValueError(f"'from' should be a folder (unpack archives first), but is {folder}.")
    wanted = MODALITIES if modalities is None else modalities
    if (folder / "index.csv").is_file():
        columns = modalities or image_columns(folder / "index.csv")
        return "an index, index.csv", find_own(folder / "index.csv", columns)
    if any(folder.glob("sub-*/anat/*.nii*")) or any(folder.glob("sub-*/ses-*/anat/*.nii*")):
        return "BIDS", _kept(_bids(folder, read), modalities)
    if any(_case_folders(folder, "US")):
        return "RESECT", _kept(find_resect(folder, None, (*wanted, "t1")), modalities)
    if any(_case_folders(folder, "Intraop-US")):
        return "ReMIND, NRRD", find_remind(folder, transforms or _transforms(folder), wanted)
    if lgg_folders(folder):
        return "LGG Segmentation Dataset, TIFF", _kept(find_lgg(folder), modalities)
    for name, found in (("BraTS", _brats(folder, read)), ("a folder for each case", None)):
        found = _named(folder, read, modalities) if found is None else found
        if found.sources:
            return name, _kept(found, modalities)
    series = list_series(folder, progress=True)
    if any(s.tag("PatientID").startswith("ReMIND-") for s in series):
        return "ReMIND, DICOM", find_tcia(folder, transforms, wanted)
    if series:
        return "studies of DICOM series", _kept(find_studies(series, folder), modalities)
    raise ValueError(
        "'from' should be a folder in the layout of BIDS, BraTS, ReMIND, RESECT or the LGG "
        "Segmentation Dataset, with a folder of files such as t2.nii.gz for each case, or with "
        f"DICOM files, but {folder} is none of these; --index lists files of any name."
    )


def describe(name: str, folder: Path, findings: Findings) -> str:
    """Says what was taken for what."""
    counts = ", ".join(
        f"{m} {sum(m in s.images for s in findings.sources)}" for m in findings.modalities
    )
    lines = [
        f"{folder} is {name}: {counted(len(findings.sources), 'case')} with {counts or 'nothing'}."
    ]
    for source in findings.sources[:SHOWN]:
        images = {**source.images, **({"label": source.label} if source.label else {})}
        lines.append(f"  {source.name}")
        lines += [f"    {m} = {_relative(found.name, folder)}" for m, found in images.items()]
        lines += [f"    {_relative(note, folder)}" for note in source.notes]
    if len(findings.sources) > SHOWN:
        lines.append(f"  ... and {len(findings.sources) - SHOWN} more")
    for source in findings.sources[SHOWN:]:
        lines += [f"  {source.name}: {_relative(note, folder)}" for note in source.notes]
    return "\n".join(lines)


def _bids(folder: Path, read: Reader) -> Findings:
    """Finds the sessions of BIDS; of several images of a kind, the finest is taken."""
    findings, people = Findings(), _participants(folder)
    sessions: dict[str, list[Path]] = defaultdict(list)
    for file in sorted([*folder.glob("sub-*/anat/*"), *folder.glob("sub-*/ses-*/anat/*")]):
        if FILE.match(file.name):
            parts = file.relative_to(folder).parts[:-2]
            sessions["_".join(parts)].append(file)
    for case, files in sessions.items():
        found: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            name = BIDS.match(_stem(file))
            if name is None:
                continue
            modality = NAMES.get(name["suffix"].lower())
            if modality == "t1" and "_ce-" in name["entities"]:
                modality = "cet1"
            if modality is not None:
                found[modality].append(file)
        images, notes = {}, []
        for modality, several in found.items():
            chosen, others = _finest(several)
            images[modality] = _input(chosen, read)
            notes += [
                f"{file} is left out: {chosen.name} is taken for {modality}" for file in others
            ]
        if images:
            patient = case.partition("_")[0]
            further = people.get(patient, {})
            findings.sources.append(
                source_of(case, images, patient=patient, further=further, notes=notes)
            )
    return findings


def _participants(folder: Path) -> dict[str, dict[str, str]]:
    """Reads what BIDS says of its participants, such as age and sex, by participant."""
    try:
        text = (folder / "participants.tsv").read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return {}
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return {
        row["participant_id"]: {
            k: v for k, v in row.items() if k and v and k != "participant_id" and k not in RESERVED
        }
        for row in rows
        if row.get("participant_id")
    }


def _brats(folder: Path, read: Reader) -> Findings:
    """Finds the cases of BraTS: folders whose files begin with their name.

    The folder itself may be that of one case, whatever it is called.
    """
    findings = Findings()
    alone = {n["case"] for f in folder.iterdir() if (n := _brats_name(f)) is not None}
    for place in _folders(folder):
        case = next(iter(alone)) if place == folder and len(alone) == 1 else place.name
        images: dict[str, Input] = {}
        label = None
        for file in sorted(place.iterdir()):
            name = _brats_name(file)
            if name is None or name["case"] != case:
                continue
            if name["name"].lower() == "seg":
                label = _input(file, read)
            else:
                images[NAMES[name["name"].lower()]] = _input(file, read)
        if images:
            visit = TIMEPOINT.match(case)
            patient = visit["patient"] if visit else case
            findings.sources.append(source_of(case, images, patient=patient, label=label))
    return findings


def _brats_name(file: Path) -> re.Match[str] | None:
    return BRATS.match(_stem(file)) if FILE.match(file.name) else None


def _named(folder: Path, read: Reader, modalities: Sequence[str] | None) -> Findings:
    """Finds folders of cases with files, or folders of DICOM, that are called by modality."""
    names = {**NAMES, **{m: m for m in modalities or ()}}
    findings = Findings()
    for place in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        images: dict[str, Input] = {}
        others: dict[str, Input] = {}
        taken: dict[str, str] = {}
        notes = []
        for file in sorted(place.iterdir()):
            if not file.is_dir() and not FILE.match(file.name):
                continue
            name = _stem(file)
            modality = names.get(name) or names.get(name.lower())
            if modality in images:
                notes.append(f"{file} is left out: {taken[modality]} is taken for {modality}")
            elif modality is not None:
                images[modality], taken[modality] = _input(file, read), file.name
            elif name in ("fov", "label"):
                others[name] = _input(file, read)
        if images:
            findings.sources.append(
                source_of(
                    place.name,
                    images,
                    label=others.get("label"),
                    fov=others.get("fov"),
                    notes=notes,
                )
            )
    return findings


def source_of(
    case: str,
    images: dict[str, Input],
    *,
    patient: str = "",
    label: Input | None = None,
    fov: Input | None = None,
    further: dict[str, str] | None = None,
    notes: Iterable[str] = (),
) -> Source:
    """Returns a case for training, on the grid of its ultrasound or else of its first image."""
    ordered = {m: images[m] for m in (*MODALITIES, *images) if m in images}
    reference = next(iter(ordered))
    return Source(
        case, "train", ordered, reference=reference, turned=reference != "us", label=label,
        fov=fov, patient=patient, further=further or {}, notes=tuple(notes),
    )  # fmt: skip


def _kept(findings: Findings, modalities: Sequence[str] | None) -> Findings:
    """Leaves out what was not asked for."""
    if modalities is None:
        return findings
    kept = Findings(failed=findings.failed)
    for source in findings.sources:
        images = {m: source.images[m] for m in modalities if m in source.images}
        if images:
            reference = source.reference if source.reference in images else next(iter(images))
            turned = reference != "us"
            kept.sources.append(replace(source, images=images, reference=reference, turned=turned))
    return kept


def _finest(files: list[Path]) -> tuple[Path, list[Path]]:
    """Returns the file with the smallest voxels, and the others."""
    if len(files) == 1:
        return files[0], []
    chosen = best((_spacing(file), file.name, file) for file in files)
    assert chosen is not None  # there are files
    return chosen, [file for file in files if file != chosen]


def _spacing(file: Path) -> float:
    try:
        return mean_spacing(file)
    except ValueError:
        return float("inf")


def _input(file: Path, read: Reader) -> Input:
    return Input(str(file), partial(read, file), files=(file,))


def _stem(file: Path) -> str:
    found = FILE.match(file.name)
    return found["stem"] if found else file.name


def _folders(folder: Path) -> list[Path]:
    """The folder itself, and those in it and one below: releases sort cases by grade."""
    return [folder, *sorted(p for d in ("*", "*/*") for p in folder.glob(d) if p.is_dir())]


def _case_folders(folder: Path, part: str) -> list[Path]:
    return [p for d in ("Case*", "*/Case*") for p in folder.glob(f"{d}/{part}") if p.is_dir()]


def _transforms(folder: Path) -> Path:
    for place in (folder, folder / "registration", folder.parent / "registration"):
        if (place / "affine").is_dir():
            return place
    raise ValueError(
        "'transforms' should be given for ReMIND's NRRD release, whose images do not lie on each "
        f"other without, but {folder} has no folder registration/affine."
    )


def _relative(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "")
