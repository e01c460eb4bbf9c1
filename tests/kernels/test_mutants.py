"""Mistakes in the kernels, one at a time: each must be found.

The checks are small versions of those of the other files, run on simulated threads of a GPU; the
CPU runs the same bodies.
"""

import os
from contextlib import contextmanager

import pytest
import torch
from kernel_cases import distance, exact, make, run
from simulator import SimulatedLauncher, SimulationError

from mmpoe.kernels import _cuda, _launch, _philox, jit

exhaustive = pytest.mark.skipif(
    not os.environ.get("MMPOE_EXHAUSTIVE"), reason="takes minutes: make test-kernels"
)

MUTANTS = {
    "no barrier after the bits": (
        "bits[k] = given_bits<C>(a, pairs[k]);\n  __syncthreads();",
        "bits[k] = given_bits<C>(a, pairs[k]);",
    ),
    "no barrier before the last sum": (
        "if (!a.kl) continue;\n    __syncthreads();",
        "if (!a.kl) continue;",
    ),
    "slots that are filled before they are free": ("if (from) __syncthreads();", ""),
    "slots that backward fills before they are free": (
        "if (!gathered) {\n        __syncthreads();",
        "if (!gathered) {",
    ),
    "slots that backward does not fill again": ("gathered = all.count <= ", "gathered = 0 <= "),
    "pairs beyond the slots left out": ("from < all.count; from += slots", "from < 1; ++from"),
    "experts of the last slots alone": ("wanted |= bits;\n    }", "wanted = bits;\n    }"),
    "pairs of the next sample": ("pairs.first = a.offsets[b];", "pairs.first = a.offsets[b + 1];"),
    "pairs in their own order": ("return order ? order[at] : at;", "return at;"),
    "the prior in every product": (
        "|| given == 0 || all ? 1.f : 0.f",
        "|| true || all ? 1.f : 0.f",
    ),
    "the prior in no product of all": ("given == 0 || all ?", "given == 0 ?"),
    "an expert alone that is not itself": ("if (!q.alone) return;", "return;"),
    "wide experts as if they were near": (
        "a.prior_in == ALWAYS ? r[v] : magnitude(r[v])",
        "r[v]",
    ),
    "a shuffle that starts late": ("int d = 16; d > 0", "int d = 8; d > 0"),
    "the last warp left out": ("w < sums.warps; ++w", "w < sums.warps - 1; ++w"),
    "sums that are not zero at first": ("sums.sums[k] = 0.f;", "sums.sums[k] += 0.f;"),
    "the sums of one chunk over those of another": (
        "* a.chunks + block.chunk] = total",
        "* a.chunks] = total",
    ),
    "a chunk that ends early": (
        "? (chunk + 1) * a.length : a.size;\n  GPOE",
        "? (chunk + 1) * a.length - 1 : a.size;\n  GPOE",
    ),
    "a wrong sign in backward": ("- a.power * (r - felt", "+ a.power * (r - felt"),
    "a mask bit ignored": ("row[m] ? 1u << m : 0u", "m == 1 || row[m] ? 1u << m : 0u"),
    "the noise of another subset": (
        "(u64)row, at.element, x)",
        "(u64)at.b, at.element, x)",
    ),
    "one shift for all subsets": (
        "GPOE_EXPERTS_IN(m, given) {\n    log_ratio<C>(a, at, f, m, r);\n    GPOE_LANES(v) q.exp",
        "GPOE_EXPERTS_IN(m, f.far) {\n    log_ratio<C>(a, at, f, m, r);\n    GPOE_LANES(v) q.exp",
    ),
    "linear space however sharp": (
        "q.far = GPOE_RARELY(q.alone || (given & f.far) != 0);",
        "q.far = q.alone;",
    ),
    "no series for small divergences": ("select(w < 0.5625f,", "select(w < -1.f,"),
    "no series without the prior": ("select(magnitude(v) < 0.25f,", "select(v < -1.f,"),
    "a divergence of lanes beyond the end": ("if (at.count < C::ELEMENTS)", "if (false)"),
    "exponentials that are far as if they were near": (
        "select(magnitude(x) > FAR, exponential(x), near)",
        "near",
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
        "f.offset[m][v] = select(r[v] < -LARGEST, splat(0.f), f.offset[m][v]);",
        "",
    ),
    "rows as if they were dense": (
        "a.expert[m].loc, at.in(a.expert[m].loc_stride), at, loc",
        "a.expert[m].loc, at.in(a.size), at, loc",
    ),
    "the gradient of the prior without its own share": (
        "(g.loc[v] - q.evidence[v] * g.shift[v])",
        "(-q.evidence[v] * g.shift[v])",
    ),
    "nine rounds": ("round < 10", "round < 9"),
}
FEW = ["no barrier before the last sum", "a mask bit ignored", "one shift for all subsets"]


@contextmanager
def few_slots():
    """Lets blocks hold two pairs at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "_SLOTS", 2)
        yield


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
        "pairs": {"order": "any", "subsets": 3, "prior_in": "full"},
        "pairs in order": {"order": "ascending", "subsets": 3, "power": 1, "prior_in": "never"},
    }.items():
        check(name, distance(make(experts=2, **options), on) < 1e-5)

    # more pairs of a sample than there are slots, the last of them with fewer experts
    many = make(experts=2, subsets=9, rows=2, event=(70,), order="ascending", clamp=2.5)
    many.given[-2:] = False
    with few_slots():
        check("slots", distance(many, on) < 1e-5)

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

    wide = make(subsets=3, prior_in="never", **options)
    wide.given[:] = torch.tensor([[1, 1], [1, 0], [0, 1]]).bool()[:, None]
    for log_scale in wide.log_scale:
        log_scale += 48.0
    outputs = _launch.forward(wide, (False, True, True, False), on)
    parts = zip(outputs[1:3], exact(wide)[1:3], strict=True)
    near = [torch.allclose(a.double(), b, rtol=1e-4) for a, b in parts]
    check("wide", all(near))
    check("alone", torch.equal(outputs.log_scale[2], wide.log_scale[1]))

    equal = make(prior=False, prior_in="never", **options)
    equal.loc[0][:], equal.log_scale[0][:] = 0.0, 1e-3
    equal.given[..., 1] = False
    kl = _launch.forward(equal, (False, False, False, True), on).kl.double() / 132
    v = torch.tensor(-2e-3).double()
    check("equal", ((kl / (torch.expm1(-v) + v) * 2 - 1).abs() < 1e-5).all())

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
