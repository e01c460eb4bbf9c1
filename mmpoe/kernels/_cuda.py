r"""The kernels on CUDA tensors: NVRTC compiles them for the GPU at hand on first use."""

from __future__ import annotations

__all__ = ["Driver", "Launcher", "check_not_capturing", "launcher", "unavailable"]

import ctypes
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from . import jit
from ._arguments import Inputs, Plan
from .jit import Specialisation

_THREADS = 128
"""Threads of a block, at most; the kernels are compiled for no more."""

_WAVES = 16
"""Blocks per multiprocessor beyond which threads take several turns instead."""

_SLOTS = 256
"""Pairs, at most, that a block holds in shared memory at once."""


class Launcher:
    """Compiles, loads and launches the kernels on the GPU behind a driver."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._functions: dict[tuple, Any] = {}
        self._lock = threading.Lock()

    def plan(self, direction: str, inputs: Inputs) -> Plan:
        """Returns how ``"forward"`` or ``"backward"`` runs.

        A block works on one chunk of one sample, for all its pairs; block b C + c has chunk c of C
        of sample b. In a turn each of its threads works on `width` neighbouring elements. A chunk
        is one turn, or more of them where the GPU would have more than `_WAVES` blocks for each
        multiprocessor. Shared memory holds, for some pairs at a time, a word for each, the
        mask of its experts, and one for each and each warp, its part of the divergence.
        """
        first, size = inputs.loc[0], inputs.size
        samples, device = first.shape[0], first.device
        rare = inputs.clamp > 0, inputs.common_noise is not None
        special = Specialisation(direction, first.dtype, len(inputs.loc), *rare)
        threads = self._threads(size, special.width)
        turn = threads * special.width
        most = max(1, _WAVES * self.driver.processors(device) // samples)
        length = turn * _divide_up(size, turn * most)
        chunks = _divide_up(size, length)
        slots = inputs.pairs if inputs.rows is not None else inputs.pairs // samples
        slots = max(1, min(_SLOTS, slots))
        shared = 4 * slots * (1 + threads // 32)

        def launch(packed: bytes) -> None:
            function = self.function(special, device)
            self.driver.launch(function, samples * chunks, threads, shared, packed, device)

        return Plan(chunks, length, special.width * first.element_size(), launch, slots)

    def function(self, special: jit.Kernel, device: torch.device) -> Any:  # noqa: ANN401
        """Returns a compiled kernel; the first call compiles it.

        Raises:
            mmpoe.kernels.BuildError: If NVRTC cannot.
            RuntimeError: If it is the first call, while a CUDA graph is captured.
        """
        key = (special, device)
        if key not in self._functions:
            with self._lock:
                if key not in self._functions:
                    check_not_capturing(self.driver)
                    binary = jit.cuda_binary(special, self.driver.architecture(device))
                    self._functions[key] = self.driver.load(binary, special.name, device)
        return self._functions[key]

    def _threads(self, size: int, width: int) -> int:
        """Returns the threads of a block: whole warps, no more than one sample needs."""
        return min(_THREADS, 32 * _divide_up(size, 32 * width))


def check_not_capturing(driver: Driver) -> None:
    """Raises an error while a CUDA graph is captured, which loading a kernel would break."""
    if driver.is_capturing():
        raise RuntimeError(
            "A kernel cannot be compiled and loaded while a CUDA graph is captured: "
            "call mmpoe.kernels.build, or run once, before."
        )


def _divide_up(total: int, part: int) -> int:
    return -(-total // part)


class Driver:
    """A GPU, through the driver API of ``cuda.bindings``, on which PyTorch itself depends.

    All that the launcher needs of a GPU is here, so that tests can put another one in its place.
    """

    def architecture(self, device: torch.device) -> int:
        """Returns the compute capability, 90 for 9.0."""
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor

    def processors(self, device: torch.device) -> int:
        """Returns the number of multiprocessors."""
        return torch.cuda.get_device_properties(device).multi_processor_count

    def is_capturing(self) -> bool:
        """Returns whether the current stream records a CUDA graph."""
        return torch.cuda.is_current_stream_capturing()

    def load(self, binary: bytes, name: str, device: torch.device) -> Any:  # noqa: ANN401
        """Returns a kernel of a compiled binary, which runs in any context."""
        driver = _bindings()
        library = _check(driver.cuLibraryLoadData(binary, None, None, 0, None, None, 0))
        kernel = _check(driver.cuLibraryGetKernel(library, name.encode()))
        with _current(_primary_context(device.index)):
            _check(driver.cuKernelGetFunction(kernel))  # loads it: a graph capture could not
        return driver.CUfunction(int(kernel))

    def launch(
        self,
        function: Any,  # noqa: ANN401
        blocks: int,
        threads: int,
        shared: int,
        arguments: bytes,
        device: torch.device,
    ) -> None:
        """Launches it on the current stream of the device: no synchronisation, no allocation."""
        driver = _bindings()
        block = ctypes.create_string_buffer(arguments, len(arguments))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        stream = torch.cuda.current_stream(device).cuda_stream
        grid = (blocks, 1, 1, threads, 1, 1)
        with _current(_context(stream, device)):
            at = ctypes.addressof(pointers)
            _check(driver.cuLaunchKernel(function, *grid, shared, stream, at, 0))


def _context(stream: int, device: torch.device) -> Any:  # noqa: ANN401
    """Returns the context of a stream: a default stream has that of its device."""
    if stream in _DEFAULT_STREAMS:
        return _primary_context(device.index)
    return _check(_bindings().cuStreamGetCtx(stream))


_DEFAULT_STREAMS = (0, 1, 2)
"""Handles that mean another stream in every context: the default, legacy and per-thread ones."""


@cache
def _primary_context(index: int) -> Any:  # noqa: ANN401
    """Returns the context of a device that PyTorch works in, which then lives as long as we do."""
    driver = _bindings()
    return _check(driver.cuDevicePrimaryCtxRetain(_check(driver.cuDeviceGet(index))))


@contextmanager
def _current(context: Any) -> Iterator[None]:  # noqa: ANN401
    """Makes a context the current one of this thread, which may have another, or none."""
    driver = _bindings()
    _check(driver.cuCtxPushCurrent(context))
    try:
        yield
    finally:
        _check(driver.cuCtxPopCurrent())


def _bindings() -> Any:  # noqa: ANN401
    return importlib.import_module("cuda.bindings.driver")


def _check(result: tuple) -> Any:  # noqa: ANN401
    error, *values = result
    if int(error):
        driver = _bindings()
        _, text = driver.cuGetErrorString(error)
        raise RuntimeError(f"The CUDA driver says: {text.decode() if text else error}.")
    return values[0] if values else None


@cache
def launcher() -> Launcher:
    """Returns the launcher for the GPUs of this machine."""
    return Launcher(Driver())


def unavailable() -> str | None:
    """Says why there are no kernels on GPUs here, None if there are as far as is known."""
    if torch.version.hip is not None:
        return "this PyTorch is built for AMD GPUs"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    try:
        jit.nvrtc()
    except jit.BuildError as error:
        return str(error)
    return None
