"""Writes the tables and figures of the synthesis benchmark from the scores that its runs keep.

python -m benchmarks.synthesis.table --profile quick --write
"""

from __future__ import annotations

__all__ = ["report"]

import argparse
import sys
from pathlib import Path

from benchmarks._results import RESULTS, facts, write

from .figures import draw
from .markdown import markdown
from .profiles import OUT, PROFILES
from .results import content, read
from .scoring import BASELINE


def report(folder: Path, profile: str, *, to: Path | None = None) -> str:
    """Returns the tables of a profile.

    Arguments:
        folder: The folder of the profile.
        profile: Its name.
        to: Where to write tables, figures and a JSON file, if anywhere.

    Raises:
        ValueError: If there are no scores, or of different patients.
    """
    results = read(folder)
    seeds = sorted({run["seed"] for r in results if r.system != BASELINE for run in r.runs})
    command = f"python -m benchmarks.synthesis.run --profile {profile} --write"
    about = facts(command, profile, seeds)
    figures: list[str] = []
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        figures = draw(results, folder, PROFILES[profile], to)
    text = markdown(results, about, figures)
    if to is not None:
        write("synthesis", content(results, about), text, to)
    return text


def main() -> None:
    """Prints the tables of a profile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=list(PROFILES), default="quick")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--write", action="store_true", help="write to benchmarks/results")
    options = parser.parse_args()
    to = RESULTS if options.write else None
    try:
        print(report(options.out / options.profile, options.profile, to=to))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
