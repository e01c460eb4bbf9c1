"""Compares fusion rules: how close each can come to exact posteriors, and how well it predicts.

    python -m benchmarks.fusion --profile full --write
    python -m benchmarks.fusion --profile smoke

The smoke profile shows that it works, on noise in place of digits, which are downloaded once.
A run that was stopped resumes: what is finished, of a rule and a seed, is not done again.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._results import RESULTS, facts, once, write

from . import digits, oracles
from .markdown import markdown
from .rules import RULES

OUT = Path("runs/fusion")


class Profile(NamedTuple):
    """How large a comparison is."""

    truths: int
    """The number of seeds against exact posteriors."""
    steps: int
    """The number of steps there."""
    seeds: int
    """The number of seeds on digits."""
    digits: digits.Size


PROFILES = {
    "smoke": Profile(2, 2, 2, digits.Size(2, checks=1, samples=3, load=digits.noise)),
    "full": Profile(3, 600, 3, digits.Size(600, checks=3, samples=40)),
}


def measure(profile: Profile, folder: Path) -> dict[str, Any]:
    """Returns the scores of all rules, one for each seed, and keeps each as it is done.

    Arguments:
        profile: The size of the comparison.
        folder: Where scores are kept.
    """
    found: dict[str, Any] = {"oracles": {}, "digits": {}}
    for seed, truth, rule in product(range(profile.truths), oracles.TRUTHS, RULES):
        work = partial(oracles.fit, rule, truth, seed, profile.steps)
        scores = once(folder / f"{truth} {rule} {seed}.json", work)
        _append(found["oracles"].setdefault(truth, {}).setdefault(rule, {}), scores)
    for seed, rule in product(range(profile.seeds), digits.DIGITS):
        work = partial(digits.fit, rule, seed, profile.digits)
        scores = once(folder / f"digits {rule} {seed}.json", work)
        _append(found["digits"].setdefault(rule, {}), scores)
    return found


def _append(table: dict[str, list[Any]], scores: dict[str, Any]) -> None:
    for key, value in scores.items():
        table.setdefault(key, []).append(value)


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison, prints its tables, and writes them if asked to."""
    parser = argparse.ArgumentParser(description="Fusion rules side by side.")
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--out", type=Path, default=OUT, help="where scores are kept")
    parser.add_argument("--write", action="store_true", help="write the tables that are committed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    profile = PROFILES[options.profile]
    found = measure(profile, options.out / options.profile)
    command = f"python -m benchmarks.fusion --profile {options.profile}"
    content = {
        **facts(command + " --write" * options.write, options.profile, range(profile.truths)),
        "steps": {"oracles": profile.steps, "digits": profile.digits.steps},
        **found,
    }
    write("fusion", content, markdown(content), RESULTS if options.write else options.out)
    print(f"\n{markdown(content)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
