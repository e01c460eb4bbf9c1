"""The costs of a step and of an estimate, side by side with MultiVae, in one run.

Both libraries get the same networks, weights, data and objectives, and work in turns, so that a
drift of the machine hits them alike. Medians of processor time are printed, the time of the system
included: other programs do not count, and one thread is used; the conditional likelihood is timed
by the clock with all cores as well. First, each objective is computed by both with the same draws,
so that speed compares equal computations. Exits with 1 if a promise is not kept.

    pip install --group bench
    python -m benchmarks.bench_multivae --write

A smoke run is small, needs no MultiVae and measures too little to tell.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmpoe.evidence import log_marginal, log_predictive
from mmpoe.missing import pack, sample_subsets, subsets
from mmpoe.objectives import mixture_elbo, mopoe

from . import _multivae as peer
from . import _networks as ours
from ._networks import FlatNetworks, LadderNetworks

RESULTS = Path(__file__).parent / "results"
PROMISES = {2: 1.0, 4: 1.0, 6: 1.0, 8: 3.0, 10: 40.0}
"""How many times as fast a step should be at least, on any machine, by number of modalities."""
CONDITIONAL = 20.0
"""How many times as fast the conditional likelihood should be at least."""

Task = Callable[[], Any]


class Sizes(NamedTuple):
    """The sizes of the models, and the number of repeats."""

    products: dict[int, int]
    """The numbers of modalities of the mixture of products, and repeats of each."""
    hierarchy: list[int]
    """The numbers of modalities of the hierarchy."""
    many: list[int]
    """The numbers of modalities with sampled subsets."""
    rows: int
    hierarchy_rows: int
    samples: int
    repeats: int


FULL = Sizes({2: 9, 4: 9, 6: 9, 8: 25, 10: 3}, [2, 3, 4], [4, 8, 16, 32], 128, 32, 1000, 5)
SMOKE = Sizes({2: 1, 3: 1}, [2], [2, 4], 8, 4, 10, 1)


class Time(NamedTuple):
    """The time of a task, in seconds."""

    total: float
    system: float
    """The part of it that the system needs, for memory above all."""
    wall: float = 0.0
    """The time by the clock on the wall."""


def measure(task: Task) -> Time:
    """Returns the time that a task needs."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    task()
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    system = after.ru_stime - before.ru_stime
    return Time(after.ru_utime - before.ru_utime + system, system, wall)


def in_turns(tasks: Mapping[str, Task], repeats: int) -> dict[str, list[Time]]:
    """Returns the times of some tasks, done in turns after one round of warm-up."""
    for task in tasks.values():
        task()
    times = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            times[name].append(measure(task))
    return times


