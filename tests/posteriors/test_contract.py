"""Rules of fusion: what each promises, beyond the product that kernels compute."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from mmpoe import gaussian
from mmpoe.posteriors import (
    CommonNoisePoE,
    GPoE,
    MoE,
    MoPoE,
    PoE,
    Posterior,
    SumPooling,
    WassersteinBarycenter,
)

M, ROWS, EVENT = 4, 6, (3, 2)


def powered(powers, **options):
    """A rule whose learned powers have arrived somewhere."""
    rule = GPoE(len(powers), **options)
    with torch.no_grad():
        rule.log_powers.copy_(torch.tensor(powers).log())
    return rule


def pooled():
    torch.manual_seed(0)
    network = torch.nn.Conv1d(2 * EVENT[0], 2 * EVENT[0], 1)
    return SumPooling(torch.nn.Sequential(network, torch.nn.Tanh()))


RULES = {
    "PoE": PoE,
    "clamped": lambda: PoE(clamp=3.0),
    "published": lambda: PoE(power=1),
    "prior in full": lambda: PoE(prior_in="full"),
    "prior never": lambda: PoE(prior_in="never"),
    "powers": lambda: GPoE(M),
    "clamped powers": lambda: powered([0.1, 0.2, 3.0, 1.0], clamp=3.0),
    "common noise": lambda: CommonNoisePoE(EVENT[0]),
    "no common noise": lambda: CommonNoisePoE(EVENT[0], gamma=0.0),
    "clamped common noise": lambda: CommonNoisePoE(EVENT[0], gamma=0.5, clamp=3.0),
    "MoE": MoE,
    "MoPoE": MoPoE,
    "barycentre": WassersteinBarycenter,
    "clamped barycentre": lambda: WassersteinBarycenter(clamp=3.0),
    "sum of features": pooled,
}
every_rule = pytest.mark.parametrize("build", RULES.values(), ids=RULES.keys())


def case(seed=0, rows=ROWS, dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(scale=1.0):
        return (scale * torch.randn(rows, *EVENT, generator=generator, dtype=torch.float64)).to(
            dtype
        )

    loc, log_scale = [draw() for _ in range(M)], [draw(spread) for _ in range(M)]
    given = torch.rand(rows, M, generator=generator) < 0.6
    given[0], given[1] = False, True
    return loc, log_scale, given, (draw(), draw(spread)), draw()


def make(build, dtype=torch.float64):
    return build().to(dtype)


def precision(log_scale):
    return (-2 * log_scale).exp()


@every_rule
def test_what_is_not_given_is_never_read(build):
    rule = make(build)
    loc, log_scale, given, prior, noise = case()

    def run(filler):
        leaves = [
            torch.where(given[:, m % M, None, None], v, filler).requires_grad_()
            for m, v in enumerate([*loc, *log_scale])
        ]
        q = rule(leaves[:M], leaves[M:], given, prior, noise=noise)
        total = q.z.sum() + q.log_scale.sum() + q.kl.sum()
        gradients = torch.autograd.grad(total, [*leaves, *rule.parameters()])
        for m, gradient in enumerate(gradients[: 2 * M]):
            assert not gradient[~given[:, m % M]].any()
        return [*q, *gradients]

    for a, b in zip(run(math.nan), run(0.5), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@every_rule
def test_a_row_given_nothing_has_the_prior(build):
    rule = make(build)
    loc, log_scale, given, prior, noise = case()
    q = rule(loc, log_scale, given, prior, noise=noise)
    assert torch.equal(q.loc[0], rule.squash(prior[0][0]))
    assert torch.equal(q.log_scale[0], rule.squash(prior[1][0]))
    assert q.kl[0].item() == 0.0


@every_rule
def test_divergence_is_that_from_the_prior(build):
    rule = make(build)
    loc, log_scale, given, prior, _ = case()
    q = rule(loc, log_scale, given, prior, temperature=0.0)
    prior_loc, prior_log_scale = map(rule.squash, prior)
    kl = kl_divergence(Normal(q.loc, q.log_scale.exp()), Normal(prior_loc, prior_log_scale.exp()))
    torch.testing.assert_close(q.kl, kl.sum(dim=(1, 2)))
    assert torch.equal(q.z, q.loc)


@every_rule
def test_order_of_experts_does_not_matter(build):
    rule = make(build)
    if (
        getattr(rule, "groups", None)
        or len(getattr(rule, "log_powers", torch.zeros(1)).unique()) > 1
    ):
        pytest.skip("experts have places in this rule")
    loc, log_scale, given, prior, noise = case()
    q = rule(loc, log_scale, given, prior, noise=noise)
    swapped = rule(loc[::-1], log_scale[::-1], given.flip(1), prior, noise=noise)
    for a, b in zip(swapped, q, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_rule
@pytest.mark.parametrize("with_prior", [True, False])
def test_subsets_at_once_equal_one_by_one(build, with_prior):
    rule = make(build)
    loc, log_scale, given, prior, _ = case()
    prior = prior if with_prior else None
    given = torch.stack([given, ~given, given & given.flip(0)])
    noise = torch.randn(3, ROWS, *EVENT, dtype=torch.float64)
    several = None if prior is None else tuple(v.repeat(3, 1, 1) for v in prior)
    rows = torch.arange(ROWS).repeat(3)
    together = rule(
        loc, log_scale, given.flatten(0, 1), several, rows=rows, noise=noise.flatten(0, 1)
    )
    for s in range(3):
        alone = rule(loc, log_scale, given[s], prior, noise=noise[s])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a.unflatten(0, (3, ROWS))[s], b, rtol=1e-12, atol=1e-12)


@every_rule
def test_gradients_are_those_of_finite_differences(build):
    rule = make(build)
    loc, log_scale, given, prior, noise = case(rows=3)
    leaves = [v.requires_grad_() for v in (*loc, *log_scale, *prior)]
    parameters = list(rule.parameters())

    def fuse(*values):
        q = rule(values[:M], values[M : 2 * M], given, values[2 * M : 2 * M + 2], noise=noise)
        return q.z, q.log_scale, q.kl

    assert torch.autograd.gradcheck(fuse, [*leaves, *parameters])


@every_rule
def test_sharp_and_vague_experts_stay_finite(build):
    rule = make(build, torch.float32)
    loc, log_scale, given, prior, noise = case(dtype=torch.float32, spread=20.0)
    leaves = [v.requires_grad_() for v in (*loc, *log_scale)]
    q = rule(leaves[:M], leaves[M:], given, prior, noise=noise)
    assert all(t.isfinite().all() for t in q[:3])
    gradients = torch.autograd.grad(q.loc.sum() + q.log_scale.sum(), leaves)
    assert all(g.isfinite().all() for g in gradients)


def test_prior_takes_part_where_the_rule_says():
    loc, log_scale, given, prior, _ = case()
    full = PoE(prior_in="full")(loc, log_scale, given, prior, temperature=0.0)
    never = PoE(prior_in="never")(loc, log_scale, given, prior, temperature=0.0)
    always = PoE()(loc, log_scale, given, prior, temperature=0.0)
    complete = given.all(dim=1)
    torch.testing.assert_close(full.loc[complete], always.loc[complete])
    torch.testing.assert_close(full.loc[~complete], never.loc[~complete])
    some = given.any(dim=1)
    difference = precision(always.log_scale[some]) - precision(never.log_scale[some])
    torch.testing.assert_close(difference, precision(prior[1][some]))


def test_a_component_of_a_mixture_of_experts_is_the_expert_itself():
    loc, log_scale, _, prior, _ = case()
    alone = torch.tensor([False, False, True, False]).expand(ROWS, M)
    q = MoE()(loc, log_scale, alone, prior, temperature=0.0)
    assert torch.equal(q.loc, loc[2])
    assert torch.equal(q.log_scale, log_scale[2])
    assert (MoE.family, MoPoE.family, PoE.family) == ("singletons", "powerset", "full")


@hypothesis_given(st.integers(0, 10_000), st.sampled_from([[1.0] * M, [1.0, 5.0, 0.2, 2.0]]))
def test_equal_experts_count_as_one_if_powers_sum_to_one(seed, powers):
    loc, log_scale, given, prior, _ = case(seed)
    rule = powered(powers).double()
    many = rule([loc[0]] * M, [log_scale[0]] * M, given, prior, temperature=0.0)
    seen = given.any(dim=1, keepdim=True)
    one = PoE()([loc[0]], [log_scale[0]], seen, prior, temperature=0.0)
    for a, b in zip(many, one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_powers_weigh_precisions():
    loc, log_scale, given, prior, _ = case()
    powers = torch.tensor([0.1, 0.2, 3.0, 1.0], dtype=torch.float64)
    q = powered(powers.tolist()).double()(loc, log_scale, given, prior, temperature=0.0)
    alpha = torch.where(given, powers, 0)
    alpha = alpha / alpha.sum(dim=1, keepdim=True).clamp(min=1e-9)
    alpha = alpha.T[:, :, None, None]
    total = precision(prior[1]) + (alpha * precision(torch.stack(log_scale))).sum(dim=0)
    natural = (alpha * precision(torch.stack(log_scale)) * torch.stack(loc)).sum(dim=0)
    mean = (precision(prior[1]) * prior[0] + natural) / total
    torch.testing.assert_close(
        precision(q.log_scale), total, rtol=1e-6, atol=1e-6
    )  # float32 powers
    torch.testing.assert_close(q.loc, mean, rtol=1e-6, atol=1e-6)


def test_no_common_noise_is_the_plain_product_to_the_bit():
    loc, log_scale, given, prior, noise = case(dtype=torch.float32)
    plain = PoE()(loc, log_scale, given, prior, noise=noise)
    same = CommonNoisePoE(3, gamma=0.0)(loc, log_scale, given, prior, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    assert list(CommonNoisePoE(3, gamma=0.0).parameters()) == []
    assert len(list(CommonNoisePoE(3).parameters())) == 1


@hypothesis_given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_common_noise_limits_the_fused_precision_and_rises_with_every_expert(seed, gamma):
    loc, log_scale, given, prior, _ = case(seed, spread=2.0)
    rule = CommonNoisePoE(3, gamma=gamma).double()
    before = torch.zeros(ROWS, *EVENT, dtype=torch.float64)
    taking = torch.zeros_like(given)
    for m in range(M):
        taking[:, m] = given[:, m]
        q = rule(loc, log_scale, taking, prior, temperature=0.0)
        message = torch.expm1(
            2 * (prior[1] - q.log_scale)
        )  # fused precision / prior precision - 1
        assert (message <= (1 + 1e-5) / gamma).all()
        assert (message >= before - 1e-9 * before.abs()).all()
        before = message


@hypothesis_given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(-2, 2))
def test_common_noise_is_equivariant_under_affine_maps(seed, shift, log_factor):
    loc, log_scale, given, prior, _ = case(seed)
    rule, factor = CommonNoisePoE(3, gamma=[0.1, 1.0, 5.0]).double(), math.exp(log_factor)

    def move(v):
        return v * factor + shift

    q = rule(loc, log_scale, given, prior, temperature=0.0)
    moved = rule(
        [move(v) for v in loc],
        [v + log_factor for v in log_scale],
        given,
        (move(prior[0]), prior[1] + log_factor),
        temperature=0.0,
    )
    torch.testing.assert_close(moved.loc, move(q.loc), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.log_scale, q.log_scale + log_factor, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.kl, q.kl, rtol=1e-8, atol=1e-8)


def test_common_noise_is_exact_for_noise_that_all_share():
    # y_m = z + a + c_m with independent Gaussian noises: condition on y by linear algebra
    common, own = 0.7, torch.tensor([0.3, 0.6, 0.2, 1.1], dtype=torch.float64)
    y = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)
    rule, covariance = CommonNoisePoE(1, gamma=common).double(), common + torch.diag(own)
    for pattern in range(1, 16):
        seen = [m for m in range(4) if pattern >> m & 1]
        given = torch.tensor([[m in seen for m in range(4)]])
        q = rule(
            [v.reshape(1, 1) for v in y],
            [v.log().reshape(1, 1) / 2 for v in own],
            given,
            temperature=0.0,
        )
        information = torch.linalg.inv(covariance[seen][:, seen])
        total = 1 + information.sum()
        mean = (information @ y[seen]).sum() / total
        assert precision(q.log_scale).item() == pytest.approx(total.item(), rel=1e-6)
        assert q.loc.item() == pytest.approx(mean.item(), rel=1e-6, abs=1e-6)


def test_raw_values_are_squashed_once():
    powers, common_noise = lambda **o: GPoE(M, **o), lambda **o: CommonNoisePoE(3, **o)
    for kind in (PoE, MoE, powers, common_noise, WassersteinBarycenter):
        loc, log_scale, given, prior, noise = case(dtype=torch.float32)
        rule = kind(clamp=3.0)
        q = rule(loc, log_scale, given, prior, noise=noise)
        expected = kind()(
            [rule.squash(v) for v in loc],
            [rule.squash(v) for v in log_scale],
            given,
            (rule.squash(prior[0]), rule.squash(prior[1])),
            noise=noise,
        )
        for a, b in zip(q, expected, strict=True):
            torch.testing.assert_close(a, b)
        assert torch.equal(rule.squash(loc[0]), gaussian.soft_clamp(loc[0], 3.0))


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor])
def test_numbers_may_be_any_sequence(kind):
    rule = CommonNoisePoE(2, gamma=kind([0.5, 2.0]))
    assert rule.gamma.tolist() == pytest.approx([0.5, 2])
    assert CommonNoisePoE(2, gamma=np.float32(0.5)).gamma.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PoE(clamp=-1.0), r"'clamp' should be positive or None, but is -1.0"),
        (
            lambda: PoE(prior_in="no"),
            r"'prior_in' should be one of always, full, never, but is 'no'",
        ),
        (lambda: GPoE(0), r"'experts' should be at least 1, but is 0"),
        (lambda: CommonNoisePoE(2, gamma=-0.1), r"'gamma' should be one number of at least 0"),
        (lambda: CommonNoisePoE(2, gamma=[1.0]), r"one per channel \(2\), but is \[1.0\]"),
    ],
)
def test_bad_rules_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_wrong_numbers_of_experts_are_named():
    loc, log_scale, given, prior, _ = case()
    with pytest.raises(
        ValueError, match=r"'loc' should hold one tensor per expert of this rule \(2\)"
    ):
        GPoE(2)(loc, log_scale, given, prior)
    with pytest.raises(
        ValueError, match=r"'given' should have one column per expert \(4\), but .* 3"
    ):
        GPoE(4)(loc, log_scale, given[:, :3], prior)


def test_a_rule_is_one_hook():
    """The base has the only forward pass; a rule overrides `fuse`."""

    def subclasses(kind):
        return [kind, *(c for child in kind.__subclasses__() for c in subclasses(child))]

    rules = [kind for kind in subclasses(Posterior) if kind.__module__.startswith("mmpoe.")]
    assert {"PoE", "GPoE", "CommonNoisePoE", "MoE", "WidePrior", "JointPoE"} <= {
        kind.__name__ for kind in rules
    }
    assert [kind for kind in rules if "forward" in vars(kind)] == [Posterior]
