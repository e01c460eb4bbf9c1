r"""Checkpoints: weights in safetensors, the rest in JSON, checked when read. No pickle, ever."""

from __future__ import annotations

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from mmpoe.extras import needs

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: the message says which file, and what is wrong with it."""


def save_checkpoint(
    folder: str | os.PathLike[str], state: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Writes weights and their description, over an older checkpoint if there is one.

    A process that is stopped at any point leaves the older checkpoint or the new one, whole: each
    file is replaced at once, and until the weights are, the new description carries the older one
    as ``previous``. The digest of the weights says which of the two is theirs.

    Arguments:
        folder: Where to write ``model.safetensors`` and ``model.json``; made if need be.
        state: The weights by name, as of :meth:`torch.nn.Module.state_dict`.
        description: What is needed to build the model again, and whatever else JSON can hold. The
            keys ``sha256``, ``aliases`` and ``previous`` are the checkpoint's own.

    Raises:
        ValueError: If `description` holds ``previous``.
        OSError: If the folder cannot be written to.
    """
    with needs("train"):
        from safetensors.torch import save

    if "previous" in description:
        raise ValueError(
            "'description' should not hold 'previous', a key of the checkpoint itself, "
            f"but holds {description['previous']!r} there."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # modules that share parameters have several names for one tensor; it is stored once
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        first = names.setdefault((value.device, value.data_ptr(), value.dtype), name)
        if first != name and torch.equal(value, state[first]):  # not a transposed view, or a part
            aliases[name] = first

    # cloned, as parts of one tensor that differ are stored one by one
    stored = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
        if name not in aliases
    }
    weights = save(stored)
    manifest = {"sha256": hashlib.sha256(weights).hexdigest(), "aliases": aliases}
    new = {**description, **manifest}
    text = json.dumps(new, indent=2)

    try:
        previous = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError):  # there is none, or it is of no use
        pass
    else:
        _write(folder / DESCRIPTION, json.dumps({**new, "previous": previous}, indent=2).encode())
    _write(folder / WEIGHTS, weights)
    _write(folder / DESCRIPTION, text.encode())


def load_checkpoint(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_checkpoint` wrote.

    Arguments:
        folder: The folder of the checkpoint.

    Returns:
        The weights by name, and their description, with ``sha256`` and ``aliases`` added.

    Raises:
        CheckpointError: If a file is missing, truncated or altered, or does not describe weights.
    """
    with needs("train"):
        from safetensors.torch import load

    folder = Path(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
        description = json.loads((folder / DESCRIPTION).read_text())
    except OSError as error:
        raise CheckpointError(
            f"'folder' should hold {WEIGHTS} and {DESCRIPTION}, but {error.filename} "
            f"cannot be read: {error.strerror}."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{folder / DESCRIPTION} is not valid JSON: {error}.") from error

    found = hashlib.sha256(weights).hexdigest()
    entry = description
    while _is_description(entry) and entry["sha256"] != found and "previous" in entry:
        entry = entry["previous"]  # a save was stopped before it replaced the weights
    if not _is_description(entry):
        raise CheckpointError(
            f"{folder / DESCRIPTION} should hold an object with 'sha256' (a string) and 'aliases' "
            "(an object), but does not."
        )
    if entry["sha256"] != found:
        raise CheckpointError(
            f"{folder / WEIGHTS} should have the SHA-256 {description['sha256']} that "
            f"{DESCRIPTION} names, but has {found}: it is incomplete or was altered."
        )

    state = load(weights)
    for name, first in entry["aliases"].items():
        if not isinstance(first, str) or first not in state:
            raise CheckpointError(
                f"{folder / DESCRIPTION} should name tensors of {WEIGHTS} as 'aliases', "
                f"but names {first!r}."
            )
        state[name] = state[first]
    return state, {key: value for key, value in entry.items() if key != "previous"}


def _is_description(entry: object) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("aliases"), dict)
    )


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
