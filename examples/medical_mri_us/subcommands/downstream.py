"""``downstream``: what the synthetic images of a model are good for."""

from __future__ import annotations

__all__ = ["Downstream", "run"]

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from examples.medical_mri_us.checks import check_integer, check_number, check_positive
from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import Case, CaseError, Subject, Volume, read_index
from examples.medical_mri_us.downstream import (
    ANY_MR,
    REGISTRATION_REFERENCES,
    SEGMENTATION_REFERENCES,
    Chosen,
    Synthesiser,
    below_gate,
    build_network,
    choose_cases,
    register_ultrasound,
    segment_tumours,
    write_tables,
)
from examples.medical_mri_us.evaluation import (
    Trained,
    choose_device,
    load_trained,
    note,
    predict,
)
from examples.medical_mri_us.facts import is_phantom
from examples.medical_mri_us.outputs import open_folder
from mmpoe.training import write_file

TASKS = ("segmentation", "registration")
BACKGROUND = -1.0


@dataclass(frozen=True)
class Downstream:
    """Put the synthetic images of a model to use: segmentation of tumours, and registration.

    A network learns tumours from synthetic ultrasound of the training cases, and finds them in
    true ultrasound of held-out ones; their ultrasound, moved, is registered to MR by way of
    synthetic MR. Writes downstream.json and downstream.md. Segmentation needs labels and the
    extra `downstream`, registration needs landmarks and all of the targets.
    """

    model: tyro.conf.Positional[Path]
    """The folder of a training run, or of a saved model."""
    data: Path
    """The index of the data, a CSV file."""
    out: Path
    """The folder to write."""
    task: tuple[Literal["segmentation", "registration"], ...] = TASKS
    """The tasks to run."""
    steps: int = 1800
    """The number of training steps of each segmentation network, on the CPU."""
    gate: float = 0.9
    """The mean Dice coefficient that learning from true ultrasound has to reach; below it, nothing
    else is segmented."""
    targets: tuple[str, ...] = ("t2", "cet1")
    """The modalities to register to."""
    least_ml: float = 2.0
    """The least volume of tumour in view of the held-out cases to segment, ml."""
    train: str = "train"
    """The split that the segmentation networks learn from."""
    split: str = "test"
    """The split of the held-out cases."""
    seed: int = 0
    """The seed of the segmentation networks."""
    device: str = "auto"
    """The device of the model: auto, cpu, cuda or cuda:1."""

    def check(self) -> None:
        """Raises a ValueError that names the option, if there is one that cannot be used."""
        if not self.task or len(set(self.task)) < len(self.task):
            raise ValueError(f"'task' should be some of {', '.join(TASKS)}, but is {self.task}.")
        check_integer("steps", self.steps, 1)
        check_number("gate", self.gate, 0, 1)
        check_positive("least-ml", self.least_ml)
        check_integer("seed", self.seed, 0)


def run(options: Downstream) -> int:
    """Runs the subcommand and returns its exit code.

    Returns:
        0, 1 if the files of some cases cannot be used, or 3 if the network does not find tumours
        even when it learns from true ultrasound.

    Raises:
        ValueError: If an option or the index cannot be used, or the model knows no ultrasound.
        CaseError: If a task has no case that it can use.
        CheckpointError: If the model cannot be read.
        ModuleNotFoundError: If MONAI is not installed.
        OSError: If the folder cannot be written to.
    """
    options.check()
    start = time.monotonic()
    device = choose_device(options.device)
    (trained,) = load_trained((options.model,), device)
    model = trained.model
    _check_modalities(model.modalities, options)
    if "segmentation" in options.task:
        build_network()  # says now if MONAI is not there
    open_folder(options.out)
    cases = read_index(options.data, model.modalities)
    sets = _choose(cases, trained.size, options)

    source = Synthesiser(list(model.modalities), partial(_make, trained))
    found: dict[str, Any] = {}
    problem = None
    if "segmentation" in options.task:
        found["segmentation"], problem = _segment(source, sets["training"], sets["test"], options)
    if "registration" in options.task:
        held = sets["landmarks"]
        what = held.subjects, held.points, options.targets
        sources = {name: name for name in REGISTRATION_REFERENCES} | {"model": source}
        found["registration"] = {k: register_ultrasound(s, *what) for k, s in sources.items()}

    said = note(is_phantom(options.data), bool(trained.description.get("phantom")))
    tables = write_tables(found, trained.name, said, problem)
    problems = sorted({str(p) for chosen in sets.values() for p in chosen.problems})
    content = {
        "format": 1,
        "note": said,
        "phantom": is_phantom(options.data),
        "model": {"name": trained.name, "folder": str(trained.folder), "sha256": trained.sha256},
        "data": str(options.data),
        "splits": {"train": options.train, "test": options.split},
        "steps": options.steps,
        "seed": options.seed,
        "gate": options.gate,
        "gate_problem": problem,
        "skipped": {name: chosen.skipped for name, chosen in sets.items()},
        "problems": problems,
        "minutes": (time.monotonic() - start) / 60,
        **found,
    }
    write_file(options.out / "downstream.md", tables.encode())
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_file(options.out / "downstream.json", text.encode())
    print(f"{tables}\nWrote {options.out} ({content['minutes']:.1f} minutes).")
    if problem:
        print(problem, file=sys.stderr)
        return 3
    if problems:
        print(
            f"{counted(len(problems), 'case was', 'cases were')} left out:",
            *problems,
            sep="\n  ",
            file=sys.stderr,
        )
    return 1 if problems else 0


