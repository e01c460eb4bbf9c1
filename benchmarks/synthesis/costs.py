"""Costs of synthesis at the published size: parameters, multiplications, time and memory.

One slice of 192 x 192 pixels, all modalities that a system handles given, all of them synthesised;
each system in a process of its own, on one thread. Multiplications are those of convolutions and
matrices (`torch.utils.flop_counter`, two operations each). Time is processor time, the median (and
the least) of some runs: other programs do not count, but can slow memory down. Memory is what the
process needs at most beyond what it needs after its imports, weights included. Figures that a
publication quotes stand beside, marked as quoted: they are of other code, and their times of
another machine, an NVIDIA A100.

    python -m benchmarks.synthesis.costs --write

A smoke run builds the slim systems for tiny images, in one process: it measures nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._results import processor
from examples.medical_mri_us.modalities import MODALITIES

from .systems import SYSTEMS, build

RESULTS = Path(__file__).parents[1] / "results"
SIZE = 192
QUOTED = {
    "resvit": ("293 M", "274 G", ""),
    "m2dn": ("", "24 G", "290 ms"),
    "mmhvae": ("14 M", "13 G", "55 ms"),
}
"""Parameters, multiplications and time that the MMHVAE paper (Dorent et al., 2026) quotes."""
REMARKS = {
    "unet": "nothing published to compare with",
    "mopoe": "levels added for this size",
    "mhvae": "two modalities",
    "mmgan": "six levels at this size; 54.4 M at 256 x 256, as the published code",
    "resvit": "ViT-B/16, as the published code; the quoted figures are of no variant found",
    "m2dn": "ten steps, costs of all of them; no published code: the quoted figures are unchecked",
    "mmhvae": "as the published code; fewer multiplications, since experts share a part",
}


@dataclass(frozen=True)
class Cost:
    """The costs of one system."""

    system: str
    parameters: int
    discriminator: int
    """The parameters of the discriminator, which synthesis does not need."""
    macs: int
    milliseconds: float
    """The median of some runs."""
    least_milliseconds: float
    """The least of them, which a busy machine disturbs least."""
    mebibytes: float | None
    """The memory beyond that of the imports; None where the system does not tell."""


def measure(name: str, size: int, *, full: bool, repeats: int) -> Cost:
    """Returns what a system costs, measured in this process.

    Arguments:
        name: The name of the system.
        size: The height and width of the slice, in pixels.
        full: Whether to build it at its published size.
        repeats: The number of runs to take the median of.
    """
    before = peak_memory()
    torch.manual_seed(0)
    system = build(name, MODALITIES, size, full=full)
    x = {m: 2 * torch.rand(1, 1, size, size) - 1 for m in system.handled}
    given = torch.tensor([[m in system.handled for m in MODALITIES]])
    torch.backends.mha.set_fastpath_enabled(False)  # which is not counted
    with FlopCounterMode(display=False) as counter:
        system.synthesise(x, given, system.handled)
    torch.backends.mha.set_fastpath_enabled(True)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        system.synthesise(x, given, system.handled)
        times.append(time.process_time() - start)
    after = peak_memory()
    critic = None if system.adversary is None else system.adversary.network
    return Cost(
        system=name,
        parameters=_count(system.network),
        discriminator=0 if critic is None else _count(critic),
        macs=counter.get_total_flops() // 2,
        milliseconds=round(1e3 * statistics.median(times), 1),
        least_milliseconds=round(1e3 * min(times), 1),
        mebibytes=None if before is None or after is None else round(after - before, 1),
    )


def measure_alone(name: str, repeats: int) -> Cost:
    """Returns what a system costs at its published size, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.synthesis.costs"]
    command += ["--only", name, "--repeats", str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Cost(**json.loads(done.stdout))


def peak_memory() -> float | None:
    """Returns the largest memory of this process so far in MiB, None where no file tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    sizes = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    return sizes[0] if sizes else None


def markdown(costs: Sequence[Cost], machine: str) -> str:
    """Returns the table, with quoted figures in columns of their own."""
    lines = [
        f"# What synthesis of one slice costs, {SIZE} x {SIZE} pixels",
        "",
        f"Measured on {machine}: one thread, processor time, memory beyond that of the imports.",
        "*Quoted* figures are those of the MMHVAE paper (Dorent et al., 2026): of other code, and "
        "times of an NVIDIA A100. They are not ours, and times cannot be compared.",
        "",
        "| system | parameters | GMAC | ms (least) | MiB "
        "| *quoted* parameters | *quoted* MAC | *quoted* time | remark |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for cost in costs:
        quoted = " | ".join(f"*{q}*" if q else "-" for q in QUOTED.get(cost.system, ("", "", "")))
        memory = "-" if cost.mebibytes is None else f"{cost.mebibytes:.0f}"
        remark = REMARKS[cost.system]
        if cost.discriminator:
            remark += f"; discriminator {cost.discriminator / 1e6:.2f} M"
        lines.append(
            f"| {cost.system} | {cost.parameters / 1e6:.2f} M | {cost.macs / 1e9:.2f} "
            f"| {cost.milliseconds:.0f} ({cost.least_milliseconds:.0f}) | {memory} "
            f"| {quoted} | {remark} |"
        )
    return "\n".join(lines) + "\n"


def describe_machine() -> str:
    """Returns the processor and the software, in words."""
    return f"{processor()}, PyTorch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    """Measures all systems and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--write", action="store_true", help="write to benchmarks/results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=list(SYSTEMS), help="print one system's costs as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)

    if options.only:
        cost = measure(options.only, SIZE, full=True, repeats=options.repeats)
        print(json.dumps(asdict(cost)))
        return
    costs = []
    for name in SYSTEMS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        if options.smoke:
            costs.append(measure(name, 32, full=False, repeats=1))
        else:
            costs.append(measure_alone(name, options.repeats))
    machine = describe_machine()
    text = markdown(costs, machine)
    if options.smoke:
        print("A smoke run: slim systems, 32 x 32 pixels, nothing below is a measurement.\n")
    print(text)
    if options.write and not options.smoke:
        RESULTS.mkdir(exist_ok=True)
        found = {"size": SIZE, "machine": machine, "costs": [asdict(cost) for cost in costs]}
        (RESULTS / "synthesis_costs.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "synthesis_costs.md").write_text(text)


def _count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


if __name__ == "__main__":
    main()
