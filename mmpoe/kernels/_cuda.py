r"""The kernels on CUDA tensors: NVRTC compiles them for the GPU at hand on first use.

What a GPU does is behind `Driver`, so that the launcher can be tested without one.
"""

from __future__ import annotations

__all__ = [
    "CudaDriver",
    "Driver",
    "Launcher",
    "failure",
    "launcher",
    "prepare",
    "unavailable",
    "width",
]

import ctypes
import importlib
import threading
from functools import cache
from typing import Any, Protocol

import torch

from . import jit
from ._arguments import STORAGE, Inputs, Plan, Specialisation

_THREADS = 128
"""Threads of a block, at most; the kernels are compiled for no more."""

_WAVES = 16
"""Blocks per multiprocessor beyond which threads take several turns instead."""


class Driver(Protocol):
    """What the launcher needs of a GPU."""

    def architecture(self, device: torch.device) -> int:
        """Returns the compute capability, 90 for 9.0."""
        ...

    def processors(self, device: torch.device) -> int:
        """Returns the number of multiprocessors."""
        ...

    def load(self, binary: bytes, name: str) -> Any:  # noqa: ANN401
        """Returns a function of a compiled binary, for the current device."""
        ...

    def launch(
        self,
        function: Any,  # noqa: ANN401
        blocks: int,
        threads: int,
        shared: int,
        arguments: bytes,
        device: torch.device,
    ) -> None:
        """Launches it on the current stream of the device."""
        ...


class Launcher:
    """Compiles, loads and launches the kernels.

    Arguments:
        driver: The GPU.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._functions: dict[tuple, Any] = {}
        self._lock = threading.Lock()

    def plan(self, direction: str, inputs: Inputs) -> Plan:
        """Returns how the elements of a sample are split between blocks and threads."""
        first = inputs.loc[0]
        size, samples = first.shape[1:].numel(), first.shape[0]
        special = specialise(direction, inputs)
        threads = self._threads(size, special.width)
        most = max(1, _WAVES * self.driver.processors(first.device) // samples)
        turns = -(-size // (threads * special.width * most))
        packet = special.width * first.element_size()
        return Plan(threads * special.width * turns, packet)

    def launch(self, direction: str, inputs: Inputs, packed: bytes) -> None:
        """Queues ``"forward"`` or ``"backward"`` on the current stream."""
        first = inputs.loc[0]
        size, samples = first.shape[1:].numel(), first.shape[0]
        special = specialise(direction, inputs)
        threads = self._threads(size, special.width)
        blocks = samples * -(-size // self.plan(direction, inputs).length)
        words = inputs.subsets * (1 + threads // 32)  # a mask, and a sum for each warp
        function = self.function(special, first.device)
        self.driver.launch(function, blocks, threads, 4 * words, packed, first.device)

    def function(self, special: Specialisation, device: torch.device) -> Any:  # noqa: ANN401
        """Returns a compiled kernel; the first call compiles it.

        Raises:
            mmpoe.kernels.jit.BuildError: If NVRTC cannot.
        """
        key = (special, device)
        found = self._functions.get(key)
        if found is None:
            with self._lock:
                found = self._functions.get(key)
                if found is None:
                    binary = jit.cuda_binary(special, self.driver.architecture(device))
                    found = self.driver.load(binary, special.name)
                    self._functions[key] = found
        return found

    def _threads(self, size: int, width: int) -> int:
        return min(_THREADS, -(-size // (32 * width)) * 32)


def specialise(direction: str, inputs: Inputs) -> Specialisation:
    """Returns the kernel for the inputs."""
    clamp, common_noise = inputs.clamp > 0, inputs.common_noise is not None
    return _special(direction, inputs.loc[0].dtype, len(inputs.loc), clamp, common_noise)


def prepare(
    device: torch.device, dtype: torch.dtype, experts: int, clamp: bool, common_noise: bool
) -> None:
    """Compiles and loads the kernels, so that a later call does neither."""
    for direction in ("forward", "backward"):
        special = _special(direction, dtype, experts, clamp, common_noise)
        launcher().function(special, device)


def _special(
    direction: str, dtype: torch.dtype, experts: int, clamp: bool, common_noise: bool
) -> Specialisation:
    size = width(direction, experts)
    return Specialisation(direction, STORAGE[dtype], experts, size, clamp, common_noise)


def width(direction: str, experts: int) -> int:
    """Returns the elements per thread: as many as registers hold without spilling."""
    if direction == "forward":
        return 4 if experts <= 8 else 2 if experts <= 16 else 1
    return 4 if experts <= 4 else 2 if experts <= 16 else 1


class CudaDriver:
    """A GPU, through the driver API of ``cuda.bindings``, on which PyTorch itself depends."""

    def architecture(self, device: torch.device) -> int:
        """Returns the compute capability, 90 for 9.0."""
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor

    def processors(self, device: torch.device) -> int:
        """Returns the number of multiprocessors."""
        return torch.cuda.get_device_properties(device).multi_processor_count

    def load(self, binary: bytes, name: str) -> Any:  # noqa: ANN401
        """Returns a function of a compiled binary, for the current device."""
        driver = _bindings()
        library = _check(driver.cuLibraryLoadData(binary, None, None, 0, None, None, 0))
        kernel = _check(driver.cuLibraryGetKernel(library, name.encode()))
        return _check(driver.cuKernelGetFunction(kernel))

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
        with torch.cuda.device(device):
            _check(
                driver.cuLaunchKernel(
                    function, *grid, shared, stream, ctypes.addressof(pointers), 0
                )
            )


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
    return Launcher(CudaDriver())


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
    return next((reason for reason in _verdicts.values() if reason), None)


_verdicts: dict[int, str | None] = {}


def failure(device: torch.device) -> str | None:
    """Says why the kernels are not to be used on a GPU.

    On the first use of an architecture they are compared with PyTorch, and not used if they
    differ. What was found is remembered in the cache folder.
    """
    if reason := unavailable():
        return reason
    architecture = launcher().driver.architecture(device)
    if architecture not in _verdicts:
        _verdicts[architecture] = _verify(device, architecture)
    return _verdicts[architecture]


def _verify(device: torch.device, architecture: int) -> str | None:
    from . import selftest

    identity = "\0".join([*jit.sources().values(), str(architecture), torch.__version__])

    def check() -> bytes:
        try:
            worst = max(row.error / row.tolerance for row in selftest.compare(device))
        except (RuntimeError, jit.BuildError) as error:
            return f"failed: {error}".encode()
        return b"right" if worst <= 1 else f"differ by {worst:.3g} times what they may".encode()

    verdict = jit.build(f"gpoe-verdict-sm{architecture}", ".txt", identity, check).decode()
    if verdict == "right":
        return None
    reason = f"its kernels, compared with PyTorch on this GPU, {verdict}"
    jit.log.error("No fused kernels on this GPU: %s. PyTorch runs instead.", reason)
    return reason
