r"""Which implementation of the fused operation runs, and why."""

from __future__ import annotations

__all__ = [
    "BACKENDS",
    "choose",
    "last_backend",
    "note",
    "status",
    "use_backend",
    "warmup",
]

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch

from ._arguments import MAX_EXPERTS, MAX_SUBSETS, STORAGE

BACKENDS = ("cuda", "cpu", "eager")

_forced: ContextVar[str | None] = ContextVar("mmpoe_backend", default=None)
_last: ContextVar[str | None] = ContextVar("mmpoe_last_backend", default=None)


def status() -> dict[str, str]:
    """Says of every backend whether it can run here, and why not if it cannot.

    Example:
        >>> status()["eager"]
        'available'
    """
    modules = _modules()
    reasons = {
        "cuda": modules.cuda.unavailable(),
        "cpu": modules.cpu.unavailable(),
        "eager": None,
    }
    return {
        name: "available" if reason is None else f"not available: {reason}"
        for name, reason in reasons.items()
    }


def last_backend() -> str | None:
    """Returns the name of the backend that ran last in this context, or None if none did."""
    return _last.get()


def note(name: str) -> None:
    """Remembers which backend ran."""
    _last.set(name)


def use_backend(name: str) -> AbstractContextManager[None]:
    """Forces a backend inside a ``with`` block: what it cannot do is an error, not a fallback.

    Arguments:
        name: One of ``"cuda"``, ``"cpu"``, ``"eager"``.

    Raises:
        ValueError: If no backend has that name.
        RuntimeError: If the backend cannot run here.

    Example:
        >>> with use_backend("eager"):
        ...     pass
    """
    return _force(_available(name, source="name"))


@contextmanager
def _force(name: str) -> Iterator[None]:
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def warmup(
    experts: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    clamp: bool = False,
    common_noise: bool = False,
) -> str:
    """Compiles and loads what a model will need, before time matters or a CUDA graph is captured.

    On a CPU one build serves any number of experts; on a GPU each has its own.

    Arguments:
        experts: The number of experts.
        dtype: The dtype of the experts.
        device: Where they are.
        clamp: Whether they are clamped.
        common_noise: Whether they have noise in common.

    Returns:
        The backend that will run.
    """
    device = torch.empty(0, device=device).device  # with its index
    name = _choose(None, device, dtype, experts, subsets=1)
    if name == "cuda":
        _modules().cuda.prepare(device, dtype, experts, clamp, common_noise)
    return name


def choose(
    backend: str | None,
    device: torch.device,
    dtype: torch.dtype,
    experts: int,
    subsets: int,
    needs_eager: bool = False,
) -> str:
    """Returns the backend to run, and remembers it.

    The one asked for, by the call, `use_backend` or ``MMPOE_BACKEND``; else that of the device if
    it takes what it is given, else eager. Data play no part, nor does what was compiled before.

    Raises:
        ValueError: If no backend has the name asked for.
        RuntimeError: If the backend asked for cannot run here, or not on this.
    """
    choice = _choose(backend, device, dtype, experts, subsets)
    if needs_eager:
        choice = "eager"
    _last.set(choice)
    return choice


def _choose(
    backend: str | None, device: torch.device, dtype: torch.dtype, experts: int, subsets: int
) -> str:
    source, choice = "backend", backend
    if choice is None:
        source, choice = "use_backend", _forced.get()
    if choice is None:
        source, choice = "MMPOE_BACKEND", os.environ.get("MMPOE_BACKEND") or None
    if choice is not None:
        _check_name(choice, source)

    name = choice or device.type
    if name == "eager" or name not in BACKENDS:
        return "eager"
    reason = _cannot(name, device, dtype, experts, subsets)
    if reason is None:
        return name
    if choice is not None:
        _available(choice, source)
        raise RuntimeError(f"The backend {name!r} asked for by '{source}' {reason}.")
    return "eager"


def _cannot(
    name: str, device: torch.device, dtype: torch.dtype, experts: int, subsets: int
) -> str | None:
    if device.type != name:
        return f"runs on tensors on {name}, but they are on {device}"
    if dtype not in STORAGE:
        return f"computes in float32, but is given {dtype}: 'eager' takes it"
    if experts > MAX_EXPERTS:
        return f"has a mask of {MAX_EXPERTS} bits, but is given {experts} experts"
    if subsets > MAX_SUBSETS:
        return f"takes at most {MAX_SUBSETS} subsets, but is given {subsets}"
    return _failure(name, device, dtype)


def _failure(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    modules = _modules()
    if name == "cuda":
        reason = modules.cuda.failure(device)
        return reason and f"is not available: {reason}"
    try:
        modules.cpu.library(dtype)
    except modules.jit.BuildError as error:
        return f"is not available: {error}"
    return None


class _Modules(NamedTuple):
    cpu: ModuleType
    cuda: ModuleType
    jit: ModuleType


@cache
def _modules() -> _Modules:
    """Imports what compiles and launches: it loads more of the standard library than PyTorch."""
    from . import _cpu, _cuda, jit

    return _Modules(_cpu, _cuda, jit)


def _check_name(name: str, source: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"'{source}' should be one of {', '.join(BACKENDS)}, but is {name!r}.")


def _available(name: str, source: str) -> str:
    _check_name(name, source)
    if (state := status()[name]) != "available":
        raise RuntimeError(f"The backend {name!r} asked for by '{source}' is {state}.")
    return name
