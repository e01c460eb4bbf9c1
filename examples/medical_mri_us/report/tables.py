"""Cells, tests and facts as HTML tables."""

from __future__ import annotations

__all__ = ["facts_table", "metric_tables", "tests_table"]

import html
from collections.abc import Mapping, Sequence
from typing import Any

from examples.medical_mri_us.evaluation import PROTOCOLS, Metric, Protocol, best_cells

Cell = dict[str, Any]


def metric_tables(
    cells: Sequence[Cell], kind: str, protocol: Protocol, labels: Mapping[str, str]
) -> str:
    """Returns a table per metric of a protocol, one of which is shown at a time.

    Arguments:
        cells: All cells.
        kind: ``"cross"`` or ``"self"``.
        protocol: The protocol.
        labels: How the modalities are written.
    """
    own = [c for c in cells if c["kind"] == kind and c["protocol"] == protocol.name]
    group = f"{kind}-{protocol.name}"
    choices, tables = [], []
    for number, metric in enumerate(protocol.metrics):
        found = [cell for cell in own if cell["metric"] == metric.name]
        checked = " checked" if number == 0 else ""
        choices.append(
            f"<label><input type=radio name='{group}' value='{metric.name}'{checked}>"
            f"<span>{metric.label}</span></label>"
        )
        tables.append(
            f"<div class=metric data-metric='{metric.name}'>"
            f"{_metric_table(found, metric, protocol, labels)}</div>"
        )
    title = f"Metric, protocol {protocol.name}"
    return (
        f"<div class=tables><fieldset class=choices aria-label='{title}'>{''.join(choices)}"
        f"</fieldset>{''.join(tables)}</div>"
    )


