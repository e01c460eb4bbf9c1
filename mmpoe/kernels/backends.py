r"""The choice of the implementation that runs the fused operation."""

from __future__ import annotations

__all__ = ["BACKENDS", "build", "last_backend", "status", "use_backend"]

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from . import _comparison, _cpu, _cuda, jit
from ._arguments import MAX_EXPERTS, STORAGE
from ._cells import CELLS

BACKENDS = ("cuda", "cpu", "eager")
PROGRAMS = {program.name: program for program in (jit.POE, CELLS)}

_forced: ContextVar[str | None] = ContextVar("mmpoe_backend", default=None)
_last: ContextVar[dict[str, str] | None] = ContextVar("mmpoe_last_backend", default=None)


def status() -> dict[str, str]:
    """Says of every backend whether it can run here, and why not if it cannot.

    Example:
        >>> status()["eager"]
        'available'
    """
    differing = next((reason for reason in _comparison.verdicts.values() if reason), None)
    reasons = {
        "cuda": _cuda.unavailable() or differing,
        "cpu": _cpu.unavailable(),
        "eager": None,
    }
    return {
        name: "available" if reason is None else f"not available: {reason}"
        for name, reason in reasons.items()
    }


def last_backend(program: str = jit.POE.name) -> str | None:
    """Returns the name of the backend that ran last in this context, or None if none did.

    Arguments:
        program: The kernels that it ran: those of :func:`gaussian_poe`, or ``"cells"`` for those
            of :func:`instance_norm` and :func:`depthwise_convolution`.
    """
    return (_last.get() or {}).get(program)


def note(name: str, program: str = jit.POE.name) -> None:
    """Remembers which backend ran."""
    _last.set({**(_last.get() or {}), program: name})


def use_backend(name: str) -> AbstractContextManager[None]:
    """Forces a backend inside a ``with`` block: what it cannot do is an error, not a fallback.

    This holds for every call of :func:`gaussian_poe` and :func:`instance_norm`. An empty batch,
    where there is nothing to run, is no error. Derivatives beyond the first are PyTorch's with any
    backend. Under ``torch.compile`` the choice is made when code is traced. A program that
    ``torch.export`` writes inside the block keeps the fused operation, and then needs mmpoe where
    it runs. Depthwise convolutions are PyTorch's but on a CPU, whatever is asked for.

    Arguments:
        name: One of ``"cuda"``, ``"cpu"``, ``"eager"``.

    Raises:
        ValueError: If no backend has that name.
        RuntimeError: If the backend cannot run here.

    Example:
        >>> with use_backend("eager"):
        ...     pass
    """
    _check_available(name, source="name")
    return _force(name)


@contextmanager
def _force(name: str) -> Iterator[None]:
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def build(
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
    name = _choose(None, Call(device, dtype, experts))
    if name == "cuda":
        for direction in ("forward", "backward"):
            special = jit.Specialisation(direction, dtype, experts, clamp, common_noise)
            _cuda.launcher().function(special, device)
    return name


def beyond_kernels() -> str | None:
    """Says why no kernel can run where a call is made, None if they can."""
    if torch._C._are_functorch_transforms_active():
        return "does not run inside transforms of torch.func"
    if torch.autograd.forward_ad._current_level >= 0:
        return "does not compute forward-mode derivatives"
    return None


class Call(NamedTuple):
    """The properties of a call that decide which backends can run it: no data are among them."""

    device: torch.device
    dtype: torch.dtype
    experts: int
    beyond: str | None = None
    """The part of the call that only PyTorch can do, None if kernels can do it all."""
    empty: bool = False
    """Whether there is nothing to run: PyTorch makes what is empty, whatever was asked for."""
    program: str = jit.POE.name
    """The kernels that it needs."""
    kernel_on_gpu: bool = True
    """Whether there is one."""
    plain: bool = False
    """Whether PyTorch is as fast, and runs unless another backend is asked for."""


def choose(backend: str | None, *call: Any) -> str:  # noqa: ANN401
    """Returns the backend to run, and remembers it.

    The one asked for, by the call, `use_backend` or ``MMPOE_BACKEND``; else that of the device if
    it can run the call, else eager. `torch.compile` takes the answer for a constant.

    Arguments:
        backend: The backend that the call asks for, if any.
        call: The fields of a `Call`: the compiler knows no named tuples.

    Raises:
        ValueError: If no backend has the name asked for.
        RuntimeError: If the backend asked for cannot run here, or not this call.
    """
    asked = Call(*call)
    choice = _choose(backend, asked)
    note(choice, asked.program)
    return choice


# as torch.compiler.assume_constant_result does, which imports the compiler
choose._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _choose(backend: str | None, call: Call) -> str:
    source, choice = "backend", backend
    if choice is None:
        source, choice = "use_backend", _forced.get()
    if choice is None:
        source, choice = "MMPOE_BACKEND", os.environ.get("MMPOE_BACKEND") or None
    if choice is not None:
        _check_name(choice, source)

    name = choice or call.device.type
    if name == "eager" or name not in BACKENDS or (choice is None and call.plain):
        return "eager"
    if choice is None and torch.compiler.is_exporting():
        return "eager"  # in operators of PyTorch, which run where there is no mmpoe
    reason = _cannot(name, call)
    if reason is None:
        return "eager" if call.empty else name
    if choice is not None:
        _check_available(choice, source)
        raise RuntimeError(f"The backend {name!r} asked for by '{source}' {reason}.")
    return "eager"


def _cannot(name: str, call: Call) -> str | None:
    """Says why kernels cannot run a call, None if they can."""
    if call.device.type != name:
        return f"runs on tensors on {name}, but they are on {call.device}"
    if name == "cuda" and not call.kernel_on_gpu:
        return "has no kernel for it: 'eager' has"
    if call.dtype not in STORAGE:
        return f"computes in float32, but is given {call.dtype}: 'eager' takes it"
    if call.experts > MAX_EXPERTS:
        return f"has a mask of {MAX_EXPERTS} bits, but is given {call.experts} experts"
    if call.beyond is not None:
        return f"{call.beyond}: 'eager' does"
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "cannot be recorded by torch.jit.trace: 'eager' can"
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return "is no operator of ONNX: 'eager' is made of them"
    if not call.empty and (reason := _failure(name, call)):
        return f"is not available: {reason}"
    return None


def _failure(name: str, call: Call) -> str | None:
    """Compiles the kernels if need be, and says why there are none, None if there are."""
    if name == "cuda":
        return _cuda.unavailable() or _comparison.failure(call.device, PROGRAMS[call.program])
    try:
        _cpu.library(call.dtype, PROGRAMS[call.program])
    except jit.BuildError as error:
        return str(error)
    return None


def _check_name(name: str, source: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"'{source}' should be one of {', '.join(BACKENDS)}, but is {name!r}.")


def _check_available(name: str, source: str) -> None:
    _check_name(name, source)
    if (state := status()[name]) != "available":
        raise RuntimeError(f"The backend {name!r} asked for by '{source}' is {state}.")
