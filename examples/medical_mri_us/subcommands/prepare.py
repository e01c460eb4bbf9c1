"""Brings real data to one grid per case, with an index to train from."""

from __future__ import annotations

__all__ = ["Prepare", "run"]

import shlex
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from examples.medical_mri_us.checks import check_integer, check_number
from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import read_image
from examples.medical_mri_us.data.columns import image_columns
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.prepare import (
    describe,
    find_own,
    find_remind,
    find_resect,
    find_tcia,
    prepare_all,
    read_split,
    recognise,
)
from examples.medical_mri_us.prepare.sources import Findings

PUBLISHED = (0.5, 192)
"""The spacing, mm, and the size of the slices of the published MMHVAE: those of releases."""


@dataclass(frozen=True)
class Prepare:
    """Bring real data to one grid per case: any folder of images, or your own in an index.

    Give one of --from, --remind, --tcia, --resect and --index. Nothing is downloaded. A case that
    cannot be used does not stop the others: prepare.json says why, and the exit code is 1.
    """

    out: Path
    """The folder to write: NIfTI files by case, index.csv and prepare.json."""
    folder: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder in the layout of BIDS, BraTS, ReMIND, RESECT or the LGG Segmentation Dataset, with
    a folder for each case, or with DICOM files. What is taken for what is printed first."""
    remind: Path | None = None
    """The folder of ReMIND's nrrd release; needs --transforms."""
    tcia: Path | None = None
    """A folder with ReMIND's DICOM files, in any tree."""
    resect: Path | None = None
    """The folder of RESECT, with NIFTI/CaseN."""
    resect_seg: Path | None = None
    """The folder of RESECT-SEG, whose segmentations go with --resect."""
    index: Path | None = None
    """An index of your own images, whose files may be NIfTI, NRRD or folders of DICOM."""
    transforms: Path | None = None
    """The folder of transforms that the published MMHVAE ships, with affine/ and rigid/."""
    split: Path | None = None
    """A CSV file with case and split, as published; cases that it does not name are left out."""
    resample_to: str | None = None
    """The modality whose grid the others of a case are brought to, with --index; by default,
    ultrasound or else the first."""
    modalities: tuple[str, ...] | None = None
    """The modalities, in the order of the columns of the index; by default, those that are
    there."""
    spacing: float | None = None
    """The distance between voxels, mm; by default, 0.5 for ReMIND and RESECT, else the median
    pixel of the images. Slices that are much further apart stay so."""
    size: int | None = None
    """The height and width of slices, in voxels: images are cropped or padded to it. By default,
    192 for ReMIND and RESECT, else as many as hold all that any image shows."""
    prefer: Literal["sform", "qform"] | None = None
    """The affine to believe where the two of a NIfTI header differ."""
    nonfinite: Literal["error", "zero"] = "error"
    """The treatment of NaN and infinity in your own images."""


def run(options: Prepare) -> int:
    """Prepares the cases and returns 0, 1 if some failed, or 3 if all did.

    Raises:
        ValueError: If an option cannot be used, or a folder is not what it should be.
    """
    if options.spacing is not None:
        check_number("spacing", options.spacing, 0.1, 10)
    if options.size is not None:
        check_integer("size", options.size, 8)
    split = None if options.split is None else read_split(options.split)
    findings = _find(options)
    known = {source.name: source.notes for source in findings.sources}
    modalities = options.modalities or findings.modalities
    published = options.index is None and options.folder is None
    spacing = PUBLISHED[0] if published and options.spacing is None else options.spacing
    size = PUBLISHED[1] if published and options.size is None else options.size
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
    record = prepare_all(
        findings,
        options.out,
        modalities,
        spacing=spacing,
        size=size,
        split=split,
        asked=asked,
    )
    for case, about in record["cases"].items():
        for note in about["notes"]:
            if options.folder is None or note not in known[case]:  # and printed before
                print(f"Note: case {case}: {note}")
    for case, reason in record["left_out"].items():
        print(f"Left out: case {case}: {reason}")
    for case, reason in record["failed"].items():
        print(f"Failed: case {case}: {reason}", file=sys.stderr)
    absent = [m for m in modalities if m not in record["modalities"]]
    if absent:
        print(f"Note: no case has {', '.join(absent)}; the index has no such column.")
    done, failed = len(record["cases"]), len(record["failed"])
    print(
        f"Prepared {counted(done, 'case')}; {failed} failed, {len(record['left_out'])} left out."
    )
    if not done:
        print("Error: no case could be prepared.", file=sys.stderr)
        return 3
    print(f"Slices are {record['size']} x {record['size']} pixels of {record['spacing']:g} mm.")
    index = options.out / "index.csv"
    print(f"Wrote {index}. Look at it with: check {shlex.quote(str(index))}")
    return 1 if failed else 0


def _find(options: Prepare) -> Findings:
    """Finds the cases of the one release that was given."""
    ways = ("folder", "remind", "tcia", "resect", "index")
    given = [n for n in ways if getattr(options, n) is not None]
    if len(given) != 1:
        given = ["from" if n == "folder" else n for n in given]
        raise ValueError(
            "one of 'from', 'remind', 'tcia', 'resect' and 'index' should be given, but "
            f"{' and '.join(map(repr, given)) or 'none'} is."
        )
    if options.resect_seg is not None and options.resect is None:
        raise ValueError("'resect_seg' should go with 'resect', but that is not given.")
    modalities = options.modalities or MODALITIES
    for name in (given[0], "transforms", "resect_seg"):
        path = getattr(options, name)
        if name not in ("folder", "index") and path is not None and not path.is_dir():
            raise ValueError(
                f"'{name}' should be a folder (unpack archives first), but is {path}."
            )
    if options.folder is not None:
        read = partial(
            read_image,
            prefer=options.prefer,
            zero_nonfinite=options.nonfinite == "zero",
            sheared=True,
        )
        name, findings = recognise(
            options.folder, read, transforms=options.transforms, modalities=options.modalities
        )
        print(describe(name, options.folder, findings), flush=True)
        return findings
    if options.remind is not None:
        if options.transforms is None:
            raise ValueError("'transforms' should be given with 'remind', but is not.")
        return find_remind(options.remind, options.transforms, modalities)
    if options.tcia is not None:
        return find_tcia(options.tcia, options.transforms, modalities)
    if options.resect is not None:
        return find_resect(options.resect, options.resect_seg, modalities)
    assert options.index is not None  # one is given
    return find_own(
        options.index,
        options.modalities or image_columns(options.index),
        options.resample_to,
        prefer=options.prefer,
        zero_nonfinite=options.nonfinite == "zero",
    )
