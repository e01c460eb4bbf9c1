"""Checkpoints: tensors in safetensors, the rest in JSON, checked when read; never a pickle."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "load_checkpoint",
    "load_state",
    "load_weights",
    "save_checkpoint",
    "save_state",
]

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mmpoe.extras import needs

from ._nested import flatten, unflatten
from .files import check_space, sweep, write_file

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

SEAL = "description_sha256"
"""The key of a description that holds its own digest."""

OWN = ("sha256", "aliases", SEAL, "previous")
"""The keys of a description that are the checkpoint's own."""

FORMAT = 1
"""The version of the files of :func:`save_state`, whatever the state."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and what is wrong with it."""


def save_checkpoint(
    folder: str | os.PathLike[str], state: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Writes weights and their description; an older checkpoint in the folder is replaced.

    A process that is stopped at any point leaves the older checkpoint or the new one, complete:
    each file is replaced in one step, and until the weights are, the new description carries the
    older one as ``previous``. The digest of the weights tells which of the two is theirs, and
    ``description_sha256`` is that of the rest of the description. To change a description by hand,
    delete that key.

    Arguments:
        folder: Where to write ``model.safetensors`` and ``model.json``; made if need be.
        state: The weights by name, as of :meth:`torch.nn.Module.state_dict`.
        description: How to build the model again, and whatever else JSON can hold. The keys
            ``sha256``, ``aliases``, ``description_sha256`` and ``previous`` are the checkpoint's
            own.

    Raises:
        ValueError: If `description` holds ``previous``.
        TypeError: If a tensor is sparse, shared out among processes, or without values.
        OSError: If the folder cannot be written to, or its disk is full.
    """
    if "previous" in description:
        raise ValueError(
            "'description' should not hold 'previous', a key of the checkpoint itself, "
            f"but holds {description['previous']!r} there."
        )
    weights, aliases = _encode(state)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    new = {**description, "sha256": digest(weights), "aliases": aliases}
    new = {**new, SEAL: _seal(new)}
    text = json.dumps(new, indent=2)
    check_space(folder, len(weights) + 2 * len(text))

    try:
        previous = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError, RecursionError):  # absent or useless
        pass
    else:
        both = json.dumps({**new, "previous": previous}, indent=2)
        write_file(folder / DESCRIPTION, both.encode())
    write_file(folder / WEIGHTS, weights)
    write_file(folder / DESCRIPTION, text.encode())


def load_checkpoint(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint of :func:`save_checkpoint`.

    Arguments:
        folder: The folder of the checkpoint.

    Returns:
        The weights by name, and their description, with ``sha256`` and ``aliases`` added.

    Raises:
        CheckpointError: If a file is missing, truncated or altered, or does not describe weights.
    """
    folder = Path(folder)
    weights, description = _read(folder / WEIGHTS, folder / DESCRIPTION, "folder")
    found = digest(weights)
    entry = description
    while _is_description(entry) and entry["sha256"] != found and "previous" in entry:
        entry = entry["previous"]  # a save was stopped before it replaced the weights
    if not _is_description(entry):
        raise CheckpointError(
            f"{folder / DESCRIPTION} should hold an object with 'sha256' (a string) and 'aliases' "
            "(an object), but does not."
        )
    if SEAL in entry and entry[SEAL] != _seal(entry):
        raise CheckpointError(
            f"{folder / DESCRIPTION} should have the SHA-256 that it names as '{SEAL}', but does "
            "not: it was altered. If you changed it on purpose, take that entry out."
        )
    if entry["sha256"] != found:
        raise _altered(folder / WEIGHTS, DESCRIPTION, description["sha256"], found)
    state = _decode(weights, entry["aliases"], folder / DESCRIPTION)
    return state, {key: value for key, value in entry.items() if key not in (SEAL, "previous")}


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Loads weights into a module, all or none.

    Arguments:
        module: The module.
        state: The weights by name.
        source: Their source, which an error names.

    Raises:
        CheckpointError: If their names or shapes are not those of the module; the message names
            the first difference.
    """
    own = module.state_dict()
    for name, value in own.items():
        if name not in state:
            raise CheckpointError(
                f"{source} should hold {name!r}, a tensor of the model, but does not: "
                "it is of another architecture."
            )
        if state[name].shape != value.shape:
            raise CheckpointError(
                f"{source} should hold {name!r} with shape {tuple(value.shape)}, but holds "
                f"{tuple(state[name].shape)}: it is of another architecture."
            )
    for name in state:
        if name not in own:
            reason = (
                "it is of a calibrated model, see mmpoe.imputation.add_matched_experts"
                if ".matched." in name
                else "it is of another architecture"
            )
            raise CheckpointError(
                f"{source} should hold tensors of the model, but holds {name!r}, which it does "
                f"not have: {reason}."
            )
    module.load_state_dict(state)


def check_description(found: Mapping[str, Any], wanted: Mapping[str, Any], source: object) -> None:
    """Raises a CheckpointError at the first entry of a description that differs.

    Arguments:
        found: The description of a checkpoint.
        wanted: The entries that it should hold; others are not compared.
        source: Its source, which an error names.
    """
    for key, value in json.loads(json.dumps(wanted)).items():  # JSON has no tuples
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            check_description(found[key], value, f"{source}, '{key}',")
        elif key not in found or not _is_same(found[key], value):
            what = repr(found[key]) if key in found else "nothing"
            raise CheckpointError(
                f"{source} should hold {value!r} as '{key}', as this run does, but holds {what}."
            )


def save_state(path: str | os.PathLike[str], state: object) -> None:
    """Writes a nested state: dictionaries, lists and tuples of tensors, numbers and strings.

    Arguments:
        path: Where to write, without a suffix: ``<path>.safetensors`` and ``<path>.json``.
        state: The state; keys are strings, numbers or booleans.

    Raises:
        TypeError: If the state holds anything else, or a tensor that is sparse, shared out among
            processes, or without values.
        OSError: If the files cannot be written, or the disk is full.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> save_state(folder / "batch", (torch.ones(2), {"step": 3}))
        >>> load_state(folder / "batch")
        (tensor([1., 1.]), {'step': 3})
    """
    tensors, rest = flatten(state)
    content, aliases = _encode(tensors)
    head = {"format": FORMAT, "sha256": digest(content), "aliases": aliases, "state": rest}
    text = json.dumps(head).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, len(content) + len(text))
    write_file(path.with_name(path.name + ".safetensors"), content)
    write_file(path.with_name(path.name + ".json"), text)


def load_state(path: str | os.PathLike[str]) -> Any:  # noqa: ANN401
    """Reads a state of :func:`save_state`.

    Arguments:
        path: The path that was given to it.

    Raises:
        CheckpointError: If a file is missing, truncated or altered, or of another format.
    """
    path = Path(path)
    binary, text = (path.with_name(path.name + suffix) for suffix in (".safetensors", ".json"))
    content, head = _read(binary, text, "path")
    if not (_is_description(head) and head.get("format") == FORMAT):
        version = head.get("format") if isinstance(head, dict) else None
        raise CheckpointError(
            f"{text} should be of format {FORMAT}, which this version of mmpoe reads, "
            f"but is of format {version}."
        )
    if digest(content) != head["sha256"]:
        raise _altered(binary, text.name, head["sha256"], digest(content))
    try:
        return unflatten(_decode(content, head["aliases"], text), head.get("state"))
    except CheckpointError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{text} does not describe {binary.name}: {error}.") from error


def digest(content: bytes) -> str:
    """Returns the SHA-256 of some bytes as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _encode(state: Mapping[str, Tensor]) -> tuple[bytes, dict[str, str]]:
    """The content of a safetensors file, and the names that share a tensor of another name."""
    with needs("train"):
        from safetensors.torch import save

    for name, value in state.items():
        _check_values(name, value)
    # modules that share parameters have several names for one tensor, which is stored once
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        first = names.setdefault((value.device, value.data_ptr(), value.dtype), name)
        if first != name and torch.equal(value, state[first]):  # not a transposed view, or a part
            aliases[name] = first

    # cloned, as safetensors refuses tensors that share memory
    stored = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
        if name not in aliases
    }
    return save(stored), aliases


