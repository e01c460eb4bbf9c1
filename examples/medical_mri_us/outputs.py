"""Folders to write to: tried before any work is done."""

from __future__ import annotations

__all__ = ["RESOURCES", "open_folder"]

import errno
import os
import tempfile
from pathlib import Path

RESOURCES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOMEM}
)
"""Errors of the operating system for want of room, memory or permission."""


def open_folder(folder: Path) -> Path:
    """Makes a folder, if need be, and writes a file there, which it removes.

    Arguments:
        folder: The folder.

    Raises:
        OSError: If that is not possible: the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".trial-", dir=folder)
        os.close(descriptor)
        Path(name).unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"the output folder cannot be written to ({error.strerror}); give another --out",
            str(folder),
        ) from error
    return folder
