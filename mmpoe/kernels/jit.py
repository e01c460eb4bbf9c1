r"""The compilers of the kernels: g++ for CPUs, NVRTC for GPUs, each run once per machine."""

from __future__ import annotations

__all__ = ["BuildError", "Specialisation", "cuda_binary"]

import ctypes
import importlib
import importlib.resources
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from ._arguments import SIZE, STORAGE
from ._cache import cached, log

_PATIENCE = 300
"""Seconds after which a compiler is taken to hang; it needs some ten."""


class BuildError(RuntimeError):
    """A kernel could not be compiled or loaded; the message says why."""


class Program(NamedTuple):
    """Kernels that are compiled together."""

    name: str
    """The beginning of the names of its files in the cache."""
    files: tuple[str, ...]
    """Its sources: the last one is compiled for CPUs, the one before for GPUs."""
    functions: tuple[str, ...]
    """The functions of its library for CPUs, of packed arguments and a number of threads."""
    sizes: Mapping[str, int]
    """Bytes of its arguments by the name of a macro: the source checks them."""


POE = Program(
    "gpoe",
    ("lanes.cuh", "gpoe.cuh", "cpu.cpp"),
    ("forward", "backward"),
    {"GPOE_ARGUMENTS_SIZE": SIZE},
)
"""The product of experts, with arguments for one expert."""


def sources(program: Program = POE) -> dict[str, str]:
    """Returns the C++ sources of a program by name."""
    return {name: _source(name) for name in program.files}


@cache
def _source(name: str) -> str:
    return (importlib.resources.files("mmpoe.kernels") / "csrc" / name).read_text()


# ---- For the CPU ----------------------------------------------------------------------------


def compiler() -> list[str]:
    """Returns the command of the C++ compiler, ``$CXX`` or g++.

    Raises:
        BuildError: If there is none.
    """
    import shlex  # here, so that importing mmpoe stays cheap

    try:
        command = shlex.split(os.environ.get("CXX") or "g++") or ["g++"]
    except ValueError as error:
        raise BuildError(f"CXX cannot be read as a command: {error}") from error
    found = shutil.which(command[0])
    if found is None:
        raise BuildError(f"no C++ compiler: {command[0]!r} is not on the PATH (set CXX)")
    return [found, *command[1:]]


def flags(dtype: torch.dtype, program: Program = POE) -> list[str]:
    """Returns the flags of a build for this CPU."""
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    options = ["-std=c++17", "-O2", native, "-fopenmp", "-fno-math-errno", "-ffp-contract=fast"]
    sizes = [f"-D{name}={size}" for name, size in program.sizes.items()]
    defines = [f"-DGPOE_STORAGE={STORAGE[dtype]}", *sizes]
    return [*options, "-Wno-psabi", "-shared", "-fPIC", *defines]


def cpu_library(dtype: torch.dtype, program: Program = POE) -> ctypes.CDLL:
    """Returns the kernels of a program for this CPU and a storage type, compiled if need be.

    Raises:
        BuildError: If there is no compiler, or it fails, or the library cannot be loaded.
    """
    command = compiler()
    options, texts = flags(dtype, program), sources(program)
    identity = "\0".join([*texts.values(), *options, _version(tuple(command)), _processor()])

    def compile() -> bytes:
        try:
            with tempfile.TemporaryDirectory() as folder:
                return _compile_cpu([*command, *options], texts, Path(folder))
        except OSError as error:
            raise BuildError(
                f"the files of the compiler cannot be written: {error} "
                "(set TMPDIR to a folder that can be written and has room)"
            ) from error

    name = f"{program.name}-cpu-{STORAGE[dtype]}"
    library = _load(cached(name, ".so", identity, compile, " ".join(command)))
    for function in program.functions:
        getattr(library, function).argtypes = [ctypes.c_char_p, ctypes.c_int]
        getattr(library, function).restype = None
    return library


