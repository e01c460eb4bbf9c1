"""Audit of the fused kernels as compiled for a GPU: registers, spills, memory instructions.

NVRTC compiles every kernel of a grid; the disassembler in the wheel of triton reads the machine
code. No GPU is needed, and none is used: times are estimates from bytes and instructions.

    make audit-poe
"""

from __future__ import annotations

__all__ = ["Report", "audit", "grid", "line", "tool", "version"]

import argparse
import importlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from mmpoe.kernels import Specialisation, cuda_binary

ARCHITECTURES = (80, 90, 100, 120)

KINDS = {
    "float": ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "F2FP", "I2FP"),
    "special": ("MUFU",),
    "memory": ("LDG", "STG", "LDS", "STS", "SHFL", "BAR"),
    "constants": ("LDC", "ULDC"),
    "control": ("BRA", "BSSY", "BSYNC", "EXIT", "BREAK", "WARPSYNC", "PMTRIG"),
}
"""Instructions by what they do; all others compute with integers, or move."""

_ALL_KINDS = (*KINDS, "integer")
ELEMENTS = 16 * 8 * 192 * 192

# an H100 with SXM5: bytes per second, and lanes times clock of its 132 multiprocessors
BANDWIDTH, INSTRUCTIONS = 3.35e12, 132 * 128 * 1.755e9


class Report(NamedTuple):
    """The findings in one kernel."""

    special: Specialisation
    architecture: int
    registers: int
    stack: int
    spills: int
    """Loads and stores of local memory."""
    loads: Counter[int]
    """Instructions that load from global memory, by their bits."""
    stores: Counter[int]
    kinds: Counter[str]
    """Instructions of the usual path by kind: rows that are aligned, a prior in every product, no
    expert that is far. All that the machine code of such a kernel holds counts, once: what each
    thread does, what it does for the block, and what is skipped if an output is not asked for or
    noise is given; and one instruction for each test of whether the path is the usual one."""

    @property
    def instructions(self) -> float:
        """Instructions of the usual path per element of a thread."""
        return sum(self.kinds.values()) / self.special.width

    @property
    def blocks(self) -> int:
        """The blocks of 128 threads that the 65536 registers of a multiprocessor hold."""
        return 65536 // (128 * 8 * -(-self.registers // 8))


def tool(name: str = "cuobjdump") -> Path | None:
    """Returns the path of a CUDA binary tool, or None if there is none."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return path
    found = shutil.which(name)
    return Path(found) if found else None


def grid() -> Iterator[Specialisation]:
    """Lists kernels: storage types, numbers of experts, with and without the rarely used."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for experts in (1, 2, 4, 8, 16, 32):
            for rare in (False, True):
                if rare and experts > 4:
                    continue
                for direction in ("forward", "backward"):
                    yield Specialisation(direction, dtype, experts, rare, rare)


def audit(special: Specialisation, architecture: int) -> Report:
    """Compiles a kernel and reads its machine code."""
    binary = cuda_binary(special, architecture)
    usage = _dump(binary, "--dump-resource-usage")
    registers, stack = (int(_find(rf"{key}:(\d+)", usage)) for key in ("REG", "STACK"))
    operations = _operations(binary)
    usual = _operations(cuda_binary(special, architecture, ["-DGPOE_USUAL_PATH"]))
    return Report(
        special,
        architecture,
        registers,
        stack,
        sum(op.startswith(("LDL", "STL")) for op in operations),
        Counter(_bits(op) for op in operations if op.startswith(("LDG", "LD."))),
        Counter(_bits(op) for op in operations if op.startswith(("STG", "ST."))),
        Counter(_kind(op) for op in usual),
    )


def _operations(binary: bytes) -> list[str]:
    lines = re.findall(
        r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", _dump(binary, "-sass")
    )
    return [op for op in lines if op != "NOP"]


def _kind(operation: str) -> str:
    name = operation.split(".")[0]
    return next((kind for kind, names in KINDS.items() if name in names), "integer")


def _dump(binary: bytes, option: str) -> str:
    path = tool()
    if path is None:
        raise FileNotFoundError("cuobjdump: it comes with triton, or the CUDA toolkit")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run(
            [path, option, file.name], capture_output=True, text=True, check=True
        )
    return done.stdout + done.stderr


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"'text' should hold {pattern!r}, but does not.")
    return match[1]


def _bits(operation: str) -> int:
    sizes = {"128": 128, "64": 64, "U16": 16, "U8": 8}
    return next((sizes[p] for p in operation.split(".")[1:] if p in sizes), 32)


def microseconds(report: Report, elements: int) -> tuple[float, float]:
    """Estimates the time on an H100 from bytes moved, and from instructions issued.

    One subset with a tensor prior and noise drawn in the kernel; `z` and the divergence come out.
    """
    special = report.special
    factors = special.experts + 1
    values = 2 * factors + 1 if special.direction == "forward" else 4 * factors + 1
    return (
        elements * special.dtype.itemsize * values / BANDWIDTH * 1e6,
        elements * report.instructions / INSTRUCTIONS * 1e6,
    )


def version() -> str:
    """Names the compiler."""
    _, *numbers = importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    return "NVRTC " + ".".join(map(str, numbers))


def line(report: Report) -> str:
    """Formats what is found in a kernel."""
    special = report.special
    dtype = str(special.dtype).removeprefix("torch.")
    name = f"sm_{report.architecture:<3} {special.direction} {dtype} M={special.experts}"
    name += " clamp, common noise" if special.clamp else ""
    moves = (
        " ".join(f"{n}x{b}" for b, n in sorted(c.items(), reverse=True) if b > 32)
        for c in (report.loads, report.stores)
    )
    each = (f"{report.kinds[k] / special.width:{len(k)}.0f}" for k in _ALL_KINDS)
    moved, issued = microseconds(report, ELEMENTS)
    return " ".join(
        [
            f"{name:35} {report.registers:4d} {report.blocks:6d} {report.spills:6d}",
            "{:>11} {:>7}".format(*moves),
            f"{report.instructions:5.1f}",
            *each,
            f"{moved:5.0f} {issued:12.0f}",
        ]
    )


def main() -> None:
    """Prints the audit of the grid for one architecture, or for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="all architectures and kernels")
    everything = parser.parse_args().all
    print(f"{version()}; registers, and blocks of 128 threads that a multiprocessor has them for;")
    print("loads and stores of 64 bits and more; instructions per element, all and by kind;")
    print("microseconds on an H100 for (16, 8, 192, 192), estimated from bytes and instructions")
    print()
    print(
        f"{'kernel':35} regs blocks spills {'loads':>11} {'stores':>7}   all",
        *_ALL_KINDS,
        "bytes instructions",
    )
    for special in grid():
        rare = special.clamp or special.experts in (1, 2, 16, 32) or special.dtype == torch.float16
        if rare and not everything:
            continue
        for architecture in ARCHITECTURES if everything else (90,):
            print(line(audit(special, architecture)))


if __name__ == "__main__":
    main()
