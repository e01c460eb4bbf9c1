"""Breaks the code in one place at a time, and says which test finds it.

Each mistake is put into a copy of the project, whose tests of that place then run until one
fails. Without any mistake they have to pass.

    python -m benchmarks.mutants
    python -m benchmarks.mutants --only checksum --workers 1
    python -m benchmarks.mutants --write
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from benchmarks._results import facts, write

from .copies import Copy, Found
from .places import MUTANTS, Mutant


def main() -> None:
    """Runs the mutants and prints the table; exits with 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the names of some mutants")
    parser.add_argument("--workers", type=int, default=2, help="how many run at a time")
    parser.add_argument("--write", action="store_true", help="write the table of all mutants")
    options = parser.parse_args()
    mutants = [m for m in MUTANTS if options.only in f"{m.broken} {m.file}"]
    if not mutants:
        parser.error(f"no mutant is of {options.only!r}")
    if options.write and options.only:
        parser.error("--write is for the table of all mutants")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copies = [Copy(Path(folder) / str(k)) for k in range(options.workers)]
        problem = copies[0].problem(sorted({t for m in mutants for t in m.tests.split()}))
        if problem is not None:
            sys.exit(f"Tests should pass without a mutant, but do not:\n{problem}")
        found = run(mutants, copies)
    print(f"\n{table(mutants, found)}\n\n{total(found)}")
    if options.write:
        about = {**facts("make mutants", "full", []), "seconds": round(time.monotonic() - started)}
        results = {
            m.broken: {"file": m.file, "found_by": f.test, "seconds": round(f.seconds, 1)}
            for m, f in zip(mutants, found, strict=True)
        }
        text = (
            f"# Mutants\n\n`{about['command']}`, commit {about['commit']}, {about['date']}, "
            f"{about['machine']['cpu']}: {total(found)} in {about['seconds'] / 60:.0f} minutes, "
            f"{options.workers} at a time.\n\n{table(mutants, found)}"
        )
        write("mutants", {**about, "mutants": results}, text)
    if any(f.test is None for f in found):
        sys.exit(1)


def run(mutants: list[Mutant], copies: list[Copy]) -> list[Found]:
    """Tries the mutants, as many at a time as there are copies."""
    free: SimpleQueue[Copy] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def attempt(mutant: Mutant) -> Found:
        copy = free.get()
        try:
            found = copy.find(mutant)
        finally:
            free.put(copy)
        print(f"{found.seconds:6.1f} s  {mutant.broken}: {found.test or 'NOT FOUND'}", flush=True)
        return found

    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(attempt, mutants))


def table(mutants: list[Mutant], found: list[Found]) -> str:
    """Returns the table of mutants in Markdown."""
    lines = ["| broken | file | found by | s |", "|---|---|---|---:|"]
    for m, f in zip(mutants, found, strict=True):
        test = f"`{f.test}`" if f.test else "**not found**"
        lines.append(f"| {m.broken} | `{m.file}` | {test} | {f.seconds:.0f} |")
    return "\n".join(lines)


def total(found: list[Found]) -> str:
    """Returns how many mutants were found."""
    return f"{sum(f.test is not None for f in found)} of {len(found)} found"


if __name__ == "__main__":
    main()
