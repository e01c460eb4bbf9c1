"""Trains every system on the same incomplete phantom patients, for the same processor time.

The number of steps of a system is what its budget of processor time pays for, going by a few
trial steps, so that neither other programs nor a slow disk favour anybody. The same patients,
patterns of missingness, draws of slices, learning rate, schedule, optimiser and averaging of
weights hold for all. A run that was stopped goes on where it was, one that is finished is not done
again. Each run, of one system with one seed, is a process of its own with one thread, and leaves
beside its log and its checkpoints

- ``<system>-<seed>.safetensors``, the weights, for `load_trained`;
- ``<system>-<seed>.json``, what it cost, and its scores on held-out patients.

    python -m benchmarks.synthesis.run --profile quick --write
    python -m benchmarks.synthesis.table --profile quick
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, WeightedRandomSampler

from benchmarks._results import RESULTS, commit
from benchmarks._workers import Job, run_jobs
from examples.medical_mri_us.data import Slices, Subject, batch_slices, load_subjects, read_index
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import cached_dataset
from mmpoe.training import History, Optimizer, Run, fit, load_weights

from .scoring import Cell, baseline, score_system
from .systems import SYSTEMS, Batch, System, build

Make = Callable[[str, Sequence[str], int], System]
"""Builds a system, of its name, the names of the modalities and the side of the images."""

OUT = Path("runs/synthesis")
RARE = 0.3
"""The share of draws from patients who have the rarest modality."""
BASELINE = "mean image"


@dataclass(frozen=True)
class Profile:
    """How large a comparison is."""

    patients: int
    held_out: int
    size: int
    slices: int
    seconds: float
    """The processor time of each training."""
    seeds: int
    batch: int = 8
    trial: int = 25
    """The number of trial steps that tell how many steps to take."""


PROFILES = {
    "smoke": Profile(8, 2, 32, 2, seconds=2, seeds=1, batch=4, trial=2),
    "quick": Profile(200, 20, 64, 8, seconds=120, seeds=1),
    "full": Profile(200, 20, 64, 8, seconds=240, seeds=3),
}


class Stopwatch:
    """Counts the processor time of a training, over all the times that it was gone on with."""

    def __init__(self) -> None:
        self.before, self.start = 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """The processor time so far."""
        return self.before + time.process_time() - self.start

    def state_dict(self) -> dict[str, float]:
        """Returns the time so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a time."""
        self.before, self.start = state["seconds"], time.process_time()


def load(profile: Profile) -> tuple[list[Subject], list[Subject]]:
    """Returns training patients, of whom most are incomplete, and complete held-out ones."""
    index = cached_dataset(
        train=profile.patients, test=profile.held_out, size=profile.size, slices=profile.slices
    )
    cases = read_index(index)
    train, _ = load_subjects([c for c in cases if c.split == "train"])
    test, _ = load_subjects([c for c in cases if c.split == "test"])
    return train, test


def train(
    system: System,
    subjects: Sequence[Subject],
    *,
    steps: int,
    batch: int,
    seed: int,
    keep: Path | None = None,
    description: dict[str, Any] | None = None,
    watch: Stopwatch | None = None,
) -> History:
    """Trains a system, and leaves it with averaged weights in evaluation mode.

    Arguments:
        system: The system.
        subjects: The patients.
        steps: The number of steps.
        batch: The number of slices in a batch.
        seed: What slices are drawn from, the same for all systems.
        keep: Where to keep checkpoints, to go on from if there are any.
        description: What checkpoints are checked against.
        watch: What counts its processor time, if it is kept.
    """
    slices = Slices(subjects, flip=True)
    draws = WeightedRandomSampler(
        slices.weights(RARE),
        steps * batch,
        replacement=True,
        generator=torch.Generator().manual_seed(seed),
    )
    loader = DataLoader(slices, batch, sampler=draws, collate_fn=batch_slices)

    def objective(network: torch.nn.Module, data: Batch, done: float) -> Tensor:
        return -system.loss(data, done)

    run = None
    if keep is not None:
        also = {} if watch is None else {"watch": watch}
        run = Run(keep, resume=True, save_every=200, description=description or {}, also=also)
    return fit(
        system.network,
        loader,
        objective,
        steps=steps,
        optimizer=Optimizer(lr=system.lr),
        adversary=system.adversary,
        run=run,
        accelerator="cpu",
        progress=keep is not None,
    )


def affordable_steps(
    name: str, subjects: Sequence[Subject], profile: Profile, make: Make = build
) -> int:
    """Returns how many steps of a system the budget pays for, by what trial steps cost.

    It is the difference between trainings of one and of more steps: what a training costs before
    its first step would count in each of a few steps, and hardly does in a thousand. It is no
    less than half of the mean, which such a difference may be by chance.
    """
    torch.manual_seed(0)
    system = make(name, MODALITIES, profile.size)
    seconds = []
    for steps in (1, 1, 1 + profile.trial):  # the first warms up
        start = time.process_time()
        train(system, subjects, steps=steps, batch=profile.batch, seed=0)
        seconds.append(time.process_time() - start)
    _, one, more = seconds
    step = max((more - one) / profile.trial, more / (1 + profile.trial) / 2)
    return max(1, round(profile.seconds / step))


def compare(
    name: str,
    seed: int,
    train_on: Sequence[Subject],
    test_on: Sequence[Subject],
    profile: Profile,
    folder: Path,
    make: Make = build,
) -> int:
    """Trains and scores one system with one seed, unless its scores are there already.

    Arguments:
        name: The name of the system.
        seed: The seed of weights, draws and noise.
        train_on: The training patients.
        test_on: The held-out patients.
        profile: The size of the comparison.
        folder: Where scores and checkpoints are kept.
        make: What builds it.

    Returns:
        The exit code: 0, or that of the signal that stopped the training.
    """
    result = folder / f"{name}-{seed}.json"
    if is_finished(result, profile):
        print(f"{result} is there already.")
        return 0
    plan = folder / f"{name}.plan.json"
    if not plan.exists():  # one number of steps for all seeds, and for a run that goes on
        steps = affordable_steps(name, train_on, profile, make)
        _write_once(plan, {"steps": steps, "profile": asdict(profile)})
    is_finished(plan, profile)
    steps = json.loads(plan.read_text())["steps"]

    torch.manual_seed(seed)
    system = make(name, MODALITIES, profile.size)
    facts = {"system": name, "seed": seed, "steps": steps, "size": profile.size}
    description = {**facts, "profile": asdict(profile)}
    print(f"{name}, seed {seed}: {steps} steps", flush=True)
    watch = Stopwatch()
    history = train(
        system,
        train_on,
        steps=steps,
        batch=profile.batch,
        seed=seed,
        keep=folder / f"{name}-{seed}",
        description=description,
        watch=watch,
    )
    if history.interrupted:
        print("Stopped; the same command goes on from here.")
        return history.exit_code
    save_weights(system, folder, name, seed)
    facts = {
        **description,
        "parameters": sum(p.numel() for p in system.network.parameters()),
        "processor_seconds": round(watch.seconds, 1),
        "wall_seconds": round(history.seconds, 1),
        "skipped": history.skipped,
        "commit": commit(),
    }
    start = time.process_time()
    cells = score_system(system, test_on)
    facts["scoring_seconds"] = round(time.process_time() - start, 1)
    _write_scores(result, facts, cells, test_on)
    return 0


def is_finished(file: Path, profile: Profile) -> bool:
    """Returns whether a file is there.

    Arguments:
        file: A file that says the profile it was made with.
        profile: The profile.

    Raises:
        ValueError: If it was made with another one.
    """
    if not file.exists():
        return False
    found = json.loads(file.read_text()).get("profile", {})
    for key, wanted in asdict(profile).items():
        if found.get(key) != wanted:
            raise ValueError(
                f"{file} should be of {key} = {wanted}, but is of {found.get(key)}: "
                f"remove {file.parent}, or name another --out."
            )
    return True


def save_weights(system: System, folder: Path, name: str, seed: int) -> None:
    """Writes the weights of a trained system, averaged ones, for :func:`load_trained`.

    Arguments:
        system: The system.
        folder: Where scores and checkpoints are kept.
        name: Its name.
        seed: Its seed.
    """
    path = folder / f"{name}-{seed}.safetensors"
    part = path.with_suffix(".part")
    state = system.network.state_dict()  # layers may share tensors, files may not
    save_file(
        {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in state.items()},
        part,
    )
    part.replace(path)


def load_trained(folder: Path, name: str, seed: int) -> System:
    """Returns a system that was trained, with averaged weights, in evaluation mode.

    Arguments:
        folder: The folder of the profile, as ``runs/synthesis/quick``.
        name: The name of the system.
        seed: Its seed.

    Raises:
        ValueError: If it was not trained to its end there.
    """
    facts, weights = (folder / f"{name}-{seed}{s}" for s in (".json", ".safetensors"))
    if not (facts.exists() and weights.exists()):
        raise ValueError(
            f"'folder' should hold {facts.name} and {weights.name}, which "
            f"benchmarks.synthesis.run writes, but {folder} does not."
        )
    system = build(name, MODALITIES, json.loads(facts.read_text())["size"])
    load_weights(system.network, load_file(weights), weights)
    system.network.eval()
    return system


def main() -> None:
    """Trains and scores what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=list(PROFILES), default="quick")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--seeds", nargs="+", type=int, help="all of the profile by default")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--write", action="store_true", help="then write to benchmarks/results")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # a worker
    options = parser.parse_args()
    torch.set_num_threads(1)  # processor time is then time of computing alone
    profile = PROFILES[options.profile]
    folder = options.out / options.profile
    folder.mkdir(parents=True, exist_ok=True)
    seeds = options.seeds or list(range(profile.seeds))
    try:
        if options.alone:
            (name,), (seed,) = options.systems, seeds
            sys.exit(compare(name, seed, *load(profile), profile, folder))
        code = compare_all(
            options.systems, seeds, profile, options.profile, folder, options.workers
        )
    except ValueError as error:
        sys.exit(str(error))
    if code:
        sys.exit(code)
    if options.write:
        from .table import report  # which imports this module

        report(folder, options.profile, to=RESULTS)


