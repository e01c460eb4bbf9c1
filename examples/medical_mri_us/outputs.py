"""Folders to write to: tried before any work is done."""

from __future__ import annotations

__all__ = ["RESOURCES", "open_folder"]

import errno
from pathlib import Path

from mmpoe.training import scratch, sweep

RESOURCES = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOMEM,
    }
)
"""Errors of the operating system for want of room, memory or permission."""


def open_folder(folder: Path) -> Path:
    """Makes a folder, if need be, and tries to write there.

    What killed processes have left in it is removed.

    Arguments:
        folder: The folder.

    Raises:
        OSError: If that is not possible: the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with scratch(folder):
            pass
    except OSError as error:
        raise OSError(
            error.errno,
            f"the output folder cannot be written to ({error.strerror}); give another --out",
            str(folder),
        ) from error
    return folder
