"""The tables of the synthesis benchmark, as text.

What a patient lacks comes first: cells whose target was given are reconstruction, and stand apart.
"""

from __future__ import annotations

__all__ = ["markdown"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from examples.medical_mri_us.evaluation import is_published
from examples.medical_mri_us.modalities import LABELS as MODALITY
from examples.medical_mri_us.modalities import MODALITIES

from .results import (
    CROSS,
    METRICS,
    OWN,
    REFERENCE,
    Metric,
    Place,
    Result,
    by_system,
    ranking,
    standard_deviation,
    verdict,
)
from .scoring import BASELINE, absent
from .statistics import ALPHA, compare, standing, testable


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
        scores = by_system(results, metric, places)
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


def _verdicts(results: Sequence[Result]) -> list[str]:
    """In how many cells the reference is best or tied, for each metric that was scored."""
    lines = []
    for metric in METRICS:
        found = verdict(results, metric, CROSS)
        if found is None:
            continue
        mark = "" if metric.protocol == "strict" else f", `{metric.protocol}`"
        best, tied, plain, n = (found[k] for k in ("best", "tied", "uncorrected", "cells"))
        also = verdict(results, metric, [p for p in CROSS if is_published(p[0])])
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


def _tests(
    results: Sequence[Result], metrics: Sequence[Metric], places: Sequence[Place]
) -> list[str]:
    """A table for each metric of the systems that have all these cells, beside the reference."""
    sections = []
    for metric in metrics:
        scores = by_system(results, metric, places)
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


def _by_target(results: Sequence[Result], metrics: Sequence[Metric]) -> list[str]:
    sections = []
    for m in MODALITIES:
        places = [place for place in CROSS if place[1] == m]
        sections += [f"{MODALITY[m]}:", _averages(results, metrics, places)]
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
            scores = by_system(systems, metric, [(given, target)])
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


def _best(scores: Mapping[str, np.ndarray], metric: Metric) -> str | None:
    choose: Callable[..., str] = max if metric.higher else min
    return choose(scores, key=lambda s: scores[s].mean()) if scores else None


def _show(
    value: np.ndarray | None, metric: Metric, *, bold: bool = False, missing: str = "n/a"
) -> str:
    """The mean (standard deviation) over patients."""
    if value is None:
        return missing
    mean, sd = (
        f"{metric.factor * v:.{metric.digits}f}" for v in (value.mean(), standard_deviation(value))
    )
    return f"**{mean}** ({sd})" if bold else f"{mean} ({sd})"


def _with_arrow(metric: Metric) -> str:
    return f"{metric.heading} {'↑' if metric.higher else '↓'}"


def _title(name: str) -> str:
    return {"synthesis_ranks.png": "Mean ranks"}.get(name, "Images of all systems")