def training_step(networks: nn.Module, loss: Callable[[], Tensor]) -> Task:
    """Returns a task that takes one step of Adam down a loss."""
    optimizer = torch.optim.Adam(networks.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def compare_products(
    modalities: int, rows: int, repeats: int, *, with_peer: bool
) -> dict[str, list[Time]]:
    """Times steps of the mixture of the products of all subsets."""
    torch.manual_seed(0)
    networks = FlatNetworks(modalities)
    x, observed = ours.draw_batch(networks, rows)
    model, copied = ours.mopoe(networks), deepcopy(networks)
    tasks = {"ours": training_step(networks, lambda: -mopoe(model, x, observed).mean())}
    if with_peer:
        peers, batch = peer.mopoe(copied), peer.dataset(x, observed)
        tasks["theirs"] = training_step(copied, lambda: peers(batch).loss)
    return in_turns(tasks, repeats)


def compare_hierarchy(
    modalities: int, rows: int, repeats: int, *, with_peer: bool, sweep: bool = True
) -> dict[str, list[Time]]:
    """Times steps of the hierarchy: all subsets, or (if not `sweep`) only those with one drawn."""
    torch.manual_seed(0)
    networks = LadderNetworks(modalities)
    x, observed = ours.draw_batch(networks, rows)
    model, copied = ours.mhvae(networks), deepcopy(networks)

    def drawn() -> Tensor:
        return -mixture_elbo(model, x, observed, family=sample_subsets(observed, samples=1)).mean()

    tasks = {"drawn": training_step(networks, drawn)}
    if sweep:
        tasks["pairs"] = training_step(networks, lambda: -mixture_elbo(model, x, observed).mean())
    if with_peer:
        peers, batch = peer.mhvae(copied), peer.dataset(x, observed)
        # its loss is a sum over the batch
        tasks["theirs"] = training_step(copied, lambda: peers(batch).loss / rows)
    return in_turns(tasks, repeats)


def count_pairs(modalities: int, rows: int) -> tuple[int, int]:
    """Returns how many pairs of a row and a subset a full sweep has, and how many differ."""
    _, observed = ours.draw_batch(LadderNetworks(modalities), rows)
    given, weight = subsets(observed)
    return weight.numel(), len(pack(given, weight)[1])


def compare_likelihoods(sizes: Sizes, *, with_peer: bool) -> dict[str, Any]:
    """Times estimates of the likelihood of complete rows: conditional, and joint."""
    torch.manual_seed(0)
    networks, samples = FlatNetworks(4), sizes.samples
    x, observed = ours.draw_batch(networks, 8, 0.0)
    model, values = ours.mopoe(networks), dict[str, float]()

    @torch.no_grad()
    def conditional() -> None:
        value = log_predictive(model, x, ["m1"], ["m0"], samples=samples)
        values["ours"] = -value.mean().item()

    @torch.no_grad()
    def joint() -> None:
        log_marginal(model, x, observed, samples=samples)

    tasks = {"conditional, ours": conditional, "joint, ours": joint}
    if with_peer:
        peers: Any = peer.mopoe(deepcopy(networks))
        batch = peer.dataset(x)

        def their_conditional() -> None:
            value = peers.compute_cond_nll(batch, ["m0"], ["m1"], k_iwae=samples)
            values["theirs"] = value["m1"].item()

        tasks["conditional, theirs"] = their_conditional
        tasks["joint, theirs"] = lambda: peers.compute_joint_nll(batch, K=samples)

    network, z = networks.decoders["m1"], torch.randn(8 * samples, networks.latent)

    @torch.no_grad()
    def decode() -> None:
        for portion in z.split(256):  # which stays in a cache
            network(portion)

    times = in_turns({**tasks, "decoder": decode}, sizes.repeats)
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        conditionals = {name: task for name, task in tasks.items() if "conditional" in name}
        on_all_cores = in_turns(conditionals, sizes.repeats)
    finally:
        torch.set_num_threads(1)
    return {"times": times, "on all cores": on_all_cores, "values": values}


def report(sizes: Sizes, *, with_peer: bool) -> tuple[str, list[str], dict[str, Any]]:
    """Measures everything; returns the tables, broken promises and what the figure shows."""
    lines, broken = [_machine(), ""], []

    if with_peer:
        lines += [
            "Same computation, mixture of products, 40 % missing: mean loss, mean divergence, and "
            "the largest difference of a gradient relative to the largest one of its parameter.",
            "",
            "| M | loss, mmpoe | loss, MultiVae | KL, mmpoe | KL, MultiVae | gradients |",
            "|---|---|---|---|---|---|",
        ]
        for modalities in (3, 5, 8):
            torch.manual_seed(0)
            networks = FlatNetworks(modalities)
            p = peer.mopoe_parity(networks, *ours.draw_batch(networks, sizes.rows, 0.4))
            lines.append(
                f"| {modalities} | {p.losses[0]:.3f} | {p.losses[1]:.3f} | {p.divergences[0]:.5f} "
                f"| {p.divergences[1]:.5f} | {p.gradients:.1e} |"
            )
            if not p.gradients <= 1e-5:
                broken.append(f"gradients of {modalities} modalities differ by {p.gradients:.1e}")
            for what, (a, b) in {"losses": p.losses, "divergences": p.divergences}.items():
                if not abs(a - b) <= 1e-5 * abs(b):
                    broken.append(f"{what} of {modalities} modalities are {a} and {b}")
        lines.append("")

    products = {
        modalities: compare_products(modalities, sizes.rows, repeats, with_peer=with_peer)
        for modalities, repeats in sizes.products.items()
    }
    lines += [
        f"Mixture of products, one training step, {sizes.rows} rows, 30 % missing.",
        "",
        "| M | subsets | mmpoe | MultiVae | times as fast |",
        "|---|---|---|---|---|",
    ]
    for modalities, times in products.items():
        lines.append(f"| {modalities} | {2**modalities - 1} | {_versus(times)} |")
        ratio = _ratio(times)
        if with_peer and ratio < PROMISES[modalities]:
            broken.append(f"{modalities} modalities: {ratio:.2f} times as fast")
    if with_peer:
        most, times = max(products.items())
        share = [time.system / time.total for time in times["theirs"]]
        lines += [
            "",
            f"With {most} modalities, {100 * statistics.median(share):.0f} % of MultiVae's time "
            "is that of the system, for fresh memory, which depends on the machine.",
        ]

    lines += [
        "",
        f"Hierarchy of three groups, one training step, {sizes.hierarchy_rows} images, 30 % "
        "missing. MultiVae sweeps all subsets for every row; mmpoe computes the distinct pairs of "
        "a row and a non-empty subset, or one drawn subset per row: unbiased, with more variance.",
        "",
        "| M | pairs swept / distinct | mmpoe, pairs | mmpoe, drawn | MultiVae | pairs: times as "
        "fast | drawn: times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for modalities in sizes.hierarchy:
        swept, distinct = count_pairs(modalities, sizes.hierarchy_rows)
        times = compare_hierarchy(
            modalities, sizes.hierarchy_rows, sizes.repeats, with_peer=with_peer
        )
        theirs = times.get("theirs")
        ratios = [_ratio({"ours": times[name], "theirs": theirs}) for name in ("pairs", "drawn")]
        lines.append(
            f"| {modalities} | {swept} / {distinct} | {_time(times['pairs'])} "
            f"| {_time(times['drawn'])} | {_time(theirs)} | {_times(ratios[0])} "
            f"| {_times(ratios[1])} |"
        )

    many = {}
    for modalities in sizes.many:
        times = compare_hierarchy(
            modalities, sizes.hierarchy_rows, sizes.repeats, with_peer=False, sweep=False
        )
        many[modalities] = _median(times["drawn"])
    exponent = float(np.polyfit(np.log(list(many)), np.log(list(many.values())), 1)[0])
    lines += [
        "",
        "The same hierarchy in mmpoe with many modalities, one drawn subset per row: the time of "
        f"a step grows as M to the power of {exponent:.2f}.",
        "",
        "| M | " + " | ".join(map(str, many)) + " |",
        "|---|" + "---|" * len(many),
        "| mmpoe | " + " | ".join(map(_shown, many.values())) + " |",
    ]

    likelihoods = compare_likelihoods(sizes, with_peer=with_peer)
    lines += [
        "",
        f"Likelihood of 8 complete rows, 4 modalities, {sizes.samples} samples.",
        "",
        "| estimate | mmpoe | MultiVae | times as fast |",
        "|---|---|---|---|",
    ]
    for name, meaning in (("conditional", "p(m1 \\| m0)"), ("joint", "p(m0, m1, m2, m3)")):
        times = _of_both(likelihoods["times"], name)
        lines.append(f"| {name}, {meaning} | {_versus(times)} |")
        if name == "conditional" and with_peer and _ratio(times) < CONDITIONAL:
            broken.append(f"the conditional likelihood: {_ratio(times):.1f} times as fast")
    times = {
        who: [Time(time.wall, 0.0) for time in each]
        for who, each in _of_both(likelihoods["on all cores"], "conditional").items()
    }
    lines.append(f"| conditional, {os.cpu_count()} threads, by the clock | {_versus(times)} |")
    decoder = _median(likelihoods["times"]["decoder"])
    share = decoder / _median(likelihoods["times"]["conditional, ours"])
    lines += [
        "",
        f"The decoder's network alone needs {_shown(decoder)} for these samples, {share:.0%} of "
        "what mmpoe takes for the conditional likelihood on one thread.",
    ]
    if with_peer:
        most = _median(likelihoods["times"]["conditional, theirs"]) / decoder
        lines[-1] += f" So nothing that runs it could be {most:.0f} times as fast as MultiVae."
        value = likelihoods["values"]
        lines += [
            "",
            f"The conditional estimates are {value['ours']:.2f} and {value['theirs']:.2f} nats.",
        ]
    return "\n".join(lines), broken, {"products": products, "many": many}


def draw(figure: Path, measured: Mapping[str, Any]) -> None:
    """Draws the times of a step against the number of modalities."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    products, many = measured["products"], measured["many"]
    for name, label, color in (
        ("theirs", f"MultiVae {version('multivae')}", "#b3403a"),
        ("ours", "mmpoe", "#1f5f8b"),
    ):
        medians = [_median(times[name]) for times in products.values()]
        left.semilogy(list(products), medians, "o-", color=color, label=label)
    left.set(
        title="Mixture of products, all subsets",
        xlabel="modalities",
        ylabel="processor time of a step (s)",
        xticks=list(products),
    )
    left.legend(frameon=False)
    right.loglog(list(many), list(many.values()), "o-", color="#1f5f8b", base=2)
    linear = [many[min(many)] * m / min(many) for m in many]
    right.loglog(list(many), linear, "--", color="0.6", base=2, label="proportional to M")
    right.set(
        title="Hierarchy, one drawn subset per row", xlabel="modalities", ylabel="the same (s)"
    )
    right.set_xticks(list(many), [str(m) for m in many])
    right.yaxis.set_major_formatter(lambda v, _: f"{v:.2g}")
    right.legend(frameon=False)
    fig.savefig(figure, dpi=110)
    plt.close(fig)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small, ours alone: it runs")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}/multivae.*")
    options = parser.parse_args()
    if not options.smoke and not peer.importable():
        sys.exit("multivae is not installed: pip install --group bench")

    torch.set_num_threads(1)
    sizes = SMOKE if options.smoke else FULL
    tables, broken, measured = report(sizes, with_peer=not options.smoke)
    print(tables)
    if options.write and not options.smoke:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "multivae.md").write_text(tables + "\n")
        draw(RESULTS / "multivae.png", measured)
    if broken:
        sys.exit("Not as promised: " + "; ".join(broken) + ".")


def _machine() -> str:
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return (
        f"{cpu}, 1 thread, PyTorch {torch.__version__}, Python {platform.python_version()}, "
        "float32. Times are medians of processor time, unless said otherwise."
    )


def _median(times: Sequence[Time]) -> float:
    return statistics.median(time.total for time in times)


def _of_both(times: Mapping[str, list[Time]], name: str) -> dict[str, list[Time]]:
    """The times of ours and, if there are any, theirs."""
    named = {who: times.get(f"{name}, {who}") for who in ("ours", "theirs")}
    return {who: each for who, each in named.items() if each is not None}


def _ratio(times: Mapping[str, Sequence[Time] | None]) -> float:
    """How many times as fast ours is, NaN if there are no times of theirs."""
    mine, theirs = times["ours"], times.get("theirs")
    return math.nan if mine is None or theirs is None else _median(theirs) / _median(mine)


def _versus(times: Mapping[str, Sequence[Time]]) -> str:
    return f"{_time(times['ours'])} | {_time(times.get('theirs'))} | {_times(_ratio(times))}"


def _time(times: Sequence[Time] | None) -> str:
    return "-" if times is None else _shown(_median(times))


def _shown(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{1000 * seconds:.0f} ms"


def _times(ratio: float) -> str:
    if math.isnan(ratio):
        return "-"
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


if __name__ == "__main__":
    main()
