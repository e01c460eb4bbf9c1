"""How fast the fused product of experts is on a CPU, against PyTorch, eager and compiled.

Forward and backward of 4 experts and a prior: `z` and the divergence out, gradients of all ten
inputs. *Eager* is `backend="eager"`, which is exact for any precision and any missing value;
*lean* is what one would write by hand in PyTorch for inputs without surprises, with noise that
PyTorch draws beforehand, outside of what is compiled.

All are run in turn, so that a drift of the machine hits them alike; a ratio is the median over
rounds of the ratio within a round. With one thread, times are of the processor, so that other work
on the machine does not count. Bandwidth is that of a triad measured in the same run. A call also
gets fresh memory for what it returns from the system, page by page: calls in memory that is there
already are held against the triad too. Exits with 1 if a number is below what is promised; a smoke
run measures too little to tell.

    python -m benchmarks.bench_poe
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmpoe.kernels import gaussian_poe

from ._results import processor

EXPERTS = 4


class Case(NamedTuple):
    """The cases to measure, and the ratios that are promised."""

    name: str
    subsets: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    draws: bool
    eager: float | None = None
    compiled: float | None = None


RIVALS = ("eager", "compiled", "lean", "lean compiled")
FINEST, SUBSETS, COARSEST = (16, 8, 192, 192), (4, 8, 192, 192), (16, 256, 1, 1)
CASES = [
    Case("finest level", 1, FINEST, torch.float32, True, 4, 3),
    Case("finest level", 1, FINEST, torch.float32, False),
    Case("finest level", 1, FINEST, torch.bfloat16, True, 4, 3),
    Case("15 subsets", 15, SUBSETS, torch.float32, True, 6, 5),
    Case("15 subsets", 15, SUBSETS, torch.float32, False),
    Case("15 subsets", 15, SUBSETS, torch.bfloat16, True, 5, 5),
    Case("coarsest level", 1, COARSEST, torch.float32, True, 4, 1.5),
]


class Count(TorchDispatchMode):
    """Counts operators, and the bytes of what they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        """Runs the operator."""
        out = func(*args, **(kwargs or {}))
        tensors = tree_leaves((args, kwargs, out))
        self.operators += 1
        self.bytes += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        return out


