r"""Checkpoints: weights in safetensors, the rest in JSON, checked when read. No pickle, ever."""

from __future__ import annotations

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: the message says which file, and what is wrong with it."""


def save_checkpoint(
    folder: str | os.PathLike[str], state: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Writes weights and their description, each file whole or not at all.

    Arguments:
        folder: Where to write ``model.safetensors`` and ``model.json``; made if need be.
        state: The weights by name, as of :meth:`torch.nn.Module.state_dict`.
        description: What is needed to build the model again, and whatever else JSON can hold.

    Raises:
        OSError: If the folder cannot be written to.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # modules that share parameters have several names for one tensor; it is stored once
    names: dict[tuple[int, tuple[int, ...]], str] = {}
    aliases = {}
    for name, value in state.items():
        first = names.setdefault((value.data_ptr(), tuple(value.shape)), name)
        if first != name and value.numel() > 0:
            aliases[name] = first

    weights = save(
        {n: v.detach().cpu().contiguous() for n, v in state.items() if n not in aliases}
    )
    manifest = {"sha256": hashlib.sha256(weights).hexdigest(), "aliases": aliases}
    text = json.dumps({**description, **manifest}, indent=2)

    # the description names the weights it belongs to, so a mix of old and new is detected
    _write(folder / WEIGHTS, weights)
    _write(folder / DESCRIPTION, text.encode())


def load_checkpoint(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_checkpoint` wrote.

    Arguments:
        folder: The folder of the checkpoint.

    Returns:
        The weights by name, and their description.

    Raises:
        CheckpointError: If a file is missing, truncated or altered.
    """
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
    if found != description.get("sha256"):
        raise CheckpointError(
            f"{folder / WEIGHTS} should have the SHA-256 {description.get('sha256')} that "
            f"{DESCRIPTION} names, but has {found}: it is incomplete or was altered."
        )
    state = load(weights)
    state.update({name: state[first] for name, first in description["aliases"].items()})
    return state, description


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
