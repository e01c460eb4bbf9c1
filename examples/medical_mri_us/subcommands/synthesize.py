"""``synthesize``: images that are missing, from those that are there."""

from __future__ import annotations

__all__ = ["Synthesize", "run"]

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import distributed

from examples.medical_mri_us.checks import check_integer, check_number
from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import CaseError, ImageError
from examples.medical_mri_us.demo import demo_run
from examples.medical_mri_us.models import load_model, model_folder
from examples.medical_mri_us.names import made_name
from examples.medical_mri_us.outputs import open_folder
from examples.medical_mri_us.synthesis.brats import in_brats
from examples.medical_mri_us.synthesis.jobs import (
    Job,
    in_folder,
    in_index,
    input_of,
    names,
    stem,
)
from examples.medical_mri_us.synthesis.run import Asked, synthesise_job
from mmpoe.training import shard


@dataclass(frozen=True)
class Synthesize:
    """Synthesise missing images, on the grid of those that are there.

    Reads NIfTI, NRRD and DICOM, one case by its files or many from a folder or an index; a case
    that cannot be used does not stop the others. Started by torchrun, each process has its share.
    """

    run: tyro.conf.Positional[Path | None] = None
    """The folder of a run, or of import-official."""
    out: Path = field(kw_only=True)
    """The folder to write to."""
    model: Literal["demo"] | None = None
    """A model in place of that of a run: demo is trained on phantom patients, once, and kept in
    ~/.cache/mmpoe or the folder that MMPOE_CACHE names."""
    us: Path | None = None
    """The intra-operative ultrasound of a case; its grid is that of the result."""
    t2: Path | None = None
    """Its T2."""
    cet1: Path | None = None
    """Its contrast-enhanced T1."""
    flair: Path | None = None
    """Its FLAIR."""
    input: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Its image of any modality of the model, as NAME=FILE; may be given again."""
    covariate: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A covariate of it that the model has to know, as NAME=VALUE; may be given again. Those of
    many cases stand in the columns of an index, or in participants.tsv of BIDS."""
    fov: Path | None = None
    """Its field of view, an image; by default, where ultrasound, or else any image, is above 0."""
    input_dir: Path | None = None
    """A folder in any layout that prepare --from knows, or an index of cases."""
    target: str = ""
    """The modalities to synthesise, as in t2,cet1; by default, those that a case lacks."""
    given: str = ""
    """The inputs, as in us,t2; by default, all modalities that a case has but the targets."""
    all_subsets: bool = False
    """Whether to condition on every subset of that, each with a folder of its own."""
    samples: int = 8
    """The number of samples; with one, there are no standard deviations."""
    temperature: float = 0.5
    """The temperature of samples; at 0, there is the mean alone."""
    seed: int = 0
    """The seed of the samples."""
    resample_to: Literal["us"] | None = None
    """Whether to bring images on another grid to that of the ultrasound, or else the first."""
    batch: int | None = None
    """The number of slices at a time; fewer where memory runs out. By default, 2 on a CPU and 8
    on a GPU."""
    bids: bool = False
    """Whether to write derivatives of BIDS: sub-<label>/anat/sub-<label>_desc-mean_T2w.nii.gz."""
    sequence: bool = False
    """Whether to write the samples of a target as one NIfTI file with a fourth axis, which Slicer
    opens as a sequence, in place of a file for each."""
    layout: Literal["brats"] | None = None
    """A layout of what is read and written: brats reads --input-dir as BraSyn gives it, and writes
    CASE-t1n.nii.gz, -t1c, -t2w or -t2f, the image at the mean, of what each case lacks."""
    dicom: bool = False
    """Whether to write the images at the mean as DICOM too, as series of the input's patient and
    study."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device; auto is a GPU if there is one."""


def run(options: Synthesize) -> int:
    """Synthesises, and returns 0, or 1 if some cases failed.

    Raises:
        ValueError: If an option cannot be used.
        CaseError: If no case could be used.
        CheckpointError: If the model cannot be read.
        OSError: If results cannot be written.
    """
    check_integer("samples", options.samples, 1)
    check_number("temperature", options.temperature, 0)
    check_integer("seed", options.seed, 0)
    if options.batch is not None:
        check_integer("batch", options.batch, 1)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("'device' should be 'cpu' or 'auto' without a GPU, but is 'cuda'.")
    folder = model_folder(_run_of(options))
    model, description = load_model(folder)
    targets = names(options.target, model.modalities, "target")
    given = names(options.given, model.modalities, "given")
    jobs = _jobs(options, model.modalities)
    chosen = targets or given or options.all_subsets or options.layout
    if options.input_dir is not None and not chosen:
        jobs = _incomplete(jobs, model.modalities)
        if not jobs:
            return 0
    jobs = shard(jobs)
    open_folder(options.out)
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        model.cuda()

    brats = options.layout == "brats"
    asked = Asked(
        out=options.out,
        weights=folder,
        every=options.all_subsets,
        samples=1 if brats else options.samples,
        temperature=0.0 if brats else options.temperature,
        seed=options.seed,
        to_first=options.resample_to is not None,
        batch=options.batch or (8 if on_gpu else 2),
        bids=options.bids,
        dicom=options.dicom,
        sequence=options.sequence,
        brats=brats,
    )
    failures, shown = [], []
    for job in jobs:
        try:
            shown += synthesise_job(model, description, job, given, targets, asked)
        except (CaseError, ImageError) as error:
            failures.append(f"{job.name}: {error}")
            if len(jobs) > 1 or distributed.is_torchelastic_launched():  # or the error says it
                print(f"Failed: {failures[-1]}")
    _wait_for_others()
    if not failures:
        print(f"Synthesised {counted(len(jobs), 'case')} in {options.out}.{_to_open(shown)}")
        return 0
    if len(failures) == len(jobs):
        raise CaseError("no case could be used: " + "; ".join(failures))
    listed = "\n".join(f"  {failure}" for failure in failures)
    print(f"Synthesised {len(jobs) - len(failures)} of {len(jobs)} cases; failed:\n{listed}")
    print(_to_open(shown).strip())
    return 1


