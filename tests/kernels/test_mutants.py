"""Mistakes in the kernels, one at a time: each must be found.

The checks are small versions of those of the other files, run on simulated threads of a GPU; the
CPU runs the same bodies.
"""

import os

import pytest
import torch
from kernel_cases import distance, make, run
from simulator import SimulatedLauncher, SimulationError

from mmpoe.kernels import _launch, _philox, jit

exhaustive = pytest.mark.skipif(
    not os.environ.get("MMPOE_EXHAUSTIVE"), reason="takes minutes: make test-kernels"
)

MUTANTS = {
    "no barrier after the bits": (
        "bits[s] = given_bits<C>(a, s, b);\n  __syncthreads();",
        "bits[s] = given_bits<C>(a, s, b);",
    ),
    "no barrier before the last sum": ("  if (a.kl) {\n    __syncthreads();", "  if (a.kl) {"),
    "a shuffle that starts late": ("int d = 16; d > 0", "int d = 8; d > 0"),
    "the last warp left out": ("w < sums.warps; ++w", "w < sums.warps - 1; ++w"),
    "sums that are not zero at first": ("sums.sums[k] = 0.f;", "sums.sums[k] += 0.f;"),
    "the sums of one chunk over those of another": (
        "* a.chunks + chunk] = total",
        "* a.chunks] = total",
    ),
    "a chunk that ends early": (
        "? (chunk + 1) * a.length : a.size;\n  for",
        "? (chunk + 1) * a.length - 1 : a.size;\n  for",
    ),
    "a wrong sign in backward": ("- a.power * (r - felt", "+ a.power * (r - felt"),
    "a mask bit ignored": ("row[m] ? 1u << m : 0u", "m == 1 || row[m] ? 1u << m : 0u"),
    "the noise of another subset": (
        "(u64)row, at.element, x)",
        "(u64)at.b, at.element, x)",
    ),
    "one shift for all subsets": (
        "GPOE_EXPERTS_IN(m, given) {\n    log_ratio<C>(a, at, f, m, r[m]);",
        "GPOE_EXPERTS_IN(m, given | f.far) {\n    log_ratio<C>(a, at, f, m, r[m]);",
    ),
    "linear space however sharp": (
        "q.far = GPOE_RARELY((given & f.far) != 0);",
        "q.far = false;",
    ),
    "no series for small divergences": ("select(v < 0.25f,", "select(v < -1.f,"),
    "a divergence of lanes beyond the end": (
        "kl = kl + first_lanes(0.5f * (tangent + distance * distance), at.count - v * LANES);",
        "kl = kl + 0.5f * (tangent + distance * distance);",
    ),
    "temperature ignored": ("a.temperature * scale * x[v]", "scale * x[v]"),
    "a clamp without its derivative": (
        "gradient[v] * divide(4.f * e, (1.f + e) * (1.f + e))",
        "gradient[v]",
    ),
    "common noise without its gradient": ("felt[v] = all * per;", "felt[v] = splat(0.f);"),
    "common noise of the first channel": (
        "splat(a.common_noise[first])",
        "splat(*a.common_noise)",
    ),
    "the mean of an expert without information": (
        "f.offset[m][v] = select(r[v] < -3.4028235e38f, splat(0.f), f.offset[m][v]);",
        "",
    ),
    "rows as if they were dense": (
        "a.expert[m].loc, at.b * a.expert[m].loc_stride",
        "a.expert[m].loc, at.b * a.size",
    ),
    "the gradient of the prior without its own share": (
        "(g.loc[v] - q.evidence[v] * g.shift[v])",
        "(-q.evidence[v] * g.shift[v])",
    ),
    "nine rounds": ("round < 10", "round < 9"),
    "what was rounded off the sum": ("((1.f - rounded) + odds)", "0.f * (rounded + odds)"),
}
FEW = ["no barrier before the last sum", "a mask bit ignored", "one shift for all subsets"]


def problems(on):
    """Lists the checks that fail."""
    found = []

    def check(name, right):
        if not right:
            found.append(name)

    torch.manual_seed(0)
    for name, options in {
        "plain": {"subsets": 2, "event": (6, 20)},
        "odd": {"subsets": 3, "event": (3, 37)},
        "chunks": {"event": (4, 600), "common": True, "rows": 2},
        "strided": {"layout": "chunks", "clamp": 2.5, "common": True, "power": 1},
        "seed": {"noise": "seed", "subsets": 2, "event": (5, 13)},
    }.items():
        check(name, distance(make(experts=2, **options), on) < 1e-5)

    options = {"experts": 2, "event": (4, 33), "share": 1.0}
    sharp = make(subsets=3, **options)
    sharp.given[:] = torch.tensor([[1, 1], [1, 0], [0, 1]]).bool()[:, None]
    sharp.log_scale[0][..., ::3] -= 40.0
    sharp.log_scale[1][..., ::3] -= 110.0
    outputs, alone = (
        _launch.forward(i, (True,) * 4, on)
        for i in (sharp, sharp._replace(given=sharp.given[1:2], noise=sharp.noise[1:2]))
    )
    check("sharp", all(t.isfinite().all() for t in outputs))
    check(
        "beside a sharp one",
        all(torch.equal(a[1:2], b) for a, b in zip(outputs, alone, strict=True)),
    )

    neutral = make(**options)
    neutral.log_scale[1][:], neutral.loc[1][:] = torch.inf, torch.nan
    check("neutral", all(t.isfinite().all() for t in run(neutral, on)[:4]))

    tiny = make(prior=False, noise=None, **options)
    for k, scale in enumerate((5.0, 7.0, 9.0)):
        tiny.loc[0][:], tiny.log_scale[0][:] = 0.0, scale
        tiny.given[..., 1] = False
        kl = _launch.forward(tiny, (False, False, False, True), on).kl.double() / 132
        delta = torch.log1p(torch.tensor(-2 * scale).double().exp())
        check(f"tiny {k}", ((kl / (torch.expm1(-delta) + delta) * 2 - 1).abs() < 1e-5).all())

    nothing = make(prior=False, noise="seed", **options)._replace(temperature=1.0)
    nothing.given[:] = False
    z = _launch.forward(nothing, (True, False, False, False), on).z
    expected = _philox.normal(nothing.seed, 3, 132).view(z.shape)
    check("noise", (z.double() - expected).abs().max() < 1e-5)
    return found


def sources(name):
    change, to = MUTANTS[name]
    mutated = {file: text.replace(change, to) for file, text in jit.sources().items()}
    assert mutated != jit.sources(), f"the source has changed: {change}"
    return mutated


@pytest.mark.parametrize("threads", [None, 64])
def test_without_a_mistake_nothing_is_found(threads):
    assert problems(SimulatedLauncher(threads=threads)) == []


def is_found(name):
    for order in (0, 1):
        on = SimulatedLauncher(order, sources(name), threads=64)
        try:
            if problems(on):
                return True
        except SimulationError:
            return True
    return False


@pytest.mark.parametrize("name", FEW)
@pytest.mark.slow
def test_some_mistakes_are_found(name):
    assert is_found(name)


@exhaustive
@pytest.mark.parametrize("name", sorted(set(MUTANTS) - set(FEW)))
def test_every_mistake_is_found(name):
    assert is_found(name)


def test_the_source_still_has_what_the_mistakes_change():
    for name in MUTANTS:
        sources(name)
