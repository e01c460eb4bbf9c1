"""From folders of scans to reports: generated BIDS and BraTS, and ultrasound, by the subcommands.

``python -m examples.medical_mri_us.journey`` is what ``make journey`` runs.
"""

from __future__ import annotations

__all__ = ["Journey", "run"]

import csv
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from mmpoe.extras import needs

from .__main__ import parse
from .data import Case, read_index, write_image
from .phantom.tissues import tissue_values

with needs("medical"):
    import tyro

BIDS = {"t2": "T2w", "cet1": "ce-gadolinium_T1w", "flair": "FLAIR"}
"""The ends of files of BIDS, by modality."""

BRATS = {"t2": "t2w", "cet1": "t1c", "flair": "t2f"}
"""The ends of files of BraTS, by modality; ``t1n`` comes to these."""

TR = 600.0
"""The repetition time of the T1 of BraTS, ms, which the phantom itself does not have."""


class JourneyError(RuntimeError):
    """A subcommand that ended with the wrong exit code, or did not leave what it should."""


@dataclass(frozen=True)
class Journey:
    """Generate folders of scans, and take each of them to a report.

    Each command is printed before it is run, and its exit code and what it leaves are checked.
    """

    out: Path = Path("runs/journey")
    """The folder to write to; what it held before is removed."""
    patients: int = 16
    """The number of training patients."""
    held_out: int = 2
    """The number of patients to score, and to synthesise for."""
    slices: int = 20
    """The number of slices of a patient, 2 mm apart."""
    minutes: float = 0.5
    """The longest time of each of three trainings."""
    steps: int = 400
    """The number of steps of each of them."""
    samples: int = 3
    """The number of samples behind standard deviations of scores."""


def run(journey: Journey) -> int:
    """Runs all commands, and returns 0.

    Raises:
        JourneyError: If one of them fails.
    """
    start = time.monotonic()
    shutil.rmtree(journey.out, ignore_errors=True)
    phantom = journey.out / "phantom"
    sizes = ["--train", journey.patients, "--test", journey.held_out, "--slices", journey.slices]
    _call("phantom", "--out", phantom, *sizes, "--missingness", "paper-87")
    cases = read_index(phantom / "index.csv")

    mr = [case for case in cases if len(case.images) > ("us" in case.images)]
    reports = [_ultrasound(journey, phantom), *(_scans(journey, k, mr) for k in ("bids", "brats"))]
    minutes = (time.monotonic() - start) / 60
    print(f"\nDone in {minutes:.1f} minutes. Open in a browser:")
    for report in reports:
        print(f"  {report}")
    print(f"Open in a viewer of volumes, beside their inputs: {journey.out}/*/synthetic/*.nii.gz")
    return 0


def _ultrasound(journey: Journey, phantom: Path) -> Path:
    """T2, ceT1 and FLAIR from ultrasound, and back."""
    out = journey.out / "ultrasound"
    index, case = phantom / "index.csv", phantom / "test-0000"
    _call("check", index)
    given = "--us", case / "us.nii.gz", "--fov", case / "fov.nii.gz"
    run = _train(journey, out, index)
    _call("synthesize", run, *given, "--samples", 3, "--sequence", "--out", out / "synthetic")
    made = [f"test-0000_{m}_{what}.nii.gz" for m in BIDS for what in ("mean", "std", "samples")]
    _check_volumes(out / "synthetic", dict.fromkeys(made, case / "us.nii.gz"))
    return _report(journey, out, run, index)


def _scans(journey: Journey, kind: str, cases: Sequence[Case]) -> Path:
    """A folder of scans, prepared, learned from, and filled in for patients who lack a scan."""
    out = journey.out / kind
    scans, new = out / "scans", out / "new"
    write = _write_bids if kind == "bids" else _write_brats
    named = {case.name: write(scans, number, case) for number, case in enumerate(cases)}
    with (out / "split.csv").open("w", newline="") as file:
        rows = [(named[case.name], case.split) for case in cases]
        csv.writer(file).writerows([("case", "split"), *rows])
    data = out / "data"
    _call("prepare", "--from", scans, "--split", out / "split.csv", "--out", data)
    _call("check", data / "index.csv")
    run = _train(journey, out, data / "index.csv")

    wanted = {}
    held_out = [case for case in cases if case.split == "test"]
    for number, case in enumerate(held_out, start=len(cases)):
        absent = list(BIDS)[number % len(BIDS)]
        name = write(new, number, case, without=absent)
        like = next(path for m, path in case.images.items() if m not in ("us", absent))
        ending = f"_{absent}_mean" if kind == "bids" else f"-{BRATS[absent]}"
        wanted[f"{name}{ending}.nii.gz"] = like
    layout = ["--layout", "brats"] if kind == "brats" else []
    synthetic = out / "synthetic"
    _call("synthesize", run, "--input-dir", new, "--out", synthetic, *layout)
    _check_volumes(synthetic, wanted)
    return _report(journey, out, run, data / "index.csv")


