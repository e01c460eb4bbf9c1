"""Files of others: their kind, size and checksum come first, and one error says what is wrong."""

from __future__ import annotations

__all__ = ["VOXELS", "beside", "check_voxels", "inflate", "inflate_raw", "read_bytes", "walled"]

import math
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath

from mmpoe.models import is_out_of_memory

from .volumes import ImageError

VOXELS = 2**29
"""The largest number of voxels of a volume that is read: 1024 x 1024 x 512, 2 GiB in memory."""

BYTES = 8 * VOXELS + 2**20
"""The largest file that is read: that many voxels of 64 bits, and a header."""

AUTOMATIC = 47
"""The window of zlib that reads streams of gzip and of zlib, and checks their checksums."""

NO_WAIT = getattr(os, "O_NONBLOCK", 0)
"""Opening a pipe does not wait for somebody to write to it."""


@contextmanager
def walled(path: Path, kind: str = "") -> Iterator[None]:
    """Turns whatever a library raises about a file, in a ``with`` block, into an `ImageError`.

    Damaged files make libraries raise errors of any type. None of them is let through, as it would
    stop all the other cases, and none names the file. Want of memory alone passes: it is no fault
    of the file.

    Arguments:
        path: The file or folder that is read.
        kind: The kind of file that it should be, as in ``" as DICOM"``.
    """
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # of this machine: sizes were held against the file before
            raise
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        lines = said.strip().splitlines() or [type(error).__name__]
        raise ImageError(
            f"{path} cannot be read{kind}: {lines[-1].strip().rstrip('.')}; "
            "copy or export it again."
        ) from error


def read_bytes(path: Path) -> bytes:
    """Reads a file whole. A pipe or a device is refused, and not waited for.

    Raises:
        ValueError: If it is no regular file, or larger than any volume that is read.
        OSError: If it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | NO_WAIT | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is no regular file, but a folder, pipe or device")
        if status.st_size > BYTES:
            raise ValueError(f"it has {status.st_size} bytes, more than the {BYTES} that are read")
        return file.read()


def inflate(content: bytes, limit: int) -> bytes:
    """Inflates what gzip or zlib has compressed, and verifies all checksums.

    Arguments:
        content: One or several streams, as gzip allows, and zeros behind them.
        limit: The largest size of the result, in bytes.

    Raises:
        ValueError: If it is damaged or incomplete, or the result is larger.
    """
    parts: list[bytes] = []
    size = 0
    while content or not parts:
        stream = zlib.decompressobj(AUTOMATIC)
        try:
            parts.append(stream.decompress(content, limit - size + 1))
        except zlib.error as error:
            raise ValueError(f"its compressed part is damaged ({error})") from error
        size += len(parts[-1])
        if size > limit:
            raise ValueError(f"it inflates to more than the {limit} bytes that its header says")
        if not stream.eof:
            raise ValueError("its compressed part is incomplete")
        content = stream.unused_data.lstrip(b"\0")
    return b"".join(parts)


def inflate_raw(content: bytes) -> bytes:
    """Inflates a stream that has no checksum, and is followed by no more than a padding byte.

    Raises:
        ValueError: If it is damaged or incomplete, or the result is larger than what is read.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = stream.decompress(content, BYTES)
    except zlib.error as error:
        raise ValueError(f"its compressed part is damaged ({error})") from error
    if not stream.eof or stream.unused_data not in (b"", b"\0"):
        raise ValueError("its compressed part is damaged, incomplete or too large")
    return found


def check_voxels(shape: Sequence[int]) -> int:
    """Returns the number of voxels that a header claims, once it is known that they can be read.

    Raises:
        ValueError: If there are too many to be read, or an axis is negative.
    """
    count = math.prod(int(n) for n in shape)
    if any(int(n) < 0 for n in shape) or count > VOXELS:
        raise ValueError(
            f"its header says {' x '.join(str(n) for n in shape)} voxels, but at most {VOXELS} "
            "are read"
        )
    return count


def beside(path: Path, name: str) -> Path:
    """Returns the file that a detached header names, which lies in the header's folder or below.

    Raises:
        ValueError: If it lies elsewhere, by its name or by a link.
    """
    folder = path.resolve().parent
    named = PurePath(name)
    file = (folder / named).resolve()
    if named.is_absolute() or ".." in named.parts or not file.is_relative_to(folder):
        raise ValueError(f"its voxels are said to be in {name!r}, outside its folder")
    return file