def tests_table(tests: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Returns the tests of each target, all inputs together: a row per metric and other model."""
    rows: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for test in tests:
        if test["family"] == "targets":
            key = test["protocol"], test["metric"], test["other"]
            rows.setdefault(key, {})[test["target"]] = test
    if not rows:
        return "<p>There is nothing to test against.</p>"
    order = {(p.name, m.name): m.label for p in PROTOCOLS.values() for m in p.metrics}
    body = []
    for key in sorted(rows, key=lambda key: (list(order).index(key[:2]), key[2])):
        protocol, metric, other = key
        names = f"<code>{protocol}</code>", order[protocol, metric], html.escape(other)
        entries = "".join(_test_entry(rows[key].get(m)) for m in labels)
        n = "/".join(dict.fromkeys(str(test["n"]) for test in rows[key].values()))
        cells = "".join(f"<td class=left>{name}</td>" for name in names)
        body.append(f"<tr>{cells}{entries}<td>{n}</td></tr>")
    head = "".join(f"<th scope=col>{html.escape(label)}</th>" for label in labels.values())
    few = max(test["cases_for_significance"] for row in rows.values() for test in row.values())
    most = max(test["n"] for row in rows.values() for test in row.values())
    too_few = (
        f"<p class=soft>With {most} cases, no outcome could be significant: that needs {few}.</p>"
        if most < few
        else ""
    )
    return (
        f"{too_few}<div class=scroll><table><caption>Effect, and corrected p; bold if significant."
        "</caption><thead><tr><th scope=col class=left>protocol</th><th scope=col class=left>"
        f"metric</th><th scope=col class=left>against</th>{head}<th scope=col>n</th></tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def facts_table(facts: Mapping[str, Any]) -> str:
    """Returns names and values in two columns."""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table class=facts><tbody>{rows}</tbody></table>"


def _metric_table(
    cells: Sequence[Cell], metric: Metric, protocol: Protocol, labels: Mapping[str, str]
) -> str:
    scored = [cell for cell in cells if cell["mean"] is not None and cell["given"]]
    if not scored:
        reasons = {str(cell["reason"] or "nothing to score") for cell in cells}
        return (
            f"<p><b>{metric.label}</b> <code>{protocol.name}</code>: n/a "
            f"({html.escape('; '.join(sorted(reasons)))})</p>"
        )
    models = list(dict.fromkeys(cell["model"] for cell in cells if cell["given"]))
    counts = sorted({cell["n"] for cell in scored})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    unit = protocol.unit + ("s" if counts[-1] > 1 else "")
    dropped = sum(cell["dropped"] for cell in scored)
    left_out = f"; {dropped} numbers that are not finite left out" if dropped else ""
    arrow = "higher" if metric.higher_is_better else "lower"
    head = "".join(f"<th scope=col>{html.escape(label)}</th>" for label in labels.values())
    several = "<th scope=col class=left>model</th>" if len(models) > 1 else ""
    rows = dict.fromkeys((tuple(cell["given"]), cell["model"]) for cell in cells)
    best, shade = best_cells(cells, metric), _shades(cells, metric)
    body = []
    for given, model in sorted(rows, key=lambda row: len(row[0])):
        row = [c for c in cells if (tuple(c["given"]), c["model"]) == (given, model)]
        by_target = {cell["target"]: cell for cell in row}
        star = "<span class=star title='an input set of the published table'>&#9733;</span>"
        name = f"{_given(given, labels)}{star if row[0]['published'] else ''}" if given else model
        column = f"<td class=left>{html.escape(model)}</td>" if several else ""
        entries = "".join(_entry(by_target.get(m), metric, best, shade) for m in labels)
        kind = "" if given else " class=base"
        body.append(f"<tr{kind}><th scope=row class=left>{name}</th>{column}{entries}</tr>")
    return (
        f"<div class=scroll><table><caption><b>{metric.label}</b>, {arrow} is better. Protocol "
        f"<code>{protocol.name}</code>, mean and standard deviation over {n} {unit}{left_out}."
        f"</caption><thead><tr><th scope=col class=left>given</th>{several}{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _given(given: Sequence[str], labels: Mapping[str, str]) -> str:
    dots = "".join(f"<i{' class=on' if m in given else ''}></i>" for m in labels)
    names = " + ".join(html.escape(labels[m]) for m in given)
    return f"<span class=dots aria-hidden=true>{dots}</span>{names}"


def _entry(cell: Cell | None, metric: Metric, best: set[int], shade: Mapping[int, float]) -> str:
    if cell is None:
        return "<td class=blank>&middot;</td>"
    if cell["mean"] is None:
        return "<td>n/a</td>"
    sd = "" if cell["sd"] is None else f"<small>&plusmn; {cell['sd']:.{metric.digits}f}</small>"
    bold = " class=best" if id(cell) in best else ""
    colour = f" style='background:rgba(var(--heat),{shade.get(id(cell), 0):.2f})'"
    return f"<td{bold}{colour}>{cell['mean']:.{metric.digits}f}{sd}</td>"


def _shades(cells: Sequence[Cell], metric: Metric) -> dict[int, float]:
    """How far each cell is above the worst of its target, the baseline included."""
    shades = {}
    for target in {cell["target"] for cell in cells}:
        column = [c for c in cells if c["target"] == target and c["mean"] is not None]
        sign = 1 if metric.higher_is_better else -1
        values = [sign * cell["mean"] for cell in column]
        span = max(values, default=0.0) - min(values, default=0.0)
        for cell, value in zip(column, values, strict=True):
            if cell["given"] and span > 0:
                shades[id(cell)] = 0.38 * (value - min(values)) / span
    return shades


def _test_entry(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return "<td class=blank>&middot;</td>"
    if test["identical"]:
        return "<td>identical</td>"
    bold = " class=best" if test["significant"] else ""
    p = f"p {test['corrected']:.2g}" if test["corrected"] >= 1e-4 else "p &lt; 0.0001"
    return f"<td{bold}>{test['rank_biserial']:+.2f}<small>{p}</small></td>"
