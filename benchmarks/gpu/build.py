"""Compilation of all kernels that the other stages use, several at a time."""

from __future__ import annotations

__all__ = ["architecture", "rows", "specialisations"]

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product

import torch

from benchmarks.audit_poe import audit, tool
from mmpoe.kernels import Specialisation, cuda_binary

from .device import Device, Row, attempted

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = (4, 8, 12, 1, 32)
"""The numbers of experts of `kernels`, `selftest` and `tests`."""


def specialisations(device: Device) -> list[Specialisation]:
    """Returns the kernels, those that take long first."""
    found = [
        *(Specialisation(way, t, m) for m, t, way in product(PLAIN, DTYPES, WAYS)),
        *(Specialisation(way, t, 4, common_noise=True) for t, way in product(DTYPES, WAYS)),
        *(Specialisation(way, t, 8, clamp=True) for t, way in product(DTYPES, WAYS)),
        *(Specialisation(way, t, 4, clamp=True) for t, way in product(DTYPES, WAYS)),  # `network`
    ]
    return device.pick(sorted(found, key=lambda s: -s.experts), found[:1])


WAYS = ("forward", "backward")


def architecture(device: Device) -> int:
    """Returns the compute capability of the GPU, 90 for 9.0; in a dry run, that of an H100."""
    major, minor = (9, 0) if device.dry else torch.cuda.get_device_capability()
    return 10 * major + minor


def rows(device: Device) -> Iterator[Row]:
    """Compiles, and yields what is to be said of each kernel."""
    target, specials = architecture(device), specialisations(device)
    context = multiprocessing.get_context("forkserver")  # the CUDA of this process stays here
    context.set_forkserver_preload([__name__])
    workers = min(len(specials), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(compile_one, special, target) for special in specials]
        for job in as_completed(jobs):
            yield job.result()


def compile_one(special: Specialisation, target: int) -> Row:
    """Compiles a kernel, reads its machine code, and returns a row."""
    name = f"{special.direction} {str(special.dtype).removeprefix('torch.')} M={special.experts}"
    name += " clamp" * special.clamp + " common noise" * special.common_noise

    def measure() -> Row:
        started = time.perf_counter()
        binary = cuda_binary(special, target)
        row: Row = {"KiB": len(binary) // 1024, "s": round(time.perf_counter() - started, 1)}
        if tool() is None or special.experts != 4 or special.clamp or special.common_noise:
            return row
        report = audit(special, target)
        each = round(report.instructions / special.width)
        return row | {
            "registers": report.registers,
            "spills": report.spills,
            "instructions per element": each,
        }

    return attempted({"kernel": name}, measure)
