"""The card of a model: what it is, what it was trained on, what it is for and what not."""

from __future__ import annotations

__all__ = ["write_card"]

import json
import re
from pathlib import Path
from typing import Any

from mmpoe.training import write_file

from .modalities import LABELS
from .phantom import CREDIT

PURPOSE = (
    "For research on synthesis with missing modalities. **Not for clinical use**: images that it "
    "makes can lack what is there, show what is not, and look convincing all the same."
)


def write_card(run: Path, scores: str | None = None) -> Path:
    """Writes the card of a run's model, README.md, from what the run says of itself.

    Arguments:
        run: The folder of the run.
        scores: Tables of scores in Markdown, each with the name of its protocol; its headings
            are put below that of the section.

    Returns:
        The file.
    """
    model = json.loads((run / "model" / "model.json").read_text())
    data = json.loads((run / "data.json").read_text())
    names = [str(LABELS.get(m, m)) for m in model["modalities"]]
    parts = [
        f"# {model['model']} of {', '.join(names)}",
        _warning(data),
        "## Intended use",
        PURPOSE,
        "## How to use it",
        f"```console\n$ python -m examples.medical_mri_us synthesize {run} "
        f"--{_option(model['modalities'][0])} FILE --out OUT\n```",
        _inputs(model),
        "## What it was trained on",
        _data(model, data),
        "## How it was trained",
        _training(model),
        "## Scores",
        re.sub(r"(?m)^#", "###", scores)
        if scores
        else "Not evaluated. Scores without the name of a protocol mean nothing.",
        "## Uncertainty",
        _uncertainty(model),
        "## Files and licence",
        f"`model.safetensors` has SHA-256 `{model['sha256']}`; `model.json` describes it. The "
        "code that built it is under the MIT licence; whether weights may be passed on depends on "
        "the terms of the training data." + (f" {CREDIT}" if data["phantom"] else ""),
    ]
    path = run / "model" / "README.md"
    write_file(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _warning(data: dict[str, Any]) -> str:
    if data["phantom"]:
        return "> Trained on simulated patients (a phantom), not on people. Research only."
    return "> Research only, not for clinical use."


def _option(modality: str) -> str:
    return modality if modality in LABELS else f"input {modality}="


def _inputs(model: dict[str, Any]) -> str:
    size, spacing = model["architecture"]["size"], model["spacing"]
    axes = model["axes"] or "those of the files"
    return (
        f"Slices of {size} x {size} pixels, {spacing[0]:g} x {spacing[1]:g} mm, "
        f"{spacing[2]:g} mm apart; axes: {axes}. {model['normalisation']} Outputs are on a scale "
        f"from 0 to {model['intensity_scale']:g}."
    )


def _data(model: dict[str, Any], data: dict[str, Any]) -> str:
    table = data["missingness"]
    names = model["modalities"]
    rows = ["| " + " | ".join((*names, "cases")) + " |", "|---" * (len(names) + 1) + "|"]
    for pattern in table["patterns"]:
        marks = ["x" if there else "" for there in pattern["observed"]]
        rows.append("| " + " | ".join((*marks, str(pattern["cases"]))) + " |")
    kind = "simulated patients" if data["phantom"] else "cases"
    text = (
        f"{table['cases']} {kind} of the split `{data['split']}`, of which {table['incomplete']} "
        "lack some modality:\n\n" + "\n".join(rows)
    )
    if model["harmonised"]:
        text += f"\n\nTargets are harmonised images for {', '.join(model['harmonised'])}."
    if data["problems"]:
        text += f"\n\nLeft out, as their files could not be used: {len(data['problems'])}."
    return text


def _training(model: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in model["settings"].items())
    stopped = " It was stopped before its end." if model["interrupted"] else ""
    return (
        f"{model['steps']} steps in {model['seconds'] / 60:.1f} minutes, {model['skipped']} of "
        f"them skipped.{stopped} Settings: {settings}. The whole configuration is in "
        f"`config.toml`. Software: mmpoe {model['mmpoe']}, torch {model['torch']}."
    )


def _uncertainty(model: dict[str, Any]) -> str:
    if not model["calibrated"]:
        return (
            "**Not calibrated**: standard deviations understate errors. `calibrate` fits matched "
            "experts, from which they then come."
        )
    how = model["calibration"]
    return (
        f"Standard deviations come from matched experts, fitted for {how['steps']} steps to "
        f"{how['slices']} slices ({how['complete']} of them complete, of {how['complete_cases']} "
        "cases). How many complete cases there were limits how far they are to be trusted."
    )
