"""The whole path on phantom patients: make them, train, synthesise what is missing, report."""

from __future__ import annotations

__all__ = ["Demo", "demo_or_run", "demo_run", "run", "train_demo"]

import hashlib
import json
import os
import platform
import shlex
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import distributed
from tqdm import tqdm

import mmpoe
from mmpoe.models import MMHVAE
from mmpoe.training import History, scratch, write_file

from .calibration import Calibrated, calibrate_model
from .card import write_card
from .checks import check_integer
from .config import Config, Matching, write_config
from .data import CaseError, Subject, load_subjects, read_index
from .evaluation import cross_modal_gain, evaluate
from .facts import data_of, facts_of, stopped_early
from .modalities import LABELS, MODALITIES
from .outputs import open_folder
from .phantom import CREDIT, cached_dataset
from .phantom.cache import GENERATOR_VERSION, cache_folder, ensure_writable, is_cached
from .report import MR, Facts, draw_panel, draw_training, write_report
from .train import Settings, build_model, save_model, train

PANEL = (["us"], ["t2", "cet1"], ["us", "t2"])
"""The subsets that the panel shows."""
SEED = 1
"""The seed of the patients that the model is calibrated on."""


@dataclass(frozen=True)
class Demo:
    """Make phantom patients, train a small MMHVAE on what they have, synthesise what they lack.

    Open report.html at the end. Patients are kept for the next run, in ~/.cache/mmpoe or the
    folder that MMPOE_CACHE names, and so is the model, for `synthesize --model demo` and
    `train --init demo`. Ctrl-C ends training and keeps the model in --out alone.
    """

    out: Path = Path("runs/demo")
    """The folder for metrics.json, panel.png, report.html, and the model with its card, which
    calibrate, synthesize and evaluate take as they take that of train."""
    keep: Path | None = None
    """A folder for checkpoints and a log of training, to resume from if it is stopped."""
    resume: bool = False
    """Whether to resume from the last checkpoint in that folder, if there is one."""
    patients: int = 200
    """The number of training patients, with modalities missing as in ReMIND."""
    held_out: int = 20
    """The number of held-out patients, complete, that the model is scored on."""
    calibrate_on: int = 20
    """The number of further patients, complete, that set how far its draws spread."""
    calibrate: Matching = field(default_factory=lambda: Matching(steps=0))
    """How the model is calibrated. Matched experts do not help on phantoms: only a spread is
    fitted."""
    size: int = 64
    """The height and width of the slices, in pixels over 96 mm: a multiple of 8."""
    workers: int = 2
    """The number of processes that make patients."""
    train: Settings = field(default_factory=Settings)
    """How the model is trained."""

    def check(self) -> None:
        """Raises a ValueError that names the argument, if there is one that cannot be used."""
        check_integer("patients", self.patients, 1)
        check_integer("held_out", self.held_out, 1)
        check_integer("calibrate_on", self.calibrate_on, 1)
        self.calibrate.check()
        check_integer("size", self.size, 16)
        check_integer("workers", self.workers, 1)
        build_model(self.size)
        self.train.check()
        if self.resume and self.keep is None:
            raise ValueError("'keep' should be a folder to resume from, but is None.")


@dataclass(frozen=True, eq=False)
class Trained:
    """The model of a demo, and what it came from."""

    model: MMHVAE
    history: History
    subjects: list[Subject]
    """The training patients."""
    held_out: list[Subject]
    problems: list[CaseError]
    """The faults of patients who were left out."""
    calibration: str
    """How far the spread of draws is known to match errors, in words."""
    code: int
    """The exit code: 0, or that of the signal that stopped training or calibration."""
    backend: str | None
    """The backend of the products of experts in training."""


