"""The tables of the ablations, from the scores that their runs keep."""

from __future__ import annotations

__all__ = ["Scores", "markdown", "read", "results"]

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.synthesis.profiles import Profile
from mmpoe.metrics import paired_table

from .factors import BASE_LABELS, BEFORE, MISSING
from .missing import left
from .variants import BASE, Variant

METRICS = {
    "psnr": ("PSNR, dB", 1.0, 2),
    "ssim": ("SSIM, %", 100.0, 1),
    "st_lpips": ("ST-LPIPS, %, lower is better", 100.0, 1),
}
"""The heading of each metric, its factor and its number of decimals. Those that were not scored
are left out."""
KINDS = {"cross": "Missing modalities", "self": "Reconstruction of what was given"}
NOTHING = "-"
ALPHA = 0.05
"""The level that so many patients have to be able to reach, else there are no p-values."""


@dataclass(frozen=True)
class Scores:
    """The runs of a variant."""

    variant: Variant
    runs: list[dict[str, Any]]
    """The facts of each run."""
    values: dict[tuple[str, str], np.ndarray]
    """The scores of each patient, averaged over cells and seeds, by kind of cell and metric."""


def read(folder: Path, variants: Sequence[Variant], seeds: int) -> list[Scores]:
    """Reads the scores of a profile; variants that were not run are left out.

    Arguments:
        folder: The folder of the profile.
        variants: The variants, the base among them.
        seeds: The number of seeds; a variant counts if it has all of them.

    Raises:
        ValueError: If the base was not run.
    """
    found = []
    for variant in variants:
        files = [folder / f"{variant.name}-{seed}.json" for seed in range(seeds)]
        if not all(file.exists() for file in files):
            continue
        runs = [json.loads(file.read_text()) for file in files]
        values = {
            (kind, metric): np.mean([_average(run["cells"], kind, metric) for run in runs], axis=0)
            for kind in KINDS
            for metric in METRICS
            if all(metric in cell for run in runs for cell in run["cells"])
        }
        values = {key: value for key, value in values.items() if np.isfinite(value).all()}
        facts = [{k: v for k, v in run.items() if k != "cells"} for run in runs]
        found.append(Scores(variant, facts, values))
    if not any(scores.variant == BASE for scores in found):
        raise ValueError(f"'folder' should hold the scores of the base, but {folder} does not.")
    return found


def results(found: Sequence[Scores], profile: Profile) -> dict[str, Any]:
    """Returns the numbers behind the tables, for a JSON file.

    Arguments:
        found: The scores, the base among them.
        profile: The size of the comparison.
    """
    base = _base(found)
    return {
        "data": "phantom",
        "settings": asdict(profile),
        "patients": base.runs[0]["patients"],
        "variants": [
            {
                **asdict(scores.variant),
                "steps": scores.runs[0]["steps"],
                "parameters": scores.runs[0]["parameters"],
                "left": _left(scores.variant, profile),
                "scores": {
                    f"{kind}_{metric}": {
                        "patients": values.tolist(),
                        "mean": float(values.mean()),
                        "difference": float(np.median(values - base.values[kind, metric])),
                    }
                    for (kind, metric), values in scores.values.items()
                },
            }
            for scores in found
        ],
    }


def markdown(found: Sequence[Scores], profile: Profile, label: str) -> str:
    """Returns all tables.

    Arguments:
        found: The scores, the base among them.
        profile: The size of the comparison.
        label: Its name.
    """
    base = _base(found)
    metrics = [metric for metric in METRICS if all(("cross", metric) in s.values for s in found)]
    patients = len(base.runs[0]["patients"])
    sections = [
        f"# Ablations of the MMHVAE on phantom patients, profile '{label}'",
        "**Phantom patients, not clinical ones.** The base is the MMHVAE of the comparison: exact "
        "product of experts, the three finest latent groups, divergences weighed by "
        f"{BASE.beta:g}, the score of what was given by {BASE.reconstruction:g}, one proper "
        f"subset a step, no adversary. Each variant differs from it in one thing, but for "
        f"'{BEFORE}', and has {profile.seconds:g} s of processor time on one thread, so that what "
        "costs more takes fewer steps. Scores are means (standard deviations) over "
        f"{patients} held-out patients of averages over all cells from all 15 subsets, over seeds "
        f"({profile.seeds}) and in view. Changes are medians of differences of the same patients, "
        "with p-values of Wilcoxon's signed-rank test by Bonferroni's correction for the rows of "
        "a table. They tell patients apart, not seeds: another seed moves a variant too.",
    ]
    factors = list(dict.fromkeys(s.variant.factor for s in found if s.variant != BASE))
    for factor in factors:
        if factor == MISSING:
            continue
        rows = [base, *(s for s in found if s.variant.factor == factor)]
        sections.append(f"## {factor.capitalize()}, on phantom patients")
        for kind, title in KINDS.items():
            sections.append(f"{title}:\n\n{_table(rows, kind, metrics, BASE_LABELS[factor])}")
    if MISSING in factors:
        sections += _missing(found, profile, metrics)
    return "\n\n".join(sections) + "\n"


