"""Pairs of a sample and a subset are fused as one row for each would be."""

import pytest
import torch

from mmpoe.missing import pack, subsets
from mmpoe.posteriors import (
    CommonNoisePoE,
    GPoE,
    MoE,
    MoPoE,
    PoE,
    SumPooling,
    WassersteinBarycenter,
)


class OverChannels(torch.nn.Linear):
    """A linear layer over the channels of latents of any shape."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


RULES = {
    "product": PoE,
    "published rule": lambda: PoE(power=1),
    "clamped": lambda: PoE(clamp=2.0),
    "mixture of experts": MoE,
    "mixture of products": MoPoE,
    "published mixture of products": lambda: MoPoE(prior_in="full"),
    "published rule without prior": lambda: PoE(power=1, clamp=3.0, prior_in="never"),
    "powers": lambda: GPoE(3),
    "common noise": lambda: CommonNoisePoE(2, gamma=0.5),
    "barycentre": WassersteinBarycenter,
    "sum of features": lambda: SumPooling(OverChannels(4, 4)),
}
every_rule = pytest.mark.parametrize("build", RULES.values(), ids=RULES.keys())

OBSERVED = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 0]]).bool()


def pairs():
    """All pairs of a sample and a subset, one of them twice, and one that is given nothing."""
    given, rows, _ = pack(*subsets(OBSERVED))
    again = torch.cat([given[3:4], given, torch.zeros(1, 3).bool()])
    return again, torch.cat([rows[3:4], rows, torch.tensor([2])])


def experts(event=(2,), dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(0)
    shape = (3, len(OBSERVED), *event)
    loc = torch.randn(shape, generator=generator, dtype=torch.float64)
    log_scale = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return list(loc.to(dtype)), list(log_scale.to(dtype))


def dense(rule, loc, log_scale, given, rows, prior=None, **options):
    """The same pairs, each with its own row of every expert."""
    loc, log_scale = [v[rows] for v in loc], [v[rows] for v in log_scale]
    return rule(loc, log_scale, given, prior, **options)


def prior_of(rows, event=(2,)):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, len(rows), *event, generator=generator, dtype=torch.float64))


@every_rule
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("event", [(2,), (2, 3, 1)])
def test_pairs_are_rows(build, with_prior, event):
    rule, (given, rows), (loc, log_scale) = build().double(), pairs(), experts(event)
    prior = prior_of(rows, event) if with_prior else None
    noise = torch.randn(len(rows), *event, dtype=torch.float64)
    q = rule(loc, log_scale, given, prior, rows=rows, noise=noise, temperature=0.5)
    one_by_one = dense(rule, loc, log_scale, given, rows, prior, noise=noise, temperature=0.5)
    for a, b in zip(q, one_by_one, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b)


@every_rule
def test_pairs_that_are_given_nothing_have_the_prior(build):
    rule, (given, rows), prior = build().double(), pairs(), prior_of(pairs()[1])
    squashed = [rule.squash(v) for v in prior]
    for p in (None, prior):
        q = rule(*experts(), given, p, rows=rows, temperature=0.0)
        wanted = [torch.zeros(2).double()] * 2 if p is None else [v[-1] for v in squashed]
        assert torch.equal(q.loc[-1], wanted[0])
        assert torch.equal(q.log_scale[-1], wanted[1])
        assert q.kl[-1] == 0


@every_rule
@pytest.mark.parametrize("filler", [7.0, torch.inf, torch.nan])
def test_what_no_pair_is_given_is_never_read(build, filler):
    rule, (given, rows) = build(), pairs()

    def run(value):
        seen = OBSERVED.T[..., None]
        parts = [torch.where(seen, torch.stack(v), value) for v in experts(dtype=torch.float32)]
        parts = [v.requires_grad_() for part in parts for v in part.unbind()]
        leaves = [v.detach().requires_grad_() for v in parts]
        q = rule(leaves[:3], leaves[3:], given, rows=rows, temperature=0.0)
        return [*q, *torch.autograd.grad(q.loc.sum() + q.kl.sum(), leaves)]

    for a, b in zip(run(filler), run(0.25), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("prior_in", ["always", "full", "never"])
@pytest.mark.parametrize("power", [1, 2])
def test_gradients_of_pairs(prior_in, power):
    rule, (given, rows) = PoE(power, prior_in=prior_in), pairs()
    parts = [v.requires_grad_() for part in experts() for v in part]
    prior = [v.requires_grad_() for v in prior_of(rows)]
    noise = torch.randn(len(rows), 2, dtype=torch.float64)

    def fuse(*values):
        return tuple(rule(values[:3], values[3:6], given, values[6:], rows=rows, noise=noise))

    assert torch.autograd.gradcheck(fuse, (*parts, *prior))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prior_in", ["always", "full", "never"])
def test_extreme_scales_of_pairs(dtype, prior_in):
    rule, (given, rows) = PoE(prior_in=prior_in), pairs()
    loc, log_scale = experts(dtype=dtype, spread=25.0)
    assert torch.stack(log_scale).abs().max() > 50
    q = rule(loc, log_scale, given, rows=rows, temperature=0.0)
    exact = dense(
        rule,
        [v.double() for v in loc],
        [v.double() for v in log_scale],
        given,
        rows,
        temperature=0.0,
    )
    assert q.kl.dtype == torch.float32
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(q.loc.double(), exact.loc, rtol=eps, atol=eps)
    torch.testing.assert_close(q.log_scale.double(), exact.log_scale, rtol=eps, atol=eps)
    torch.testing.assert_close(q.kl.double(), exact.kl, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prior_in", ["always", "full", "never"])
@pytest.mark.parametrize("log_scale", [-500.0, 500.0])
def test_precisions_beyond_float64(log_scale, prior_in):
    rule, (given, rows) = PoE(prior_in=prior_in), pairs()
    loc, _ = experts(dtype=torch.float32)
    log_scale = [torch.full_like(v, log_scale) for v in loc]
    q = rule(loc, log_scale, given, rows=rows, temperature=0.0)
    exact = dense(rule, loc, log_scale, given, rows, temperature=0.0)
    # the other one rounds a log precision of 1000 in float32
    torch.testing.assert_close(q.loc, exact.loc, rtol=2e-4, atol=1e-30)
    torch.testing.assert_close(q.log_scale, exact.log_scale)


def test_small_divergences_do_not_cancel():
    experts = torch.full((1, 1), 1e-4), torch.full((1, 1), 10.0)
    q = PoE()([experts[0]], [experts[1]], torch.ones(1, 1).bool(), rows=torch.zeros(1).long())
    ratio = 1 / (1 + torch.exp(torch.tensor(-20.0, dtype=torch.float64)))  # of variances
    wanted = (ratio - 1 - ratio.log() + (1e-4 * (1 - ratio)) ** 2) / 2
    assert q.kl.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_no_pairs():
    loc, log_scale = experts()
    q = PoE()(loc, log_scale, torch.zeros(0, 3).bool(), rows=torch.zeros(0).long())
    assert [tuple(v.shape) for v in q] == [(0, 2), (0, 2), (0, 2), (0,)]


def test_experts_that_are_far_apart_do_not_underflow():
    # in subsets without the sharpest expert, the others still count
    loc = [torch.full((1, 1), v, dtype=torch.float64) for v in (1.0, -2.0, 3.0)]
    log_scale = [torch.full((1, 1), v, dtype=torch.float64) for v in (-400.0, 1.0, 1.5)]
    given, rows, _ = pack(*subsets(torch.ones(1, 3, dtype=torch.bool)))
    for rule in (PoE(prior_in="never"), PoE()):
        q = rule(loc, log_scale, given, rows=rows, temperature=0.0)
        one_by_one = [rule(loc, log_scale, g[None], temperature=0.0) for g in given]
        torch.testing.assert_close(q.loc, torch.cat([p.loc for p in one_by_one]))
        torch.testing.assert_close(q.log_scale, torch.cat([p.log_scale for p in one_by_one]))


@pytest.mark.parametrize("prior_in", ["always", "full", "never"])
def test_an_expert_of_infinite_scale_is_neutral(prior_in):
    loc = [torch.full((1, 1), v) for v in (1.0, -2.0)]
    log_scale = [torch.zeros(1, 1).requires_grad_(), torch.full((1, 1), torch.inf)]
    given, rows = torch.tensor([[1, 0], [0, 1], [1, 1]]).bool(), torch.zeros(3, dtype=torch.long)
    rule = PoE(prior_in=prior_in)
    q = rule(loc, log_scale, given, rows=rows, temperature=0.0)
    alone = rule(loc, log_scale, given[:1], temperature=0.0)
    assert torch.equal(q.loc[:1], alone.loc)
    mean = (
        alone.loc if prior_in != "full" else PoE()(loc, log_scale, given[:1], temperature=0.0).loc
    )
    assert torch.equal(q.loc[2:], mean)
    assert q.loc[1].item() == 0.0
    assert q.log_scale[1].item() == (0.0 if prior_in == "always" else torch.inf)
    (gradient,) = torch.autograd.grad(q.loc.sum() + q.log_scale[[0, 2]].sum(), log_scale[0])
    assert gradient.isfinite().all()


def exact_product(loc, log_scale, given, powers, gamma=0.0):
    """The mean and variance of the product with a standard normal prior, in float64."""
    precision = powers[..., None] * (-2 * torch.stack(log_scale, dim=1)).exp() * given[..., None]
    total = precision.sum(dim=1)
    shrink = 1 / (1 + gamma * total)
    variance = 1 / (1 + shrink * total)
    return variance * shrink * (precision * torch.stack(loc, dim=1)).sum(dim=1), variance


def test_float64_experts_are_fused_in_float64_whatever_the_rule_is_kept_in():
    torch.manual_seed(0)
    loc, log_scale = (list(torch.randn(3, 20, 4).double()) for _ in range(2))
    given = torch.rand(20, 3) > 0.3
    rule = GPoE(3)
    with torch.no_grad():
        rule.log_powers.copy_(torch.tensor([0.1, 0.5, -0.3]))
    powers = rule.log_powers.double().exp() * given
    powers = powers / powers.sum(dim=1, keepdim=True).clamp(min=1e-300)
    noise = CommonNoisePoE(4, gamma=0.3)
    gamma = noise.log_gamma[0].double().exp()
    cases = [(rule, powers, 0.0), (noise, given.double(), gamma)]
    for found, weights, common in cases:
        q = found(loc, log_scale, given)
        mean, variance = exact_product(loc, log_scale, given, weights, common)
        torch.testing.assert_close(q.loc, mean, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close((2 * q.log_scale).exp(), variance, rtol=1e-13, atol=1e-14)