def run(demo: Demo) -> int:
    """Runs the demo and returns its exit code: 0, or that of the signal that stopped training.

    It is 130 for Ctrl-C and 143 for SIGTERM.

    Raises:
        ValueError: If an argument cannot be used, before any patient is made, or no patient can,
            before any training.
    """
    start = time.monotonic()
    demo.check()
    open_folder(demo.out)
    trained = train_demo(demo, demo.out)
    model, history = trained.model, trained.history
    backend = trained.backend
    print(f"Model saved in {demo.out / 'model'}; products of experts ran on '{backend}'.")
    if trained.code:
        print(f"Stopped after {len(history.bounds)} steps; the model can be used as it is.")
        if demo.keep is not None:
            keep = shlex.quote(str(demo.keep))
            print(f"To resume, run the same again with --keep {keep} --resume.")
        return trained.code
    _keep(demo)

    cells = evaluate(model, trained.subjects, trained.held_out)
    write_file(demo.out / "metrics.json", (json.dumps(cells, indent=1) + "\n").encode())

    panel = draw_panel(model, _typical(trained.held_out), PANEL)
    write_file(demo.out / "panel.png", panel)
    minutes = (time.monotonic() - start) / 60
    shown = Facts(
        train=trained.subjects,
        test=trained.held_out,
        problems=trained.problems,
        settings={
            "model": f"MMHVAE, {len(model.groups)} latent groups, "
            f"{sum(p.numel() for p in model.parameters()):,} parameters",
            "training": f"{len(history.bounds)} steps in {history.seconds / 60:.1f} minutes, "
            f"{history.skipped} skipped",
            **{name: str(value) for name, value in asdict(demo.train).items()},
            "whole run": f"{minutes:.1f} minutes",
            "product of experts": f"'{backend}' backend",
            "software": f"mmpoe {mmpoe.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
            f"{os.cpu_count()} cores",
        },
        credit=CREDIT,
        calibration=trained.calibration,
        stopped=stopped_early(len(history.bounds), demo.train.steps),
    )
    curve = draw_training(history.bounds)
    write_report(demo.out / "report.html", cells, panel, curve, shown)

    print(
        f"Gain over the mean image: MR from MR {cross_modal_gain(cells, MR, MR):+.2f} dB, "
        f"MR from ultrasound {cross_modal_gain(cells, {'us'}, MR):+.2f} dB, "
        f"ultrasound from MR {cross_modal_gain(cells, MR, {'us'}):+.2f} dB.\n"
        f"Open {demo.out / 'report.html'} ({minutes:.1f} minutes in all)."
    )
    return 0


def train_demo(demo: Demo, folder: Path) -> Trained:
    """Makes patients, trains and calibrates, and writes the folder of a run.

    Arguments:
        demo: The options.
        folder: The folder, which is there.

    Raises:
        ValueError: If no patient can be used, before any training.
    """
    index = cached_dataset(
        train=demo.patients, test=demo.held_out, size=demo.size, workers=demo.workers
    )
    cases = read_index(index)
    training = [c for c in cases if c.split == "train"]
    subjects, problems = load_subjects(training)
    held_out, more = load_subjects([c for c in cases if c.split == "test"])
    for split, usable in (("train", subjects), ("test", held_out)):
        if not usable:
            raise ValueError(
                f"{index} should list at least one usable case of the split '{split}', "
                "but all were left out."
            )
    held = {m: sum(m in s.images for s in subjects) for m in MODALITIES}
    print(
        f"{len(subjects)} training patients with "
        + ", ".join(f"{LABELS[m]} {count}" for m, count in held.items())
        + f"; {len(held_out)} complete ones held out."
    )

    model, history = train(subjects, demo.train, keep=demo.keep, resume=demo.resume)
    backend = mmpoe.kernels.last_backend()
    for name in ("metrics.json", "panel.png", "report.html"):  # of an earlier run's model
        (folder / name).unlink(missing_ok=True)
    data = data_of(index, "train", MODALITIES, training, subjects, problems)
    write_file(folder / "data.json", json.dumps(data, indent=2).encode())
    write_config(
        folder / "config.toml",
        Config(size=demo.size, training=demo.train, calibration=demo.calibrate),
    )
    facts = {**facts_of(subjects), "phantom": data["phantom"]}
    save_model(folder / "model", model, demo.size, demo.train, history, facts=facts)
    write_card(folder)
    code, said = history.exit_code, "It is not calibrated."
    if code == 0:
        calibration, number = _calibrate(model, subjects, demo)
        code, said = 130 if calibration.interrupted else 0, calibration.told()
        print(said)
        facts |= calibration.facts(demo.calibrate, subjects, number)
        save_model(folder / "model", model, demo.size, demo.train, history, facts=facts)
        write_card(folder)
    return Trained(model, history, subjects, held_out, [*problems, *more], said, code, backend)


