"""Puts an evaluation beside the numbers that the paper quotes, cell by cell.

    python -m benchmarks.paper_scale.compare runs/paper/evaluation

Quoted numbers are from `quoted.csv`, which names their source; the others are those of protocol
`mmhvae-2026` in ``cells.json`` of the evaluation, in the same units. Cells that nobody quotes are
left out; those that are quoted and were not measured stand as n/a.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.medical_mri_us.modalities import LABELS
from mmpoe.training import write_file

QUOTED = Path(__file__).with_name("quoted.csv")
"""The numbers of the paper."""

PROTOCOL = "mmhvae-2026"
"""The protocol whose numbers can stand beside it."""

METRICS = {"psnr": ("PSNR, dB", 1.0), "ssim": ("SSIM, %", 100.0), "lpips": ("LPIPS, %", 100.0)}
"""The heading of each metric, and what a number of ours is multiplied by."""

Place = tuple[str, str, str, str]
"""The name of the method or model, what was given, the target, and the metric."""


class Number(NamedTuple):
    """A mean, as it is quoted or as it was measured."""

    mean: float
    sd: float | None
    n: int = 0
    """The number of slices; not quoted."""
    cases: int = 0
    """The number of cases; not quoted."""


def read_quoted(path: Path = QUOTED) -> dict[Place, Number]:
    """Reads the quoted numbers; inputs are joined by ``+``, ``average`` is over all of them."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return {
        (row["method"], row["given"], row["target"], metric): Number(
            float(row[metric]), float(row[f"{metric}_sd"])
        )
        for row in rows
        for metric in METRICS
    }


def read_measured(evaluation: Path) -> tuple[dict[Place, Number], dict[str, Any]]:
    """Reads an evaluation.

    Arguments:
        evaluation: The folder that the subcommand `evaluate` wrote.

    Returns:
        Its numbers in the units of the quoted ones, and all that ``cells.json`` says.

    Raises:
        ValueError: If there is no evaluation, or none by the protocol of the paper.
    """
    path = evaluation / "cells.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"'evaluation' should hold cells.json, but does not: {error}.") from error
    if PROTOCOL not in content["protocols"]:
        raise ValueError(
            f"{path} should hold the protocol {PROTOCOL}, but holds "
            f"{', '.join(content['protocols'])}: evaluate with --protocol {PROTOCOL}."
        )
    found = {}
    for cell in content["cells"]:
        if cell["protocol"] == PROTOCOL and cell["metric"] in METRICS and cell["mean"] is not None:
            factor = METRICS[cell["metric"]][1]
            sd = None if cell["sd"] is None else factor * cell["sd"]
            place = cell["model"], "+".join(cell["given"]), cell["target"], cell["metric"]
            found[place] = Number(factor * cell["mean"], sd, cell["n"], cell["cases"])
    return found, content


def markdown(
    quoted: Mapping[Place, Number],
    measured: Mapping[Place, Number],
    content: Mapping[str, Any],
    method: str = "MMHVAE",
) -> str:
    """Returns tables of what was quoted and what was measured.

    Arguments:
        quoted: See `read_quoted`.
        measured: See `read_measured`.
        content: See `read_measured`.
        method: Whose numbers of the paper to show.
    """
    models = list(content["models"])
    source = [line[2:] for line in QUOTED.read_text().splitlines() if line.startswith("#")]
    phantom = "**Phantom images, so nothing here can be compared with the paper.** "
    parts = [
        "# The paper's numbers, quoted, and this evaluation",
        f"{phantom if content['phantom'] else ''}Left, what the paper says of {method}; right, "
        f"{_joined(models)} on the split `{content['split']}` of `{content['data']}`, by the "
        f"protocol `{PROTOCOL}`. Mean (standard deviation) over slices [slices, "
        "cases]; then ours less the quoted mean. The paper's cases, its unit and its "
        "temperature (its text says 0.5, its code 0.7) need not be the same: a difference is no "
        "test. For research only, not for clinical use.",
        "\n".join(source),
    ]
    for metric, (label, _) in METRICS.items():
        for own, title in ((False, "the target was not given"), (True, "the target was given")):
            theirs = {
                (given, target): number
                for (name, given, target, kind), number in quoted.items()
                if (name, kind) == (method, metric) and given != "average"
                if (target in given.split("+")) == own
            }
            lines = _rows(theirs, measured, models, metric)
            parts += [f"## {label}: {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _rows(
    quoted: Mapping[tuple[str, str], Number],
    measured: Mapping[Place, Number],
    models: Sequence[str],
    metric: str,
) -> list[str]:
    """The rows of a table: by what was given and the target, quoted and measured."""
    head = ["given", "target", "quoted", *(part for m in models for part in (m, "less quoted"))]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (given, target), number in quoted.items():
        row = [" + ".join(LABELS[m] for m in given.split("+")), LABELS[target], _shown(number)]
        for model in models:
            ours = measured.get((model, given, target, metric))
            difference = "" if ours is None else f"{ours.mean - number.mean:+.1f}"
            row += ["n/a" if ours is None else _shown(ours), difference]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _shown(number: Number) -> str:
    sd = "" if number.sd is None else f" ({number.sd:.1f})"
    return f"{number.mean:.1f}{sd}" + (f" [{number.n}, {number.cases}]" if number.n else "")


def _joined(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def main() -> int:
    """Prints the comparison, and writes it as compare.md into the folder of the evaluation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluation", type=Path, help="the folder that evaluate wrote")
    quoted = read_quoted()
    methods = sorted({method for method, *_ in quoted})
    parser.add_argument(
        "--method", choices=methods, default="MMHVAE", help="whose quoted numbers to show"
    )
    options = parser.parse_args()
    try:
        measured, content = read_measured(options.evaluation)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    text = markdown(quoted, measured, content, options.method)
    write_file(options.evaluation / "compare.md", text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
