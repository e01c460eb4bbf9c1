"""The tables of the synthesis benchmark, from the scores that `benchmarks.synthesis.run` keeps.

What a patient lacks comes first: cells whose target was given are reconstruction, and stand apart.
The unit is the patient: scores are averaged over seeds and cells of a patient before anything is
tested, by a two-sided Wilcoxon signed-rank test with Bonferroni's correction.

    python -m benchmarks.synthesis.table --profile quick --write
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.medical_mri_us.modalities import LABELS, MODALITIES
from mmpoe.metrics import paired_table

from .costs import RESULTS
from .run import BASELINE, OUT, PROFILES
from .scoring import SUBSETS
from .systems import SYSTEMS

REFERENCE = "mmhvae"
METRICS = {"psnr": ("PSNR, dB", 1.0, 2), "ssim": ("SSIM, %", 100.0, 1)}
"""The heading of each metric, its factor and its number of decimals."""
Place = tuple[tuple[str, ...], str]
"""What was given, and the target."""


@dataclass(frozen=True)
class Result:
    """The runs of one system."""

    system: str
    runs: list[dict[str, Any]]
    """What each run says of itself."""
    patients: list[str]
    cells: dict[Place, dict[str, np.ndarray]]
    """The scores of each patient, averaged over runs, by metric."""


def read(folder: Path) -> list[Result]:
    """Reads the scores of a profile, systems in the order of `SYSTEMS`, the baseline first.

    Arguments:
        folder: The folder of the profile.

    Raises:
        ValueError: If there are none, or runs scored other patients than others did.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-[0-9]*.json")):
        run = json.loads(path.read_text())
        runs.setdefault(run["system"], []).append(run)
    if not runs:
        raise ValueError(f"'folder' should hold scores of benchmarks.synthesis.run: {folder}.")
    patients = next(iter(runs.values()))[0]["patients"]
    results = []
    for system in [BASELINE, *SYSTEMS]:
        if system not in runs:
            continue
        if any(run["patients"] != patients for run in runs[system]):
            raise ValueError(f"Runs of {system} in {folder} scored other patients than others.")
        results.append(Result(system, runs[system], patients, _average(runs[system])))
    return results


def mean_over(result: Result, metric: str, places: Sequence[Place]) -> np.ndarray | None:
    """Returns the mean over some cells of each patient, None unless the system has them all.

    Arguments:
        result: The scores of a system.
        metric: The metric.
        places: The cells.
    """
    if not all(place in result.cells for place in places):
        return None
    return np.mean([result.cells[place][metric] for place in places], axis=0)


def markdown(results: Sequence[Result], profile: str) -> str:
    """Returns all tables.

    Arguments:
        results: The scores of all systems.
        profile: The name of the profile.
    """
    pair = MODALITIES[:2]
    of_pair = [((a,), b) for a in pair for b in pair if a != b]
    cross = [(given, m) for given in SUBSETS for m in MODALITIES if m not in given]
    own = [(given, m) for given in SUBSETS for m in MODALITIES if m in given]
    sections = [
        f"# Synthesis of missing modalities, profile '{profile}'",
        "**Phantom patients, not clinical ones.** Numbers are comparable with each other, not "
        "with those of publications on real patients. Scores count pixels in view alone: PSNR of "
        "range 1 over the whole volume, SSIM averaged over slices. Each is the mean (standard "
        f"deviation) over {len(results[0].patients)} held-out patients.",
        "## Runs",
        _runs(results),
        "## Missing modalities, averaged",
        _averages(results, cross),
        *_tests(results, cross, "all cells of what was not given"),
        f"### {LABELS[pair[0]]} and {LABELS[pair[1]]} alone, each from the other",
        *_tests(results, of_pair, "both cells"),
        "## Missing modalities, one by one",
        _cells(results, cross),
        "## Reconstruction of what was given",
        "Not synthesis: a copy would be perfect. The U-Net and MM-GAN are trained on what is "
        "hidden, and hardly learn it.",
        _averages(results, own),
        _cells(results, own),
    ]
    return "\n\n".join(sections) + "\n"


