"""Files and folders that are complete or absent, and the lock of a folder."""

from __future__ import annotations

__all__ = ["lock", "write_file"]

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Writes a file in one step: a process that is killed leaves the old file or the new one.

    The content is written to a temporary file beside it, synced to the disk, and renamed.

    Arguments:
        path: The file; replaced if there is one.
        content: Its new content.

    Raises:
        OSError: If it cannot be written; an older file is unchanged.
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
    _sync(path.parent)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes in a ``with`` block.

    The system releases the lock of a process that dies. On systems without ``fcntl``, nothing is
    locked.

    Arguments:
        folder: The folder, which must exist; the lock is its file ``.lock``.

    Raises:
        ValueError: If another process has locked the folder; the message names it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise ValueError(
                f"'folder' should be used by one process at a time, but {folder} is in use by "
                f"process {file.read().strip()}."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def publish(temporary: Path, folder: Path) -> None:
    """Renames a folder once its files are on the disk.

    Arguments:
        temporary: The folder, whose files were written by :func:`write_file`.
        folder: Its new name, in the same parent folder; not taken yet.
    """
    _sync(temporary)
    temporary.replace(folder)
    _sync(folder.parent)


def remove(folder: Path) -> None:
    """Removes a folder; it loses its name first, so that no part of it is mistaken for it."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    folder.replace(doomed)
    shutil.rmtree(doomed)


def check_writable(folder: Path) -> None:
    """Makes a folder if need be, and raises an OSError if no file can be written there."""
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
    """Raises an OSError if the disk of a folder has less free space than `needed`, in bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"No space left: {needed / 1e6:.1f} MB are needed, but {free / 1e6:.1f} MB are free. "
            "What was saved before is unchanged",
            str(folder),
        )


def _sync(folder: Path) -> None:
    """Syncs the names in a folder to the disk, on systems that can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
