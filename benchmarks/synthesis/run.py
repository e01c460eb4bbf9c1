"""Trains every system on the same incomplete phantom patients, for the same processor time.

The number of steps of a system is what its budget of processor time pays for, going by a few
trial steps, so that neither other programs nor a slow disk favour anybody. The same patients,
patterns of missingness, draws of slices, learning rate, schedule, optimiser and averaging of
weights hold for all. A run that was stopped resumes, one that is finished is not done
again. Each run, of one system with one seed, is a process of its own with one thread, and leaves
beside its log and its checkpoints

- ``<system>-<seed>.safetensors``, the weights, for `load_trained`;
- ``<system>-<seed>.json``, what it cost, and its scores on held-out patients.

    python -m benchmarks.synthesis.run --profile quick --write
    python -m benchmarks.synthesis.table --profile quick
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks._results import RESULTS
from benchmarks._workers import Job, run_jobs

from .profiles import OUT, PROFILES, Profile, load
from .scoring import BASELINE, baseline
from .systems import SYSTEMS
from .table import report
from .training import compare, is_finished, write_scores


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
        write_scores(mean, facts, baseline(train_on, test_on), test_on)
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


if __name__ == "__main__":
    main()
