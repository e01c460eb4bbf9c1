"""The checkpoints of a run, of which the last two and the best are kept."""

from __future__ import annotations

__all__ = ["Checkpoints"]

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .checkpoint import (
    DESCRIPTION,
    WEIGHTS,
    CheckpointError,
    digest,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from .files import named, publish, remove, scratch, sweep, write_file

MANIFEST, TRAINING = "manifest.json", "training"
FILES = (DESCRIPTION, WEIGHTS, f"{TRAINING}.json", f"{TRAINING}.safetensors")
"""The files that a manifest names, if no more."""


class Saved(NamedTuple):
    """The content of a checkpoint."""

    weights: dict[str, Tensor]
    """The averaged weights, those that a model is used with."""
    description: dict[str, Any]
    """The description of the model."""
    state: dict[str, Any]
    """The rest of the state of the run, for resuming it."""


class Checkpoints:
    """The checkpoints of a run, each in a folder ``step-<number>`` of its own.

    A checkpoint is written under a temporary name and renamed once it is on the disk, and loses
    its name before any of it is removed. Beside the files of a model (:func:`load_checkpoint`
    reads them) it holds the state of the run and a manifest with the size and the SHA-256 of each
    file.

    Arguments:
        folder: The folder of them all.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, ascending."""
        names = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []
        found = (re.fullmatch(r"step-(\d+)", name) for name in names)
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Returns the folder of a checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        description: Mapping[str, Any],
        state: object,
        best: int | None = None,
    ) -> Path:
        """Writes a checkpoint, and removes all others but the one before it and the best.

        Arguments:
            step: Its step.
            weights: The weights for using the model.
            description: What to write about the model.
            state: The rest of the state of the run, for resuming it.
            best: The step of the best checkpoint.

        Returns:
            The folder of the checkpoint.

        Raises:
            OSError: If it cannot be written, or the disk is full; others are unchanged.
        """
        final = self.path(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        with named(final), scratch(self.folder) as temporary:
            save_checkpoint(temporary, weights, description)
            save_state(temporary / TRAINING, state)
            files = {p.name: p.read_bytes() for p in sorted(temporary.iterdir())}
            manifest = {n: {"bytes": len(c), "sha256": digest(c)} for n, c in files.items()}
            write_file(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
            publish(temporary, final)
        steps = self.steps()
        for old in set(steps) - {*steps[-2:], step, best}:
            remove(self.path(old))
        return final

    def load(self, step: int) -> Saved:
        """Reads a checkpoint.

        Raises:
            CheckpointError: If a file of it is missing, incomplete, altered, or of another format.
                The message names the last intact checkpoint.
        """
        try:
            return self._load(self.path(step))
        except CheckpointError as error:
            others = (s for s in reversed(self.steps()) if s != step)
            good = next((s for s in others if self._is_intact(s)), None)
            advice = (
                "No other checkpoint is intact."
                if good is None
                else f"{self.path(good)} is intact; to resume from it, remove {self.path(step)}."
            )
            raise CheckpointError(f"{error} {advice}") from error

    def clean(self) -> None:
        """Removes incomplete checkpoints that killed processes have left.

        No other process should write checkpoints there: see :func:`lock`.
        """
        sweep(self.folder, locked=True)
        for path in self.folder.glob(".step-*.tmp"):  # of earlier versions
            remove(path)

    def _load(self, path: Path) -> Saved:
        _verify(path)
        weights, description = load_checkpoint(path)
        return Saved(weights, description, load_state(path / TRAINING))

    def _is_intact(self, step: int) -> bool:
        try:
            _verify(self.path(step))
        except CheckpointError:
            return False
        return True


def _verify(path: Path) -> None:
    """Raises a CheckpointError unless all files match the manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        entries = {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in manifest.items()}
    except OSError as error:
        raise CheckpointError(
            f"{path} should hold {MANIFEST}, but it cannot be read ({error.strerror}): "
            "the checkpoint is incomplete."
        ) from error
    except Exception as error:  # of any type, for what was edited
        raise CheckpointError(f"{path / MANIFEST} is damaged: {error}.") from error
    if strange := [name for name in entries if Path(name).name != name or "\0" in name]:
        raise CheckpointError(f"{path / MANIFEST} was altered: it names {strange[0]!r}.")
    if absent := [name for name in FILES if name not in entries]:
        raise CheckpointError(f"{path / MANIFEST} was altered: it does not name {absent[0]}.")
    for name, (size, sha256) in entries.items():
        try:
            content = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path / name} cannot be read ({error.strerror}): the checkpoint is incomplete."
            ) from error
        if len(content) < size:
            raise CheckpointError(
                f"{path / name} is incomplete: it holds {len(content)} of {size} bytes."
            )
        if len(content) != size or digest(content) != sha256:
            raise CheckpointError(
                f"{path / name} was altered: its size or SHA-256 is not the one in {MANIFEST}."
            )
