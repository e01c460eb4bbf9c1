"""Files and folders that are complete or absent, and the lock of a folder."""

from __future__ import annotations

__all__ = ["lock", "scratch", "sweep", "write_file"]

import errno
import functools
import itertools
import os
import re
import shutil
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NUMBERS = itertools.count()
"""Tells the temporary files of this process apart."""

HELD: set[int] = set()
"""The descriptors of the locks that this process holds."""

UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""Errors of a file system that cannot lock."""


def write_file(path: Path, content: bytes) -> None:
    """Writes a file in one step: a process that is killed leaves the old file or the new one.

    The content is written to a temporary file beside it, synced to the disk, and renamed.
    :func:`sweep` removes the temporary files of killed processes.

    Arguments:
        path: The file; replaced if there is one.
        content: Its new content.

    Raises:
        OSError: If it cannot be written; the message names it, and an older file is unchanged.
    """
    temporary = _temporary(path.parent)
    try:
        with named(path):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder for a ``with`` block, to be renamed, or its files moved, once complete.

    What is still in it at the end of the block is removed. :func:`sweep` removes those of killed
    processes.

    Arguments:
        folder: The folder to make it in.

    Raises:
        OSError: If it cannot be made.
    """
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path, *, locked: bool = False) -> None:
    """Removes the temporary files and folders that killed processes have left in a folder.

    Those are removed that :func:`write_file` and :func:`scratch` made in a process of this machine
    that is dead; nothing else is touched, and nothing in folders below.

    Arguments:
        folder: The folder; it may be absent.
        locked: Whether a lock keeps all other processes from writing there, so that those of other
            machines are removed too.
    """
    for path in folder.glob(".mmpoe-*.tmp"):
        maker = re.fullmatch(r"\.mmpoe-(.*)-(\d+)-\d+\.tmp", path.name)
        if maker and (locked or (maker[1] == _machine() and not _is_alive(int(maker[2])))):
            with suppress(OSError):
                remove(path)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes in a ``with`` block.

    The system releases the lock of a process that dies, whatever processes it has forked. On
    systems without ``fcntl``, nothing is locked. Where the file system cannot lock, nothing is
    locked either, and a warning says so.

    Arguments:
        folder: The folder, which must exist; the lock is its file ``.lock``.

    Raises:
        ValueError: If another process has locked the folder, which the message names, or ``.lock``
            is a link or no file.
        OSError: If ``.lock`` cannot be written.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    path = folder / ".lock"
    file = _open_lock(path)
    _close_in_children()
    HELD.add(file)
    try:
        with named(path):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                who = os.pread(file, 300, 0).decode(errors="replace").strip()
                raise ValueError(
                    f"'folder' should be used by one process at a time, but {folder} is in use by "
                    f"{f'process {who}' if who else 'another process'}."
                ) from error
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                warnings.warn(
                    f"{folder} is not locked, as its file system has no locks ({error.strerror}): "
                    "see to it that no other process writes there.",
                    stacklevel=4,
                )
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        if file in HELD:  # else this is a forked process, which has closed it
            HELD.remove(file)
            os.close(file)


def publish(temporary: Path, folder: Path) -> None:
    """Renames a folder once its files are on the disk.

    Arguments:
        temporary: The folder, whose files were written by :func:`write_file`.
        folder: Its new name, in the same parent folder; not taken yet.
    """
    _sync(temporary)
    temporary.replace(folder)
    _sync(folder.parent)


def remove(path: Path) -> None:
    """Removes a file, link or folder; of a link, not what it leads to.

    A folder loses its name first, so that no part of it is mistaken for it.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    doomed = _temporary(path.parent)
    path.replace(doomed)
    shutil.rmtree(doomed)


def check_writable(folder: Path) -> None:
    """Makes a folder if need be, and raises an OSError if no file can be written there."""
    probe = _temporary(folder)
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
            f"No space left: {shown_size(needed)} are needed, but {shown_size(free)} are free. "
            "What was saved before is unchanged",
            str(folder),
        )


def shown_size(size: int) -> str:
    """Returns a number of bytes for people.

    Example:
        >>> shown_size(999), shown_size(12_345), shown_size(5 * 10**9)
        ('999 bytes', '12.3 kB', '5.0 GB')
    """
    unit = next((u for u in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")) if size >= u[0]), None)
    return f"{size} bytes" if unit is None else f"{size / unit[0]:.1f} {unit[1]}"


def _temporary(folder: Path) -> Path:
    """A new name that says who made it: the machine, the process, and a number."""
    return folder / f".mmpoe-{_machine()}-{os.getpid()}-{next(NUMBERS)}.tmp"


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:64]


def _is_alive(process: int) -> bool:
    """Whether a process of this machine lives, or may live."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _open_lock(path: Path) -> int:
    """Opens a lock file, made if need be. A link would have the file that it leads to emptied."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _no_lock(path) from error
        raise
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(file)
        raise _no_lock(path)
    return file


def _no_lock(path: Path) -> ValueError:
    return ValueError(
        f"'folder' should hold a lock of its own, but {path} is a link or no file: remove it."
    )


@functools.cache
def _close_in_children() -> None:
    """Has forked processes, such as those of a DataLoader, close the locks of this one.

    A lock is held until the last process that has it open dies, so that they would hold it for
    seconds after this one was killed.
    """
    os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    while HELD:
        os.close(HELD.pop())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Gives errors of the system in a ``with`` block the file that they are about."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync(folder: Path) -> None:
    """Syncs the names in a folder to the disk, on systems that can."""
    if os.name == "posix":
        with named(folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