def problem(case: Case) -> tuple[list[Tensor], Tensor, list[Tensor], Tensor | None]:
    """Returns the ten inputs, what is given, gradients of the outputs and noise."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(case.dtype)

    inputs = [draw(*case.shape).requires_grad_() for _ in range(2 * EXPERTS + 2)]
    rows = case.shape[0]
    bits = torch.arange(1, 16) if case.subsets == 15 else torch.tensor([15])
    given = (bits[:, None] >> torch.arange(EXPERTS) & 1).bool()  # (S, M)
    given = given[:, None].expand(-1, rows, -1).contiguous()
    gradients = [draw(case.subsets, *case.shape), torch.ones(case.subsets, rows)]
    noise = None if case.draws else draw(case.subsets, *case.shape)
    return inputs, given, gradients, noise


def step(
    inputs: Sequence[Tensor],
    given: Tensor,
    gradients: Sequence[Tensor],
    fuse: Callable[..., tuple[Tensor, Tensor]],
    noise: Tensor | None,
) -> None:
    """Runs forward and backward once."""
    z, kl = fuse(*inputs, given=given, noise=noise)
    torch.autograd.grad([z, kl], inputs, gradients)


def fuse_with(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns the operation on a backend."""

    def fuse(*inputs: Tensor, given: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        q = gaussian_poe(
            inputs[:EXPERTS],
            inputs[EXPERTS : 2 * EXPERTS],
            given,
            (inputs[-2], inputs[-1]),
            noise=noise,
            outputs=("z", "kl"),
            backend=backend,
        )
        return q.z, q.kl

    return fuse


def lean(*inputs: Tensor, given: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Multiplies precisions as textbooks do: each expert once, one subset after the other."""
    loc, log_scale = inputs[:EXPERTS], inputs[EXPERTS : 2 * EXPERTS]
    prior_loc, prior_log_scale = (t.float() for t in inputs[-2:])
    precisions = [torch.exp(-2 * s.float()) for s in log_scale]
    weighted = [p * m.float() for p, m in zip(precisions, loc, strict=True)]
    prior_precision = torch.exp(-2 * prior_log_scale)
    samples, divergences = [], []
    for s in range(given.shape[0]):
        total, moment = prior_precision, prior_precision * prior_loc
        for m in range(EXPERTS):
            mask = given[s, :, m].view(-1, *(1,) * (prior_loc.dim() - 1))
            total = total + mask * precisions[m]
            moment = moment + mask * weighted[m]
        mean, scale = moment / total, torch.rsqrt(total)
        samples.append((mean + scale * noise[s].float()).to(inputs[0].dtype))
        ratio = prior_precision / total
        distance = (mean - prior_loc).square() * prior_precision
        divergences.append((ratio + distance - 1 - ratio.log()).flatten(1).sum(dim=1) / 2)
    return torch.stack(samples), torch.stack(divergences)


def with_noise(
    fuse: Callable[..., tuple[Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Draws noise that is not given, before `fuse` runs, and with it what is compiled."""

    def draw_and_fuse(
        *inputs: Tensor, given: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        first = inputs[0]
        if noise is None:
            noise = torch.randn(len(given), *first.shape, dtype=first.dtype)
        return fuse(*inputs, given=given, noise=noise)

    return draw_and_fuse


def now() -> float:
    """Returns the time: of the processor with one thread, else of the clock."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(
    function: Callable[[], object],
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Returns the mean time of some calls."""
    started = clock()
    for _ in range(repeats):
        function()
    return (clock() - started) / repeats


def ways_to_fuse(smoke: bool) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    """Returns what is compared, by name."""
    ways = {
        "eager": fuse_with("eager"),
        "compiled": torch.compile(fuse_with("eager")),
        "lean": with_noise(lean),
        "lean compiled": with_noise(torch.compile(lean)),
        "fused": fuse_with("cpu"),
    }
    return {n: fuse for n, fuse in ways.items() if not (smoke and "compiled" in n)}


def run_in_turn(
    runs: dict[str, Callable[[], None]], rounds: int, repeats: int
) -> dict[str, list[float]]:
    """Returns the seconds of each, one number a round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            # the fused one is over before the machine has noticed: give it as long as the others
            more = 3 if name == "fused" and repeats == 1 else 1
            times[name].append(seconds(run, repeats * more, now))
    return times


def measure(case: Case, rounds: int, bandwidth: float, smoke: bool) -> list[str]:
    """Measures one case, prints a line, and returns what falls short."""
    torch._dynamo.reset()
    inputs, given, gradients, noise = problem(case)
    runs = {
        name: lambda fuse=fuse: step(inputs, given, gradients, fuse, noise)
        for name, fuse in ways_to_fuse(smoke).items()
    }
    elements = torch.Size(case.shape).numel()
    times = run_in_turn(runs, rounds, repeats=1 if smoke or elements > 1e5 else 50)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times["fused"], strict=True))
        for name in times
    }

    factors = EXPERTS + 1
    outputs = case.subsets * (1 if case.draws else 2)
    values = (2 * factors + outputs) + (4 * factors + outputs)
    moved = elements * values * inputs[0].element_size()
    median = {name: statistics.median(t) * 1e3 for name, t in times.items()}
    share = moved / (median["fused"] / 1e3) / bandwidth
    dtype = str(case.dtype).removeprefix("torch.")

    def column(width: int, value: float | None, unit: str = "") -> str:
        return " " * width if value is None else f"{value:{width - len(unit)}.1f}{unit}"

    print(
        f"{case.name:15}{dtype:9}{'drawn' if case.draws else 'given':6}"
        + "".join(column(9, median.get(name)) for name in (*RIVALS, "fused"))
        + "".join(column(8, ratios.get(name), "x") for name in RIVALS)
        + f"{moved / 1e6:7.0f}{share:7.2f}",
        flush=True,
    )
    return [
        f"{case.name} {dtype}: {ratios[name]:.2f}x {name}, {promised}x promised"
        for name, promised in (("eager", case.eager), ("compiled", case.compiled))
        if promised and ratios.get(name, promised) < promised
    ]


def triad(threads: int) -> float:
    """Returns the bytes per second of a = b + s c, on arrays beyond the caches."""
    b, c, a = (torch.rand(1 << 25) for _ in range(3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    best = min(seconds(lambda: torch.add(b, c, alpha=3.0, out=a), 1, now) for _ in range(8))
    torch.set_num_threads(before)
    return 3 * a.numel() * a.element_size() / best


@contextmanager
def kept_memory() -> Iterator[None]:
    """Lets glibc keep the memory that is freed, for the next call, in place of fresh pages."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        raise RuntimeError("memory can be kept with glibc alone")
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(mmap_max, 65536)
        mallopt(trim_threshold, 128 * 1024)


def alone(case: Case, bandwidth: float, rounds: int, promised: float) -> list[str]:
    """Measures forward and backward in memory that is there, and returns what falls short."""
    inputs, given, gradients, noise = problem(case)
    fuse, times = fuse_with("cpu"), ([], [])
    with kept_memory():
        for _ in range(rounds + 1):  # the first touches the memory
            started = now()
            outputs = fuse(*inputs, given=given, noise=noise)
            between = now()
            torch.autograd.grad(outputs, inputs, gradients)
            times[0].append(between - started)
            times[1].append(now() - between)
            del outputs
    values = 2 * (EXPERTS + 1) + case.subsets * (1 if case.draws else 2)  # of a forward pass
    moved = [values, values + 2 * (EXPERTS + 1)]
    moved = [torch.Size(case.shape).numel() * n * inputs[0].element_size() for n in moved]
    medians = [statistics.median(t[1:]) for t in times]
    shares = [n / t / bandwidth for n, t in zip(moved, medians, strict=True)]
    share = sum(moved) / sum(medians) / bandwidth
    print(
        f"{case.name}, noise {'drawn' if case.draws else 'given'}: "
        + ", ".join(
            f"{name} {t * 1e3:.1f} ms ({s:.2f})"
            for name, t, s in zip(("forward", "backward"), medians, shares, strict=True)
        )
        + f"; both {share:.2f} of the triad"
    )
    short = f"{case.name}: {share:.2f} of the triad, {promised} promised"
    return [short] if share < promised else []


def overhead(rounds: int) -> None:
    """Prints what a call costs beside the arithmetic: processor time, the best of some rounds."""
    case = Case("", 1, (2, 4), torch.float32, True)
    inputs, given, gradients, _ = problem(case)
    given = given[0]
    gradients = [gradients[0][0], gradients[1][0]]
    for name in ("eager", "cpu"):
        fuse = fuse_with(name)

        def forward(fuse: Callable = fuse) -> object:
            with torch.no_grad():
                return fuse(*inputs, given=given, noise=None)

        def both(fuse: Callable = fuse) -> None:
            step(inputs, given, gradients, fuse, None)

        forward()
        both()
        one = min(seconds(forward, 100, time.thread_time) for _ in range(rounds)) * 1e6
        two = min(seconds(both, 100, time.thread_time) for _ in range(rounds)) * 1e6
        print(f"{name:5}: {one:.0f} us forward, {two:.0f} us forward and backward")


BUILD = """
import sys, time, torch
from mmpoe import kernels
started = time.perf_counter()
kernels.build(4, getattr(torch, sys.argv[1]))
print(f"{sys.argv[1]}: {time.perf_counter() - started:.1f} s")
"""


def first_use() -> None:
    """Prints how long the first use of each dtype takes to compile, by processes without cache."""
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"MMPOE_CACHE": folder}
            subprocess.run([sys.executable, "-c", BUILD, dtype], env=environment, check=True)


def operators() -> None:
    """Prints operators run and bytes moved, which do not depend on the machine."""
    for case in (CASES[0], CASES[3]):
        small = case._replace(shape=(2, 8, 24, 24))
        inputs, given, gradients, noise = problem(small)
        with Count() as count:
            step(inputs, given, gradients, fuse_with("eager"), noise)
        elements = torch.Size(small.shape).numel()
        factors = EXPERTS + 1
        fused = 4 * (6 * factors + 2 * case.subsets)
        print(
            f"{case.name}: eager runs {count.operators} operators that move "
            f"{count.bytes / elements:.0f} bytes per element if each reads and writes memory; "
            f"fused runs 2 kernels that move {fused}"
        )


def _count(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small, to see that it runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    cases, rounds = CASES, options.rounds
    if options.smoke:
        cases = [case._replace(shape=(2, 8, 16, 16)) for case in CASES[2:5]]
        rounds = 1
    counts = f"{_count(options.threads, 'thread')}, {_count(rounds, 'round')}"
    print(f"{processor()}, {platform.machine()}, {counts}, PyTorch {torch.__version__}")
    bandwidth = triad(options.threads)
    print(f"triad: {bandwidth / 1e9:.1f} GB/s")
    heads = "".join(f"{name:>9}" for name in ("eager", "compiled", "lean", "compiled", "fused"))
    heads += "".join(f"{name:>8}" for name in ("eager", "comp.", "lean", "comp."))
    print("\nforward and backward in ms, fused against each, MB moved, share of the triad")
    print(f"{'case':15}{'dtype':9}{'noise':6}{heads}{'MB':>7}{'share':>7}")
    short = [line for case in cases for line in measure(case, rounds, bandwidth, options.smoke)]
    print("\nthe kernels alone, float32")
    for case in cases[:2]:
        if case.dtype == torch.float32:
            short += alone(case, bandwidth, 1 if options.smoke else 9, promised=0.65)
    print("\na call on tensors of 8 elements, processor time")
    overhead(1 if options.smoke else 10)
    print("\noperators and bytes")
    operators()
    if not options.smoke:
        print("\ncompilation on first use")
        first_use()
    if short and not options.smoke:
        sys.exit("\n".join(["Below what is promised:", *short]))


if __name__ == "__main__":
    main()
