"""Cells, tests and facts as HTML tables."""

from __future__ import annotations

__all__ = ["facts_table", "metric_tables", "tests_table"]

from collections.abc import Mapping, Sequence
from typing import Any

from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.evaluation import PROTOCOLS, Metric, Protocol, best_cells
from examples.medical_mri_us.writing import Content, Tag, tag

Cell = dict[str, Any]


def metric_tables(
    cells: Sequence[Cell], kind: str, protocol: Protocol, labels: Mapping[str, str]
) -> Tag:
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
        choice = tag("input", type="radio", name=group, value=metric.name, checked=number == 0)
        choices.append(tag("label", choice, tag("span", metric.label)))
        table = _metric_table(found, metric, protocol, labels)
        tables.append(tag("div", table, class_="metric", data_metric=metric.name))
    title = f"Metric, protocol {protocol.name}"
    field = tag("fieldset", choices, class_="choices", aria_label=title)
    return tag("div", field, tables, class_="tables")


def tests_table(tests: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Content:
    """Returns the tests of each target, all inputs together: a row per metric and other model."""
    rows: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for test in tests:
        if test["family"] == "targets":
            key = test["protocol"], test["metric"], test["other"]
            rows.setdefault(key, {})[test["target"]] = test
    if not rows:
        return tag("p", "There is nothing to test against.")
    order = {(p.name, m.name): m.label for p in PROTOCOLS.values() for m in p.metrics}
    body = []
    for key in sorted(rows, key=lambda key: (list(order).index(key[:2]), key[2])):
        protocol, metric, other = key
        names = tag("code", protocol), order[protocol, metric], other
        n = "/".join(dict.fromkeys(str(test["n"]) for test in rows[key].values()))
        cells = [tag("td", name, class_="left") for name in names]
        entries = [_test_entry(rows[key].get(m)) for m in labels]
        body.append(tag("tr", cells, entries, tag("td", n)))
    few = max(test["cases_for_significance"] for row in rows.values() for test in row.values())
    most = max(test["n"] for row in rows.values() for test in row.values())
    too_few = f"With {counted(most, 'case')}, no outcome could be significant: that needs {few}."
    caption = "Effect, and corrected p; bold if significant."
    left = ["protocol", "metric", "against"]
    return [
        tag("p", too_few, class_="soft") if most < few else None,
        _table(caption, left, [*labels.values(), "n"], body),
    ]


def facts_table(facts: Mapping[str, Any]) -> Tag:
    """Returns names and values in two columns."""
    rows = [
        tag("tr", tag("th", str(name), scope="row"), tag("td", str(value)))
        for name, value in facts.items()
    ]
    return tag("table", tag("tbody", rows), class_="facts")


def _table(caption: Content, left: Sequence[str], columns: Sequence[str], body: Content) -> Tag:
    """A table that scrolls, whose first columns hold text."""
    head = [tag("th", name, scope="col", class_="left") for name in left]
    head += [tag("th", name, scope="col") for name in columns]
    parts = tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", body)
    return tag("div", tag("table", parts), class_="scroll")


def _metric_table(
    cells: Sequence[Cell], metric: Metric, protocol: Protocol, labels: Mapping[str, str]
) -> Tag:
    scored = [cell for cell in cells if cell["mean"] is not None and cell["given"]]
    title, name = tag("b", metric.label), tag("code", protocol.name)
    if not scored:
        reasons = {str(cell["reason"] or "nothing to score") for cell in cells}
        return tag("p", title, " ", name, f": n/a ({'; '.join(sorted(reasons))})")
    models = list(dict.fromkeys(cell["model"] for cell in cells if cell["given"]))
    rows = dict.fromkeys((tuple(cell["given"]), cell["model"]) for cell in cells)
    best, shade = best_cells(cells, metric), _shades(cells, metric)
    body = []
    for given, model in sorted(rows, key=lambda row: len(row[0])):
        row = [c for c in cells if (tuple(c["given"]), c["model"]) == (given, model)]
        by_target = {cell["target"]: cell for cell in row}
        head = _given(given, labels, row[0]["published"]) if given else model
        line = [tag("th", head, scope="row", class_="left")]
        line += [tag("td", model, class_="left")] if len(models) > 1 else []
        line += [_entry(by_target.get(m), metric, best, shade) for m in labels]
        body.append(tag("tr", line, class_=None if given else "base"))
    arrow = "higher" if metric.higher_is_better else "lower"
    over = f", mean and standard deviation over {_counts(scored, protocol)}."
    caption = title, f", {arrow} is better. Protocol ", name, over
    left = ["given", "model"] if len(models) > 1 else ["given"]
    return _table(caption, left, list(labels.values()), body)


def _counts(scored: Sequence[Cell], protocol: Protocol) -> str:
    """Says over how many units the means of cells are taken."""
    counts = sorted({cell["n"] for cell in scored})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    unit = protocol.unit + ("s" if counts[-1] > 1 else "")
    dropped = sum(cell["dropped"] for cell in scored)
    left_out = f"; {dropped} numbers that are not finite left out" if dropped else ""
    return f"{n} {unit}{left_out}"


def _given(given: Sequence[str], labels: Mapping[str, str], published: bool) -> Content:
    dots = [tag("i", class_="on" if m in given else None) for m in labels]
    names = " + ".join(labels[m] for m in given)
    star = tag("span", "★", class_="star", title="an input set of the published table")
    return [
        tag("span", dots, class_="dots", aria_hidden="true"),
        names,
        star if published else None,
    ]


def _entry(cell: Cell | None, metric: Metric, best: set[int], shade: Mapping[int, float]) -> Tag:
    if cell is None:
        return tag("td", "·", class_="blank")
    if cell["mean"] is None:
        return tag("td", "n/a")
    sd = None if cell["sd"] is None else tag("small", f"± {cell['sd']:.{metric.digits}f}")
    bold = "best" if id(cell) in best else None
    colour = f"background:rgba(var(--heat),{shade.get(id(cell), 0):.2f})"
    return tag("td", f"{cell['mean']:.{metric.digits}f}", sd, class_=bold, style=colour)


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


def _test_entry(test: Mapping[str, Any] | None) -> Tag:
    if test is None:
        return tag("td", "·", class_="blank")
    if test["identical"]:
        return tag("td", "identical")
    bold = "best" if test["significant"] else None
    p = f"p {test['corrected']:.2g}" if test["corrected"] >= 1e-4 else "p < 0.0001"
    return tag("td", f"{test['rank_biserial']:+.2f}", tag("small", p), class_=bold)
