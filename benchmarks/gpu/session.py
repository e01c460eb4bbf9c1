"""Runs stages one after the other within a budget of time, and keeps what they found."""

from __future__ import annotations

__all__ = ["BUDGET", "Session", "missing"]

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._results import facts, write

from .report import markdown
from .stages import Stage

BUDGET = 540.0
"""The seconds of a session."""

DRY_PATIENCE = 5
"""The times as long that a dry run may take: the machine may be small, and busy with tests."""

ROOT = Path(__file__).parents[2]
TAIL = 60
"""The lines of output that a record keeps; the log has them all."""


class Session:
    """A session whose results are in a folder, from this run and from those before.

    Arguments:
        folder: The folder, made if need be.
        dry: Whether to run tiny, on a CPU.
        again: Whether to run finished stages again.

    Raises:
        ValueError: If PyTorch sees no GPU, or the folder holds results of other code or sizes.
    """

    def __init__(self, folder: Path, *, dry: bool, again: bool = False) -> None:
        if not dry and not torch.cuda.is_available():
            raise ValueError("PyTorch sees no CUDA device; '--dry' runs tiny, on a CPU.")
        self.folder, self.dry, self.again = folder, dry, again
        self.patience = DRY_PATIENCE if dry else 1
        self.content = facts("make gpu", "dry" if dry else "full", [0]) | {"stages": {}}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "gpu.json").exists():
            self._take_over(json.loads((folder / "gpu.json").read_text()))

    def _take_over(self, before: Mapping[str, Any]) -> None:
        """Takes over the stages that ran before, unless other code or sizes made them."""
        for key in ("commit", "profile"):
            if before[key] != self.content[key]:
                raise ValueError(
                    f"'--out' should hold results of the {key} {self.content[key]}, or none, but "
                    f"holds those of {before[key]}."
                )
        self.content["stages"] = before["stages"]

    def run(self, stages: Sequence[Stage], budget: float = BUDGET) -> bool:
        """Runs the stages that are not finished, and says whether all is right.

        Arguments:
            stages: The stages.
            budget: The seconds for all of them; a stage whose limit no longer fits is skipped.
        """
        end = time.monotonic() + budget * self.patience
        records: dict[str, Any] = self.content["stages"]
        self._announce(stages)
        for stage in stages:
            left, limit = end - time.monotonic(), stage.limit * self.patience
            if not self.again and is_done(records.get(stage.name)):
                print(f"{stage.name}: done before", flush=True)
                continue
            if lacks := missing(stage, dry=self.dry):
                record = unrun("missing", f"not there: {', '.join(lacks)}")
            elif left < limit:
                record = unrun("skipped", f"{left:.0f} s are left, its limit is {limit:.0f}")
            else:
                record = self._record(stage, limit)
            records[stage.name] = record
            self.write(self.folder)
            print(f"{stage.name}: {record['state']}, {record['seconds']:.0f} s", flush=True)
            if not is_done(record):
                print("\n".join(f"    {line}" for line in record["output"][-8:]), flush=True)
        return all(is_right(records[stage.name]) for stage in stages)

    def write(self, folder: Path) -> None:
        """Writes the results, and the tables of them."""
        write("gpu", self.content, markdown(self.content), folder)

    def _announce(self, stages: Sequence[Stage]) -> None:
        """Says first what is not there, and which stages cannot run for it."""
        stopped: dict[str, list[str]] = {}
        for stage in stages:
            for name in missing(stage, dry=self.dry):
                stopped.setdefault(name, []).append(stage.name)
        for name, names in stopped.items():
            print(
                f"NOT THERE: {name}. Without it these do not run: {', '.join(names)}", flush=True
            )

    def _record(self, stage: Stage, limit: float) -> dict[str, Any]:
        """Runs a stage within a time, and returns what it found."""
        with tempfile.TemporaryDirectory() as place:
            rows, output = Path(place) / "rows.jsonl", Path(place) / "output.txt"
            started = time.monotonic()
            code = run_process(command(stage, rows, dry=self.dry), output, limit)
            seconds = time.monotonic() - started
            text = output.read_text(errors="replace")
            found = read_rows(rows) or counters(text)
        with (self.folder / "gpu.log").open("a") as log:
            log.write(f"==== {stage.name}: exit code {code}, {seconds:.0f} s\n{text}\n")
        state, reason = verdict(code, text, stage.says[self.dry], limit)
        lines = [*text.splitlines()[-TAIL:], *filter(None, [reason])]
        return {"state": state, "seconds": round(seconds, 1), "rows": found, "output": lines}


def verdict(code: int | None, text: str, says: str, limit: float) -> tuple[str, str]:
    """Returns how a stage ended, and why if its own output does not say it."""
    if code is None:
        return "out of time", f"(Killed after {limit:.0f} s.)"
    if code:
        return "failed", f"(Exit code {code}.)"
    if says not in text:
        return "failed", f"(The output should hold {says!r}.)"
    return "done", ""


def unrun(state: str, reason: str) -> dict[str, Any]:
    """Returns the record of a stage that did not run."""
    return {"state": state, "seconds": 0.0, "rows": [], "output": [reason]}


def is_done(record: Mapping[str, Any] | None) -> bool:
    """Whether a stage ran to its end."""
    return record is not None and record["state"] == "done"


def is_right(record: Mapping[str, Any]) -> bool:
    """Whether a stage ran to its end, had no error on the way, and all of its checks hold."""
    rows = record["rows"]
    return is_done(record) and all(row.get("holds", True) and "failed" not in row for row in rows)


def missing(stage: Stage, *, dry: bool) -> list[str]:
    """Returns the packages and programs that a stage needs and that are not there."""
    programs = () if dry else stage.tool[:1]
    lacks = [name for name in stage.needs if not is_installed(name)]
    return lacks + [name for name in programs if shutil.which(name) is None]


def is_installed(name: str) -> bool:
    """Whether a package is there; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that should hold it
        return False


def command(stage: Stage, rows: Path, *, dry: bool) -> list[str]:
    """Returns the command of a stage."""
    own = ("-m", "benchmarks.gpu.stage", stage.name, "--rows", str(rows))
    arguments = stage.command or own
    if dry and "benchmarks.gpu" in arguments[1]:
        arguments += ("--dry",)
    tool = () if dry else stage.tool
    return [*tool, sys.executable, *arguments]


def run_process(command: Sequence[str], output: Path, limit: float) -> int | None:
    """Runs a command, and kills it and all that it started after a time.

    Arguments:
        command: The command.
        output: The file for what it prints.
        limit: The seconds.

    Returns:
        The exit code, None if the command took too long.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:  # also where the session itself is stopped
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows that a stage wrote; the last line may be cut."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def counters(text: str) -> list[dict[str, Any]]:
    """Returns the counters in what ncu prints with ``--csv``, a row for each launch."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    launches: dict[str, dict[str, Any]] = {}
    for line in csv.DictReader(lines):
        row = launches.setdefault(line["ID"], {"kernel": line["Kernel Name"]})
        row[f"{line['Metric Name']} ({line['Metric Unit']})"] = line["Metric Value"]
    return list(launches.values())
