"""How fast the published MMHVAE is here, beside the published way of computing the same network.

Both hold the same weights and are first shown to say the same: images and log-ratios of each group
with the same noise, the published loss, and on a small network its gradients. Then they are run in
turns, so that a drift of the machine hits both; a ratio is the median over rounds of the ratio
within a round.

The published way is a twin, `benchmarks/_published.py`, or the published code itself: with
`--official PATH`, the classes in a checkout of it are imported and run instead.

Both are timed in float32 and, where the processor has units for it, in bfloat16: at inference
weights and images are in it themselves, training is by PyTorch's autocast. Of one thread it is the
time of the processor that counts, whatever else runs.

*Inference* is one sample of a slice from four inputs. A *training step* is forward, backward and
Adamax on the published loss: mean absolute errors and sampled log-ratios from three subsets, all
modalities, the first one and one of the rest. The row below each is the same step on the bound of
the library, whose divergences are in closed form. *Multiplications* are those of convolutions and
matrices (`torch.utils.flop_counter`, two operations each); there are fewer here from several
inputs, since experts share what their first convolution makes of the state. Those with zeros, in
lanes of the processor that would have nothing to do, are left out. Exits with 1 if
outputs differ or a ratio is below what is promised; a smoke run measures too little to tell the
latter.

    python -m benchmarks.bench_mmhvae
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from examples.medical_mri_us.official_names import published_state
from mmpoe.models import MMHVAE, Output, published_mmhvae
from mmpoe.objectives import mixture_elbo

from . import _published as published
from ._results import processor
from .bench_poe import seconds

NAMES = ["us", "t2", "cet1", "flair"]
PASSES = [NAMES, ["us"], ["t2", "flair"]]
"""The subsets of a training step."""
KL_WEIGHT = 1e-3
TEMPERATURE = 0.7
HALF = " in bfloat16"
HAS_HALF = any(v is True and "bf16" in name for name, v in torch.cpu.get_capabilities().items())
TOLERANCE = 1e-4
"""How much outputs may differ, relative to the largest of their tensor."""


class Network(NamedTuple):
    """The sizes of the network, and of the batch to run it on."""

    size: int
    batch: int
    depth: int
    width: int = 16
    max_width: int = 128
    blocks: int = 6


class Pair(NamedTuple):
    """The same network twice."""

    ours: MMHVAE
    theirs: nn.Module
    x: dict[str, Tensor]


class Promise(NamedTuple):
    """How many times as fast a training step is at least as the published one in float32."""

    single: float
    half: float
    """In bfloat16."""


FULL = (
    Network(192, 1, 7),
    [(Network(64, 4, 6), Promise(1.5, 1.6)), (Network(192, 2, 7), Promise(1.3, 1.5))],
)
TINY = Network(32, 2, 4, width=8, max_width=16, blocks=1)
SMOKE = (TINY._replace(batch=1), [(TINY, Promise(1.3, 1.3))])


def build(network: Network, checkout: Path | None) -> Pair:
    """Returns the same network in both ways, and a batch of images above -1."""
    torch.manual_seed(0)
    architecture = network._asdict()
    batch = architecture.pop("batch")
    ours = published_mmhvae(NAMES, **architecture, power=1)
    with torch.no_grad():
        for p in ours.parameters():
            if p.dim() == 1:  # a bias that is mixed up has to show
                p.add_(0.05 * torch.randn_like(p))
    architecture |= {"modalities": NAMES, "head_width": 8}
    theirs = published.load(published_state(ours), architecture, checkout)
    x = {m: 1.9 * torch.rand(batch, 1, network.size, network.size) - 0.95 for m in NAMES}
    return Pair(ours, theirs, x)


def subset_masks(batch: int) -> Tensor:
    """Returns the subsets of a training step, with shape (S, B, M)."""
    masks = [[m in names for m in NAMES] for names in PASSES]
    return torch.tensor(masks)[:, None].expand(-1, batch, -1)


def draw_noise(pair: Pair, subsets: int) -> list[Tensor]:
    """Returns noise for each group, with shape (S, B, *)."""
    batch = len(pair.x["us"])
    with torch.no_grad():
        output = pair.ours(pair.x)
    return [torch.randn(subsets, batch, *z.shape[1:]) for z in output.z]


def log_ratios(output: Output) -> list[Tensor]:
    """Returns the log-ratio of posterior and prior at the sample of each group, summed."""
    parts = zip(output.posteriors, output.priors, output.z, strict=True)
    return [(q.log_prob(z) - p.log_prob(z)).sum() for q, p, z in parts]


def our_loss(pair: Pair, noise: Sequence[Tensor] | None = None) -> Tensor:
    """Returns the published loss of a batch, all subsets at once."""
    first = pair.x["us"]
    output = pair.ours(pair.x, subset_masks(len(first)), noise=noise)
    errors = [(output.likelihoods[m].mean - v).abs().mean() for m, v in pair.x.items()]
    return _loss(errors, log_ratios(output), len(PASSES), first)


def their_loss(pair: Pair) -> Tensor:
    """Returns the same, one subset after the other."""
    losses = []
    for names in PASSES:
        images, ratios = pair.theirs({m: pair.x[m] for m in names})
        errors = [(images[m] - v).abs().mean() for m, v in pair.x.items()]
        losses.append(_loss(errors, ratios["prior"], 1, pair.x["us"]))
    return torch.stack(losses).sum()


def our_bound(pair: Pair) -> Tensor:
    """Returns the loss of the library: the bound, with divergences in closed form."""
    masks = subset_masks(len(pair.x["us"]))
    family = masks, torch.full(masks.shape[:2], 1 / len(masks))
    return -mixture_elbo(pair.ours, pair.x, masks[0], family=family).mean()


def _loss(errors: list[Tensor], ratios: list[Tensor], subsets: int, image: Tensor) -> Tensor:
    error = subsets * torch.stack(errors).mean() / 2
    return error + KL_WEIGHT * torch.stack(ratios).sum() / (image.numel() * len(NAMES))


def check_inference(pair: Pair) -> dict[str, float]:
    """Returns how much images and log-ratios differ, relative to the largest."""
    differences, what = {}, f"inference, {_shape(pair)}"
    noise = draw_noise(pair, len(PASSES))
    with torch.no_grad():
        for i, names in enumerate(PASSES):
            drawn = [n[i] for n in noise]
            output = pair.ours(pair.x, names, noise=drawn)
            with published.with_noise(drawn):
                images, ratios = pair.theirs({m: pair.x[m] for m in names})
            theirs = [*images.values(), torch.stack(ratios["prior"])]
            ours = [output.likelihoods[m].mean for m in images] + [torch.stack(log_ratios(output))]
            differences[f"{what}, from {'+'.join(names)}"] = max(map(_difference, ours, theirs))
        with published.with_noise([0 * n[0] for n in noise]):
            images, _ = pair.theirs(dict(pair.x))
    for targets in (NAMES, ["cet1"]):
        found = pair.ours.predict(pair.x, targets=targets, temperature=0)
        differences[f"{what}, predict {'+'.join(targets)}"] = max(
            _difference(found[m].mean, images[m]) for m in targets
        )
    return differences


def check_loss(pair: Pair) -> dict[str, float]:
    """Returns how much the loss differs, relative to itself."""
    noise = draw_noise(pair, len(PASSES))
    with torch.no_grad():
        ours = our_loss(pair, noise)
        with published.with_noise([n[i] for i in range(len(PASSES)) for n in noise]):
            theirs = their_loss(pair)
    return {f"training, {_shape(pair)}, loss": _difference(ours, theirs)}


def check_gradients(pair: Pair) -> dict[str, float]:
    """Returns how much the gradients of the loss differ, relative to the norm of all."""
    noise = draw_noise(pair, len(PASSES))
    our_loss(pair, noise).backward()
    with published.with_noise([n[i] for i in range(len(PASSES)) for n in noise]):
        their_loss(pair).backward()
    by_memory = {p.data_ptr(): p for p in pair.ours.parameters()}
    state = published_state(pair.ours)
    found, expected = [], []
    for name, p in pair.theirs.named_parameters():
        mine = by_memory[state[published.published_name(name)].data_ptr()].grad
        assert mine is not None
        assert p.grad is not None
        found.append(mine.flatten())
        expected.append(p.grad.flatten())
    difference = torch.cat(found) - torch.cat(expected)
    relative = difference.norm() / torch.cat(expected).norm()
    return {f"training, {_shape(pair)}, gradients": relative.item()}


def _difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def check_half(pair: Pair) -> float:
    """Returns the signal-to-noise ratio of images in bfloat16 to those in float32, in dB."""
    noise = [n[0] for n in draw_noise(pair, 1)]
    with torch.no_grad():
        exact = pair.ours(pair.x, NAMES, noise=noise)
        low = in_half(pair)
        found = low.ours(low.x, NAMES, noise=[n.bfloat16() for n in noise])
    errors = [
        (found.likelihoods[m].mean - exact.likelihoods[m].mean).square().mean() for m in NAMES
    ]
    return (10 * torch.log10(2**2 / torch.stack(errors).mean())).item()  # images are in (-1, 1)


def in_half(pair: Pair) -> Pair:
    """Returns networks and batch in bfloat16."""
    ours, theirs = copy.deepcopy(pair.ours).bfloat16(), copy.deepcopy(pair.theirs).bfloat16()
    return Pair(ours, theirs, {m: image.bfloat16() for m, image in pair.x.items()})


def half() -> torch.autocast:
    """Computes convolutions in bfloat16, of weights in float32."""
    return torch.autocast("cpu", torch.bfloat16)


def giga_macs(run: Callable[[], object]) -> float:
    """Returns the multiplications of convolutions and matrices, in 1e9."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9