def _write_bids(folder: Path, number: int, case: Case, without: str = "") -> str:
    """Copies the MR of a case into a folder of BIDS, and returns its name there."""
    name = f"sub-{number:04d}"
    place = folder / name / "anat"
    place.mkdir(parents=True)
    for m, ending in BIDS.items():
        if m in case.images and m != without:
            shutil.copy(case.images[m], place / f"{name}_{ending}.nii.gz")
    people = folder / "participants.tsv"
    head = "" if people.exists() else "participant_id\tage\tsite\n"
    with people.open("a") as file:
        file.write(f"{head}{name}\t{30 + 7 * number % 50}\t{'AB'[number % 2]}\n")
    return name


def _write_brats(folder: Path, number: int, case: Case, without: str = "") -> str:
    """Copies the MR and the tumour of a case into a folder of BraTS, and returns its name."""
    name = f"BraTS-GLI-{number:05d}-000"
    (folder / name).mkdir(parents=True)
    for m, ending in BRATS.items():
        if m in case.images and m != without:
            shutil.copy(case.images[m], folder / name / f"{name}-{ending}.nii.gz")
    _write_t1(folder / name / f"{name}-t1n.nii.gz", case)
    if case.label is not None and not without:
        shutil.copy(case.label, folder / name / f"{name}-seg.nii.gz")
    return name


def _write_t1(path: Path, case: Case) -> None:
    r"""Writes a plain T1 of a case: :math:`\rho (1 - e^{-TR/T_1})` of its tissues, in its view."""
    tissue = nib.Nifti1Image.from_filename(
        next(iter(case.images.values())).parent / "tissue.nii.gz"
    )
    density, t1 = tissue_values("proton_density"), tissue_values("t1")
    signal = np.concatenate([[0.0], 500 * density * (1 - np.exp(-TR / t1))])
    image = signal[np.asarray(tissue.dataobj)]
    if case.fov is not None:
        image *= nib.Nifti1Image.from_filename(case.fov).get_fdata() > 0
    write_image(path, image.astype(np.float32), np.asarray(tissue.affine))


def _train(journey: Journey, out: Path, index: Path) -> Path:
    run = out / "run"
    changes = {
        "training.steps": journey.steps,
        "training.minutes": journey.minutes,
        "calibration.steps": min(40, journey.steps),
        "calibration.teacher": "bootstrap",
        "calibration.batch": 8,
    }
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    _call("train", "--data", index, "--out", run, *settings)
    _call("calibrate", run)
    return run


def _report(journey: Journey, out: Path, run: Path, index: Path) -> Path:
    evaluation = out / "evaluation"
    scored = "--samples", journey.samples, "--no-perceptual"
    _call("evaluate", run, "--data", index, "--out", evaluation, *scored)
    _call("report", evaluation, "--out", out / "report.html")
    return out / "report.html"


def _call(*arguments: object) -> None:
    """Runs a subcommand.

    Raises:
        JourneyError: If its exit code is not 0.
    """
    words = [str(argument) for argument in arguments]
    print(f"\n$ python -m examples.medical_mri_us {shlex.join(words)}", flush=True)
    options, subcommand = parse(words)
    code = subcommand(options)
    if code != 0:
        raise JourneyError(f"{words[0]} should end with exit code 0, but ended with {code}.")


def _check_volumes(folder: Path, wanted: Mapping[str, Path]) -> None:
    """Compares the grids of volumes with those of the inputs that they were made of.

    Raises:
        JourneyError: If a file is absent, empty, or lies elsewhere.
    """
    for name, like in wanted.items():
        if not (folder / name).exists():
            raise JourneyError(f"{folder} should hold {name}, but does not.")
        made, given = (nib.Nifti1Image.from_filename(p) for p in (folder / name, like))
        apart = np.abs(np.asarray(made.affine) - np.asarray(given.affine)).max()
        if made.shape[:3] != given.shape or apart > 1e-3:
            raise JourneyError(f"{folder / name} should lie on the grid of {like}, but does not.")
        if not made.get_fdata().any():
            raise JourneyError(f"{folder / name} should show something, but is 0.")


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Journey, prog="python -m examples.medical_mri_us.journey")))
