"""The card of a model: what it is, what it was trained on, what it is for and what not."""

from __future__ import annotations

__all__ = ["write_card"]

import json
import re
from pathlib import Path
from shlex import quote
from typing import Any

from mmpoe.training import CheckpointError, write_file

from .counts import counted
from .modalities import LABELS
from .phantom import CREDIT
from .writing import Markdown, code, code_block, fill, joined, table

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

    Raises:
        CheckpointError: If ``data.json`` or ``model.json`` does not hold what it should.
    """
    try:
        model = json.loads((run / "model" / "model.json").read_text(encoding="utf-8"))
        data = json.loads((run / "data.json").read_text(encoding="utf-8"))
        text = _card(run, model, data, scores)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{run} should hold the data.json and the model/model.json of a run, but they are "
            f"damaged: {type(error).__name__}: {error}."
        ) from error
    path = run / "model" / "README.md"
    write_file(path, f"{text}\n".encode())
    return path


def _card(run: Path, model: dict[str, Any], data: dict[str, Any], scores: str | None) -> Markdown:
    names = [LABELS.get(m, m) for m in model["modalities"]]
    parts = [
        fill("# {} of {}", model["model"], joined(names)),
        _warning(data),
        "## Intended use",
        PURPOSE,
        "## How to use it",
        code_block(_command(run, model["modalities"][0]), "console"),
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
        fill(
            "`model.safetensors` has SHA-256 {}; `model.json` describes it. The code that built "
            "it is under the MIT licence; whether weights may be passed on depends on the terms "
            "of the training data.{}",
            code(model["sha256"]),
            f" {CREDIT}" if data["phantom"] else "",
        ),
    ]
    return Markdown("\n\n".join(parts))


def _warning(data: dict[str, Any]) -> str:
    if data["phantom"]:
        return "> Trained on simulated patients (a phantom), not on people. Research only."
    return "> Research only, not for clinical use."


def _command(run: Path, modality: str) -> str:
    given = f"--{modality} FILE" if modality in LABELS else f"--input {quote(modality)}=FILE"
    folder = quote(str(run))
    return f"$ python -m examples.medical_mri_us synthesize {folder} {given} --out OUT"


def _inputs(model: dict[str, Any]) -> Markdown:
    return fill(
        "Slices of {size} x {size} pixels, {spacing[0]:g} x {spacing[1]:g} mm, {spacing[2]:g} mm "
        "apart; axes: {axes}. {normalisation} Outputs are on a scale from 0 to {scale:g}."
        "{covariates}",
        size=model["architecture"]["size"],
        spacing=model["spacing"],
        axes=model["axes"] or "those of the files",
        normalisation=model["normalisation"],
        scale=model["intensity_scale"],
        covariates=fill(
            " For each case, it has to know: {}.", joined(c["name"] for c in model["covariates"])
        )
        if model.get("covariates")
        else "",
    )


def _data(model: dict[str, Any], data: dict[str, Any]) -> Markdown:
    found = data["missingness"]
    rows = [
        [*("x" if there else "" for there in pattern["observed"]), pattern["cases"]]
        for pattern in found["patterns"]
    ]
    parts = [
        fill(
            "{} of the split {}, of which {} some modality:",
            counted(found["cases"], "simulated patient" if data["phantom"] else "case"),
            code(data["split"]),
            counted(found["incomplete"], "lacks", "lack"),
        ),
        table([*model["modalities"], "cases"], rows),
    ]
    if model["harmonised"]:
        parts.append(fill("Targets are harmonised images for {}.", joined(model["harmonised"])))
    if data["problems"]:
        left_out = "Left out, as their files could not be used: {}."
        parts.append(fill(left_out, len(data["problems"])))
    return Markdown("\n\n".join(parts))


def _training(model: dict[str, Any]) -> Markdown:
    init = model.get("init")
    return fill(
        "{} in {:.1f} minutes, {} of them skipped.{}{} Settings: {}. The whole configuration "
        "is in `config.toml`. Software: mmpoe {}, torch {}.",
        counted(model["steps"], "step"),
        model["seconds"] / 60,
        model["skipped"],
        " It was stopped before its end." if model["interrupted"] else "",
        fill(" It started from the weights of {}.", code(init)) if init else "",
        joined(f"{key} {value}" for key, value in model["settings"].items()),
        model["mmpoe"],
        model["torch"],
    )


def _uncertainty(model: dict[str, Any]) -> str:
    how = model.get("calibration")
    if not how:
        return (
            "**Not calibrated**: standard deviations understate errors. `calibrate` fits what it "
            "takes to match them."
        )
    if "coverage" not in how:  # of an earlier version
        return fill(
            "Standard deviations come from matched experts, fitted for {} to {} ({} of them "
            "complete, of {}). How many complete cases there were limits how far they are to be "
            "trusted.",
            counted(how["steps"], "step"),
            counted(how["slices"], "slice"),
            how["complete"],
            counted(how["complete_cases"], "case"),
        )
    kept = "the likelihood, as it was trained, since nothing improved draws"
    if model["spread"] is not None or model["matched"]:
        kept = "matched experts" if model["matched"] else "a spread around the prediction"
    held = [f"{name} {100 * share:.1f} %" for name, share in how["coverage"].items()]
    said = fill(
        "Standard deviations come from {}, fitted to {}, {} of them complete. On {}, 90 % "
        "intervals held: {}.",
        kept,
        counted(how["slices"], "slice"),
        how["complete"],
        counted(how["held_out_cases"], "held-out case"),
        joined(held),
    )
    return said if model["calibrated"] else Markdown(f"**Not calibrated.** {said}")
