"""The stages of a session, the most important ones first."""

from __future__ import annotations

__all__ = ["STAGES", "Stage"]

from typing import NamedTuple

LIBRARY = ("pyro", "scipy")
"""The packages that `import mmpoe` needs beside PyTorch."""

KERNELS = (*LIBRARY, "cuda.bindings")
TRAINING = (*LIBRARY, "lightning_fabric", "safetensors", "tqdm")
LAUNCHES = ("-m", "benchmarks.gpu.launches")


class Stage(NamedTuple):
    """A process of a session."""

    name: str
    limit: float
    """The seconds after which it is killed."""
    about: str
    """A sentence for the report."""
    needs: tuple[str, ...] = ()
    """The packages that it needs."""
    command: tuple[str, ...] = ()
    """The arguments of Python; by default, the module of the stage's name gives its rows."""
    tool: tuple[str, ...] = ()
    """The program that it runs under, with options; not in a dry run."""
    says: tuple[str, str] = ("", "")
    """Text that the output of a command must hold, on a GPU and in a dry run."""


STAGES = [
    Stage("facts", 40, "The device and the software."),
    Stage(
        "build",
        120,
        "Compilation of all kernels that the other stages use, several at a time. Registers, "
        "spills and instructions are read from their machine code.",
        KERNELS,
    ),
    Stage(
        "selftest",
        60,
        "Kernels against PyTorch in float64: `python -m mmpoe.kernels.selftest`.",
        KERNELS,
        ("-m", "mmpoe.kernels.selftest"),
        says=("cuda: available", "cpu: available"),
    ),
    Stage(
        "threads",
        45,
        "Calls from threads that no call of CUDA was made in before.",
        KERNELS,
    ),
    Stage(
        "ceilings",
        30,
        "What memory gives: bytes read and written by PyTorch's own kernels, in TB/s.",
    ),
    Stage(
        "kernels",
        90,
        "Four experts and a prior. *Forward* and *backward* are device time from a cold L2 cache, "
        "between two events behind a full queue: kernels, and the gaps between them. *Of copy* is "
        "the share of the bandwidth of a copy, for the bytes that must move; *issue* is the time "
        "that the instructions of the machine code take to issue at the highest clock. *Call* is "
        "forward and backward from an idle device, launching included. *Eager* is "
        "`backend='eager'`; *minimal* is the least PyTorch that computes the same: subsets known "
        "when the code is written, noise drawn beforehand; *triton* is a fused forward pass in "
        "Triton. *Error* is the largest error of what comes out, relative to the largest number, "
        "against float64.",
        (*KERNELS, "triton"),
    ),
    Stage(
        "graphs",
        60,
        "Launching: *host* is the time until a call returns, *call* that until the device is "
        "done, *device* that of the device alone, for calls and for replays of a CUDA graph. "
        "*Waits* is how often the host waits for a result: a graph can hold no such work.",
        KERNELS,
    ),
    Stage(
        "network",
        90,
        "The published MMHVAE, images of 192 x 192: a training step on three subsets (forward, "
        "backward, Adamax), and a prediction of one modality from another.",
        KERNELS,
    ),
    Stage(
        "tests",
        100,
        "`pytest tests/kernels/test_gpu.py`.",
        (*KERNELS, "pytest", "hypothesis"),
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_gpu.py"),
        says=(" passed", " skipped"),
    ),
    Stage(
        "training",
        70,
        "Training runs with `mmpoe.training.fit` that are cut and resumed.",
        TRAINING,
    ),
    Stage("memory", 40, "A training run that asks for more memory than there is.", TRAINING),
    Stage("loading", 45, "The share of a training step spent waiting for data.", TRAINING),
    Stage(
        "compiled",
        100,
        "The same by `torch.compile`.",
        (*KERNELS, "triton"),
    ),
    Stage(
        "memcheck",
        60,
        "Memory accesses of the kernels, by compute-sanitizer.",
        KERNELS,
        LAUNCHES,
        ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"),
        ("ERROR SUMMARY: 0 errors", "launched"),
    ),
    Stage(
        "racecheck",
        60,
        "Races in shared memory, by compute-sanitizer.",
        KERNELS,
        LAUNCHES,
        ("compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9"),
        ("RACECHECK SUMMARY: 0 hazards", "launched"),
    ),
    Stage(
        "counters",
        60,
        "Hardware counters of the kernels, by ncu.",
        KERNELS,
        LAUNCHES,
        (
            *("ncu", "--csv", "--clock-control", "none", "-k", "regex:gpoe", "-c", "4"),
            "--metrics",
            "gpu__time_duration.sum,launch__registers_per_thread,"
            "dram__throughput.avg.pct_of_peak_sustained_elapsed,"
            "smsp__issue_active.avg.pct_of_peak_sustained_active,"
            "sm__warps_active.avg.pct_of_peak_sustained_active,smsp__inst_executed.sum",
        ),
        ("gpoe_forward", "launched"),
    ),
]
