"""Puts trained systems to use: segmentation of tumours, and registration of MR to ultrasound.

Both tasks use the systems that `benchmarks.synthesis.run` trained in the same profile, and its
held-out patients. Segmentation is compared only if the network finds tumours when trained on true
ultrasound: below the gate, nothing but that is segmented, and the exit code says so.
What is finished is not done again: a network, or the registrations of a system, is done whole.

    python -m benchmarks.synthesis.run --profile quick
    python -m benchmarks.downstream.run --profile quick --write
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._results import facts, write, write_whole
from benchmarks._workers import Job, run_jobs
from benchmarks.synthesis.profiles import OUT as TRAINED
from benchmarks.synthesis.profiles import PROFILES as SYNTHESIS
from benchmarks.synthesis.systems import SYSTEMS
from benchmarks.synthesis.training import load_trained
from examples.medical_mri_us.data import Case, Subject, load_subjects, read_index
from examples.medical_mri_us.downstream import (
    REGISTRATION_REFERENCES,
    SEGMENTATION_REFERENCES,
    Synthesiser,
    below_gate,
    landmarks,
    register_ultrasound,
    segment_tumours,
    tumour_ml,
    tumour_of,
)
from examples.medical_mri_us.phantom import cached_dataset

from .figures import draw
from .systems import synthesiser
from .table import markdown, results

OUT = Path("runs/downstream")
BELOW_GATE = 3
"""The exit code when the network does not find tumours even in true ultrasound."""


@dataclass(frozen=True)
class Profile:
    """How large a comparison is; patients, systems and seeds are those of the synthesis."""

    steps: int
    """The number of training steps of each network."""
    gate: float
    """The mean Dice coefficient that training on true ultrasound has to reach."""
    targets: tuple[str, ...]
    """The MR modalities to register to."""
    least_ml: float = 2.0
    """The least volume of tumour in view of the patients to segment."""
    systems: tuple[str, ...] = tuple(SYSTEMS)


PROFILES = {
    "smoke": Profile(3, 0.0, ("t2",), 0.05, ("unet", "mhvae", "mmhvae")),
    "quick": Profile(1800, 0.9, ("t2", "cet1")),
    "full": Profile(2400, 0.9, ("t2", "cet1")),
}


@dataclass(frozen=True)
class Data:
    """The patients of a profile."""

    train: list[Subject]
    test: list[Subject]
    points: list[np.ndarray]
    """The landmarks of each held-out patient, mm along (slice, depth, lateral)."""


def load(profile: str) -> Data:
    """Loads the patients that the systems of a profile learnt from, and those they did not."""
    size = SYNTHESIS[profile]
    index = cached_dataset(
        train=size.patients, test=size.held_out, size=size.size, slices=size.slices
    )
    split: dict[str, list[Case]] = {"train": [], "test": []}
    for case in read_index(index):
        split[case.split].append(case)
    learnt, _ = load_subjects(split["train"], progress=False)
    held_out, problems = load_subjects(split["test"], progress=False)
    if problems:
        raise ValueError(f"The phantom in {index.parent} is damaged: {problems[0]}")
    points = [landmarks(c, s) for c, s in zip(split["test"], held_out, strict=True)]
    return Data(learnt, held_out, points)


def source_of(name: str, references: Sequence[str], seed: int, trained: Path) -> str | Synthesiser:
    """Returns a reference by its name, or what a trained system can make.

    Arguments:
        name: The system or reference.
        references: The names of the references of the task.
        seed: The seed of the system.
        trained: Where the systems of the profile are kept.
    """
    if name in references:
        return name
    return synthesiser(load_trained(trained, name, seed))


def segmentation(
    name: str, seed: int, data: Data, settings: Profile, trained: Path
) -> dict[str, Any]:
    """Trains a network on what a system synthesises, and scores it on true ultrasound.

    Arguments:
        name: The system, whose synthetic ultrasound of all MR of a patient is learnt from, or
            the reference.
        seed: The seed of the system, and of the network.
        data: The patients.
        settings: The size of the comparison.
        trained: Where the systems of the profile are kept.
    """
    source = source_of(name, SEGMENTATION_REFERENCES, seed, trained)
    tested = [s for s in data.test if tumour_ml(s) >= settings.least_ml]
    kept, found = segment_tumours(source, data.train, tested, steps=settings.steps, seed=seed)
    shown = min(range(len(tested)), key=lambda i: abs(tumour_ml(tested[i]) - 8))
    k = int(tumour_of(tested[shown]).sum(axis=(1, 2)).argmax())
    example = {"patient": tested[shown].name, "slice": k, "found": found[shown][k].tolist()}
    return {**kept, "example": example}


def registration(
    name: str, seed: int, data: Data, targets: Sequence[str], trained: Path
) -> dict[str, Any]:
    """Registers what a system makes of moved ultrasound to MR, for all patients and bins.

    Motions depend on the patient and the bin alone, and are the same for all systems.

    Arguments:
        name: The system or reference.
        seed: The seed of the system.
        data: The patients.
        targets: The modalities to register to.
        trained: Where the systems of the profile are kept.
    """
    source = source_of(name, REGISTRATION_REFERENCES, seed, trained)
    return register_ultrasound(source, data.test, data.points, targets)


def gate(folder: Path, profile: Profile, seeds: Sequence[int]) -> str | None:
    """Returns why segmentation cannot be compared, None if it can.

    Arguments:
        folder: Where results are kept.
        profile: The size of the comparison.
        seeds: The seeds.
    """
    runs = [json.loads((folder / f"segmentation-true-{s}.json").read_text()) for s in seeds]
    return below_gate(float(np.mean([run["dice"] for run in runs])), profile.gate)


def do(task: str, name: str, seed: int, profile: str, folder: Path, trained: Path) -> None:
    """Does one job, and keeps its result, unless it is there already."""
    path = folder / f"{task}-{name}-{seed}.json"
    if path.exists():
        return
    settings, data = PROFILES[profile], load(profile)
    if task == "segmentation":
        found = segmentation(name, seed, data, settings, trained)
    else:
        found = registration(name, seed, data, settings.targets, trained)
    content = {"task": task, "system": name, "seed": seed, **asdict(settings), **found}
    write_whole(path, json.dumps(content) + "\n")


def jobs(
    task: str, names: Sequence[str], seeds: Sequence[int], options: argparse.Namespace
) -> list[Job]:
    """Returns the jobs that are not done yet."""
    folder = options.out / options.profile
    todo = []
    for seed in seeds:
        for name in names:
            if not (folder / f"{task}-{name}-{seed}.json").exists():
                places = ("--out", str(options.out), "--trained", str(options.trained))
                what = ("--profile", options.profile, "--job", task, name, str(seed))
                label = f"{task}-{name}-{seed}"
                todo.append(
                    Job(label, "benchmarks.downstream.run", what + places, folder / f"{label}.log")
                )
    return todo


def main() -> None:
    """Does what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=list(PROFILES), default="quick")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--trained", type=Path, default=TRAINED, help="of benchmarks.synthesis")
    parser.add_argument("--write", action="store_true", help="write to benchmarks/results")
    parser.add_argument("--job", nargs=3, metavar=("TASK", "NAME", "SEED"), help="one job alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, trained = options.out / options.profile, options.trained / options.profile
    folder.mkdir(parents=True, exist_ok=True)
    if options.job:
        task, name, seed = options.job
        do(task, name, int(seed), options.profile, folder, trained)
        return

    profile = PROFILES[options.profile]
    seeds = range(SYNTHESIS[options.profile].seeds)
    try:
        for name in profile.systems:
            for seed in seeds:
                load_trained(trained, name, seed)
    except ValueError as error:
        sys.exit(f"{error} Train it: python -m benchmarks.synthesis.run -h")
    load(options.profile)  # renders the phantom once, before there are several processes
    references = SEGMENTATION_REFERENCES
    if code := run_jobs(jobs("segmentation", references[:1], seeds, options), options.workers):
        sys.exit(code)
    problem = gate(folder, profile, seeds)
    if problem:
        print(problem, file=sys.stderr, flush=True)
    todo = jobs("registration", REGISTRATION_REFERENCES, [0], options)
    todo += jobs("registration", profile.systems, seeds, options)
    if not problem:
        todo += jobs("segmentation", [*references[1:], *profile.systems], seeds, options)
    if code := run_jobs(todo, options.workers):
        sys.exit(code)

    found = results(folder)
    if problem:  # what another run may have left there is not compared either
        found["segmentation"] = {k: v for k, v in found["segmentation"].items() if k == "true"}
        found["gate"] = problem
    text = markdown(found, options.profile)
    print(text)
    if options.write:
        command = f"python -m benchmarks.downstream.run --profile {options.profile} --write"
        write("downstream", {**facts(command, options.profile, seeds), **found}, text)
        draw(folder, load(options.profile).test, found)
    if problem:
        sys.exit(BELOW_GATE)


if __name__ == "__main__":
    main()
