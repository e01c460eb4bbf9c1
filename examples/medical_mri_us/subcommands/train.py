"""``train``: from an index of cases to a model with its card."""

from __future__ import annotations

__all__ = ["Train", "run"]

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from examples.medical_mri_us.card import write_card
from examples.medical_mri_us.checks import check_integer
from examples.medical_mri_us.config import read_config, write_config
from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import (
    CaseError,
    check_training,
    read_index,
    store_subjects,
    turn_alike,
)
from examples.medical_mri_us.data.columns import image_columns
from examples.medical_mri_us.data.stored import FOLDER
from examples.medical_mri_us.demo import demo_or_run
from examples.medical_mri_us.facts import data_of, facts_of, read_data
from examples.medical_mri_us.finished import has_card, is_finished
from examples.medical_mri_us.initial import read_start
from examples.medical_mri_us.outputs import open_folder
from examples.medical_mri_us.train import save_model, train
from examples.medical_mri_us.windows import pad_subjects
from mmpoe.training import Checkpoints, lock, sweep, write_file


@dataclass(frozen=True)
class Train:
    """Train an MMHVAE on the cases of an index, each with the modalities that it has.

    Ctrl-C and SIGTERM end training after a step and keep the model; --resume continues, to the
    weights of an uninterrupted run, and changes nothing once training is finished. Started by
    torchrun, each process has its share of a GPU run.
    """

    out: Path
    """The folder of the run: its model and card, configuration, log and checkpoints."""
    config: Path | None = None
    """A TOML file, or tiny, small or paper; by default, that of the run to resume, or else that of
    the run to start from, or tiny, with the modalities of the index."""
    data: Path | None = None
    """The index of the cases, index.csv; by default, that of the run to resume."""
    split: str = "train"
    """The split to train on."""
    init: Path | None = None
    """A run whose weights to start from, or demo; modalities that it lacks start fresh."""
    resume: bool = False
    """Whether to resume from the last checkpoint of the run."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An entry of the configuration to change, as in training.steps=100; may be given again."""
    workers: int = 0
    """The number of processes that load slices ahead of training; the result is the same with any
    number."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device; auto is a GPU if there is one."""