def demo_or_run(run: Path) -> Path:
    """Returns a run, or for ``demo``, unless there is such a folder, that of the demo."""
    return demo_run() if str(run) == "demo" and not run.exists() else run


def demo_run(demo: Demo | None = None) -> Path:
    """Returns the run of the demo in the cache, trained as `make demo` trains it if it is absent.

    It lies below the folder that the environment variable `MMPOE_CACHE` names, by default
    `~/.cache/mmpoe`.

    Arguments:
        demo: The options; those of the demo by default.

    Raises:
        CacheError: If that folder cannot be written.
        ValueError: If it is absent, and several processes were started at once.
        KeyboardInterrupt: If training is stopped by Ctrl-C or SIGTERM: no model is kept.
    """
    demo = Demo() if demo is None else demo
    folder = _cached_run(demo)
    if is_cached(folder / "model" / "model.json"):
        print(f"The model of the demo is that in {folder}.")
        return folder
    if distributed.is_torchelastic_launched():
        raise ValueError(f"'demo' should be trained by one process first, but {folder} is absent.")
    limit = "" if demo.train.minutes is None else f" for up to {demo.train.minutes:g} minutes"
    print(f"The model of the demo is not in the cache yet: training it once{limit}.", flush=True)
    with scratch(ensure_writable(folder.parent)) as aside:
        if train_demo(demo, aside).code:
            raise KeyboardInterrupt
        _put(aside, folder)
    print(f"Kept in {folder}.")
    return folder


def _cached_run(demo: Demo) -> Path:
    """The place of the run in the cache, by all that the model depends on."""
    depends = {
        "patients": demo.patients,
        "size": demo.size,
        "calibrate_on": demo.calibrate_on,
        "train": asdict(demo.train),
        "calibrate": asdict(demo.calibrate),
        "generator": GENERATOR_VERSION,
    }
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder("models", f"demo-{key}")


def _keep(demo: Demo) -> None:
    """Copies the run of a demo to the cache, for those who ask for the model of the demo."""
    folder = _cached_run(demo)
    with scratch(ensure_writable(folder.parent)) as aside:
        shutil.copytree(demo.out / "model", aside / "model")
        for name in ("data.json", "config.toml"):
            shutil.copy(demo.out / name, aside / name)
        _put(aside, folder)


def _put(aside: Path, folder: Path) -> None:
    """Names a folder that is complete, in place of one that may be there."""
    if folder.exists():
        with scratch(folder.parent) as earlier:
            folder.rename(earlier / folder.name)
    aside.rename(folder)


def _calibrate(model: MMHVAE, subjects: list[Subject], demo: Demo) -> tuple[Calibrated, int]:
    """Calibrates a model on patients that it has not seen, and returns their number too."""
    index = cached_dataset(
        train=0, test=demo.calibrate_on, size=demo.size, workers=demo.workers, seed=SEED
    )
    fresh, _ = load_subjects(read_index(index))
    torch.manual_seed(demo.train.seed)
    with tqdm(
        total=demo.calibrate.steps + demo.calibrate.spread_steps, desc="Calibrating", unit="step"
    ) as bar:
        found = calibrate_model(
            model, subjects, fresh, demo.calibrate, report=lambda *_: bar.update()
        )
    return found, len(fresh)


def _typical(subjects: list[Subject]) -> Subject:
    """The subject whose largest cut through a tumour is at the upper quartile."""
    sizes = {
        s.name: 0 if s.label is None else (s.label > 0).sum(axis=(1, 2)).max() for s in subjects
    }
    return sorted(subjects, key=lambda s: sizes[s.name])[(3 * len(subjects)) // 4]
