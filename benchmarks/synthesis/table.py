"""The tables of the synthesis benchmark, from the scores that `benchmarks.synthesis.run` keeps.

What a patient lacks comes first: cells whose target was given are reconstruction, and stand apart.
The unit is the patient: scores are averaged over seeds before anything is tested, and over cells
where a table says so.

    python -m benchmarks.synthesis.table --profile quick --write
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._results import RESULTS, facts, write
from examples.medical_mri_us.evaluation import is_published
from examples.medical_mri_us.modalities import LABELS as MODALITY
from examples.medical_mri_us.modalities import MODALITIES

from .run import BASELINE, OUT, PROFILES
from .scoring import SUBSETS, absent
from .statistics import ALPHA, Standing, compare, mean_ranks, standing, testable
from .systems import LABELS, SYSTEMS

REFERENCE = LABELS["mmhvae"]
Place = tuple[tuple[str, ...], str]
"""What was given, and the target."""
CROSS: list[Place] = [(given, m) for given in SUBSETS for m in MODALITIES if m not in given]
OWN: list[Place] = [(given, m) for given in SUBSETS for m in MODALITIES if m in given]


@dataclass(frozen=True)
class Metric:
    """A number to show."""

    protocol: str
    key: str
    heading: str
    factor: float
    digits: int
    higher: bool
    """Whether higher is better."""

    @property
    def name(self) -> str:
        """The protocol and the key."""
        return f"{self.protocol}/{self.key}"


METRICS = (
    Metric("strict", "psnr", "PSNR, dB", 1.0, 2, True),
    Metric("strict", "ssim", "SSIM, %", 100.0, 1, True),
    Metric("strict", "st_lpips", "ST-LPIPS, %", 100.0, 2, False),
    Metric("strict", "lpips", "LPIPS, %", 100.0, 1, False),
    Metric("mmhvae-2026", "psnr", "PSNR, dB", 1.0, 2, True),
    Metric("mmhvae-2026", "ssim", "row-wise SSIM, %", 100.0, 1, True),
    Metric("mmhvae-2026", "lpips", "LPIPS, %", 100.0, 1, False),
)


@dataclass(frozen=True)
class Result:
    """The runs of one system."""

    system: str
    """As it is written in tables."""
    runs: list[dict[str, Any]]
    """What each run says of itself."""
    patients: list[str]
    cells: dict[Place, dict[str, np.ndarray]]
    """The scores by the name of the metric, with shape (runs, patients)."""

    def score(self, metric: Metric, places: Sequence[Place]) -> np.ndarray | None:
        """Returns the mean over cells and runs of each patient, None unless all are there."""
        seeds = self.by_seed(metric, places)
        return None if seeds is None else seeds.mean(axis=0)

    def by_seed(self, metric: Metric, places: Sequence[Place]) -> np.ndarray | None:
        """Returns the mean over cells, with shape (runs, patients), None unless all are there."""
        if not all(place in self.cells for place in places):
            return None
        found = np.mean([self.cells[place][metric.name] for place in places], axis=0)
        return found if np.isfinite(found).all() else None


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
        label = LABELS.get(system, system)
        results.append(Result(label, runs[system], patients, _scores(runs[system])))
    return results


def markdown(results: Sequence[Result], about: Mapping[str, Any], figures: Sequence[str]) -> str:
    """Returns the summary and all tables.

    Arguments:
        results: The scores of all systems.
        about: How they came about, see `benchmarks._results.facts`.
        figures: The names of the image files to show.
    """
    strict, published = (
        [m for m in METRICS if m.protocol == p] for p in ("strict", "mmhvae-2026")
    )
    machine = about["machine"]
    pair = MODALITIES[:2]
    of_pair = [((a,), b) for a in pair for b in pair if a != b]
    seeds = "1 seed" if len(about["seeds"]) == 1 else f"{len(about['seeds'])} seeds"
    sections = [
        "# Synthesis of missing modalities on phantom patients",
        "**Phantom patients, not clinical ones.** Numbers are comparable with each other, not "
        "with those of publications on real patients.",
        f"`{about['command']}`, commit {about['commit']}, {about['date']}; {machine['cpu']}, "
        f"{machine['cores']} cores, PyTorch {machine['torch']}; {seeds}, "
        f"{len(results[0].patients)} held-out patients.",
        "## Summary (phantom)",
        f"Mean (standard deviation over patients) of all {len(CROSS)} cells of what was not "
        "given, protocol `strict`. The best is bold; the rank is over systems, patient and cell "
        "by cell, averaged over the metrics. Perceptual metrics are of every fourth slice.",
        _averages(results, strict, CROSS, ranks=True),
        *_verdicts(results),
        *[f"![{_title(name)}]({name})" for name in figures],
        "## What was run (phantom)",
        _runs(results),
        f"## Beside {REFERENCE} (phantom)",
        f"All {len(CROSS)} cells of what was not given, averaged for each patient. Wilcoxon "
        "signed-rank tests, two-sided, Bonferroni-corrected for the systems of a table. The "
        "effect is the matched-pairs rank-biserial correlation: 1 is better on every patient.",
        *_tests(results, strict, CROSS),
        f"{MODALITY[pair[0]]} and {MODALITY[pair[1]]} alone, each from the other, which MHVAE "
        "handles as well:",
        *_tests(results, strict, of_pair),
        "## Seed by seed (phantom)",
        _by_seed(results, strict),
        "## By target (phantom)",
        "As in the summary, over the cells of one target.",
        *_by_target(results, strict),
        "## The published protocol, `mmhvae-2026` (phantom)",
        "Definitions of the published evaluation, slips included: slices that are not masked, "
        "ranges of each slice, SSIM along rows, samples at temperature 0.7 where there are "
        "latents. Averages of every fourth slice of a patient; over the cells of what was not "
        "given.",
        _averages(results, published, CROSS),
        "## Missing modalities, one by one (phantom)",
        "Means (standard deviations over patients). **Bold** is the best mean, = is tied with it: "
        f"not significantly worse, corrected p of at least {ALPHA:g} within the row. A dot marks "
        "the 8 sets of inputs of the published table.",
        *_cells(results, strict, CROSS),
        *_cells(results, published, CROSS),
        "## Reconstruction of what was given (phantom)",
        "Not synthesis: a copy would be perfect. The U-Net and MM-GAN are trained on what is "
        "hidden, and hardly learn it.",
        _averages(results, strict, OWN),
        *_cells(results, strict, OWN),
    ]
    return "\n\n".join(sections) + "\n"


def content(results: Sequence[Result], about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is kept as JSON: facts, runs, averages, verdicts, and every cell.

    Arguments:
        results: The scores of all systems.
        about: How they came about.
    """
    return {
        **about,
        "patients": len(results[0].patients),
        "absent": absent(),
        "runs": {r.system: [_brief(run) for run in r.runs] for r in results},
        "cross_modal": {m.name: _summaries(results, m, CROSS) for m in METRICS},
        "reconstruction": {m.name: _summaries(results, m, OWN) for m in METRICS},
        "verdict": {m.name: _verdict(results, m, CROSS) for m in METRICS},
        "cells": [
            {
                "given": list(given),
                "target": target,
                "published": is_published(given),
                **{m.name: _summaries(results, m, [(given, target)]) for m in METRICS},
            }
            for given, target in [*CROSS, *OWN]
        ],
    }


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
        from .figures import draw  # matplotlib is slow to import

        to.mkdir(parents=True, exist_ok=True)
        figures = draw(results, folder, PROFILES[profile], to)
    text = markdown(results, about, figures)
    if to is not None:
        write("synthesis", content(results, about), text, to)
    return text


