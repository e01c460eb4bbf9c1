"""Makes one HTML page of an evaluation."""

from __future__ import annotations

__all__ = ["Report", "run"]

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.medical_mri_us.outputs import open_folder
from examples.medical_mri_us.report import EvaluationError, make_page, read_evaluation
from mmpoe.training import write_file


@dataclass(frozen=True)
class Report:
    """Make one HTML page of an evaluation: tables, figures, and a viewer of its images.

    The page holds everything that it shows and needs neither a server nor the network.
    """

    evaluation: tyro.conf.Positional[Path]
    """The folder that the subcommand `evaluate` wrote."""
    out: Path | None = None
    """The HTML file to write; by default, report.html in that folder."""


def run(options: Report) -> int:
    """Runs the subcommand and returns its exit code: 0, or 3 if there is no evaluation to show.

    Raises:
        ValueError: If there is a folder where the file should be.
        OSError: If the file cannot be written.
    """
    out = options.evaluation / "report.html" if options.out is None else options.out
    if out.is_dir():
        raise ValueError(f"'out' should be an HTML file, but is the folder {out}.")
    try:
        page = _make_page(options.evaluation).encode()
    except EvaluationError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 3
    open_folder(out.parent)
    write_file(out, page)
    print(f"Wrote {out} ({len(page) / 1e6:.1f} MB): open it in a browser.")
    return 0


def _make_page(folder: Path) -> str:
    """Returns the page, or raises an EvaluationError, also for files that were edited."""
    try:
        return make_page(read_evaluation(folder))
    except EvaluationError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{folder} should hold what 'evaluate' wrote, but its files do not fit one another "
            f"({type(error).__name__}: {error}): run 'evaluate' again."
        ) from error
