"""Cells as tables to read, each under the name of its protocol."""

from __future__ import annotations

__all__ = ["best_cells", "note", "summary", "write_tables"]

from collections.abc import Sequence
from typing import Any

from examples.medical_mri_us.modalities import LABELS

from .protocols import PROTOCOLS, Metric, Protocol

Cell = dict[str, Any]


def write_tables(
    cells: Sequence[Cell], tests: Sequence[dict[str, Any]], modalities: Sequence[str], note: str
) -> str:
    """Returns all cells as Markdown: cross-modal synthesis first, then reconstruction.

    Arguments:
        cells: The cells, as of `cell_means`.
        tests: The tests, as of `compare`.
        modalities: The targets, in the order of the columns.
        note: What to say first, such as that these are phantom numbers.
    """
    parts = ["# Evaluation", note]
    for protocol in dict.fromkeys(cell["protocol"] for cell in cells):
        own = [cell for cell in cells if cell["protocol"] == protocol]
        parts += [f"## Protocol `{protocol}`", PROTOCOLS[protocol].definition]
        for kind, title in (
            ("cross", "Cross-modal synthesis: the target was not given"),
            ("self", "Self-reconstruction: the target was among the inputs"),
        ):
            parts.append(f"### {title} (`{protocol}`)")
            for metric in PROTOCOLS[protocol].metrics:
                found = [c for c in own if c["kind"] == kind and c["metric"] == metric.name]
                parts.append(_table(found, metric, PROTOCOLS[protocol], modalities))
        parts.append(_tests([t for t in tests if t["protocol"] == protocol], protocol))
    return "\n\n".join(part for part in parts if part) + "\n"


def note(phantom: bool, trained_on_phantom: bool = False) -> str:
    """Returns the sentence that stands with all numbers.

    Arguments:
        phantom: Whether the images that are scored are made by a simulation.
        trained_on_phantom: Whether those are that the model was trained on.
    """
    made = ""
    if phantom:
        made = "Phantom images, made by a simulation: nothing here was measured on patients. "
    elif trained_on_phantom:
        made = "The model was trained on simulated patients, a phantom. "
    return f"{made}For research only, not for clinical use."


def summary(cells: Sequence[Cell], model: str) -> str:
    """Returns the mean PSNR of each protocol, cross-modal and self-reconstruction apart."""
    lines = []
    for protocol in dict.fromkeys(cell["protocol"] for cell in cells):
        for kind, what in (("cross", "cross-modal"), ("self", "self-reconstruction")):
            place = protocol, kind, "psnr", model
            keys = "protocol", "kind", "metric", "model"
            found = [c["mean"] for c in cells if tuple(c[key] for key in keys) == place]
            means = [mean for mean in found if mean is not None]
            if means:
                mean = sum(means) / len(means)
                lines.append(f"{protocol}: {what} PSNR {mean:.1f} dB, mean of {len(means)} cells")
    return "\n".join(lines)


def best_cells(cells: Sequence[Cell], metric: Metric) -> set[int]:
    """Returns the ``id`` of the best cells of each target, and of each inputs and target.

    With one model, the best inputs of a target stand out; with several, the best model of each
    place. The baseline never does.
    """
    models = {cell["model"] for cell in cells if cell["given"]}
    places: dict[Any, list[Cell]] = {}
    for cell in cells:
        if cell["mean"] is not None and cell["given"]:
            place = (tuple(cell["given"]), cell["target"]) if len(models) > 1 else cell["target"]
            places.setdefault(place, []).append(cell)
    pick = max if metric.higher_is_better else min
    return {id(pick(group, key=lambda cell: cell["mean"])) for group in places.values()}


def _table(
    cells: Sequence[Cell], metric: Metric, protocol: Protocol, modalities: Sequence[str]
) -> str:
    if not cells:
        return ""
    counts = sorted({cell["n"] for cell in cells if cell["given"] and cell["mean"] is not None})
    arrow = "higher" if metric.higher_is_better else "lower"
    head = f"**{metric.label}** (`{protocol.name}`; {arrow} is better; "
    reasons = {cell["reason"] for cell in cells}
    if not counts:
        return f"{head}n/a: {', '.join(str(r) for r in reasons) or 'nothing to score'})"
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    plural = "s" if counts[-1] > 1 else ""
    lines = [
        f"{head}mean ± sd over {n} {protocol.unit}{plural})",
        "",
        "| given | model | " + " | ".join(_label(m) for m in modalities) + " |",
        "|---|---|" + "---|" * len(modalities),
    ]
    best = best_cells(cells, metric)
    rows = dict.fromkeys((tuple(cell["given"]), cell["model"]) for cell in cells)
    for given, model in sorted(rows, key=lambda row: (len(row[0]), row[0] != ())):
        row = [c for c in cells if (tuple(c["given"]), c["model"]) == (given, model)]
        by_target = {cell["target"]: cell for cell in row}
        mark = " *" if given and row[0]["published"] else ""
        entries = [_entry(by_target.get(m), metric, best) for m in modalities]
        name = " + ".join(_label(m) for m in given) or "nothing"
        lines.append(f"| {name}{mark} | {model} | " + " | ".join(entries) + " |")
    lines += ["", "\\* among the 8 input sets of the published table."]
    return "\n".join(lines)


def _entry(cell: Cell | None, metric: Metric, best: set[int]) -> str:
    if cell is None:
        return ""
    if cell["mean"] is None:
        return "n/a"
    text = f"{cell['mean']:.{metric.digits}f}"
    text = f"**{text}**" if id(cell) in best else text
    sd = "" if cell["sd"] is None else f" ± {cell['sd']:.{metric.digits}f}"
    return text + sd


def _tests(tests: Sequence[dict[str, Any]], protocol: str) -> str:
    pooled = [test for test in tests if test["family"] == "targets"]
    if not pooled:
        return ""
    lines = [
        f"### Tests (`{protocol}`)",
        "",
        "Wilcoxon signed-rank tests on the mean of each case over all inputs without the target, "
        "two-sided, Bonferroni-corrected for each metric over targets and models, p < 0.01. The "
        "effect is the matched-pairs rank-biserial correlation, positive if the model is better.",
        "",
        "| metric | target | model | against | effect | p | corrected p | verdict | n |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for t in pooled:
        verdict = "not different"
        if t["identical"]:
            verdict = "identical"
        elif t["significant"]:
            verdict = "better" if t["rank_biserial"] > 0 else "worse"
        elif t["n"] < t["cases_for_significance"]:
            verdict = f"too few cases (needs {t['cases_for_significance']})"
        lines.append(
            f"| {t['metric']} | {_label(t['target'])} | {t['model']} | {t['other']} "
            f"| {t['rank_biserial']:+.2f} | {t['p']:.2g} | {t['corrected']:.2g} | {verdict} "
            f"| {t['n']} |"
        )
    return "\n".join(lines)


def _label(modality: str) -> str:
    return LABELS.get(modality, modality)
