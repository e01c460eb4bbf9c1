"""Files that are whole or not there: written aside, brought to the disk, and only then named."""

from __future__ import annotations

__all__ = ["check_space", "check_writable", "publish", "remove", "sync", "write_file"]

import errno
import os
import shutil
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Writes a file, over an older one if there is one, so that it is the old or the new one.

    Arguments:
        path: The file.
        content: What it should hold.

    Raises:
        OSError: If it cannot be written; the older one is left as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def publish(temporary: Path, folder: Path) -> None:
    """Gives a folder its name, once all that is in it is on the disk.

    Arguments:
        temporary: The folder, whose files were written by :func:`write_file`.
        folder: Its name from now on, in the same folder; there should be none of that name.
    """
    sync(temporary)
    temporary.replace(folder)
    sync(folder.parent)


def remove(folder: Path) -> None:
    """Removes a folder; if that is cut short, what is left no longer has its name."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    folder.replace(doomed)
    shutil.rmtree(doomed)


def sync(folder: Path) -> None:
    """Brings the names in a folder to the disk, where the system knows how to."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Makes a folder if need be, and raises an OSError if nothing can be written there."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(probe, b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"'folder' should be one that can be written to, but is not ({error.strerror})",
            str(folder),
        ) from error


def check_space(folder: Path, needed: int) -> None:
    """Raises an OSError if a disk has no room for so many bytes.

    Arguments:
        folder: A folder on the disk.
        needed: The number of bytes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"No space left: {needed / 1e6:.1f} MB are needed, but {free / 1e6:.1f} MB are free. "
            "What was saved before is as it was",
            str(folder),
        )