def show_macs(pair: Pair) -> None:
    """Prints the multiplications of inference for each number of inputs, all targets."""
    for number in range(1, len(NAMES) + 1):
        given = {m: pair.x[m] for m in NAMES[:number]}
        theirs = giga_macs(lambda: pair.theirs(dict(given)))  # noqa: B023
        with patch("mmpoe.nn.cells.MOST_PIXELS", 1):
            ours = giga_macs(lambda: pair.ours.predict(given))  # noqa: B023
        what = f"inference, {_shape(pair)}, {number} of {len(NAMES)} inputs"
        print(f"{what:46}{theirs:11.3f}{ours:9.3f}", flush=True)


def training_step(
    network: nn.Module, loss: Callable[[], Tensor], *, precision: Callable = nullcontext
) -> Callable[[], object]:
    """Returns a step down a loss."""
    optimizer = torch.optim.Adamax(network.parameters(), lr=2e-3)

    def step() -> None:
        optimizer.zero_grad()
        with precision():
            value = loss()
        value.backward()
        optimizer.step()

    return step


def time_in_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds that each took in each round, after one to warm up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            taken = seconds(run, clock=clock)
            if round_:
                times[name].append(taken)
    return times


def show(what: str, theirs: list[float], ours: list[float], promised: float | None) -> list[str]:
    """Prints a row, and returns what falls short."""
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    ratio = statistics.median(ratios)
    print(
        f"{what:46}{1e3 * statistics.median(theirs):11.0f}{1e3 * statistics.median(ours):9.0f}"
        f"{ratio:8.2f}x{ratios[0]:8.2f}{ratios[-1]:6.2f}"
        + (f"{promised:9.2f}x" if promised else ""),
        flush=True,
    )
    if promised is None or ratio >= promised:
        return []
    return [f"{what}: {ratio:.2f}x, {promised}x promised"]


