"""The fused operation: equal to the algebra it fuses, and deaf to what is missing."""

import math

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from mmpoe import gaussian
from mmpoe.kernels import gaussian_poe


def random_case(seed=0, experts=4, rows=5, event=(3, 2), dtype=torch.float64, spread=2.0):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(rows, *event, generator=generator, dtype=torch.float64).to(dtype)

    loc = [draw() for _ in range(experts)]
    log_scale = [spread * draw() for _ in range(experts)]
    given = torch.rand(rows, experts, generator=generator) < 0.6
    prior = (draw(), spread * draw())
    return loc, log_scale, given, prior, draw()


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("clamp", [None, 3.0])
@pytest.mark.parametrize("with_prior", [True, False])
def test_equals_the_algebra_it_fuses(power, clamp, with_prior):
    loc, log_scale, given, prior, noise = random_case()
    prior = prior if with_prior else None
    q = gaussian_poe(loc, log_scale, given, prior, noise=noise, power=power, clamp=clamp)

    def squash(v):
        return v if clamp is None else gaussian.soft_clamp(v, clamp)

    zeros = torch.zeros_like(loc[0])
    prior_loc, prior_log_scale = (zeros, zeros) if prior is None else map(squash, prior)
    mask = torch.cat([torch.ones(5, 1).bool(), given], dim=1).T[..., None, None]
    mean, scale = gaussian.product_of_experts(
        torch.stack([prior_loc, *map(squash, loc)]),
        torch.stack([prior_log_scale, *map(squash, log_scale)]),
        mask,
        power=power,
    )
    torch.testing.assert_close(q.loc, mean)
    torch.testing.assert_close(q.log_scale, scale)
    torch.testing.assert_close(q.z, mean + scale.exp() * noise)
    kl = kl_divergence(Normal(mean, scale.exp()), Normal(prior_loc, prior_log_scale.exp()))
    torch.testing.assert_close(q.kl, kl.sum(dim=(1, 2)))


@hypothesis_given(st.integers(0, 10_000), st.integers(1, 5))
def test_k3_divergence_from_the_prior(seed, experts):
    loc, log_scale, given, prior, _ = random_case(seed, experts)
    q = gaussian_poe(loc, log_scale, given, prior, sample=False)
    kl = kl_divergence(Normal(q.loc, q.log_scale.exp()), Normal(prior[0], prior[1].exp()))
    torch.testing.assert_close(q.kl, kl.sum(dim=(1, 2)), rtol=1e-9, atol=1e-9)
    assert (q.kl >= 0).all()
    assert torch.equal(q.z, q.loc)


@pytest.mark.fault(47)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("with_prior", [True, False])
def test_p14_given_nothing_is_the_prior_to_the_bit(power, with_prior):
    loc, log_scale, given, prior, _ = random_case(dtype=torch.float32)
    given[2] = False
    q = gaussian_poe(
        loc, log_scale, given, prior if with_prior else None, power=power, sample=False
    )
    expected = prior if with_prior else (torch.zeros(5, 3, 2), torch.zeros(5, 3, 2))
    assert torch.equal(q.loc[2], expected[0][2])
    assert torch.equal(q.log_scale[2], expected[1][2])
    assert q.kl[2].item() == 0.0


@pytest.mark.fault(46)
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("clamp", [None, 5.0])
@pytest.mark.parametrize("filler", [0.0, 7.0, 1e30, math.inf, -math.inf, math.nan])
def test_what_is_not_given_changes_no_bit_of_results_and_gradients(filler, clamp, backend):
    loc, log_scale, given, prior, noise = random_case(dtype=torch.float32)

    def run(value):
        inputs = []
        for m in range(4):
            for source in (loc[m], log_scale[m]):
                missing = ~given[:, m, None, None]
                leaf = torch.where(missing, value, source).requires_grad_()
                inputs.append(leaf)
        leaves = [*inputs, prior[0].clone().requires_grad_(), prior[1].clone().requires_grad_()]
        options = {"noise": noise, "clamp": clamp, "backend": backend}
        q = gaussian_poe(leaves[:8:2], leaves[1:8:2], given, (leaves[8], leaves[9]), **options)
        total = sum((part * torch.arange(1, part.numel() + 1).view_as(part)).sum() for part in q)
        return [*q, *torch.autograd.grad(total, leaves)]

    results = run(0.5)
    for a, b in zip(run(filler), results, strict=True):
        assert torch.equal(a, b)
    gradients = results[4:]
    for m in range(4):
        assert torch.equal(gradients[2 * m][~given[:, m]], torch.zeros_like(loc[m][~given[:, m]]))