def _table(rows: Sequence[Scores], kind: str, metrics: Sequence[str], first: str) -> str:
    """A row for each variant, the first of which is what the others are compared with."""
    names = [f"{METRICS[metric][0]} | change | p" for metric in metrics]
    lines = [f"| variant | parameters | steps | {' | '.join(names)} |"]
    lines.append("|---|---:|---:|" + "---:|" * 3 * len(metrics))
    labels = {s.variant.name: s.variant.label for s in rows}
    labels[BASE.name] = f"{first} (base)"
    columns = {metric: _compared(rows, kind, metric) for metric in metrics}
    for scores in rows:
        name, facts = scores.variant.name, scores.runs[0]
        cells = " | ".join(columns[metric][name] for metric in metrics)
        size = f"{facts['parameters'] / 1e6:.2f} M | {facts['steps']}"
        lines.append(f"| {labels[name]} | {size} | {cells} |")
    return "\n".join(lines)


def _compared(rows: Sequence[Scores], kind: str, metric: str) -> dict[str, str]:
    """The score of each variant, its change from the first, and the p-value of that."""
    _, factor, digits = METRICS[metric]
    values = {s.variant.name: factor * s.values[kind, metric] for s in rows}
    first = next(iter(values))
    p_values = _p_values(values, first)
    cells = {first: f"{_show(values[first], digits)} | {NOTHING} | {NOTHING}"}
    for name, value in list(values.items())[1:]:
        change = np.median(value - values[first])
        cells[name] = f"{_show(value, digits)} | {change:+.{digits}f} | {p_values[name]}"
    return cells


def _p_values(values: dict[str, np.ndarray], reference: str) -> dict[str, str]:
    """Corrected p-values, `n/a` with too few patients."""
    others = [name for name in values if name != reference]
    if not others:
        return {}
    try:
        table = paired_table(values, reference=reference, alpha=ALPHA)
    except ValueError:  # so few that nothing could be significant
        return dict.fromkeys(others, "n/a")
    return {row.system: f"{row.corrected:.2g}" for row in table.rows}


def _missing(found: Sequence[Scores], profile: Profile, metrics: Sequence[str]) -> list[str]:
    """A row for each share of images that is missing."""
    of = {(s.variant.missing, s.variant.discard): s for s in found}
    whole = [s for s in found if s.variant.factor == MISSING and not s.variant.discard]
    pairs = {s.variant.missing: (s, of.get((s.variant.missing, True))) for s in whole}
    sections = [
        f"## {MISSING.capitalize()}, on phantom patients",
        f"Images are dropped at random from {profile.patients} complete patients, other ones than "
        "those of the base. *All* learns from whatever is left; *complete alone* discards whoever "
        "lacks anything. Each row is tested by itself, and p-values are corrected for their "
        "number.",
    ]
    for kind, title in KINDS.items():
        headings = [f"{METRICS[m][0]}: all | complete alone | change | p" for m in metrics]
        lines = [f"| missing | images | patients | complete | {' | '.join(headings)} |"]
        lines.append("|---|---:|---:|---:|" + "---:|" * 4 * len(metrics))
        tested = [share for share, pair in pairs.items() if pair[1] is not None]
        for share, (everyone, alone) in pairs.items():
            cells = []
            for metric in metrics:
                _, factor, digits = METRICS[metric]
                value = factor * everyone.values[kind, metric]
                if alone is None:
                    why = "the same" if share == 0 else _absent(everyone.variant, profile)
                    cells.append(f"{_show(value, digits)} | {why} | {NOTHING} | {NOTHING}")
                    continue
                other = factor * alone.values[kind, metric]
                p = _corrected(value, other, len(tested))
                change = np.median(value - other)
                shown = f"{_show(value, digits)} | {_show(other, digits)}"
                cells.append(f"{shown} | {change:+.{digits}f} | {p}")
            counts = left(profile.patients, share or 0.0)
            size = f"{counts.images} | {counts.patients} | {counts.complete}"
            lines.append(f"| {everyone.variant.label} | {size} | {' | '.join(cells)} |")
        sections.append(f"{title}:\n\n" + "\n".join(lines))
    return sections


def _corrected(value: np.ndarray, other: np.ndarray, tests: int) -> str:
    """The p-value of two variants, times the number of tests."""
    try:
        scores = {"other": other, "value": value}
        (row,) = paired_table(scores, reference="other", alpha=ALPHA).rows
    except ValueError:
        return "n/a"
    return f"{min(1.0, tests * row.p):.2g}"


def _absent(variant: Variant, profile: Profile) -> str:
    none = left(profile.patients, variant.missing or 0.0).complete == 0
    return "none is complete" if none else "not run"


def _left(variant: Variant, profile: Profile) -> dict[str, int] | None:
    if variant.missing is None:
        return None
    return left(profile.patients, variant.missing)._asdict()


def _base(found: Sequence[Scores]) -> Scores:
    return next(scores for scores in found if scores.variant == BASE)


def _show(values: np.ndarray, digits: int) -> str:
    """The mean (standard deviation) over patients."""
    spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
    return f"{np.mean(values):.{digits}f} ({spread:.{digits}f})"


def _average(cells: Sequence[dict[str, Any]], kind: str, metric: str) -> np.ndarray:
    """The mean over cells of each patient."""
    chosen = [c[metric] for c in cells if (c["target"] in c["given"]) == (kind == "self")]
    return np.mean(chosen, axis=0)
