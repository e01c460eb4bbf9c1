r"""A folder of compiled kernels that only its user can write to.

A file is named after a digest of everything that went into it, and one of what it holds. It is
written elsewhere and moved, so that two processes never see half of one another's.

What is in the folder is run, so nothing is taken on trust. The folder is opened once. Whether it
and its files belong to the user alone is asked of what is open, not of a name, which may mean
something else by then. Nothing is unpickled.
"""

from __future__ import annotations

__all__ = ["cached", "log", "warn_once"]

import hashlib
import io
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("mmpoe.kernels")

_said: set[str] = set()


def warn_once(message: str) -> None:
    """Logs a warning, unless this process has logged it before."""
    if message not in _said:
        _said.add(message)
        log.warning(message)


def cached(
    name: str, suffix: str, identity: str, compile: Callable[[], bytes], detail: str = ""
) -> bytes:
    """Returns a compiled kernel from the cache, or compiles it and puts it there.

    A cache that cannot be used costs time, and raises no error: that is logged once.

    Arguments:
        name: The beginning of the name of the file, also for the log.
        suffix: The suffix of the file.
        identity: Everything the result depends on.
        compile: Compiles; what it raises is passed on, and then nothing is kept.
        detail: More about it, for the log.
    """
    start = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    with _opened_folder() as folder:
        for file in _list(folder, start, suffix):
            content = _read(folder, file)
            if content is not None and file == _name(start, content, suffix):
                return content
            log.warning(
                "%s does not hold what its name says, or others could write to it: "
                "compiling it again.",
                file,
            )
            with suppress(OSError):
                os.unlink(file, dir_fd=folder)

        started = time.perf_counter()
        content = compile()
        seconds = time.perf_counter() - started
        file = _name(start, content, suffix)
        place = str(_cache_folder() / file) if _write(folder, file, content) else "not kept"
    log.info("compiled %s%s in %.1f s, %s", name, detail and f" ({detail})", seconds, place)
    return content


def _cache_folder() -> Path:
    """Returns where compiled kernels are kept: ``$MMPOE_CACHE/kernels``, ``~/.cache/mmpoe``."""
    base = os.environ.get("MMPOE_CACHE") or Path.home() / ".cache" / "mmpoe"
    return Path(base).expanduser() / "kernels"


def _name(start: str, content: bytes, suffix: str) -> str:
    return f"{start}-{hashlib.sha256(content).hexdigest()[:32]}{suffix}"


@contextmanager
def _opened_folder() -> Iterator[int | None]:
    """Opens the folder and makes it if need be; None, said once, if it cannot be used."""
    folder = None
    try:
        folder = _open_folder()
    except (OSError, RuntimeError) as error:  # without a home folder, pathlib raises the latter
        warn_once(
            f"No cache of compiled kernels: {error}. Every process compiles them again, unless "
            "MMPOE_CACHE names a folder that only you can write to."
        )
    try:
        yield folder
    finally:
        if folder is not None:
            os.close(folder)


def _open_folder() -> int:
    if os.open not in os.supports_dir_fd:
        raise OSError("this system cannot open files relative to a folder")
    path = _cache_folder()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if _is_ours_alone(os.fstat(folder)):
        return folder
    os.close(folder)
    raise OSError(f"{path} belongs to somebody else, or others may write to it")


def _is_ours_alone(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user, and nobody else may write to it."""
    others = stat.S_IWGRP | stat.S_IWOTH
    return status.st_uid == os.geteuid() and not status.st_mode & others


def _list(folder: int | None, start: str, suffix: str) -> list[str]:
    if folder is None:
        return []
    try:
        files = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []
    return sorted(f for f in files if f.startswith(f"{start}-") and f.endswith(suffix))


def _read(folder: int | None, file: str) -> bytes | None:
    """Reads a file of the folder; None if it is not a plain one that this user alone can write."""
    try:
        # without blocking: to open a pipe is to wait for who writes to it
        options = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        opened = os.open(file, options, dir_fd=folder)
    except OSError:
        return None
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_nlink != 1:  # it has another name, in a folder that was not checked
            return None
        if not _is_ours_alone(status):
            return None
        return io.FileIO(opened, closefd=False).readall()
    except OSError:
        return None
    finally:
        os.close(opened)


def _write(folder: int | None, file: str, content: bytes) -> bool:
    """Writes a file of the folder, whole or not at all; says whether it did."""
    if folder is None:
        return False
    part = f"part-{os.urandom(8).hex()}"
    try:
        opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        try:
            with os.fdopen(opened, "wb") as stream:
                stream.write(content)
            os.replace(part, file, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(part, dir_fd=folder)
            raise
    except OSError as error:
        warn_once(f"Compiled kernels cannot be kept in {_cache_folder()}: {error}.")
        return False
    return True
