"""Compares the imputer with tuned opponents on genuine data with missing modalities.

    python -m benchmarks.omics --profile full --write
    python -m benchmarks.omics --profile smoke

The smoke profile shows that it works, on data that are generated. A run that was stopped resumes:
what is finished, of data, a seed and a method, is not done again. Opponents that need a package
which is not installed (the extra ``bench`` has them) are left out, and the tables say so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._results import RESULTS, facts, once, write
from benchmarks._workers import command_line, handed_on, run_parts

from .data import NATURAL
from .markdown import markdown
from .measure import Scenario, measure
from .opponents import OPPONENTS, absent
from .ours import OURS

OUT = Path("runs/omics")
METHODS = [*OPPONENTS, OURS]


class Profile(NamedTuple):
    """How large a comparison is."""

    scenarios: dict[Scenario, int]
    """The number of seeds of each."""
    seeds_of_slow: int
    """The number of seeds of opponents that take minutes."""
    slow: tuple[str, ...] = ("IterativeImputer", "MultiVae")
    seeds_of_cells: int = 1
    """The number of seeds that are asked for cells, which takes long."""
    networks: int = 3
    """The number of networks of the imputer."""

    def seeds_of(self, scenario: Scenario, method: str) -> int:
        """Returns the number of seeds of a method."""
        return self.seeds_of_slow if method in self.slow else self.scenarios[scenario]


PROFILES = {
    "smoke": Profile({Scenario("generated", "mcar"): 2}, 1, ("MultiVae",), networks=0),
    "full": Profile(
        {
            Scenario("LGG", "mcar"): 5,
            Scenario("BRCA", "mcar"): 5,
            Scenario("KIPAN", "mcar"): 5,
            Scenario("miniACC", NATURAL): 5,
            Scenario("digits", "mcar"): 5,
            Scenario("LGG", "mar"): 3,
            Scenario("LGG", "mnar"): 3,
        },
        1,
    ),
}


def path_of(folder: Path, scenario: Scenario, seed: int, method: str) -> Path:
    """Returns the file of some scores."""
    return folder / f"{scenario.name} {seed} {method}.json"


def fill(profile: Profile, folder: Path, methods: Sequence[str], *part: str) -> None:
    """Measures the methods that were not measured yet, on a data set, mechanism and seed."""
    scenario, seed = Scenario(*part[:2]), int(part[2])
    for method in methods:
        if seed < profile.seeds_of(scenario, method) and not absent(method):
            cells = seed < profile.seeds_of_cells
            work = partial(measure, scenario, seed, method, networks=profile.networks, cells=cells)
            once(path_of(folder, scenario, seed, method), work)


def collect(profile: Profile, folder: Path) -> dict[str, Any]:
    """Returns all scores that are there, for each scenario and method a list over seeds."""
    found: dict[str, Any] = {}
    for scenario in profile.scenarios:
        of_scenario = found.setdefault(scenario.name, {})
        for method in METHODS:
            seeds = range(profile.seeds_of(scenario, method))
            paths = [path_of(folder, scenario, seed, method) for seed in seeds]
            there = list(takewhile(Path.exists, paths))
            if there:
                of_scenario[method] = [once(path, dict) for path in there]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison, prints its tables, and writes them if asked to."""
    parser = command_line(
        "Missing modalities of genuine omics.",
        PROFILES,
        OUT,
        METHODS,
        ("DATA", "MECHANISM", "SEED"),
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    profile, folder = PROFILES[options.profile], options.out / options.profile
    work = partial(fill, profile, folder, options.methods)
    if options.part is not None:
        work(*options.part)
        return 0
    seeds = range(max(profile.scenarios.values()))
    parts = [
        (*scenario, str(seed))
        for seed in seeds
        for scenario, of_scenario in profile.scenarios.items()
        if seed < of_scenario
    ]
    if not options.collect and (
        code := run_parts(
            work, parts, "benchmarks.omics", handed_on(options), folder / "logs", options.workers
        )
    ):
        return code
    command = f"python -m benchmarks.omics --profile {options.profile}"
    found = collect(profile, folder)
    run = max((len(runs) for of in found.values() for runs in of.values()), default=0)
    content = {
        **facts(command + " --write" * options.write, options.profile, range(run)),
        "absent": [method for method in METHODS if absent(method)],
        "scenarios": found,
    }
    write("omics", content, markdown(content), RESULTS if options.write else options.out)
    print(f"\n{markdown(content)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