def _compile_cpu(command: list[str], texts: dict[str, str], folder: Path) -> bytes:
    for name, text in texts.items():
        (folder / name).write_text(text)
    main, target = folder / [*texts][-1], folder / "kernels.so"
    _run([*command, str(main), "-o", str(target)])
    return target.read_bytes()


def _load(content: bytes) -> ctypes.CDLL:
    """Loads a library from memory, where nobody can replace it, or else from a temporary file."""
    with suppress(OSError, AttributeError):  # a system without such files, or that runs none
        opened = os.memfd_create("mmpoe")
        try:
            with os.fdopen(opened, "wb", closefd=False) as stream:
                stream.write(content)
            # it stays open: the loader takes two libraries of one name for the same
            return ctypes.CDLL(f"/proc/self/fd/{opened}")
        except OSError:
            os.close(opened)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernels.so"
            path.write_bytes(content)
            return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the compiled library cannot be loaded: {error}") from error


# ---- For a GPU ------------------------------------------------------------------------------


class Kernel(Protocol):
    """A kernel of a GPU, and the properties that it is compiled for."""

    @property
    def program(self) -> Program:
        """The program that it is of."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it reads and writes."""
        ...

    @property
    def name(self) -> str:
        """The name of the kernel."""
        ...

    @property
    def label(self) -> str:
        """The part of the name of its file that tells it from others of its dtype."""
        ...

    @property
    def defines(self) -> list[str]:
        """The macros of the source."""
        ...


class Specialisation(NamedTuple):
    """The properties that a kernel of the product of experts is compiled for."""

    direction: str
    """``"forward"`` or ``"backward"``."""
    dtype: torch.dtype
    """The dtype that it reads and writes: float32, bfloat16 or float16."""
    experts: int
    """The number M of experts, 1 to 32."""
    clamp: bool = False
    """Whether it can clamp what it reads."""
    common_noise: bool = False
    """Whether experts can have noise in common."""

    @property
    def width(self) -> int:
        """The elements of a thread: as many as registers hold without spilling."""
        if self.direction == "forward":
            return 4 if self.experts <= 8 else 2 if self.experts <= 16 else 1
        return 4 if self.experts <= 4 else 2 if self.experts <= 16 else 1

    @property
    def blocks(self) -> int:
        """The blocks of 128 threads that a multiprocessor has registers for, at least."""
        rare = self.clamp or self.common_noise
        return 3 if self.experts + rare <= 4 else 2

    @property
    def program(self) -> Program:
        """The program that it is of."""
        return POE

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return f"gpoe_{self.direction}"

    @property
    def label(self) -> str:
        """The part of the name of its file that tells it from others of its dtype."""
        return f"{self.experts}-{self.direction}"

    @property
    def defines(self) -> list[str]:
        """The macros of the source."""
        return [
            f"-DGPOE_ARGUMENTS_SIZE={SIZE}",
            f"-DGPOE_STORAGE={STORAGE[self.dtype]}",
            f"-DGPOE_EXPERTS={self.experts}",
            f"-DGPOE_WIDTH={self.width}",
            f"-DGPOE_BLOCKS={self.blocks}",
            f"-DGPOE_CLAMP={self.clamp:d}",
            f"-DGPOE_COMMON_NOISE={self.common_noise:d}",
            f"-DGPOE_NAME={self.name}",
            f"-DGPOE_KERNEL={self.direction}_kernel",
        ]


def nvrtc() -> Any:  # noqa: ANN401
    """Returns NVRTC, NVIDIA's run-time compiler.

    Raises:
        BuildError: If it is not installed.
    """
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise BuildError(f"no NVRTC: {error}") from error
    return nvrtc


