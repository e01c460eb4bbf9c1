"""One case from its files to the files that are made of it."""

from __future__ import annotations

__all__ = ["Asked", "synthesise_job"]

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.medical_mri_us.covariates import Covariates
from examples.medical_mri_us.data import CaseError
from examples.medical_mri_us.names import check_name
from examples.medical_mri_us.outputs import open_folder
from examples.medical_mri_us.prepare.sources import Input
from mmpoe.models import MMHVAE

from .brats import write_brats
from .case import synthesise_case
from .dicom import source_header, write_series
from .files import hash_of, write_synthesis
from .jobs import Job, choose
from .shelf import Lazy


@dataclass(frozen=True)
class Asked:
    """How to synthesise, alike for all cases."""

    out: Path
    """The folder to write to, which is there."""
    weights: Path
    """The folder of the model."""
    every: bool
    """Whether to condition on every subset."""
    samples: int
    """The number of samples."""
    temperature: float
    """Their temperature."""
    seed: int
    """The seed of the samples."""
    to_first: bool
    """Whether to resample images that lie on another grid than the first."""
    batch: int
    """The number of slices at a time."""
    bids: bool = False
    """Whether to write derivatives of BIDS."""
    dicom: bool = False
    """Whether to write the images at the mean as DICOM too."""
    sequence: bool = False
    """Whether to write the samples of a target as one file with a fourth axis."""
    brats: bool = False
    """Whether to write the images at the mean alone, as BraSyn asks for them."""


def synthesise_job(
    model: MMHVAE,
    description: dict[str, Any],
    job: Job,
    given: Sequence[str],
    targets: Sequence[str],
    asked: Asked,
) -> list[Path]:
    """Reads a case, synthesises, writes what comes of it, and returns the files to look at.

    Arguments:
        model: The model.
        description: Its description.
        job: The files of the case.
        given: What to condition on; see `jobs.choose`.
        targets: What to synthesise.
        asked: How, and where to write it.

    Raises:
        CaseError: If the name of the case is refused, its images cannot be used, or results shall
            be DICOM and no input is.
        ImageError: If they cannot be read.
        OSError: If results cannot be written.
    """
    try:
        check_name("case", job.name)
    except ValueError as error:
        raise CaseError(str(error)) from error
    _check_wanted(job, model.modalities)
    targets = targets or job.wanted
    pairs = choose(list(job.images), model.modalities, given, targets, every=asked.every)
    used = [m for m in job.images if any(m in subset for subset, _ in pairs)]
    fov = None if job.fov is None else job.fov.read()
    header = None
    if asked.dicom:
        header = source_header(job.images[next(m for m in model.modalities if m in used)])
    covariates: Covariates = getattr(model, "covariates", Covariates())
    said: set[str] = set()
    shown: list[Path] = []
    for subset, wanted in pairs:
        try:
            synthesis = synthesise_case(
                model,
                description,
                Lazy(subset, lambda m: job.images[m].read()),
                targets=wanted,
                samples=asked.samples,
                temperature=asked.temperature,
                seed=asked.seed,
                fov=fov,
                to_first=asked.to_first,
                batch=asked.batch,
                folder=asked.out,
                further=job.further,
            )
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            place = str(asked.out / f"volumes of {job.name}")  # in a file without a name
            raise OSError(error.errno, error.strerror, place) from error
        for note in synthesis.record["notes"]:
            if note not in said:
                print(f"Note: case {job.name}: {note}")
        said.update(synthesis.record["notes"])
        if asked.brats:
            shown += write_brats(asked.out, job.name, synthesis)
            continue
        provenance = {
            "model": {
                "folder": str(asked.weights),
                "sha256": description["sha256"],
                "modalities": model.modalities,
                "phantom": description.get("phantom"),
            },
            "inputs": {m: _provenance(job.images[m]) for m in subset},
            "fov": None if job.fov is None else _provenance(job.fov),
            "covariates": {c.name: job.further[c.name] for c in covariates},
            "targets": list(wanted),
            "samples": asked.samples,
            "temperature": asked.temperature,
            "seed": asked.seed,
        }
        folder = asked.out
        if asked.every:
            folder = asked.out / f"from-{'-'.join(subset)}"
            open_folder(folder)
        _remove_series(folder, job.name, model.modalities)
        files = write_synthesis(
            folder,
            job.name,
            synthesis,
            provenance,
            calibrated=bool(description.get("calibrated")),
            bids=asked.bids,
            sequence=asked.sequence,
        )
        shown += [f for f in files if f.suffix == ".png" or "mean" in f.name]
        if header is not None:
            made = description["sha256"], *subset, str(asked.seed)
            for target, volume in synthesis.mean.items():
                place = folder / f"{job.name}_{target}_dicom"
                write_series(place, header, volume, synthesis.grid, target, made)
    return shown


def _check_wanted(job: Job, modalities: Sequence[str]) -> None:
    """Raises a CaseError if the model cannot make what a case lacks, or takes nothing it has."""
    unknown = [m for m in job.wanted if m not in modalities]
    if unknown:
        raise CaseError(
            f"it lacks {', '.join(unknown)}, but the model makes {', '.join(modalities)}."
        )
    if not job.images:
        raise CaseError(f"it should have one of {', '.join(modalities)}, but has none.")


def _remove_series(folder: Path, name: str, modalities: Sequence[str]) -> None:
    """Removes the DICOM that an earlier run wrote of a case."""
    for m in modalities:
        shutil.rmtree(folder / f"{name}_{m}_dicom", ignore_errors=True)


def _provenance(found: Input) -> dict[str, str]:
    return {"file": found.name, "sha256": hash_of(*found.files)}