def _decode(content: bytes, aliases: Mapping[str, Any], source: Path) -> dict[str, Tensor]:
    with needs("train"):
        from safetensors import SafetensorError
        from safetensors.torch import load

    try:
        state = load(content)
    except SafetensorError as error:
        binary = source.with_suffix(".safetensors")
        raise CheckpointError(f"{binary} is not valid safetensors: {error}.") from error
    for name, first in aliases.items():
        if not isinstance(first, str) or first not in state:
            raise CheckpointError(
                f"{source} should name tensors of {source.with_suffix('.safetensors').name} as "
                f"'aliases', but names {first!r}."
            )
        state[name] = state[first]
    return state


def _read(binary: Path, text: Path, argument: str) -> tuple[bytes, Any]:
    """The bytes of one file of a checkpoint, and the parsed JSON of the other."""
    with needs("train"):
        import safetensors.torch  # noqa: F401  # its absence comes before errors about files

    for file in (binary, text):
        if file.exists() and not file.is_file():
            raise CheckpointError(f"{file} should be a file, but is a folder, pipe or device.")
    try:
        return binary.read_bytes(), json.loads(text.read_text())
    except OSError as error:
        raise CheckpointError(
            f"'{argument}' should hold {binary.name} and {text.name}, but {error.filename} "
            f"cannot be read: {error.strerror}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{text} is not valid JSON: {error}.") from error


def _altered(path: Path, manifest: str, wanted: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} should have the SHA-256 {wanted} that {manifest} names, but has {found}: "
        "it is incomplete or was altered."
    )


def _seal(entry: Mapping[str, Any]) -> str:
    """The digest of the entries of a description, whatever the layout of the file."""
    said = {key: value for key, value in entry.items() if key not in (SEAL, "previous")}
    # a round trip, as JSON has no tuples and only strings as keys
    return digest(json.dumps(json.loads(json.dumps(said)), sort_keys=True).encode())


def _check_values(name: str, value: Tensor) -> None:
    """Raises a TypeError unless a tensor is a plain array of numbers."""
    if value.layout != torch.strided:
        problem = f"a sparse one, {value.layout}"
    elif value.is_meta:
        problem = "one without values, on the device 'meta'"
    elif hasattr(value, "full_tensor"):
        problem = "a part of one, which is shared out among processes: gather it first"
    else:
        return
    raise TypeError(f"{name!r} should be a dense tensor, but is {problem}.")


def _is_same(a: object, b: object) -> bool:
    """Whether two values are the same in JSON, where NaN is the same as NaN."""
    return a == b or json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _is_description(entry: object) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("aliases"), dict)
    )