def _to_open(files: Sequence[Path]) -> str:
    """Says what to look at first: a picture, and a volume to lay over its input."""
    picture = next((file for file in files if file.suffix == ".png"), None)
    volume = next((file for file in files if file.name.endswith(".nii.gz")), None)
    said = "" if picture is None else f"\nOpen {picture}: a slice of what was given and made."
    if volume is not None:
        said += f"\nOpen {volume} in a viewer of volumes, over its input: both share a grid."
    return said


def _run_of(options: Synthesize) -> Path:
    """The run whose model synthesises."""
    if (options.run is None) == (options.model is None):
        raise ValueError(
            "'run', the folder of a run, or 'model' should be given, but "
            f"{'neither' if options.run is None else 'both'} is."
        )
    return demo_run() if options.run is None else options.run


def _check_brats(options: Synthesize) -> None:
    """Raises a ValueError for an option that has no meaning with BraSyn's files."""
    others = {
        "a file": options.input_dir is None,
        "'fov'": options.fov is not None,
        "'target'": bool(options.target),
        "'all-subsets'": options.all_subsets,
        "'bids'": options.bids,
        "'dicom'": options.dicom,
        "'sequence'": options.sequence,
    }
    wrong = [name for name, given in others.items() if given]
    if wrong:
        raise ValueError(
            "'layout' should be brats with --input-dir alone, for the images at the mean of what "
            f"cases lack, but {' and '.join(wrong)} is given too."
        )


def _incomplete(jobs: Sequence[Job], modalities: Sequence[str]) -> list[Job]:
    """The cases that lack something; says of which others, and what makes images of them."""
    complete = [job.name for job in jobs if set(job.images) >= set(modalities)]
    if complete and int(os.environ.get("RANK", 0)) == 0:  # of the processes of torchrun
        what = ", ".join(complete) if len(complete) < len(jobs) else "any case"
        print(
            f"Nothing is missing of {what}; --target {modalities[-1]}, for one, makes it from the "
            "others anyway."
        )
    return [job for job in jobs if job.name not in complete]


def _wait_for_others() -> None:
    """Waits for the other processes of torchrun, which ends them once one exits with an error."""
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo", timeout=timedelta(days=7))
        distributed.barrier()
        distributed.destroy_process_group()


def _jobs(options: Synthesize, modalities: Sequence[str]) -> list[Job]:
    """The cases that the options name."""
    named = {m: getattr(options, m) for m in ("us", "t2", "cet1", "flair")}
    images = {m: path for m, path in named.items() if path is not None}
    for entry in options.input:
        name, file = _pair("input", entry)
        images[name] = Path(file)
    if bool(images) == (options.input_dir is not None):
        raise ValueError(
            "'input-dir' or files such as --us FILE should say what to synthesise from, one of "
            f"the two, but {'both do' if images else 'neither does'}."
        )
    if options.layout == "brats":
        _check_brats(options)
        assert options.input_dir is not None  # or an error by now
        return in_brats(options.input_dir, modalities)
    if options.input_dir is not None:
        if options.fov is not None:
            raise ValueError("'fov' should be a file of the cases themselves with --input-dir.")
        read = in_index if options.input_dir.suffix == ".csv" else in_folder
        return read(options.input_dir, modalities)
    for name in images:
        names(name, modalities, "input")
    ordered = {m: images[m] for m in modalities if m in images}
    file = next(iter(ordered.values())).resolve()
    name = stem(file)
    name = made_name(file.parent.name if name in modalities else name)
    fov = None if options.fov is None else input_of(options.fov)
    alone = len(ordered) == 1
    images = {m: input_of(path, alone=alone) for m, path in ordered.items()}
    further = dict(_pair("covariate", entry) for entry in options.covariate)
    return [Job(name, images, fov, further)]


def _pair(option: str, entry: str) -> tuple[str, str]:
    """Splits NAME=VALUE."""
    name, equals, value = entry.partition("=")
    if not equals or not value:
        what = "a modality and its file, NAME=FILE" if option == "input" else "NAME=VALUE"
        raise ValueError(f"'{option}' should be {what}, but is {entry!r}.")
    return name.strip(), value
