"""The folder of a training: its checkpoints, of which the last ones and the best are kept."""

from __future__ import annotations

__all__ = ["Checkpoints", "lock"]

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .checkpoint import (
    CheckpointError,
    digest,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from .files import publish, remove, write_file

MANIFEST, TRAINING = "manifest.json", "training"


class Saved(NamedTuple):
    """What a checkpoint of a training holds."""

    weights: dict[str, Tensor]
    """The averaged weights, those that a model is used with."""
    description: dict[str, Any]
    """What the caller said about the model."""
    state: dict[str, Any]
    """All that is needed to go on."""


class Checkpoints:
    """The checkpoints of a training, each in a folder ``step-<number>`` of its own.

    A checkpoint gets its name when all of it is on the disk, and loses it before any of it goes.
    Next to the files of a model (:func:`load_checkpoint` reads them) it holds the state of the
    training and a manifest with the size and the SHA-256 of each file.

    Arguments:
        folder: The folder of them all.
        keep: The number of the last checkpoints to keep, beside the best.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def steps(self) -> list[int]:
        """Returns the steps that there are checkpoints of, ascending."""
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
        """Writes a checkpoint, and removes those that need not be kept.

        Arguments:
            step: The step that it is of.
            weights: The weights that the model is to be used with.
            description: What to say about the model.
            state: All that is needed to go on.
            best: The step of the best checkpoint, which is kept.

        Returns:
            The folder of the checkpoint.

        Raises:
            OSError: If it cannot be written, or the disk is full; others are as they were.
        """
        final = self.path(step)
        temporary = self.folder / f".{final.name}.{os.getpid()}.tmp"
        try:
            save_checkpoint(temporary, weights, description)
            save_state(temporary / TRAINING, state)
            files = {p.name: p.read_bytes() for p in sorted(temporary.iterdir())}
            manifest = {n: {"bytes": len(c), "sha256": digest(c)} for n, c in files.items()}
            write_file(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
            publish(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        steps = self.steps()
        for old in set(steps) - {*steps[-self.keep :], step, best}:
            remove(self.path(old))
        return final

    def load(self, step: int) -> Saved:
        """Reads a checkpoint.

        Raises:
            CheckpointError: If a file of it is missing, incomplete, altered, or of another format.
                The message names the last checkpoint that is in order.
        """
        try:
            return self._load(self.path(step))
        except CheckpointError as error:
            good = next((s for s in reversed(self.steps()) if s != step and self._good(s)), None)
            advice = (
                "There is no other checkpoint that is in order."
                if good is None
                else f"{self.path(good)} is in order; to go on from it, remove {self.path(step)}."
            )
            raise CheckpointError(f"{error} {advice}") from error

    def clean(self) -> None:
        """Removes what processes that were killed have left of checkpoints without a name."""
        for path in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _load(self, path: Path) -> Saved:
        _verify(path)
        weights, description = load_checkpoint(path)
        return Saved(weights, description, load_state(path / TRAINING))

    def _good(self, step: int) -> bool:
        try:
            _verify(self.path(step))
        except CheckpointError:
            return False
        return True


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder, as long as this one lives.

    Raises:
        ValueError: If another process is at work there.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # a system without such locks
        yield
        return
    path = folder / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise ValueError(
                f"'folder' should be used by one training at a time, but {folder} is in use by "
                f"process {file.read().strip()}."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _verify(path: Path) -> None:
    """Raises a CheckpointError unless all files are as they were written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        entries = {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in manifest.items()}
    except OSError as error:
        raise CheckpointError(
            f"{path} should hold {MANIFEST}, but it cannot be read ({error.strerror}): "
            "the checkpoint is incomplete."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged: {error}.") from error
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
