r"""Compiled kernels, kept in a cache folder: built once per machine, never trusted unread.

A file is named after a digest of everything that went into it, and one of what it holds. It is
written elsewhere and moved, so that two processes never see half of one another's; one that does
not hold what its name says is built again. Nothing is unpickled.
"""

from __future__ import annotations

__all__ = ["BuildError", "Specialisation", "cuda_binary"]

import ctypes
import hashlib
import importlib
import importlib.resources
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ._arguments import SIZE, STORAGE

log = logging.getLogger("mmpoe.kernels")


class BuildError(RuntimeError):
    """A kernel could not be compiled or loaded; the message says why."""


def cache_folder() -> Path:
    """Returns where compiled kernels are kept: ``$MMPOE_CACHE/kernels``, ``~/.cache/mmpoe``."""
    base = os.environ.get("MMPOE_CACHE") or Path.home() / ".cache" / "mmpoe"
    return Path(base).expanduser() / "kernels"


@cache
def sources() -> dict[str, str]:
    """Returns the C++ sources by name."""
    folder = importlib.resources.files("mmpoe.kernels") / "csrc"
    names = ("lanes.cuh", "gpoe.cuh", "cpu.cpp")
    return {name: (folder / name).read_text() for name in names}


def cached(
    name: str, suffix: str, identity: str, compile: Callable[[], bytes], detail: str = ""
) -> bytes:
    """Returns a compiled kernel from the cache, or compiles it and puts it there.

    Arguments:
        name: What it is, for the name of the file and the log.
        suffix: The suffix of the file.
        identity: Everything the result depends on.
        compile: Compiles; raises a `BuildError` if that fails.
        detail: More about it, for the log.
    """
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    folder = _private_folder(cache_folder())
    if folder is not None:
        for path in sorted(folder.glob(f"{name}-{key}-*{suffix}")):
            content = _read(path)
            if path.name == f"{name}-{key}-{_digest(content)}{suffix}":
                return content
            log.warning("%s does not hold what its name says: compiling it again.", path)
            path.unlink(missing_ok=True)

    started = time.perf_counter()
    content = compile()
    seconds = time.perf_counter() - started
    place = "not kept: the cache folder cannot be used"
    if folder is not None:
        path = folder / f"{name}-{key}-{_digest(content)}{suffix}"
        place = str(path) if _write(path, content) else f"not kept: cannot write to {folder}"
    log.info("compiled %s%s in %.1f s, %s", name, detail and f" ({detail})", seconds, place)
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _private_folder(folder: Path) -> Path | None:
    """Makes the folder; None if it cannot be made or somebody else could put code into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        log.warning("No cache of compiled kernels: %s", error)
        return None
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        log.warning("No cache of compiled kernels: others may write to %s", folder)
        return None
    return folder


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _write(path: Path, content: bytes) -> bool:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        try:
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        return False
    return True


# ---- For the CPU ----------------------------------------------------------------------------


def compiler() -> list[str]:
    """Returns the command of the C++ compiler, ``$CXX`` or g++.

    Raises:
        BuildError: If there is none.
    """
    import shlex  # here, so that importing mmpoe stays cheap

    command = shlex.split(os.environ.get("CXX") or "g++")
    found = shutil.which(command[0])
    if found is None:
        raise BuildError(f"no C++ compiler: {command[0]!r} is not on the PATH (set CXX)")
    return [found, *command[1:]]


def flags(dtype: torch.dtype) -> list[str]:
    """Returns the flags of a build for this CPU."""
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    options = ["-std=c++17", "-O2", native, "-fopenmp", "-fno-math-errno", "-ffp-contract=fast"]
    defines = [f"-DGPOE_STORAGE={STORAGE[dtype]}", f"-DGPOE_ARGUMENTS_SIZE={SIZE}"]
    return [*options, "-Wno-psabi", "-shared", "-fPIC", *defines]


def cpu_library(dtype: torch.dtype) -> ctypes.CDLL:
    """Returns the kernels for this CPU and a storage type, compiled if need be.

    Raises:
        BuildError: If there is no compiler, or it fails, or the library cannot be loaded.
    """
    command = compiler()
    options = flags(dtype)
    identity = "\0".join([*sources().values(), *options, _version(tuple(command)), _processor()])

    def compile() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in sources().items():
                (Path(folder) / name).write_text(text)
            target = Path(folder) / "gpoe.so"
            _run([*command, *options, str(Path(folder) / "cpu.cpp"), "-o", str(target)])
            return target.read_bytes()

    content = cached(f"gpoe-cpu-{STORAGE[dtype]}", ".so", identity, compile, " ".join(command))
    with tempfile.TemporaryDirectory() as folder:
        # from a file of its own: one in the cache could be replaced while it is mapped
        path = Path(folder) / "gpoe.so"
        path.write_bytes(content)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildError(f"the compiled library cannot be loaded: {error}") from error


# ---- For a GPU ------------------------------------------------------------------------------


class Specialisation(NamedTuple):
    """The properties that a kernel of a GPU is compiled for."""

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
    def name(self) -> str:
        """The name of the kernel."""
        return f"gpoe_{self.direction}"

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
    except (ImportError, RuntimeError) as error:
        raise BuildError(f"no NVRTC: {error}") from error
    return nvrtc


def cuda_binary(special: Specialisation, architecture: int, more: Sequence[str] = ()) -> bytes:
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
    identity = "\0".join([*sources().values(), *options, version])
    name = f"gpoe-{target}-{STORAGE[special.dtype]}-{special.experts}-{special.direction}"

    def compile() -> bytes:
        return _compile_cuda(compiler, options, machine)

    return cached(name, ".cubin" if machine else ".ptx", identity, compile, f"NVRTC {version}")


def _compile_cuda(compiler: Any, options: list[str], machine: bool) -> bytes:  # noqa: ANN401
    header, source = sources()["lanes.cuh"].encode(), sources()["gpoe.cuh"].encode()
    error, program = compiler.nvrtcCreateProgram(source, b"gpoe.cuh", 1, [header], [b"lanes.cuh"])
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
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{Path(command[0]).name} cannot be run: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = next((line for line in lines if "error" in line), "no message")
        raise BuildError(f"{Path(command[0]).name} failed with {done.returncode}: {reason}")
    return done.stdout


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