def _check_modalities(modalities: Sequence[str], options: Downstream) -> None:
    mr = [m for m in modalities if m != "us"]
    if "us" not in modalities or not mr:
        raise ValueError(
            f"'model' should be one of ultrasound, us, and MR, but is one of "
            f"{', '.join(modalities)}."
        )
    unknown = [t for t in options.targets if t not in mr]
    twice = len(set(options.targets)) < len(options.targets)
    if "registration" in options.task and (unknown or twice or not options.targets):
        raise ValueError(
            f"'targets' should be some of {', '.join(mr)}, each once, but is "
            f"{', '.join(options.targets) or 'empty'}."
        )


def _choose(cases: Sequence[Case], size: int, options: Downstream) -> dict[str, Chosen]:
    """The cases of each purpose; those that lack something are listed."""
    learnt = [case for case in cases if case.split == options.train]
    held_out = [case for case in cases if case.split == options.split]
    sets: dict[str, Chosen] = {}
    if "segmentation" in options.task:
        sets["training"] = choose_cases(learnt, size, modalities=("us", ANY_MR), labels=True)
        sets["test"] = choose_cases(
            held_out, size, modalities=("us",), labels=True, least_ml=options.least_ml
        )
    if "registration" in options.task:
        needed = "us", *options.targets
        sets["landmarks"] = choose_cases(held_out, size, modalities=needed, points=True)
    wants = {
        "training": (options.train, "ultrasound, an MR and labels", "segmentation"),
        "test": (
            options.split,
            f"ultrasound and labels of at least {options.least_ml:g} ml of tumour in view",
            "segmentation",
        ),
        "landmarks": (
            options.split,
            f"landmarks, ultrasound and {', '.join(options.targets)}",
            "registration",
        ),
    }
    for name, chosen in sets.items():
        split, what, task = wants[name]
        for case, lack in chosen.skipped.items():
            print(f"Skipped by the {task}: {case}, {lack}.")
        if not chosen.subjects:
            broken = "".join(f"\n  {p}" for p in chosen.problems)
            raise CaseError(
                f"{options.data} has no case of split '{split}' with {what}: there is nothing for "
                f"the {task} to use.{broken}"
            )
    return sets


def _segment(
    source: Synthesiser, training: Chosen, test: Chosen, options: Downstream
) -> tuple[dict[str, Any], str | None]:
    """The scores of networks, by what they learn from, and why there is but one if so."""
    reference, *others = SEGMENTATION_REFERENCES
    found = {}
    for name, what in {reference: reference, "model": source, **{o: o for o in others}}.items():
        found[name], _ = segment_tumours(
            what, training.subjects, test.subjects, steps=options.steps, seed=options.seed
        )
        if name == reference:
            problem = below_gate(float(np.mean(found[name]["dice"])), options.gate)
            if problem:
                return found, problem
    return found, None


def _make(trained: Trained, subject: Subject, given: Sequence[str], target: str) -> Volume:
    """A modality as the model makes it of others, at the mean, -1 outside the field of view."""
    made = predict(trained.model, subject, given, size=trained.size)[target].clip(-1, 1)
    return np.where(subject.fov, made, BACKGROUND).astype(np.float32)