def measure_inference(pair: Pair, rounds: int) -> list[str]:
    """Times inference, prints rows for all targets and for one, and returns what falls short."""

    @torch.no_grad()
    def theirs(pair: Pair) -> None:
        pair.theirs(dict(pair.x), TEMPERATURE)

    def ours(pair: Pair, targets: list[str]) -> None:
        pair.ours.predict(pair.x, targets=targets, temperature=TEMPERATURE)

    tasks = {}
    for name, same in ({"": pair} | ({HALF: in_half(pair)} if HAS_HALF else {})).items():
        tasks |= {
            f"theirs{name}": partial(theirs, same),
            f"all{name}": partial(ours, same, NAMES),
            f"one{name}": partial(ours, same, ["cet1"]),
        }
    times = time_in_turns(tasks, rounds)
    what = f"inference, {_shape(pair)}"
    short = show(f"{what}, all targets", times["theirs"], times["all"], 1.5)
    short += show(f"{what}, one target", times["theirs"], times["one"], 1.75)
    if HAS_HALF:
        short += show("  all targets, in bfloat16", times["theirs"], times["all" + HALF], 2.3)
        short += show("  one target, in bfloat16", times["theirs"], times["one" + HALF], 2.6)
        theirs_half = times["theirs" + HALF]
        short += show("  all targets, both in bfloat16", theirs_half, times["all" + HALF], 1.4)
        short += show("  one target, both in bfloat16", theirs_half, times["one" + HALF], 1.5)
    return short


