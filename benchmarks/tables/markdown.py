"""The tables of the comparison on tables, as text."""

from __future__ import annotations

__all__ = ["SCORES", "compare", "gather", "markdown"]

from collections.abc import Mapping
from typing import Any

from benchmarks._comparison import Column, Verdict, summary, table, verdicts

from .measure import RATE
from .methods import OURS

SCORES = [
    Column("NRMSE", "NRMSE", lambda v: v),
    Column("CRPS", "CRPS", lambda v: v),
    Column("coverage", "coverage of 90 %", lambda v: abs(v - 0.9)),
    Column("accuracy", "accuracy", lambda v: -v),
    Column("log loss", "log loss", lambda v: v),
]
TABLE = [Column("count", "runs", None, 0), *SCORES, Column("seconds", "seconds", None, 1)]


def gather(content: Mapping[str, Any], pattern: str) -> dict[str, dict[str, list[Any]]]:
    """Returns the scores with a pattern, for each method and score one for each table and seed.

    Tables without holes in a kind of column have no score of it. Methods that were not run on all
    tables that others were run on are left out.

    Arguments:
        content: The results.
        pattern: The pattern.
    """
    runs = content["patterns"][pattern]
    places = max((set(found) for found in runs.values()), key=len)
    whole = {method: found for method, found in runs.items() if set(found) >= places}
    scores: dict[str, dict[str, list[Any]]] = {}
    for method, found in whole.items():
        ordered = [run for place in sorted(places) for run in found[place]]
        scores[method] = {
            column.key: [run[column.key] for run in ordered if run[column.key] is not None]
            for column in SCORES
        }
        scores[method] = {key: v or [None] for key, v in scores[method].items()}
        scores[method] |= {"seconds": [run["seconds"] for run in ordered], "count": [len(ordered)]}
    return scores


def compare(content: Mapping[str, Any]) -> list[Verdict]:
    """Returns how the imputer does beside the strongest opponent in each score but coverage.

    Arguments:
        content: The results.
    """
    columns = [column for column in SCORES if column.key != "coverage"]
    return [
        verdict
        for pattern in content["patterns"]
        for verdict in verdicts(pattern, gather(content, pattern), columns, OURS)
    ]


def markdown(content: Mapping[str, Any]) -> str:
    """Returns all tables.

    Arguments:
        content: The results, with what `benchmarks._results.facts` says first.
    """
    machine, absent = content["machine"], content["absent"]
    parts = [
        "# Tables, measured",
        f"`{content['command']}`, commit {content['commit']}, {content['date']}; "
        f"{machine['cpu']}, one thread, PyTorch {machine['torch']}. Means over tables, plus or "
        "minus half of their 95 % interval over tables (Student's t); the best mean is bold. "
        f"{RATE:.0%} of the cells are hidden. NRMSE and CRPS are in deviations of complete "
        "columns; accuracy and log loss are of categories. Seconds are of the processor, with the "
        "choice of settings." + (f" Left out: {', '.join(absent)}." if absent else ""),
    ]
    found = compare(content)
    if found:
        parts += [f"## {OURS} beside the strongest opponent", summary("pattern", found, OURS)]
    for pattern in content["patterns"]:
        tables = sorted({t for runs in content["patterns"][pattern].values() for t in runs})
        parts += [
            f"## {pattern}",
            f"{len(tables)} tables: {', '.join(tables)}.",
            table("method", gather(content, pattern), TABLE),
        ]
    return "\n\n".join(parts)
