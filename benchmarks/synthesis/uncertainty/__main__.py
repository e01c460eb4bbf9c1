"""Measures the spread of the MMHVAE of the comparison, as it is and after posterior matching.

The model is that of `benchmarks.synthesis.run`, trained first if it is not there. Its draws are
measured as they are (*naive*), and from experts that are matched to the posterior of complete
patients, of whom there are few: the number of those who teach is varied, and so is whether
incomplete patients teach too (*bootstrap*). If the training set has too few complete patients,
further ones of the same phantom, whom the model has never seen, teach as well. A *spread* around
the prediction learns from the training set, and further complete patients set its scale. Nothing
else of the model changes.

    python -m benchmarks.synthesis.uncertainty --profile quick --write

A measurement that is finished is not done again, unless the model is another one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._results import RESULTS, facts, write, write_whole
from benchmarks._workers import Job, run_jobs
from benchmarks.synthesis.ablations.missing import complete, complete_patients
from benchmarks.synthesis.profiles import OUT as TRAINED
from benchmarks.synthesis.profiles import PROFILES, load
from benchmarks.synthesis.training import compare, load_trained
from examples.medical_mri_us.calibration import Samples, calibrate_model
from examples.medical_mri_us.config import Matching
from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.imputation import calibrate
from mmpoe.models import MMHVAE

from .measure import measure
from .tables import draw_figure, markdown, results

OUT = Path("runs/uncertainty")
SYSTEM = "mmhvae"


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    patients: int
    """The number of held-out patients."""
    draws: int
    """The number of draws; 19 can tell 90 %."""
    steps: int
    """The most steps of a calibration; without improvement it ends before."""
    batch: int
    """The number of slices of a step."""
    complete: tuple[int, ...] = (2, 5, 10, 20)
    """The numbers of complete patients who teach."""
    bootstrap: tuple[int, ...] = (2, 5, 20)
    """The numbers of those beside whom incomplete patients teach too."""
    spread: int = 300
    """The number of steps of the spread."""
    apart: int = 20
    """The number of complete patients who set its scale."""


SETTINGS = {
    "smoke": Settings(2, 19, 2, 4, complete=(2,), bootstrap=(2,), spread=2, apart=2),
    "quick": Settings(8, 29, 200, 16),
    "full": Settings(20, 49, 1000, 16),
}


@dataclass(frozen=True)
class Condition:
    """The source of draws."""

    name: str
    """How its file is called."""
    teacher: str | None = None
    """Who teaches the matched experts, see `mmpoe.imputation.calibrate`; "spread" for a spread
    instead, and None for the model as it is."""
    complete: int = 0
    """The number of complete patients who teach, or set the scale."""


def conditions(settings: Settings) -> list[Condition]:
    """Returns all conditions, the naive one first.

    Arguments:
        settings: How much is measured.
    """
    return [
        Condition("naive"),
        *(Condition(f"complete-{n}", "complete", n) for n in settings.complete),
        *(Condition(f"bootstrap-{n}", "bootstrap", n) for n in settings.bootstrap),
        Condition("spread", "spread", settings.apart),
    ]


def teachers(subjects: Sequence[Subject], more: Sequence[Subject], number: int) -> list[Subject]:
    """Returns some complete patients, those of the training set first, and all incomplete ones.

    Arguments:
        subjects: The training patients.
        more: Further complete patients.
        number: The number of complete ones.

    Raises:
        ValueError: If there are fewer.
    """
    whole = [*complete(subjects), *more][:number]
    if len(whole) < number:
        raise ValueError(f"'number' should be at most {len(whole)}, but is {number}.")
    return whole + [s for s in subjects if len(s.images) < len(MODALITIES)]


def measure_one(
    condition: Condition,
    model: MMHVAE,
    teaching: Sequence[Subject],
    test_on: Sequence[Subject],
    settings: Settings,
    path: Path,
    about: Mapping[str, Any],
) -> None:
    """Calibrates a model, if that is the condition, and measures its draws.

    Arguments:
        condition: The condition.
        model: The model, without matched experts or a spread; it gets some.
        teaching: The patients who teach; those who set the scale of a spread come first.
        test_on: The held-out patients.
        settings: How much is measured.
        path: The file to write.
        about: What the file says first, for :func:`is_finished`.
    """
    torch.manual_seed(0)
    start, taken = time.process_time(), 0
    if condition.teacher == "spread":
        apart, rest = teaching[: condition.complete], teaching[condition.complete :]
        spread_steps = Matching(steps=0, spread_steps=settings.spread)
        taken = settings.spread
        if calibrate_model(model, rest, apart, spread_steps).interrupted:
            raise KeyboardInterrupt
    elif condition.teacher is not None:
        history = calibrate(
            model,
            Samples(teaching, model),
            teacher=condition.teacher,
            steps=settings.steps,
            batch_size=settings.batch,
            patience=max(50, settings.steps // 3),
        )
        if history.interrupted:
            raise KeyboardInterrupt
        taken = history.best
    seconds = time.process_time() - start
    spread = measure(model, test_on[: settings.patients], settings.draws)
    content = {
        **about,
        "condition": asdict(condition),
        "steps": taken,
        "processor_seconds": round(seconds, 1),
        "rows": spread.rows,
        "curves": spread.curves,
    }
    write_whole(path, json.dumps(content) + "\n")


def is_finished(path: Path, about: Mapping[str, Any]) -> bool:
    """Returns whether a file is there that says the same.

    Arguments:
        path: The file.
        about: What it should say.
    """
    if not path.exists():
        return False
    found = json.loads(path.read_text())
    return all(found.get(key) == value for key, value in about.items())


def main() -> None:
    """Measures what the arguments ask for, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=list(SETTINGS), default="quick")
    parser.add_argument("--workers", type=int, default=2, help="processes; with 1, all is in here")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--models", type=Path, default=TRAINED, help="where the comparison is")
    parser.add_argument("--write", action="store_true", help="write to benchmarks/results")
    parser.add_argument("--alone", metavar="CONDITION", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    profile, settings = PROFILES[options.profile], SETTINGS[options.profile]
    folder, models = options.out / options.profile, options.models / options.profile
    for needed in (folder, models):
        needed.mkdir(parents=True, exist_ok=True)
    train_on, test_on = load(profile)
    every = conditions(settings)

    more = complete_patients(profile)
    if not options.alone:
        try:
            code = compare(SYSTEM, 0, train_on, test_on, profile, models)
        except ValueError as error:  # what is there was made with other settings
            sys.exit(str(error))
        if code:
            sys.exit(code)
    weights = (models / f"{SYSTEM}-0.safetensors").read_bytes()
    about = {
        "settings": json.loads(json.dumps(asdict(settings))),  # lists, as in the file
        "model": hashlib.sha256(weights).hexdigest(),
    }

    def one(condition: Condition) -> None:
        model = load_trained(models, SYSTEM, 0).network
        assert isinstance(model, MMHVAE)
        teaching = teachers(train_on, more, condition.complete)
        if condition.teacher == "spread":
            teaching = [*more[: condition.complete], *train_on]
        path = folder / f"{condition.name}.json"
        measure_one(condition, model, teaching, test_on, settings, path, about)

    if options.alone:  # a worker
        one(next(c for c in every if c.name == options.alone))
        return
    to_do = [c for c in every if not is_finished(folder / f"{c.name}.json", about)]
    print(f"{len(every) - len(to_do)} of {len(every)} measurements are there already.", flush=True)
    if options.workers == 1:
        for condition in to_do:
            print(condition.name, flush=True)
            one(condition)
    else:
        shared = ("--profile", options.profile, "--out", str(options.out))
        shared += ("--models", str(options.models), "--alone")
        jobs = [
            Job(
                c.name,
                "benchmarks.synthesis.uncertainty",
                (*shared, c.name),
                folder / f"{c.name}.log",
            )
            for c in to_do
        ]
        if code := run_jobs(jobs, options.workers):
            sys.exit(code)

    found = [json.loads((folder / f"{c.name}.json").read_text()) for c in every]
    text = markdown(found, options.profile, len(complete(train_on)))
    print(text)
    if options.write:
        command = f"python -m benchmarks.synthesis.uncertainty --profile {options.profile} --write"
        write("uncertainty", {**facts(command, options.profile, [0]), **results(found)}, text)
        draw_figure(found, RESULTS / "uncertainty.png")


if __name__ == "__main__":
    main()
