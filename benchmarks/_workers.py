"""Independent runs as processes of one thread each, some at a time, that end together."""

from __future__ import annotations

__all__ = ["Job", "command_line", "handed_on", "run_jobs", "run_parts"]

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


@dataclass(frozen=True)
class Job:
    """A run in a process of its own."""

    name: str
    """The name in lines of progress."""
    module: str
    """The module to run, as ``python -m`` does."""
    arguments: tuple[str, ...]
    log: Path
    """The file that its output is added to."""


def run_jobs(jobs: Sequence[Job], workers: int) -> int:
    """Runs jobs, some at a time, with one thread each, and says when each is done.

    SIGINT (Ctrl-C) and SIGTERM are handed on: running jobs are asked to end, and are waited for. A
    job that fails ends the others likewise; the last lines of its output are shown.

    Arguments:
        jobs: The jobs, in the order to start them.
        workers: The number of processes at a time.

    Returns:
        The exit code: 0, that of the job that failed, or 128 and the number of the signal.

    Raises:
        ValueError: If there is not at least one worker.
    """
    if workers < 1:
        raise ValueError(f"'workers' should be at least 1, but is {workers}.")
    waiting, done, code = list(jobs), 0, 0
    running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
    asked, told = 0, False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while running or (waiting and not (asked or code)):
            while waiting and len(running) < workers and not (asked or code):
                job = waiting.pop(0)
                running[job.name] = job, _start(job), time.monotonic()
            if (asked or code) and not told:
                told = True  # once: a second signal would not let them end in order
                for _, process, _ in running.values():
                    process.terminate()
            for job, process, start in list(running.values()):
                if process.poll() is None:
                    continue
                del running[job.name]
                if process.returncode == 0:
                    done += 1
                    _say(job, time.monotonic() - start, done, len(jobs), list(running), waiting)
                elif not (asked or code):
                    code = abs(process.returncode)
                    print(f"{job.name} failed, exit code {process.returncode}; {job.log} ends:")
                    print("\n".join(job.log.read_text(errors="replace").splitlines()[-15:]))
            time.sleep(0.2)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        print(f"Stopped after {done} of {len(jobs)} runs; the same command resumes.")
        return 128 + asked
    return code


def run_parts(
    work: Callable[..., None],
    parts: Sequence[tuple[str, ...]],
    module: str,
    arguments: Sequence[str],
    logs: Path,
    workers: int,
) -> int:
    """Does all parts of a benchmark: in this process, or as jobs that are told their part.

    Arguments:
        work: Does a part, whose entries are its arguments.
        parts: The parts.
        module: The module whose argument ``--part`` does one of them.
        arguments: Its other arguments.
        logs: The folder of the jobs' output.
        workers: The number of processes at a time; 1 for this process alone.

    Returns:
        The exit code, see :func:`run_jobs`.
    """
    if workers == 1:
        for part in parts:
            work(*part)
        return 0
    names = [" ".join(part) for part in parts]
    jobs = [
        Job(name, module, (*arguments, "--part", *part), logs / f"{name}.txt")
        for name, part in zip(names, parts, strict=True)
    ]
    return run_jobs(jobs, workers)


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", job.module, *job.arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on
        )


def _say(
    job: Job, seconds: float, done: int, of: int, running: Sequence[str], waiting: Sequence[Job]
) -> None:
    left = f"running: {', '.join(running) or 'none'}; {len(waiting)} waiting"
    print(f"{done} of {of}: {job.name} done in {seconds:.0f} s; {left}", flush=True)


def command_line(
    description: str,
    profiles: Collection[str],
    out: Path,
    methods: Sequence[str],
    part: tuple[str, ...],
) -> argparse.ArgumentParser:
    """Returns the options of a comparison whose scores are kept one by one.

    Arguments:
        description: The comparison, in words.
        profiles: The names of its profiles; one of them is ``"full"``.
        out: The folder for scores, by default.
        methods: All methods.
        part: The names of the arguments of a part, see `run_parts`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--profile", choices=profiles, default="full")
    parser.add_argument("--out", type=Path, default=out, help="where scores are kept")
    parser.add_argument("--write", action="store_true", help="write the tables that are committed")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--collect", action="store_true", help="measure nothing")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--part", nargs=len(part), metavar=part)
    return parser


def handed_on(options: argparse.Namespace) -> list[str]:
    """Returns the options of `command_line` that every part gets too."""
    same = ["--profile", options.profile, "--out", str(options.out)]
    return [*same, "--methods", *options.methods]
