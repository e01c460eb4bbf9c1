"""Training runs that are finished."""

from __future__ import annotations

__all__ = ["has_card", "is_finished"]

from dataclasses import replace
from pathlib import Path

import torch

from mmpoe.training import CheckpointError, Checkpoints, load_checkpoint

from .config import Config, read_config


def is_finished(run: Path, config: Config) -> bool:
    """Returns whether a run came to its end, and its model is that of its last checkpoint.

    The model may hold more by now, such as matched experts or a spread. A model that is damaged,
    or older than the checkpoint, is one to write anew.

    Arguments:
        run: The folder of the run.
        config: How it is to be resumed. If that is not how it was trained, but for calibration,
            it is not finished.

    Raises:
        ValueError: If the configuration of the run cannot be read.
    """
    checkpoints = Checkpoints(run / "checkpoints")
    steps = checkpoints.steps()
    if not steps or not (run / "config.toml").is_file():
        return False
    kept = read_config(run / "config.toml")
    if replace(config, calibration=kept.calibration) != kept:
        return False
    try:
        weights, description = load_checkpoint(run / "model")
        last, _ = load_checkpoint(checkpoints.path(steps[-1]))
    except CheckpointError:
        return False
    same = (name in weights and torch.equal(weights[name], value) for name, value in last.items())
    return description.get("interrupted") is False and all(same)


def has_card(run: Path) -> bool:
    """Returns whether a run has the card of its model, and not that of an earlier one."""
    card = run / "model" / "README.md"
    _, description = load_checkpoint(run / "model")
    return card.is_file() and description["sha256"] in card.read_text(errors="replace")