def ranking(results: Sequence[Result], metric: Metric) -> dict[str, np.ndarray]:
    """Returns the mean rank of each patient over the cells of what was not given; 1 is the best.

    Arguments:
        results: The scores of all systems; those that lack cells, and the baseline, are left out.
        metric: The metric.
    """
    whole = [r for r in results if r.system != BASELINE and r.score(metric, CROSS) is not None]
    if len(whole) < 2:
        return {}
    cells = [_of(whole, metric, [place]) for place in CROSS]
    return mean_ranks(cells, higher=metric.higher)


def _runs(results: Sequence[Result]) -> str:
    lines = [
        "| system | parameters | seeds | steps | training, s | scoring, s | skipped | commit |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for result in results:
        if result.system == BASELINE:
            continue
        first = result.runs[0]
        seconds, scoring = (
            np.mean([run[key] for run in result.runs])
            for key in ("processor_seconds", "scoring_seconds")
        )
        commits = ", ".join(sorted({run["commit"] for run in result.runs}))
        lines.append(
            f"| {result.system} | {first['parameters'] / 1e6:.2f} M | {len(result.runs)} "
            f"| {first['steps']} | {seconds:.0f} | {scoring:.0f} "
            f"| {sum(run['skipped'] for run in result.runs)} | {commits} |"
        )
    lines += ["", "Seconds are processor time on one thread, the mean over seeds."]
    return "\n".join(lines)


def _averages(
    results: Sequence[Result],
    metrics: Sequence[Metric],
    places: Sequence[Place],
    *,
    ranks: bool = False,
) -> str:
    """A row for each system that has all cells and a column for each metric."""
    rows: dict[str, list[str]] = {}
    for metric in metrics:
        scores = _of(results, metric, places)
        best = _best(scores, metric)
        for result in results:
            if any(result.score(m, places) is not None for m in metrics):
                shown = _show(scores.get(result.system), metric, bold=result.system == best)
                rows.setdefault(result.system, []).append(shown)
    headings = [_with_arrow(m) for m in metrics]
    if ranks:
        found = [r for r in (ranking(results, m) for m in metrics) if r]
        for system, row in rows.items():
            own = [r[system].mean() for r in found if system in r]
            row.append(f"{np.mean(own):.2f}" if own else "-")
        headings.append("mean rank")
        rows = dict(sorted(rows.items(), key=lambda item: (item[1][-1] == "-", item[1][-1])))
    lines = [f"| {' | '.join(['system', *headings])} |", f"|---|{'---:|' * len(headings)}"]
    lines += [f"| {system} | {' | '.join(row)} |" for system, row in rows.items()]
    return "\n".join(lines)


def _by_target(results: Sequence[Result], metrics: Sequence[Metric]) -> list[str]:
    sections = []
    for m in MODALITIES:
        places = [place for place in CROSS if place[1] == m]
        sections += [f"{MODALITY[m]}:", _averages(results, metrics, places)]
    return sections


def _by_seed(results: Sequence[Result], metrics: Sequence[Metric]) -> str:
    """The mean over patients and cells of each seed."""
    headings = [_with_arrow(m) for m in metrics]
    lines = [f"| system | seed | {' | '.join(headings)} |", f"|---|---:|{'---:|' * len(metrics)}"]
    for result in results:
        found = [result.by_seed(metric, CROSS) for metric in metrics]
        if result.system == BASELINE or found[0] is None:
            continue
        for row, run in enumerate(result.runs):
            cells = [
                "n/a" if f is None else f"{m.factor * f[row].mean():.{m.digits}f}"
                for f, m in zip(found, metrics, strict=True)
            ]
            lines.append(f"| {result.system} | {run['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdicts(results: Sequence[Result]) -> list[str]:
    """In how many cells the reference is best or tied, for each metric that was scored."""
    lines = []
    for metric in METRICS:
        found = _verdict(results, metric, CROSS)
        if found is None:
            continue
        mark = "" if metric.protocol == "strict" else f", `{metric.protocol}`"
        best, tied, plain, n = (found[k] for k in ("best", "tied", "uncorrected", "cells"))
        also = _verdict(results, metric, [p for p in CROSS if is_published(p[0])])
        assert also is not None
        cells = f"{best} of {n} cells ({best / n:.0%})"
        if not found["tested"]:
            lines.append(f"- {metric.heading}{mark}: {REFERENCE} has the best mean in {cells}.")
            continue
        lines.append(
            f"- {metric.heading}{mark}: {REFERENCE} has the best mean in {cells}, and is best or "
            f"tied with the best in **{tied} ({tied / n:.0%})**; without Bonferroni's correction "
            f"{plain} ({plain / n:.0%}); in the {also['cells']} cells of the published table "
            f"{also['tied']} ({also['tied'] / also['cells']:.0%})."
        )
    if not lines:
        return []
    patients = len(results[0].patients)
    head = f"In how many cells of what was not given, of {patients} patients, all systems counted:"
    if not testable(patients, len(results)):
        head += " too few patients for any test."
    labels = {m.key: m.heading.split(",")[0] for m in METRICS}
    missing = [f"{labels[key]}: n/a, {reason}." for key, reason in absent().items()]
    return [head, "\n".join(lines), *missing]


def _verdict(
    results: Sequence[Result], metric: Metric, places: Sequence[Place]
) -> dict[str, Any] | None:
    """Counts of cells, None without scores of the reference."""
    standings = [found for place in places if (found := _standing(results, metric, place))]
    if not any(REFERENCE in _of(results, metric, [place]) for place in places):
        return None
    return {
        "cells": len(standings),
        "best": sum(s.best == REFERENCE for s in standings),
        "tied": sum(REFERENCE in s.tied for s in standings),
        "uncorrected": sum(REFERENCE in s.uncorrected for s in standings),
        "tested": testable(len(results[0].patients), len(results)),
    }


def _standing(results: Sequence[Result], metric: Metric, place: Place) -> Standing | None:
    scores = _of(results, metric, [place])
    return standing(scores, higher=metric.higher) if len(scores) > 1 else None


def _tests(
    results: Sequence[Result], metrics: Sequence[Metric], places: Sequence[Place]
) -> list[str]:
    """A table for each metric of the systems that have all these cells, beside the reference."""
    sections = []
    for metric in metrics:
        scores = _of(results, metric, places)
        if REFERENCE not in scores or len(scores) < 2:
            continue
        base = scores.pop(REFERENCE)
        if not testable(len(base), len(scores) + 1):
            sections.append(f"{metric.heading}: not tested, too few patients ({len(base)}).")
            continue
        lines = [
            f"| {_with_arrow(metric)} | mean (sd) | median difference | effect | p | corrected p "
            f"| |\n|---|---:|---:|---:|---:|---:|---|",
            f"| {REFERENCE} | {_show(base, metric)} | | | | | |",
        ]
        for system, value in scores.items():
            d = compare(value, base, higher=metric.higher)
            corrected = min(1.0, len(scores) * d.p)
            verdict = ("better" if d.effect > 0 else "worse") if corrected < ALPHA else "tied"
            median = f"{metric.factor * d.median:+.{metric.digits}f}"
            lines.append(
                f"| {system} | {_show(value, metric)} | {median} "
                f"| {d.effect:+.2f} | {d.p:.2g} | {corrected:.2g} | {verdict} |"
            )
        sections.append("\n".join(lines))
    return sections


def _cells(
    results: Sequence[Result], metrics: Sequence[Metric], places: Sequence[Place]
) -> list[str]:
    """For each metric a row for each target and subset, and a column for each system."""
    sections = []
    for metric in metrics:
        systems = [r for r in results if any(r.score(metric, [p]) is not None for p in places)]
        if not systems:
            continue
        names = [r.system for r in systems]
        lines = [f"| target | given | {' | '.join(names)} |", f"|---|---|{'---:|' * len(names)}"]
        for target, given in ((m, g) for m in MODALITIES for g, t in places if t == m):
            scores = _of(systems, metric, [(given, target)])
            found = standing(scores, higher=metric.higher) if len(scores) > 1 else None
            tested = testable(len(results[0].patients), len(scores))
            row = []
            for name in names:
                tied = tested and found is not None and name in found.tied
                best = found is not None and name == found.best
                shown = _show(scores.get(name), metric, bold=best, missing="")
                row.append(f"{shown} =" if tied and not best else shown)
            mark = "• " if is_published(given) else ""
            inputs = "+".join(MODALITY[m] for m in given)
            lines.append(f"| {MODALITY[target]} | {mark}{inputs} | {' | '.join(row)} |")
        sections += [f"{_with_arrow(metric)}, protocol `{metric.protocol}`:", "\n".join(lines)]
    return sections


def _summaries(
    results: Sequence[Result], metric: Metric, places: Sequence[Place]
) -> dict[str, list[float]]:
    """Mean and standard deviation over patients by system."""
    return {s: [_round(v.mean()), _round(_sd(v))] for s, v in _of(results, metric, places).items()}


def _of(
    results: Sequence[Result], metric: Metric, places: Sequence[Place]
) -> dict[str, np.ndarray]:
    """One number per patient of each system that has all these cells."""
    scores = {r.system: r.score(metric, places) for r in results}
    return {system: value for system, value in scores.items() if value is not None}


def _best(scores: Mapping[str, np.ndarray], metric: Metric) -> str | None:
    choose: Callable[..., str] = max if metric.higher else min
    return choose(scores, key=lambda s: scores[s].mean()) if scores else None


def _show(
    value: np.ndarray | None, metric: Metric, *, bold: bool = False, missing: str = "n/a"
) -> str:
    """The mean (standard deviation) over patients."""
    if value is None:
        return missing
    mean, sd = (f"{metric.factor * v:.{metric.digits}f}" for v in (value.mean(), _sd(value)))
    return f"**{mean}** ({sd})" if bold else f"{mean} ({sd})"


def _with_arrow(metric: Metric) -> str:
    return f"{metric.heading} {'↑' if metric.higher else '↓'}"


def _title(name: str) -> str:
    return {"synthesis_ranks.png": "Mean ranks"}.get(name, "Images of all systems")


def _brief(run: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in run.items() if k not in ("system", "cells", "patients", "profile")}


def _sd(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _scores(runs: Sequence[Mapping[str, Any]]) -> dict[Place, dict[str, np.ndarray]]:
    """The scores of each cell, by metric, with shape (runs, patients)."""
    tables = [{(tuple(c["given"]), c["target"]): c for c in run["cells"]} for run in runs]
    return {
        place: {m.name: np.array([_entry(table[place], m) for table in tables]) for m in METRICS}
        for place in tables[0]
    }


def _entry(cell: Mapping[str, Any], metric: Metric) -> list[float]:
    return (cell if metric.protocol == "strict" else cell[metric.protocol])[metric.key]


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
