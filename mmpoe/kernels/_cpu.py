r"""The kernels on CPU tensors: g++ compiles them on first use."""

from __future__ import annotations

__all__ = ["library", "plan", "unavailable"]

import ctypes
import threading

import torch

from . import jit
from ._arguments import Inputs, Plan
from ._cache import warn_once

_CHUNK = 16384
"""Elements of a sample that one thread works on: a number of its own, so that the order of sums,
and with it every bit, does not depend on the number of threads."""

_SMALL = 32768
"""Elements, counted once per pair, below which one thread is faster than several."""

_LARGE = 1 << 23
"""Bytes of one tensor from which on what is written goes past the caches."""

_lock = threading.Lock()
_libraries: dict[tuple[str, torch.dtype], ctypes.CDLL | jit.BuildError] = {}


def plan(direction: str, inputs: Inputs) -> Plan:
    """Returns how ``"forward"`` or ``"backward"`` runs: threads take chunks of samples in turn."""
    first = inputs.loc[0]
    elements = inputs.pairs * inputs.size
    packet = 64 if elements * first.element_size() >= _LARGE else 0
    threads = 1 if elements < _SMALL else torch.get_num_threads()
    kernel = getattr(library(first.dtype), direction)
    return Plan(-(-inputs.size // _CHUNK), _CHUNK, packet, lambda packed: kernel(packed, threads))


def library(dtype: torch.dtype, program: jit.Program = jit.POE) -> ctypes.CDLL:
    """Returns the compiled kernels for a storage type; the first call may compile them.

    Raises:
        mmpoe.kernels.BuildError: If they cannot be built; remembered, not tried again.
    """
    key = program.name, dtype
    if key not in _libraries:
        with _lock:
            if key not in _libraries:
                _libraries[key] = _load(dtype, program)
    found = _libraries[key]
    if isinstance(found, jit.BuildError):
        raise found
    return found


def _load(dtype: torch.dtype, program: jit.Program) -> ctypes.CDLL | jit.BuildError:
    try:
        return jit.cpu_library(dtype, program)
    except jit.BuildError as error:
        warn_once(
            f"No fused kernels on the CPU: {error}. PyTorch runs instead; "
            "MMPOE_BACKEND=eager asks for that, without this warning."
        )
        return error


def unavailable() -> str | None:
    """Says why there are no kernels on the CPU, None if there are as far as is known."""
    failed = [str(x) for x in _libraries.values() if isinstance(x, jit.BuildError)]
    if failed:
        return failed[0]
    try:
        jit.compiler()
    except jit.BuildError as error:
        return str(error)
    return None
