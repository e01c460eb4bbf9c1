"""Cells as tables to read, each under the name of its protocol."""

from __future__ import annotations

__all__ = ["best_cells", "note", "summary", "write_tables"]

from collections.abc import Sequence
from typing import Any

from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.modalities import LABELS
from examples.medical_mri_us.writing import Markdown, code, fill, joined, table

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
    parts = ["# Evaluation", fill("{}", note)]
    for protocol in dict.fromkeys(cell["protocol"] for cell in cells):
        own = [cell for cell in cells if cell["protocol"] == protocol]
        parts += [fill("## Protocol {}", code(protocol)), PROTOCOLS[protocol].definition]
        for kind, title in (
            ("cross", "Cross-modal synthesis: the target was not given"),
            ("self", "Self-reconstruction: the target was among the inputs"),
        ):
            parts.append(fill("### {} ({})", title, code(protocol)))
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
    head = fill("**{}** ({}; {} is better; ", metric.label, code(protocol.name), arrow)
    if not counts:
        reasons = {str(cell["reason"] or "nothing to score") for cell in cells}
        return fill("{}n/a: {})", head, joined(sorted(reasons)))
    n = counted(counts[-1], protocol.unit)
    n = n if len(counts) == 1 else f"{counts[0]} to {n}"
    best = best_cells(cells, metric)
    rows = []
    places = dict.fromkeys((tuple(cell["given"]), cell["model"]) for cell in cells)
    for given, model in sorted(places, key=lambda row: (len(row[0]), row[0] != ())):
        row = [c for c in cells if (tuple(c["given"]), c["model"]) == (given, model)]
        by_target = {cell["target"]: cell for cell in row}
        mark = Markdown(" *" if given and row[0]["published"] else "")
        name = fill("{}{}", " + ".join(_label(m) for m in given) or "nothing", mark)
        entries = [_entry(by_target.get(m), metric, best) for m in modalities]
        rows.append([name, model, *entries])
    return "\n".join(
        [
            fill("{}mean ± sd over {})", head, n),
            "",
            table(["given", "model", *(_label(m) for m in modalities)], rows),
            "",
            "\\* among the 8 input sets of the published table.",
        ]
    )


def _entry(cell: Cell | None, metric: Metric, best: set[int]) -> Markdown:
    if cell is None:
        return Markdown("")
    if cell["mean"] is None:
        return Markdown("n/a")
    text = f"{cell['mean']:.{metric.digits}f}"
    sd = "" if cell["sd"] is None else f" ± {cell['sd']:.{metric.digits}f}"
    return fill("**{}**{}" if id(cell) in best else "{}{}", text, sd)


def _tests(tests: Sequence[dict[str, Any]], protocol: str) -> str:
    pooled = [test for test in tests if test["family"] == "targets"]
    if not pooled:
        return ""
    rows = [
        [
            t["metric"],
            _label(t["target"]),
            t["model"],
            t["other"],
            f"{t['rank_biserial']:+.2f}",
            f"{t['p']:.2g}",
            f"{t['corrected']:.2g}",
            _verdict(t),
            t["n"],
        ]
        for t in pooled
    ]
    columns = [
        "metric",
        "target",
        "model",
        "against",
        "effect",
        "p",
        "corrected p",
        "verdict",
        "n",
    ]
    return "\n".join(
        [
            fill("### Tests ({})", code(protocol)),
            "",
            "Wilcoxon signed-rank tests on the mean of each case over all inputs without the "
            "target, two-sided, Bonferroni-corrected for each metric over targets and models, "
            "p < 0.01. The effect is the matched-pairs rank-biserial correlation, positive if "
            "the model is better.",
            "",
            table(columns, rows),
        ]
    )


def _verdict(test: dict[str, Any]) -> str:
    if test["identical"]:
        return "identical"
    if test["significant"]:
        return "better" if test["rank_biserial"] > 0 else "worse"
    if test["n"] < test["cases_for_significance"]:
        return f"too few cases (needs {test['cases_for_significance']})"
    return "not different"


def _label(modality: str) -> str:
    return LABELS.get(modality, modality)