def _runs(results: Sequence[Result]) -> str:
    lines = [
        "| system | parameters | seeds | steps | processor time, s | skipped steps |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        if result.system == BASELINE:
            continue
        first = result.runs[0]
        seconds = np.mean([run["processor_seconds"] for run in result.runs])
        lines.append(
            f"| {result.system} | {first['parameters'] / 1e6:.2f} M | {len(result.runs)} "
            f"| {first['steps']} | {seconds:.0f} | {sum(run['skipped'] for run in result.runs)} |"
        )
    return "\n".join(lines)


def _averages(results: Sequence[Result], places: Sequence[Place]) -> str:
    """A row for each system and a column for each target; `-` if it lacks a cell."""
    lines = [_header(["system"], MODALITIES)]
    for result in results:
        cells = []
        for m in MODALITIES:
            scores = [
                mean_over(result, metric, [p for p in places if p[1] == m]) for metric in METRICS
            ]
            cells.append(_show(scores))
        if set(cells) != {"-"}:
            lines.append(f"| {result.system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(results: Sequence[Result], places: Sequence[Place]) -> str:
    """A row for each subset and system, and a column for each target."""
    lines = [_header(["given", "system"], MODALITIES)]
    for given in SUBSETS:
        here = [place for place in places if place[0] == given]
        for result in results:
            found = {p[1]: result.cells[p] for p in here if p in result.cells}
            if found:
                shown = [
                    _show([found[m][k] for k in METRICS]) if m in found else "" for m in MODALITIES
                ]
                names = "+".join(LABELS[m] for m in given)
                lines.append(f"| {names} | {result.system} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _tests(results: Sequence[Result], places: Sequence[Place], what: str) -> list[str]:
    """A paired table for each metric of the systems that have all these cells."""
    sections = []
    for metric, (heading, factor, digits) in METRICS.items():
        scores = {r.system: mean_over(r, metric, places) for r in results}
        values = {system: factor * v for system, v in scores.items() if v is not None}
        if REFERENCE not in values or len(values) < 2:
            continue
        sections.append(f"{heading}, mean of {what}, beside {REFERENCE}:")
        try:
            sections.append(paired_table(values, reference=REFERENCE).markdown(digits))
        except ValueError as error:  # too few patients
            sections.append(f"Not tested: {error}")
    return sections


def _show(scores: Sequence[np.ndarray | None]) -> str:
    """The mean (standard deviation) of each metric over patients."""
    parts = []
    for value, (_, factor, digits) in zip(scores, METRICS.values(), strict=True):
        if value is None:
            return "-"
        spread = np.std(value, ddof=1) if len(value) > 1 else np.nan
        parts.append(f"{factor * np.mean(value):.{digits}f} ({factor * spread:.{digits}f})")
    return " / ".join(parts)


def _header(first: Sequence[str], modalities: Sequence[str]) -> str:
    metrics = " / ".join(heading for heading, _, _ in METRICS.values())
    names = [*first, *(f"{LABELS[m]}: {metrics}" for m in modalities)]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def _average(runs: Sequence[dict[str, Any]]) -> dict[Place, dict[str, np.ndarray]]:
    """The scores of each cell and patient, averaged over runs."""
    tables = [{(tuple(c["given"]), c["target"]): c for c in run["cells"]} for run in runs]
    return {
        place: {k: np.mean([table[place][k] for table in tables], axis=0) for k in METRICS}
        for place in tables[0]
    }


def main() -> None:
    """Prints the tables of a profile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=list(PROFILES), default="quick")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--write", action="store_true", help="write to benchmarks/results")
    options = parser.parse_args()
    try:
        text = markdown(read(options.out / options.profile), options.profile)
    except ValueError as error:
        sys.exit(str(error))
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"synthesis_{options.profile}.md").write_text(text)


if __name__ == "__main__":
    main()
