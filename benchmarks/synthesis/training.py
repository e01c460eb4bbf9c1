"""Trains, scores and keeps one system with one seed, for the processor time of a profile."""

from __future__ import annotations

__all__ = [
    "Make",
    "Stopwatch",
    "affordable_steps",
    "compare",
    "is_finished",
    "load_trained",
    "save_weights",
    "train",
    "write_scores",
]

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, WeightedRandomSampler

from benchmarks._results import commit, write_whole
from examples.medical_mri_us.data import Slices, Subject, batch_slices
from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.training import History, Optimizer, Run, fit, load_weights

from .profiles import Profile
from .scoring import Cell, score_system
from .systems import Batch, System, build

Make = Callable[[str, Sequence[str], int], System]
"""Builds a system, of its name, the names of the modalities and the side of the images."""

RARE = 0.3
"""The share of draws from patients who have the rarest modality."""


class Stopwatch:
    """Counts the processor time of a training run, over all the times that it was resumed."""

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
        """Resumes from a time."""
        self.before, self.start = state["seconds"], time.process_time()


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
        keep: The folder of checkpoints; training resumes from the last one, if there is any.
        description: The description that checkpoints are checked against.
        watch: The stopwatch of its processor time, if checkpoints are kept.
    """
    slices = Slices(subjects, flip=True)
    draws = WeightedRandomSampler(
        slices.weights(RARE).tolist(),
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

    The cost of a step is the difference between training runs of one and of more steps: the costs
    before the first step would count in each of a few steps, and hardly do in a thousand. It is
    taken to be at least half of the mean, since such a difference varies by chance.
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
        make: The function that builds it.

    Returns:
        The exit code: 0, or that of the signal that stopped training.
    """
    result = folder / f"{name}-{seed}.json"
    if is_finished(result, profile):
        print(f"{result} is there already.")
        return 0
    plan = folder / f"{name}.plan.json"
    if not plan.exists():  # one number of steps for all seeds, and for a run that is resumed
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
        print("Stopped; the same command resumes.")
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
    write_scores(result, facts, cells, test_on)
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


def write_scores(
    path: Path, facts: dict[str, Any], cells: Sequence[Cell], subjects: Sequence[Subject]
) -> None:
    """Writes the scores of a run, whole or not at all.

    Arguments:
        path: The file.
        facts: What the run says of itself.
        cells: The scores.
        subjects: The patients who were scored.
    """
    content = {**facts, "patients": [s.name for s in subjects], "cells": list(cells)}
    write_whole(path, json.dumps(content, indent=1) + "\n")


def _write_once(path: Path, content: object) -> None:
    """Writes a file unless another process has."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    with suppress(FileExistsError):
        os.link(part, path)
    part.unlink()
