"""Real conditions of a system that refuses: small and read-only disks, files of others."""

import ctypes
import os
import subprocess
from contextlib import contextmanager

import pytest

OVERRIDE = 0b110
"""The capabilities of the superuser to read and write whatever the mode of a file says."""


def _mount(*arguments):
    done = subprocess.run(
        ["mount", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a file system needs rights: {done.stderr.strip()}")


@contextmanager
def small_disk(folder, size):
    """Makes a folder a disk of some bytes of its own, in a ``with`` block."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(disk):
    """Makes what :func:`small_disk` made read-only, in a ``with`` block."""
    _mount("-o", "remount,ro", disk)
    try:
        yield disk
    finally:
        _mount("-o", "remount,rw", disk)


def fill(disk, left):
    """Fills a disk but for some bytes, and returns the file that does."""
    file = disk / "filler"
    free = os.statvfs(disk)
    file.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
    return file


@contextmanager
def without_override():
    """Takes the superuser's right to write everywhere from this thread, in a ``with`` block.

    Modes of files then bind the superuser as they bind anybody else; for others nothing changes.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: twice 32 bits
    if libc.capget(head, sets):
        pytest.skip(f"capabilities cannot be read: {os.strerror(ctypes.get_errno())}")
    whole = sets[0]
    sets[0] = whole & ~OVERRIDE
    if libc.capset(head, sets):
        pytest.skip(f"capabilities cannot be set: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        sets[0] = whole
        libc.capset(head, sets)
