"""The tables and the figure of the uncertainty benchmark."""

from __future__ import annotations

__all__ = ["draw_figure", "markdown", "results"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mmpoe.metrics import paired_table

from .measure import FUNCTIONALS, KINDS, LEVELS

Found = Mapping[str, Any]
"""The measurements of a condition."""

TITLES = {"predictive": "Whole predictions", "mean": "Means of the decoder alone"}
COLORS = {"naive": "#c33c3c", "complete": "#1f6fb4", "bootstrap": "#2c8a4b", "spread": "#8a4b2c"}
ALPHA = 0.1
"""The level that so many patients have to be able to reach, else there are no p-values."""
STYLES = {"voxels": ":", "blocks": "-", "labels": "--"}


def results(found: Sequence[Found]) -> dict[str, Any]:
    """Returns the numbers behind the tables, for a JSON file.

    Arguments:
        found: What was measured, the naive spread first.
    """
    covered = {
        f["condition"]["name"]: {
            kind: {
                name: {_percent(level): _mean(f, kind, _key(name, level)) for level in LEVELS}
                for name in FUNCTIONALS
            }
            for kind in KINDS
        }
        for f in found
    }
    return {
        "data": "phantom",
        "settings": found[0]["settings"],
        "coverage": covered,
        "conditions": [
            {
                **f["condition"],
                "steps": f["steps"],
                "processor_seconds": f["processor_seconds"],
                "energy_score": {kind: _mean(f, kind, "energy") for kind in KINDS},
                "spearman": {kind: _mean(f, kind, "spearman") for kind in KINDS},
                "rmse": {kind: _mean(f, kind, "rmse") for kind in KINDS},
                "deviation": {kind: _mean(f, kind, "deviation") for kind in KINDS},
                "reliability": f["curves"],
            }
            for f in found
        ],
    }


def markdown(found: Sequence[Found], profile: str, complete: int) -> str:
    """Returns the tables.

    Arguments:
        found: What was measured, the naive spread first.
        profile: The name of the profile.
        complete: The number of complete patients of the training set.
    """
    settings = found[0]["settings"]
    patients = len(_by_patient(found[0], KINDS[0], "energy"))
    sections = [
        f"# Uncertainty of the MMHVAE on phantom patients, profile '{profile}'",
        "**Phantom patients, not clinical ones.** How often intervals of "
        f"{settings['draws']} draws hold the truth of modalities that were not given, in percent, "
        "for intervals that should hold it in 50 % and in 90 %: of voxels in view, of means over "
        "blocks of 8 x 8 pixels, and of means over the labels of a slice (tumour labels, and what "
        "is none). *Naive* draws are those of the model as it was trained; the others come from "
        "experts matched to the posteriors of some complete patients. The training set has "
        f"{complete}; beyond those, further ones teach whom the model has never seen. *Bootstrap* "
        "lets incomplete patients of the training set teach too. A *spread* around the prediction "
        "learns from the training set, and further complete patients set its scale; its means of "
        "the decoder alone are those of the model as it is. The energy score, per root of "
        "the number of voxels, is better if lower; so is the error (root mean square, images in "
        "[-1, 1]). The predicted deviation should equal the error; Spearman's correlation is that "
        "of the two over the voxels of a volume. Means over inputs and targets, then (standard "
        f"deviation) over {patients} held-out patients. p is of Wilcoxon's signed-rank test of "
        "energy scores beside the naive ones, by Bonferroni's correction for the rows of a table.",
    ]
    for kind, title in TITLES.items():
        sections += [f"## {title}, on phantom patients", _table(found, kind)]
    return "\n\n".join(sections) + "\n"


def draw_figure(found: Sequence[Found], path: Path) -> None:
    """Draws coverage by the number of complete patients, reliability, and energy scores.

    Arguments:
        found: What was measured, the naive spread first.
        path: The file to write.
    """
    figure = Figure(figsize=(11, 3.7), dpi=130, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    naive = found[0]
    for teacher in ("complete", "bootstrap"):
        line = [naive] if teacher == "complete" else []
        line += [f for f in found if f["condition"]["teacher"] == teacher]
        counts = [f["condition"]["complete"] for f in line]
        color = COLORS[teacher]
        marker = "o" if teacher == "complete" else "s"
        for name, style in STYLES.items():
            held = [100 * _number(_mean(f, "predictive", f"{name}_90")) for f in line]
            label = name if teacher == "complete" else None
            ls = style if teacher == "complete" else ""
            left.plot(counts, held, ls=ls, marker=marker, ms=4, color=color, lw=1.3, label=label)
        energy = [_number(_mean(f, "predictive", "energy")) for f in line]
        ls = "-" if teacher == "complete" else ""
        right.plot(counts, energy, ls=ls, marker=marker, ms=4, color=color, label=teacher)
    left.axhline(90, color="black", lw=0.8)
    left.set(xlabel="complete patients who teach (0: naive)", ylabel="90 % intervals hold, %")
    left.plot([], [], "s", color=COLORS["bootstrap"], ms=4, label="the same, bootstrap")
    left.legend(fontsize=7, frameon=False)
    right.set(xlabel="complete patients who teach (0: naive)", ylabel="energy score")
    right.legend(fontsize=7, frameon=False)

    for axis in (left, right):
        axis.set_xticks(sorted({f["condition"]["complete"] for f in found}))

    most = max(f["condition"]["complete"] for f in found)
    shown = [f for f in found if f["condition"]["complete"] in (0, most)]
    top = 0.0
    for f in shown:
        name = f["condition"]["teacher"] or "naive"
        for kind, style in (("predictive", "-"), ("mean", ":")):
            curve = f["curves"][kind]
            label = name if kind == "predictive" else None
            middle.plot(
                curve["deviation"], curve["error"], style, marker=".", ms=5, lw=1.2,
                color=COLORS[name], label=label,
            )  # fmt: skip
            top = max(top, *curve["deviation"], *curve["error"])
    middle.plot([0, top], [0, top], color="black", lw=0.8)
    middle.plot([], [], ":", color="grey", label="without the likelihood's noise")
    middle.set(xlabel="predicted deviation", ylabel="root mean square error")
    middle.legend(fontsize=7, frameon=False)
    for axis in (left, middle, right):
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Phantom patients: predictions of what was not given", fontsize=10)
    figure.savefig(path)


def _table(found: Sequence[Found], kind: str) -> str:
    names = [f"{name}, {_percent(level)} %" for name in FUNCTIONALS for level in LEVELS]
    lines = [
        f"| draws | complete patients | {' | '.join(names)} | error | predicted deviation "
        "| Spearman | energy score | p |"
    ]
    lines.append("|---|---:|" + "---:|" * (len(names) + 5))
    p_values = _p_values(found, kind)
    for f in found:
        condition = f["condition"]
        keys = [_key(name, level) for name in FUNCTIONALS for level in LEVELS]
        cells = [_show(_by_patient(f, kind, key), 100, 0) for key in keys]
        cells += [_show(_by_patient(f, kind, key), 1, 3) for key in ("rmse", "deviation")]
        cells += [_show(_by_patient(f, kind, "spearman"), 1, 2)]
        cells += [_show(_by_patient(f, kind, "energy"), 1, 4)]
        first = f"{condition['teacher'] or 'naive'} | {condition['complete'] or '-'}"
        lines.append(f"| {first} | {' | '.join(cells)} | {p_values[condition['name']]} |")
    return "\n".join(lines)


def _p_values(found: Sequence[Found], kind: str) -> dict[str, str]:
    """Corrected p-values of energy scores, `n/a` with too few patients."""
    first = found[0]["condition"]["name"]
    values = {f["condition"]["name"]: _by_patient(f, kind, "energy") for f in found}
    try:
        table = paired_table(values, reference=first, alpha=ALPHA, higher_is_better=False)
    except ValueError:  # nothing to compare, or so few that nothing could be significant
        return {**dict.fromkeys(values, "n/a"), first: "-"}
    return {first: "-", **{row.system: f"{row.corrected:.2g}" for row in table.rows}}


def _by_patient(found: Found, kind: str, key: str) -> np.ndarray:
    """The mean over inputs and targets of each patient who has any."""
    values: dict[str, list[float]] = {}
    for row in found["rows"]:
        if row["kind"] == kind and row[key] is not None:
            values.setdefault(row["patient"], []).append(row[key])
    return np.array([np.mean(v) for v in values.values()])


def _mean(found: Found, kind: str, key: str) -> float | None:
    values = _by_patient(found, kind, key)
    return float(values.mean()) if len(values) else None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _show(values: np.ndarray, factor: float, digits: int) -> str:
    if len(values) == 0:
        return "-"
    spread = factor * np.std(values, ddof=1) if len(values) > 1 else np.nan
    return f"{factor * np.mean(values):.{digits}f} ({spread:.{digits}f})"


def _key(name: str, level: float) -> str:
    return f"{name}_{_percent(level)}"


def _percent(level: float) -> str:
    return f"{round(100 * level)}"
