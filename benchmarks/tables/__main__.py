"""Compares the imputer with tuned opponents on tables with holes of thirteen patterns.

    python -m benchmarks.tables --profile full --write
    python -m benchmarks.tables --profile smoke

The smoke profile shows that it works, on a table that is generated. A run that was stopped
resumes: what is finished, of a table, a pattern and a method, is not done again. Opponents that
need a package which is not installed are left out, and the tables say so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._results import RESULTS, facts, once, write
from benchmarks._workers import command_line, handed_on, run_parts

from .data import TABLES
from .markdown import markdown
from .measure import measure
from .methods import OPPONENTS, OURS, absent
from .patterns import PATTERNS

OUT = Path("runs/tables")
METHODS = [*OPPONENTS, OURS]


class Profile(NamedTuple):
    """How large a comparison is."""

    tables: tuple[str, ...]
    patterns: tuple[str, ...]
    seeds: int
    slow: tuple[str, ...]
    """The opponents that meet the first pattern alone."""
    networks: int = 3
    """The number of networks of the imputer."""

    def methods(self, pattern: str) -> list[str]:
        """Returns the methods that meet a pattern."""
        first = pattern == self.patterns[0]
        return [m for m in METHODS if (first or m not in self.slow) and not absent(m)]


PROFILES = {
    "smoke": Profile(("generated",), ("MCAR", "Panel-MNAR"), 1, ("miceforest",), networks=0),
    "full": Profile(
        tuple(name for name in TABLES if name != "generated"),
        tuple(PATTERNS),
        1,
        ("miceforest",),
    ),
}


def path_of(folder: Path, table: str, pattern: str, seed: int, method: str) -> Path:
    """Returns the file of some scores."""
    return folder / f"{table} {pattern} {seed} {method}.json"


def fill(profile: Profile, folder: Path, methods: Sequence[str], pattern: str, table: str) -> None:
    """Measures the methods that were not measured yet."""
    for method in profile.methods(pattern):
        for seed in range(profile.seeds):
            if method in methods:
                work = partial(measure, table, pattern, seed, method, profile.networks)
                once(path_of(folder, table, pattern, seed, method), work)


def collect(profile: Profile, folder: Path) -> dict[str, Any]:
    """Returns all scores that are there, by pattern, method and table, one for each seed."""
    found: dict[str, Any] = {}
    for pattern in profile.patterns:
        for method in profile.methods(pattern):
            for table in profile.tables:
                seeds = range(profile.seeds)
                paths = [path_of(folder, table, pattern, seed, method) for seed in seeds]
                if all(path.exists() for path in paths):
                    of_method = found.setdefault(pattern, {}).setdefault(method, {})
                    of_method[table] = [once(path, dict) for path in paths]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison, prints its tables, and writes them if asked to."""
    parser = command_line(
        "Tables with missing cells.", PROFILES, OUT, METHODS, ("PATTERN", "TABLE")
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    profile, folder = PROFILES[options.profile], options.out / options.profile
    work = partial(fill, profile, folder, options.methods)
    if options.part is not None:
        work(*options.part)
        return 0
    parts = [(pattern, table) for pattern in profile.patterns for table in profile.tables]
    if not options.collect and (
        code := run_parts(
            work, parts, "benchmarks.tables", handed_on(options), folder / "logs", options.workers
        )
    ):
        return code
    command = f"python -m benchmarks.tables --profile {options.profile}"
    content = {
        **facts(command + " --write" * options.write, options.profile, range(profile.seeds)),
        "absent": [method for method in METHODS if absent(method)],
        "patterns": collect(profile, folder),
    }
    write("tables", content, markdown(content), RESULTS if options.write else options.out)
    print(f"\n{markdown(content)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
