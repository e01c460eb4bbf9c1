"""Data larger than memory: what training and synthesis hold, wait for, and read again.

Training: 1,251 generated cases of four modalities, 240 x 240 x 155 voxels each. Sixteen of them
have files of their own; the others are links to these, which a disk has room for. Their pages are
dropped from memory before training, so that slices come from the disk. Training resumes from the
middle of its pass, and its weights are compared with those of the run that was not stopped. Memory
is the resident memory of the process and, twice, that of the larger of its two workers.

Synthesis: one case of that size, in a process of its own for each number of samples and targets.
Memory is what the process needs at most beyond what it needs after a small case. Most slices have
no view, to save time: volumes are as large as ever.

    python -m benchmarks.data_path --write

A smoke run does all of it, for small images and in one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks._results import facts, write
from examples.medical_mri_us import train as training
from examples.medical_mri_us.data import (
    Image,
    TargetSlices,
    WeightedBatches,
    read_index,
    store_subjects,
)
from examples.medical_mri_us.models import DEFAULT, ImageModel, Network, build_model
from examples.medical_mri_us.settings import Settings
from examples.medical_mri_us.synthesis.case import synthesise_case

MODALITIES = ("t1", "cet1", "t2", "flair")
GIB = 2**30


@dataclass(frozen=True)
class Profile:
    """How large it is."""

    cases: int
    real: int
    """The number of cases with files of their own; the others are links to these."""
    shape: tuple[int, int, int]
    size: int
    """The side of the windows that are trained on, in pixels."""
    batch: int
    steps: int
    """The number of steps; training is stopped after half of them."""
    patients: int
    """The number of patients of 150 slices each whose weights are timed."""
    viewed: int
    """The number of slices with a view in the case that is synthesised."""
    network: Network = DEFAULT
    alone: bool = True
    """Whether each measurement has a process of its own."""


PROFILES = {
    "full": Profile(1251, 16, (240, 240, 155), 64, 8, 40, 10_000, 4),
    "smoke": Profile(
        6,
        2,
        (24, 20, 5),
        16,
        2,
        4,
        10,
        2,
        ImageModel(patch=4, widths=(16, 8), latents=(3, 2)),
        False,
    ),
}

ASKED = ((2, 1), (8, 1), (8, 3))
"""The numbers of samples and of targets of a synthesis."""


class Timed(DataLoader[Any]):
    """A DataLoader that notes how long each of its batches was waited for."""

    waits: list[float] = []  # noqa: RUF012 of all of them

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore
        """Returns the batches of a pass."""
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            Timed.waits.append(time.perf_counter() - start)
            yield batch


def make(folder: Path, profile: Profile) -> dict[str, Any]:
    """Makes the cases with files of their own, stores them, and links the others to them."""
    rng = np.random.default_rng(0)
    height, width, slices = profile.shape
    i, j = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    view = np.repeat((i**2 + j**2 < 0.6)[..., None], slices, axis=2)
    names = [f"case{k:04d}" for k in range(profile.cases)]
    for case in names[: profile.real]:
        (folder / case).mkdir(parents=True)
        for m in MODALITIES:
            image = np.where(view, rng.integers(1, 2000, profile.shape, np.uint16), np.uint16(0))
            nib.Nifti1Image(image, np.eye(4)).to_filename(folder / case / f"{m}.nii")
        nib.Nifti1Image(view.astype(np.uint8), np.eye(4)).to_filename(folder / case / "fov.nii")
    _write_index(folder, names[: profile.real])
    start = time.perf_counter()
    store_subjects(read_index(folder / "index.csv", MODALITIES), folder / "slices", progress=False)
    seconds = (time.perf_counter() - start) / profile.real
    for k, case in enumerate(names[profile.real :]):
        for place in (folder, folder / "slices"):
            shutil.copytree(place / names[k % profile.real], place / case, copy_function=os.link)
    _write_index(folder, names)
    stored = sum(f.stat().st_size for f in (folder / "slices" / names[0]).iterdir())
    return {"store_seconds": seconds, "case_bytes": stored}


def _write_index(folder: Path, names: Sequence[str]) -> None:
    columns = [*MODALITIES, "fov"]
    rows = [",".join([n, "train", *(f"{n}/{c}.nii" for c in columns)]) for n in names]
    (folder / "index.csv").write_text("\n".join([f"case,split,{','.join(columns)}", *rows]) + "\n")


def forget(folder: Path) -> None:
    """Drops the stored arrays from the memory of the system, where it lets them go."""
    for file in (folder / "slices").rglob("*.npy"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(folder: Path, run: Path, profile: Profile, *, resume: bool) -> dict[str, Any]:
    """Trains in this process, and returns what it took."""
    forget(folder)
    start, worked, begun, works = time.perf_counter(), time.process_time(), [], []
    cases = read_index(folder / "index.csv", MODALITIES)
    subjects, _ = store_subjects(cases, folder / "slices", progress=False)
    opened = time.perf_counter() - start
    plain, infer = training.DataLoader, training.infer

    def noted(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        begun.append(time.perf_counter())
        works.append(time.process_time())
        return infer(*arguments, **options)

    Timed.waits.clear()
    training.DataLoader, training.infer = Timed, noted  # pyright: ignore
    try:
        model, _ = training.train(
            subjects,
            Settings(
                steps=profile.steps,
                minutes=None,
                batch=profile.batch,
                save_every=profile.steps // 2,
            ),
            modalities=MODALITIES,
            network=profile.network,
            size=profile.size,
            keep=run,
            resume=resume,
            workers=2 if profile.alone else 0,
            device="cpu",
            progress=False,
        )
    finally:
        training.DataLoader, training.infer = plain, infer
    stop = time.perf_counter()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "open_seconds": opened,
        "first_step_seconds": begun[0] - start,
        "first_step_processor_seconds": works[0] - worked,
        "step_seconds": (stop - begun[0]) / len(begun),
        "step_processor_seconds": (works[-1] - works[0]) / (len(works) - 1),
        "steps": len(begun),
        "waiting": sum(Timed.waits[1:]) / (stop - begun[0]),
        "bytes": 1024 * (usage[0].ru_maxrss + 2 * usage[1].ru_maxrss),
        "sha256": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
    }


def sampler(profile: Profile) -> dict[str, Any]:
    """Times the weights of many patients, and a place far into a pass."""
    shown = np.ones(150, bool)
    patients: list[Any] = [
        SimpleNamespace(shown=shown, images=dict.fromkeys(MODALITIES[: 1 + k % 4]))
        for k in range(profile.patients)
    ]
    start = time.perf_counter()
    batches = WeightedBatches(TargetSlices(patients).weights(0.3), profile.batch, 10**7)
    built = time.perf_counter() - start
    start = time.perf_counter()
    next(batches.skip(10**6))
    return {
        "slices": 150 * profile.patients,
        "build_seconds": built,
        "skip_seconds": time.perf_counter() - start,
    }


def synthesise(profile: Profile, samples: int, targets: int) -> dict[str, Any]:
    """Synthesises one case in this process, and returns what it held at most."""
    torch.manual_seed(0)
    model = build_model(profile.size, MODALITIES, profile.network).eval()
    data = np.zeros(profile.shape, np.float32)
    rows, columns = (
        slice(n // 2 - profile.size // 2, n // 2 + profile.size // 2) for n in data.shape[:2]
    )
    rng = np.random.default_rng(0)
    seen = data[rows, columns, : profile.viewed]
    seen[...] = rng.uniform(1, 255, seen.shape)

    def run(image: np.ndarray) -> None:
        made = synthesise_case(
            model,
            {"architecture": {"size": profile.size}, "normalisation": "as here"},
            {MODALITIES[0]: Image(image, np.eye(4))},
            targets=MODALITIES[1 : 1 + targets],
            samples=samples,
            batch=2,
            progress=False,
        )
        for m in made.mean:
            read = [made.mean[m].sum(), made.std[m].sum()]
            read += [image.sum() for image in made.samples[m]]
            assert np.isfinite(read).all()

    run(seen.copy())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.process_time()
    run(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "samples": samples,
        "targets": targets,
        "made": targets * (2 + samples),
        "bytes": peak,
        "volumes": peak / data.nbytes,
        "seconds": time.process_time() - start,
    }


def measure(folder: Path, profile: str) -> dict[str, Any]:
    """Measures everything, each in a process of its own if that is asked for."""
    size = PROFILES[profile]
    data, whole, cut = folder / "data", folder / "whole", folder / "cut"

    def part(name: str, *arguments: object) -> dict[str, Any]:
        print(name, *arguments, flush=True)
        if not size.alone:
            return PARTS[name](size, *arguments)
        command = [sys.executable, "-m", "benchmarks.data_path", "--profile", profile, "--part"]
        done = subprocess.run(
            [*command, name, *map(str, arguments)], check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    made = part("make", data)
    first = part("train", data, whole, "")
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / f"step-{size.steps:08d}")
    again = part("train", data, cut, "resume")
    return {
        "data": {
            **{k: v for k, v in asdict(size).items() if k in ("cases", "real", "shape")},
            **made,
            "float_bytes": 4 * len(MODALITIES) * int(np.prod(size.shape)) * size.cases,
        },
        "train": first,
        "resume": {**again, "same_bits": first["sha256"] == again["sha256"]},
        "sampler": part("sampler"),
        "synthesis": [part("synthesise", *asked) for asked in ASKED],
    }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "make": lambda profile, folder: make(Path(folder), profile),
    "train": lambda profile, data, run, resume: train(
        Path(data), Path(run), profile, resume=bool(resume)
    ),
    "sampler": sampler,
    "synthesise": lambda profile, samples, targets: synthesise(
        profile, int(samples), int(targets)
    ),
}


def markdown(found: dict[str, Any]) -> str:
    """Returns the tables."""
    data, run, again, drawn = (found[k] for k in ("data", "train", "resume", "sampler"))
    shape = " x ".join(map(str, data["shape"]))
    rows = [
        (
            "volumes as float32, which training held before",
            f"{data['float_bytes'] / GIB:.0f} GiB",
            "",
        ),
        ("arrays on disk", f"{data['case_bytes'] * data['cases'] / GIB:.0f} GiB", ""),
        ("resident memory of training", f"{run['bytes'] / GIB:.2f} GiB", "at most 4 GB"),
        ("share of a step spent waiting", f"{100 * run['waiting']:.1f} %", "at most 5 %"),
        ("opening all cases", f"{run['open_seconds']:.1f} s", ""),
        ("from the start to the first step", _both(run, "first_step"), ""),
        ("from the start to the first step, resumed", _both(again, "first_step"), "seconds"),
        ("weights at the end", "same bits" if again["same_bits"] else "other bits", "same bits"),
        (
            f"weights of {drawn['slices']:,} slices",
            f"{drawn['build_seconds']:.2f} s",
            "linear",
        ),
        ("place after 1,000,000 batches", f"{1e3 * drawn['skip_seconds']:.1f} ms", ""),
        ("storing a case, once", f"{data['store_seconds']:.1f} s", ""),
    ]
    lines = [
        "# Data larger than memory",
        "",
        f"{data['cases']:,} cases of four modalities, {shape} voxels; {data['real']} have files "
        "of their own, and the others are links to these. Their pages were dropped from memory "
        f"before training. Two workers; a step took {_both(run, 'step')}. Seconds of the "
        "processor, in brackets, are those of training itself: other programs share "
        f"{found['cores']} core{'s' * (found['cores'] > 1)} with it, and do not count.",
        "",
        "| training | measured | aim |",
        "|---|---:|---:|",
        *(f"| {name} | {value} | {aim} |" for name, value, aim in rows),
        "",
        "One volume of synthesis is "
        f"{4 * np.prod(data['shape']) / 2**20:.0f} MiB; memory is what its process needs "
        "beyond that of a small case.",
        "",
        "| samples | targets | volumes made | memory, MiB | in volumes |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {s['samples']} | {s['targets']} | {s['made']} | {s['bytes'] / 2**20:.0f} "
            f"| {s['volumes']:.1f} |"
            for s in found["synthesis"]
        ),
    ]
    return "\n".join(lines) + "\n"


def _both(run: dict[str, Any], name: str) -> str:
    """A time by the clock, and that of the processor."""
    return f"{run[f'{name}_seconds']:.1f} s ({run[f'{name}_processor_seconds']:.1f} s)"


def main() -> None:
    """Measures, prints the tables, and writes them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--smoke", action="store_true", help="the same as --profile smoke")
    parser.add_argument("--out", type=Path, help="the folder for data, in which there is room")
    parser.add_argument("--write", action="store_true", help="write the tables")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    profile = "smoke" if options.smoke else options.profile
    if options.part:
        name, *arguments = options.part
        print(json.dumps(PARTS[name](PROFILES[profile], *arguments)))
        return
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        found = {
            **facts("make bench-data-path", profile, [0]),
            "cores": len(os.sched_getaffinity(0)),
            **measure(Path(folder), profile),
        }
    text = markdown(found)
    print(text)
    if options.write:
        write("data_path", found, text)


if __name__ == "__main__":
    main()
