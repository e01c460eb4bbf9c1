"""The device and the software."""

from __future__ import annotations

__all__ = ["issue_rate", "rows"]

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterator

import torch

from .device import Device, Row

PACKAGES = ("triton", "cuda-bindings", "pyro-ppl", "lightning-fabric", "numpy", "pytest")
PROGRAMS = ("compute-sanitizer", "ncu", "cuobjdump", "g++")
LANES = 128
"""Instructions that a multiprocessor issues per clock: four warps of 32 threads."""


def rows(device: Device) -> Iterator[Row]:
    """Yields one fact a row."""
    found = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda,
        **{name: version(name) for name in PACKAGES},
        **{name: shutil.which(name) or "not there" for name in PROGRAMS},
        **(of_cpu() if device.dry else of_gpu()),
    }
    for name, value in found.items():
        yield {"fact": name, "value": str(value)}


def version(package: str) -> str:
    """Returns the version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not there"


def of_cpu() -> Row:
    """Returns what stands in for a GPU in a dry run."""
    return {"device": f"a dry run on a CPU ({platform.machine()})"}


def of_gpu() -> Row:
    """Returns the properties of the GPU; clocks are those under no load, and the highest."""
    found = torch.cuda.get_device_properties(0)
    asked = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    return {
        "device": found.name,
        "compute capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory, GiB": round(found.total_memory / 2**30, 1),
        "L2 cache, MiB": round(getattr(found, "L2_cache_size", 0) / 2**20, 1),
        asked: query(asked) or "nvidia-smi does not say",
    }


def query(fields: str) -> str:
    """Asks nvidia-smi, and returns an empty text if it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def issue_rate(device: Device) -> float | None:
    """Returns the instructions of threads that the GPU issues per second at its highest clock."""
    megahertz = "1000" if device.dry else query("clocks.max.sm")
    if not megahertz.isdigit():
        return None
    count = 1 if device.dry else torch.cuda.get_device_properties(0).multi_processor_count
    return count * LANES * 1e6 * int(megahertz)
