r"""Which implementation of the fused operation runs, and why."""

from __future__ import annotations

__all__ = ["BACKENDS", "last_backend", "resolve", "status", "use_backend"]

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch

BACKENDS = ("cuda", "cpu", "eager")

_forced: ContextVar[str | None] = ContextVar("mmpoe_backend", default=None)
_last: ContextVar[str | None] = ContextVar("mmpoe_last_backend", default=None)


def status() -> dict[str, str]:
    """Says of every backend whether it can run here, and why not if it cannot.

    Example:
        >>> status()["eager"]
        'available'
    """
    absent = "not available: this version of mmpoe has the eager backend only"
    return {"cuda": absent, "cpu": absent, "eager": "available"}


def last_backend() -> str | None:
    """Returns the name of the backend that ran last in this context, or None if none did."""
    return _last.get()


def use_backend(name: str) -> AbstractContextManager[None]:
    """Forces a backend inside a ``with`` block.

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


def resolve(backend: str | None) -> str:
    """Returns the backend of the call, else `use_backend`, ``MMPOE_BACKEND``, or the best."""
    if backend is not None:
        choice = _available(backend, source="backend")
    elif (forced := _forced.get()) is not None:
        choice = forced
    elif environment := os.environ.get("MMPOE_BACKEND"):
        choice = _available(environment, source="MMPOE_BACKEND")
    else:
        choice = "eager"
    if not torch.compiler.is_compiling():
        _last.set(choice)
    return choice


def _available(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"'{source}' should be one of {', '.join(BACKENDS)}, but is {name!r}.")
    if (state := status()[name]) != "available":
        raise RuntimeError(f"The backend {name!r} asked for by '{source}' is {state}.")
    return name
