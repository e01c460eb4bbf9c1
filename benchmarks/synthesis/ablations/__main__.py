"""Changes the slim MMHVAE in one thing at a time, all for the same processor time.

Data, training, budget and scores are those of `benchmarks.synthesis.run`: each variant takes the
steps that its budget of processor time pays for. What is missing is varied in patients of the same
phantom who are complete until images are dropped from them at random; beside each, the same model
learns from the patients who are complete nevertheless, as one does who discards the others.

    python -m benchmarks.synthesis.ablations --profile quick --write
    python -m benchmarks.synthesis.ablations --factors fusion adversary

A run that was stopped resumes, one that is finished is not done again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks._results import RESULTS, facts, write
from benchmarks._workers import Job, run_jobs
from benchmarks.synthesis import profiles
from benchmarks.synthesis.profiles import Profile, load
from benchmarks.synthesis.systems import System
from benchmarks.synthesis.training import compare, is_finished
from examples.medical_mri_us.data import Subject

from .factors import variants
from .figure import draw
from .missing import complete, complete_index, complete_patients, drop, left
from .tables import markdown, read, results
from .variants import BASE, Variant, build

OUT = Path("runs/ablations")
SCORED = 10
"""The number of held-out patients who are scored, fewer than in the comparison."""
PROFILES = {
    "smoke": replace(profiles.PROFILES["smoke"], seconds=0.3, trial=1),
    "quick": replace(profiles.PROFILES["quick"], seconds=50),
    "full": replace(profiles.PROFILES["full"], seconds=75),
}


def patients(variant: Variant, profile: Profile) -> tuple[list[Subject], list[Subject]]:
    """Returns what a variant is trained on, and the held-out patients, the same for all.

    Arguments:
        variant: The variant.
        profile: The size of the comparison.
    """
    incomplete, held_out = load(profile)
    held_out = held_out[:SCORED]
    if variant.missing is None:
        return incomplete, held_out
    dropped = drop(complete_patients(profile), variant.missing)
    return complete(dropped) if variant.discard else dropped, held_out


def possible(variant: Variant, profile: Profile) -> bool:
    """Returns whether a variant has patients to learn from.

    Arguments:
        variant: The variant.
        profile: The size of the comparison.
    """
    return not variant.discard or left(profile.patients, variant.missing or 0.0).complete > 0


def train_one(variant: Variant, seed: int, profile: Profile, folder: Path) -> int:
    """Trains and scores a variant, unless that was done.

    Arguments:
        variant: The variant.
        seed: The seed.
        profile: The size of the comparison.
        folder: Where scores and checkpoints are kept.

    Returns:
        The exit code.
    """

    def make(name: str, modalities: Sequence[str], size: int) -> System:
        return build(variant, modalities, size)

    return compare(variant.name, seed, *patients(variant, profile), profile, folder, make)


def main() -> None:
    """Trains and scores what the arguments ask for, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=list(PROFILES), default="quick")
    parser.add_argument("--factors", nargs="+", help="what to vary; all by default")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time; 1 is in here")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--write", action="store_true", help="write to benchmarks/results")
    parser.add_argument("--alone", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # processor time is then time of computing alone
    profile = PROFILES[options.profile]
    folder = options.out / options.profile
    folder.mkdir(parents=True, exist_ok=True)
    every = variants(profile.size)

    if options.alone:  # a worker
        name, seed = options.alone
        chosen = next(v for v in every if v.name == name)
        sys.exit(train_one(chosen, int(seed), profile, folder))

    factors = list(dict.fromkeys(v.factor for v in every))
    wanted = options.factors or factors
    if unknown := [f for f in wanted if f not in factors]:
        parser.error(f"--factors should be some of {', '.join(factors)}, not {unknown[0]!r}.")
    chosen = [v for v in every if v.factor in (BASE.factor, *wanted) and possible(v, profile)]
    try:
        code = train_all(chosen, profile, options.profile, folder, options.workers)
    except ValueError as error:  # what is there was made with other settings
        sys.exit(str(error))
    if code:
        sys.exit(code)

    found = read(folder, every, profile.seeds)
    text = markdown(found, profile, options.profile)
    print(text)
    if options.write:
        command = f"python -m benchmarks.synthesis.ablations --profile {options.profile} --write"
        about = facts(command, options.profile, range(profile.seeds))
        write("ablations", {**about, **results(found, profile)}, text)
        draw(found, profile, RESULTS / "ablations.png")


def train_all(
    chosen: Sequence[Variant], profile: Profile, label: str, folder: Path, workers: int
) -> int:
    """Trains and scores variants with all seeds, some at a time.

    Arguments:
        chosen: The variants.
        profile: The size of the comparison.
        label: Its name.
        folder: Where scores and checkpoints are kept.
        workers: The number of processes; with 1, all is done in this one.

    Returns:
        The exit code: that of the first that failed or was stopped, or 0.
    """
    left_over = [
        (v, seed)
        for seed in range(profile.seeds)
        for v in chosen
        if not is_finished(folder / f"{v.name}-{seed}.json", profile)
    ]
    print(
        f"{len(chosen) * profile.seeds - len(left_over)} runs are there, {len(left_over)} to do."
    )
    if workers == 1:
        codes = (train_one(v, seed, profile, folder) for v, seed in left_over)
        return next((code for code in codes if code), 0)
    load(profile)  # which makes the patients, once, before they are shared
    if any(v.missing is not None for v, _ in left_over):
        complete_index(profile)
    jobs = [
        Job(
            f"{v.name}-{seed}",
            "benchmarks.synthesis.ablations",
            ("--profile", label, "--out", str(folder.parent), "--alone", v.name, str(seed)),
            folder / f"{v.name}-{seed}.log",
        )
        for v, seed in left_over
    ]
    return run_jobs(jobs, workers)


if __name__ == "__main__":
    main()
