"""The results of a session as tables."""

from __future__ import annotations

__all__ = ["markdown"]

from collections.abc import Mapping, Sequence
from typing import Any

from .stages import STAGES, Stage

MARKS = {True: "yes", False: "**no**", None: ""}


def markdown(content: Mapping[str, Any]) -> str:
    """Returns the page of a session: all stages, then what each one found."""
    records = content["stages"]
    parts = ["# On a GPU, measured", *_head(content)]
    parts.append(_table([_summary(stage, records.get(stage.name)) for stage in STAGES]))
    for stage in STAGES:
        record = records.get(stage.name)
        if record and (record["rows"] or record["state"] == "failed"):
            parts += [f"## {stage.name.capitalize()}", stage.about]
            parts += [_table(record["rows"])] if record["rows"] else []
            parts += [] if record["state"] == "done" else [_said(record)]
    return "\n\n".join(parts) + "\n"


def _head(content: Mapping[str, Any]) -> list[str]:
    machine = content["machine"]
    facts = {r["fact"]: r["value"] for r in content["stages"].get("facts", {}).get("rows", [])}
    head = (
        f"{facts.get('device', 'unknown device')}, {machine['cores']} cores of {machine['cpu']}, "
        f"PyTorch {machine['torch']}, Python {machine['python']}, commit {content['commit']}, "
        f"{content['date']}. Printed by `{content['command']}`."
    )
    dry = "**A dry run on a CPU: it shows that every stage runs, and its numbers say nothing.**"
    return [dry, head] if content["profile"] == "dry" else [head]


def _summary(stage: Stage, record: Mapping[str, Any] | None) -> dict[str, Any]:
    if record is None:
        return {"stage": stage.name, "state": "not run"}
    rows = record["rows"]
    checks = [row["holds"] for row in rows if "holds" in row]
    failures = sum("failed" in row for row in rows)
    told = stage.command or record["state"] != "done"
    note = record["output"][-1][:160] if told and record["output"] else ""
    return {
        "stage": stage.name,
        "state": record["state"] if record["state"] == "done" else f"**{record['state']}**",
        "s": record["seconds"],
        "rows": len(rows),
        "failed rows": failures or "",
        "checks that hold": f"{sum(checks)} of {len(checks)}" if checks else "",
        "note": note,
    }


def _said(record: Mapping[str, Any]) -> str:
    """The end of the output, as it is."""
    lines = [line.replace("```", "'''") for line in record["output"][-12:]]
    return "\n".join(["```text", *lines, "```"])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table whose columns are those of any row, in the order in which they come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(name)) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None or isinstance(value, bool):
        return MARKS[value]
    return str(value).replace("|", "\\|").replace("\n", " ")