def run(options: Train) -> int:
    """Trains, and returns the exit code: 0, or that of the signal that stopped training.

    Resuming leaves a finished run as it is: its model may be calibrated by now.

    Raises:
        ValueError: If an option, the configuration or the index cannot be used, the folder is in
            use, or it holds checkpoints and is not to be resumed.
        CaseError: If there is no case that can be used, or slices lie in different planes.
        CheckpointError: If the last checkpoint cannot be resumed from, or the run to start from
            has no model that can be read.
        OSError: If the folder cannot be written to.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("'device' should be 'cpu' or 'auto' without a GPU, but is 'cuda'.")
    check_integer("workers", options.workers, 0)
    init = None if options.init is None else demo_or_run(options.init)
    config = read_config(_config_of(options, init), [*_modalities_of(options), *options.set])
    first = int(os.environ.get("RANK", 0)) == 0  # of the processes of torchrun
    if options.resume and is_finished(options.out, config):
        if first:
            sweep(options.out)
            sweep(options.out / "model")
            if not has_card(options.out):  # as after a kill between the two
                write_card(options.out)
            print(f"The training is finished; {options.out / 'model'} is left as it is.")
        return 0
    index = _index_of(options)
    every = read_index(index, config.modalities)
    cases = [c for c in every if c.split == options.split]
    if not cases:
        splits = ", ".join(sorted({c.split for c in every}))
        raise ValueError(f"'split' should be one of {index}, {splits}, but is {options.split!r}.")
    check_training(cases, config.modalities)
    folder = open_folder(options.out)
    steps = Checkpoints(folder / "checkpoints").steps()
    if steps and not options.resume:
        raise ValueError(
            f"'out' should be a new folder, or --resume be given, but {folder} holds "
            f"checkpoints up to step {steps[-1]}."
        )
    init = _kept_init(options, init)
    start = None
    if init is not None and not steps:  # else the checkpoint has the weights
        start = read_start(init, config)
    if first:
        with lock(folder):
            pass  # before data are read, which takes a while

    subjects, problems = store_subjects(cases, _stored(index, folder))
    if not subjects:
        raise CaseError(f"{index}: none of {counted(len(cases), 'training case')} can be used.")
    subjects = pad_subjects(turn_alike(subjects), config.size)
    data = data_of(index, options.split, config.modalities, cases, subjects, problems)
    if init is not None:
        data["init"] = str(init.resolve())
    if first:
        with lock(folder):
            if not (steps and (folder / "config.toml").exists()):  # of what is resumed
                write_config(folder / "config.toml", config)
            write_file(folder / "data.json", json.dumps(data, indent=2).encode())
        observed = data["missingness"]["observed"]
        counts = ", ".join(f"{m} {n}" for m, n in observed.items())
        device = "a GPU" if options.device != "cpu" and torch.cuda.is_available() else "the CPU"
        print(f"{counted(len(subjects), 'training case')} with {counts}; training on {device}.")
        if start is not None:
            print(start.describe(config.size))
        if sum(observed.values()) <= len(subjects):
            print("Note: no case has two modalities: nothing shows how to make one from another.")

    model, history = train(
        subjects,
        config.training,
        modalities=config.modalities,
        network=config.model,
        slices=config.slices,
        covariates=config.covariates,
        size=config.size,
        critics=config.adversary,
        start=start,
        keep=folder,
        resume=options.resume,
        workers=options.workers,
        device=options.device,
    )
    if first:
        facts = {**facts_of(subjects), "phantom": data["phantom"], "init": data.get("init")}
        with lock(folder):
            save_model(
                folder / "model",
                model,
                config.size,
                config.training,
                history,
                network=config.model,
                facts=facts,
            )
            write_card(folder)
        print(f"Model saved in {folder / 'model'}, after {counted(len(history.bounds), 'step')}.")
        if history.interrupted:
            again = f"train --out {shlex.quote(str(folder))} --resume"
            print(f"Stopped before the end. To resume: {again}")
    return history.exit_code


def _config_of(options: Train, init: Path | None) -> Path:
    if options.config is not None:
        return options.config
    kept = [options.out / "config.toml"] if options.resume else []
    kept += [] if init is None else [init / "config.toml"]
    return next((path for path in kept if path.exists()), Path("tiny"))


def _kept_init(options: Train, init: Path | None) -> Path | None:
    """Returns the run to start from: the one asked for, or that of the run to resume.

    Raises:
        ValueError: If these are two.
    """
    if not options.resume or not (options.out / "data.json").exists():
        return init
    kept = read_data(options.out).get("init")
    kept = None if kept is None else Path(kept)
    if init is not None and kept != init.resolve():
        raise ValueError(
            f"'init' should be that of the run to resume, {kept or 'none'}, but is {init}."
        )
    return kept


def _modalities_of(options: Train) -> list[str]:
    """Returns the modalities of the index as a change, where no configuration says others."""
    kept = options.resume and (options.out / "config.toml").exists()
    if options.config is not None or kept or options.data is None:
        return []
    return [f"modalities={json.dumps(image_columns(options.data))}"]


def _stored(index: Path, folder: Path) -> Path:
    """Returns where slices are stored: beside the index, or in the run if that is read-only."""
    return (index.parent if os.access(index.parent, os.W_OK) else folder) / FOLDER


def _index_of(options: Train) -> Path:
    if options.data is not None:
        return options.data
    kept = options.out / "data.json"
    if not options.resume or not kept.exists():
        raise ValueError("'data' should be an index of cases, but is not given: --data index.csv.")
    return Path(read_data(options.out)["index"])