def compare_all(
    names: Sequence[str],
    seeds: Sequence[int],
    profile: Profile,
    label: str,
    folder: Path,
    workers: int,
) -> int:
    """Trains and scores systems with some seeds, each in a process of its own.

    Arguments:
        names: The names of the systems.
        seeds: The seeds.
        profile: The size of the comparison.
        label: The name of the profile.
        folder: Where scores and checkpoints are kept, `label` in a folder of benchmarks.
        workers: The number of processes at a time.

    Returns:
        The exit code.
    """
    mean = folder / "mean-0.json"
    if not is_finished(mean, profile):
        train_on, test_on = load(profile)  # which makes the patients, once, before they are shared
        facts = {"system": BASELINE, "seed": 0, "steps": 0, "parameters": 0}
        facts["profile"] = asdict(profile)
        _write_scores(mean, facts, baseline(train_on, test_on), test_on)
    runs = [(name, seed) for seed in seeds for name in names]
    left = [r for r in runs if not is_finished(folder / "{}-{}.json".format(*r), profile)]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are there already.", flush=True)
    jobs = []
    for name, seed in left:
        arguments = ["--profile", label, "--systems", name, "--seeds", str(seed), "--alone"]
        arguments += ["--out", str(folder.parent)]
        log = folder / f"{name}-{seed}.log"
        jobs.append(Job(f"{name}-{seed}", "benchmarks.synthesis.run", tuple(arguments), log))
    return run_jobs(jobs, workers)


def _write_scores(
    path: Path, facts: dict[str, Any], cells: Sequence[Cell], subjects: Sequence[Subject]
) -> None:
    _write(path, {**facts, "patients": [s.name for s in subjects], "cells": list(cells)})


def _write(path: Path, content: object) -> None:
    """Writes a file whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def _write_once(path: Path, content: object) -> None:
    """Writes a file unless another process has."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    with suppress(FileExistsError):
        os.link(part, path)
    part.unlink()


if __name__ == "__main__":
    main()