def test_subsets_in_one_call_equal_separate_calls():
    loc, log_scale, _, prior, _ = random_case()
    given = torch.rand(7, 5, 4) < 0.5
    noise = torch.randn(7, 5, 3, 2, dtype=torch.float64)
    together = gaussian_poe(loc, log_scale, given, prior, noise=noise)
    for s in range(7):
        alone = gaussian_poe(loc, log_scale, given[s], prior, noise=noise[s])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[s], b, rtol=1e-12, atol=1e-12)


def draw_pairs(rows=5, experts=4, pairs=17, seed=0):
    """Pairs of a sample and a subset, in no order, one of them twice, and none of a sample."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.rand(pairs, experts, generator=generator) < 0.5
    samples = torch.randint(1, rows, (pairs,), generator=generator)
    given[-1], samples[-1] = given[0], samples[0]
    return given, samples


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("prior_in", ["always", "full", "never"])
@pytest.mark.parametrize("order", ["ascending", "any"])
def test_pairs_equal_rows_of_their_own(backend, prior_in, order):
    loc, log_scale, _, prior, _ = random_case(spread=1.0, dtype=torch.float32)
    given, rows = draw_pairs()
    if order == "ascending":
        rows = rows.sort().values
    noise = torch.randn(17, 3, 2)
    options = {"noise": noise, "prior_in": prior_in, "backend": backend}
    leaves = [v.requires_grad_() for v in (*loc, *log_scale, *prior)]
    q = gaussian_poe(leaves[:4], leaves[4:8], given, tuple(leaves[8:]), rows=rows, **options)
    own = [v[rows] for v in leaves]
    expected = gaussian_poe(own[:4], own[4:8], given, tuple(own[8:]), **options)
    for a, b in zip(q, expected, strict=True):
        assert torch.equal(a, b)
    weights = [torch.randn_like(v) for v in q]
    found, wanted = (torch.autograd.grad(p, leaves, weights) for p in (q, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    unused = torch.tensor([b for b in range(5) if b not in rows])
    assert all(not g[unused].any() for g in found)


@pytest.mark.parametrize("rows", [torch.tensor([0, 1, 5]), torch.tensor([2, -1, 0])])
def test_pairs_of_samples_that_are_not_there(rows):
    loc, log_scale, *_ = random_case(dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"'rows' should hold samples, 0 to 4, but holds .*(5|-1)"
    ):
        gaussian_poe(loc, log_scale, torch.ones(3, 4).bool(), rows=rows)


def test_the_power_set_of_ten_experts():
    loc, log_scale, _, _, _ = random_case(experts=10, rows=2, event=(20,), spread=1.0)
    codes = torch.arange(1024)
    given = (codes[:, None] >> torch.arange(10) & 1).bool().repeat(2, 1)
    rows = torch.arange(2).repeat_interleave(1024)
    q, exact = (
        gaussian_poe(
            [v.to(dtype) for v in loc],
            [v.to(dtype) for v in log_scale],
            given,
            rows=rows,
            sample=False,
        )
        for dtype in (torch.float32, torch.float64)
    )
    for a, b in zip(q, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("prior_in", ["full", "never"])
def test_without_the_prior_a_product_is_that_of_its_experts(prior_in):
    loc, log_scale, given, prior, noise = random_case(dtype=torch.float32)
    given[0], given[1], given[2] = torch.eye(4).bool()[2], True, False
    q = gaussian_poe(loc, log_scale, given, prior, noise=noise, prior_in=prior_in)
    joins = given.all(dim=1) & (prior_in == "full") | ~given.any(dim=1)
    mask = torch.cat([joins[:, None], given], dim=1).T[..., None, None]
    mean, scale = gaussian.product_of_experts(
        torch.stack([prior[0], *loc]).double(), torch.stack([prior[1], *log_scale]).double(), mask
    )
    torch.testing.assert_close(q.loc.double(), mean, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(q.log_scale.double(), scale, rtol=2e-6, atol=2e-6)
    for part, own in ((q.loc, loc), (q.log_scale, log_scale)):
        assert torch.equal(part[0], own[2][0])  # an expert alone is itself
    assert torch.equal(q.loc[2], prior[0][2])
    assert q.kl[2] == 0


@pytest.mark.fault(50)
@pytest.mark.parametrize(("dtype", "spread"), [(torch.float32, 30.0), (torch.bfloat16, 10.0)])
def test_extreme_scales_are_finite_and_right(dtype, spread):
    loc, log_scale, given, prior, noise = random_case(rows=50, dtype=dtype, spread=spread / 3)
    q = gaussian_poe(loc, log_scale, given, prior, noise=noise)
    exact = gaussian_poe(
        [v.double() for v in loc],
        [v.double() for v in log_scale],
        given,
        (prior[0].double(), prior[1].double()),
        noise=noise.double(),
    )
    assert q.kl.dtype == torch.float32
    assert q.z.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    for a, e in zip(q[1:3], exact[1:3], strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.fault(48)
@pytest.mark.parametrize("subsets", [(), (1,), (3,)])
def test_batches_of_no_row(subsets):
    given = torch.zeros(*subsets, 0, 2, dtype=torch.bool)
    q = gaussian_poe([torch.zeros(0, 3)] * 2, [torch.zeros(0, 3)] * 2, given)
    assert q.z.shape == (*subsets, 0, 3)
    assert q.kl.shape == (*subsets, 0)


def test_gradients():
    loc, log_scale, given, prior, noise = random_case(experts=2, rows=2, event=(2,), spread=0.5)
    leaves = [v.requires_grad_() for v in (*loc, *log_scale, *prior)]
    given = torch.tensor([[[1, 0], [1, 1]], [[0, 0], [0, 1]]]).bool()

    def run(a, b, c, d, e, f):
        return gaussian_poe([a, b], [c, d], given, (e, f), noise=noise.expand(2, 2, 2), clamp=4.0)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_noise_comes_from_the_callers_generator():
    loc, log_scale, given, prior, _ = random_case()
    draws = [
        gaussian_poe(loc, log_scale, given, prior, generator=torch.Generator().manual_seed(s)).z
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_temperature_scales_the_noise_alone():
    loc, log_scale, given, prior, noise = random_case()
    warm = gaussian_poe(loc, log_scale, given, prior, noise=noise)
    cold = gaussian_poe(loc, log_scale, given, prior, noise=noise, temperature=0.5)
    torch.testing.assert_close(cold.z, (warm.z + warm.loc) / 2)
    assert torch.equal(cold.kl, warm.kl)


@pytest.mark.fault(49)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"power": 3}, "'power' should be 2"),
        ({"clamp": 0.0}, "'clamp' should be positive"),
        ({"loc": [torch.ones(5, 3, 2).long()] * 4}, "'loc' should be floating-point"),
        ({"loc": []}, "'loc' and 'log_scale' should hold one tensor per expert"),
        ({"given": torch.ones(5, 4)}, r"'given' should be boolean, .*float32"),
        ({"given": torch.ones(5, 3).bool()}, r"'given' should have one column per expert \(4\)"),
        (
            {"given": torch.ones(6, 4).bool()},
            r"'loc' should hold one row per row of 'given' \(6\)",
        ),
        (
            {"prior": (torch.zeros(5, 3), torch.zeros(5, 3))},
            r"'prior\[0\]' should be like 'loc\[0\]'",
        ),
        ({"prior": (torch.zeros(5, 3, 2), None)}, "'prior' should be a pair of tensors or None"),
        ({"noise": torch.zeros(5, 3)}, "'noise' should have the shape of z"),
        (
            {"rows": torch.zeros(4).long()},
            r"'rows' should be int64, with .*\(5, 4\), but is \(4,\)",
        ),
        ({"rows": torch.zeros(5)}, "'rows' should be int64, .* torch.float32"),
        ({"prior_in": "some"}, "'prior_in' should be one of always, full, never, but is 'some'"),
        (
            {"prior_in": "full", "common_noise": torch.zeros(3)},
            "'prior_in' should be \"always\" with 'common_noise', .* but is 'full'",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    loc, log_scale, given, prior, noise = random_case(dtype=torch.float32)
    arguments = {"loc": loc, "log_scale": log_scale, "given": given, "prior": prior}
    with pytest.raises(ValueError, match=message):
        gaussian_poe(**({**arguments, "noise": noise} | change))


def test_mixed_dtypes_are_named():
    loc, log_scale, given, prior, _ = random_case(dtype=torch.float32)
    log_scale[2] = log_scale[2].double()
    with pytest.raises(ValueError, match=r"'log_scale\[2\]' should be like .*float64"):
        gaussian_poe(loc, log_scale, given, prior)


def test_common_noise_of_zero_is_the_plain_product_to_the_bit():
    loc, log_scale, given, prior, noise = random_case(experts=3, event=(3,), dtype=torch.float32)
    plain = gaussian_poe(loc, log_scale, given, prior, noise=noise)
    shared = gaussian_poe(loc, log_scale, given, prior, noise=noise, common_noise=torch.zeros(3))
    assert all(torch.equal(a, b) for a, b in zip(plain, shared, strict=True))


def test_common_noise_discounts_the_sum_of_precisions():
    loc, log_scale, given, prior, noise = random_case(experts=3, event=(3,))
    gamma = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    fused = gaussian_poe(loc, log_scale, given, prior, noise=noise, common_noise=gamma)

    prior_precision = (-2 * prior[1]).exp()
    present = given[..., None].to(torch.float64)  # (B, M, 1)
    precision = present * torch.stack(log_scale, dim=1).mul(-2).exp()  # (B, M, C)
    total = precision.sum(dim=1)
    message = total / (1 + gamma * total / prior_precision)
    evidence = (precision * torch.stack(loc, dim=1)).sum(dim=1) / total.clamp(min=1e-300)
    expected = prior_precision + message
    mean = (prior_precision * prior[0] + message * evidence) / expected
    torch.testing.assert_close(fused.log_scale, -expected.log() / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused.loc, mean, rtol=1e-12, atol=1e-12)
    kl = gaussian.kl_divergence(fused.loc, fused.log_scale, *prior).sum(dim=1)
    torch.testing.assert_close(fused.kl, kl, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, -15.0, -30.0, -50.0])
def test_common_noise_never_overflows(shift):
    # experts sharper by e^shift: the sum of precisions leaves the range of float32 at -45
    loc, log_scale, given, prior, noise = random_case(experts=3, event=(3,), dtype=torch.float32)
    log_scale = [(v + shift).requires_grad_() for v in log_scale]
    gamma = torch.tensor([0.0, 1e-3, 1e3]).requires_grad_()
    fused = gaussian_poe(loc, log_scale, given, prior, noise=noise, common_noise=gamma)
    gradients = torch.autograd.grad(fused.kl.sum() + fused.z.sum(), [gamma, *log_scale])
    assert all(t.isfinite().all() for t in (*fused, *gradients[1:]))
    ratio = 2 * (
        prior[1] - fused.log_scale
    )  # log(1 + R / (1 + gamma R)), at most log(1 + 1 / gamma)
    assert (ratio[:, 1:] <= torch.log1p(1 / gamma[1:]) + 1e-4).all()


def test_gradients_of_common_noise():
    loc, log_scale, given, prior, noise = random_case(experts=3, event=(3,))
    leaves = [*loc, *log_scale, torch.tensor([0.01, 0.5, 3.0], dtype=torch.float64)]

    def fuse(*values):
        fused = gaussian_poe(
            values[:3], values[3:6], given, prior, noise=noise, common_noise=values[6]
        )
        return fused.z, fused.log_scale, fused.kl

    assert torch.autograd.gradcheck(fuse, [v.requires_grad_() for v in leaves])


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(3, 1), torch.zeros(3).long()])
def test_common_noise_needs_one_number_per_channel(wrong):
    loc, log_scale, given, prior, _ = random_case(experts=3, event=(3,))
    message = r"'common_noise' should be floating-point, with one number per channel \(3\)"
    with pytest.raises(ValueError, match=message):
        gaussian_poe(loc, log_scale, given, prior, common_noise=wrong)
