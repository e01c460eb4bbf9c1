"""The folder of generated data that are kept between runs."""

import os
import tempfile
from pathlib import Path

__all__ = ["GENERATOR_VERSION", "CacheError", "cache_folder", "ensure_writable", "is_cached"]

GENERATOR_VERSION = 3
"""Raised by one whenever the same seed would give different patients; caches are keyed on it."""


class CacheError(OSError, ValueError):
    """There is no usable cache folder: the message names it, and how to choose another."""


def cache_folder(*parts: str) -> Path:
    """Returns a folder below the cache root, which `MMPOE_CACHE` or else `~/.cache/mmpoe` names.

    Arguments:
        parts: The names of the nested folders below the root.

    Returns:
        The path. Nothing is created: see `ensure_writable`.

    Raises:
        CacheError: If the root is in the home folder of a user who has none.
    """
    root = os.environ.get("MMPOE_CACHE") or "~/.cache/mmpoe"
    try:
        return Path(root).expanduser().joinpath(*parts)
    except RuntimeError as error:
        raise _unusable(root, error) from error


def ensure_writable(folder: Path) -> Path:
    """Creates a cache folder if needed and tries to write into it.

    Raises:
        CacheError: If that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, error.strerror or error) from error
    return folder


def is_cached(file: Path) -> bool:
    """Returns whether a file is there; a folder that may not be read counts as empty."""
    try:
        return file.is_file()
    except OSError:
        return False


def _unusable(folder: str | Path, reason: object) -> CacheError:
    return CacheError(
        f"The cache folder '{folder}' cannot be written ({reason}). Set the environment variable "
        "MMPOE_CACHE to a folder that can."
    )