def measure_training(pair: Pair, promised: Promise, rounds: int) -> list[str]:
    """Times training, prints a row for each loss, and returns what falls short."""
    tasks = {
        "theirs": training_step(pair.theirs, lambda: their_loss(pair)),
        "ours": training_step(pair.ours, lambda: our_loss(pair)),
        "bound": training_step(pair.ours, lambda: our_bound(pair)),
    }
    if HAS_HALF:
        tasks |= {
            "theirs" + HALF: training_step(pair.theirs, lambda: their_loss(pair), precision=half),
            "ours" + HALF: training_step(pair.ours, lambda: our_loss(pair), precision=half),
        }
    times = time_in_turns(tasks, rounds)
    short = show(f"training, {_shape(pair)}", times["theirs"], times["ours"], promised.single)
    show("  with divergences in closed form", times["theirs"], times["bound"], None)
    if HAS_HALF:
        short += show("  in bfloat16", times["theirs"], times["ours" + HALF], promised.half)
        show("  both in bfloat16", times["theirs" + HALF], times["ours" + HALF], None)
    return short


def report_differences(differences: Mapping[str, float]) -> list[str]:
    """Prints how much outputs differ, and returns what differs too much."""
    for what, difference in differences.items():
        print(f"{what:58}{difference:9.1e}", flush=True)
    # a comparison that NaN fails
    return [f"{what} differ by {d:.1e}" for what, d in differences.items() if not d <= TOLERANCE]


def main() -> None:
    """Compares, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small, to see that it runs")
    parser.add_argument("--official", type=Path, metavar="PATH", help="the published code")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = 1 if options.smoke else options.rounds

    print(
        f"{processor()}, {_threads(options.threads)}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    print("against", "a twin of the published code" if not options.official else "published code")
    network, steps = SMOKE if options.smoke else FULL
    try:
        drawing = build(network, options.official)
        learning = [(build(n, options.official), promised) for n, promised in steps]
    except ValueError as error:
        sys.exit(str(error))

    print("\nlargest difference, relative to the largest value; of gradients, of their norms")
    wrong = report_differences(check_inference(drawing))
    for pair, _ in learning:
        wrong += report_differences(check_loss(pair))
    wrong += report_differences(check_gradients(build(TINY, options.official)))
    if wrong:
        sys.exit("Not the same: " + "; ".join(wrong))

    if HAS_HALF:
        ratio = check_half(drawing)
        print(f"\nimages in bfloat16 to those in float32, peak signal to noise: {ratio:.1f} dB")
    else:
        print("\nthis processor has no units for bfloat16")
    print(f"\nmultiplications in 1e9, all targets\n{'':46}{'published':>11}{'mmpoe':>9}")
    show_macs(drawing)
    print(f"\nmedians of {rounds} rounds in ms, ratio and its range, and what is promised")
    print(f"{'':46}{'published':>11}{'mmpoe':>9}{'ratio':>9}{'from':>8}{'to':>6}{'promised':>10}")
    short = measure_inference(drawing, rounds if options.smoke else 5 * rounds)  # they are short
    for pair, promised in learning:
        short += measure_training(pair, promised, rounds)
    if short and not options.smoke:
        sys.exit("Not as promised: " + "; ".join(short))


def _threads(number: int) -> str:
    return "1 thread, time of the processor" if number == 1 else f"{number} threads"


def _shape(pair: Pair) -> str:
    batch, _, height, width = pair.x["us"].shape
    return f"{height} x {width}, batch {batch}"


if __name__ == "__main__":
    main()