def cuda_binary(special: Kernel, architecture: int, more: Sequence[str] = ()) -> bytes:
    """Returns a kernel for a GPU, compiled if need be: machine code, or PTX for one too new.

    No GPU is needed to compile, nor to read what the compiler made of a kernel.

    Arguments:
        special: What it is compiled for.
        architecture: The compute capability, 90 for 9.0.
        more: More options of the compiler.

    Raises:
        BuildError: If NVRTC is not there, or fails, or the GPU is too old for it.
    """
    compiler = nvrtc()
    _, count = compiler.nvrtcGetNumSupportedArchs()
    _, supported = compiler.nvrtcGetSupportedArchs()
    known = [a for a in supported[:count] if a <= architecture]
    if not known:
        raise BuildError(f"NVRTC does not compile for compute capability {architecture}")
    machine = architecture in known
    target = f"sm_{architecture}" if machine else f"compute_{max(known)}"
    options = [f"--gpu-architecture={target}", "-std=c++17", *special.defines, *more]
    version = ".".join(map(str, compiler.nvrtcVersion()[1:]))
    texts = sources(special.program)
    identity = "\0".join([*texts.values(), *options, version])
    name = f"{special.program.name}-{target}-{STORAGE[special.dtype]}-{special.label}"

    def compile() -> bytes:
        return _compile_cuda(compiler, options, machine, texts)

    return cached(name, ".cubin" if machine else ".ptx", identity, compile, f"NVRTC {version}")


def _compile_cuda(
    compiler: Any,  # noqa: ANN401
    options: list[str],
    machine: bool,
    texts: dict[str, str],
) -> bytes:
    *headers, main, _ = [(text.encode(), name.encode()) for name, text in texts.items()]
    contents, names = map(list, zip(*headers, strict=True))
    error, program = compiler.nvrtcCreateProgram(*main, len(headers), contents, names)
    if int(error):
        raise BuildError(f"NVRTC: {error.name}")
    (error,) = compiler.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    _, size = compiler.nvrtcGetProgramLogSize(program)
    text = bytearray(size)
    compiler.nvrtcGetProgramLog(program, text)
    said = bytes(text).rstrip(b"\0\n").decode(errors="replace")
    if int(error):
        raise BuildError(f"NVRTC failed: {said.splitlines()[0] if said else error.name}")
    if said:
        log.warning("NVRTC says: %s", said)
    kind = "CUBIN" if machine else "PTX"
    _, size = getattr(compiler, f"nvrtcGet{kind}Size")(program)
    binary = bytearray(size)
    getattr(compiler, f"nvrtcGet{kind}")(program, binary)
    compiler.nvrtcDestroyProgram(program)
    return bytes(binary)


def _run(command: list[str]) -> str:
    """Runs a compiler in a session of its own: what it starts ends with it."""
    name, pipe = Path(command[0]).name, subprocess.PIPE
    options = {"text": True, "errors": "replace", "env": os.environ | {"LC_ALL": "C"}}
    try:
        with subprocess.Popen(
            command, stdout=pipe, stderr=pipe, start_new_session=True, **options
        ) as process:
            try:
                said, complaint = process.communicate(timeout=_PATIENCE)
            except BaseException:
                _end(process)
                raise
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{name} did not end within {_PATIENCE} s (set CXX)") from error
    except OSError as error:
        raise BuildError(f"{name} cannot be run: {error} (set CXX)") from error
    if process.returncode < 0:
        raise BuildError(f"{name} was ended by signal {-process.returncode}")
    if process.returncode:
        lines = (complaint or said).strip().splitlines()
        reason = next((line for line in lines if "error" in line), "no message")
        raise BuildError(f"{name} failed with {process.returncode}: {reason}")
    return said


def _end(process: subprocess.Popen) -> None:
    """Ends a compiler and what it has started, which would keep its pipes open."""
    with suppress(OSError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


@cache
def _version(command: tuple[str, ...]) -> str:
    return _run([*command, "--version"])


@cache
def _processor() -> str:
    """Says what -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kept = [k for k in lines if k.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(kept))])
