"""Algebra of diagonal Gaussians: the identities that define it, far from and near its limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from mmpoe import gaussian
from mmpoe.gaussian import kl_divergence, product_of_experts, sample, soft_clamp

LOCS = st.floats(-50, 50)
LOG_SCALES = st.floats(-30, 30)


@st.composite
def experts(draw, minimum=1, maximum=6, dims=3, log_scales=LOG_SCALES):
    """Means and log standard deviations of some experts, in float64."""
    count = draw(st.integers(minimum, maximum))
    row = st.lists(st.tuples(LOCS, log_scales), min_size=dims, max_size=dims)
    rows = draw(st.lists(row, min_size=count, max_size=count))
    loc, log_scale = torch.tensor(rows, dtype=torch.float64).unbind(dim=-1)
    return loc, log_scale


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def precision(log_scale, power=2):
    return torch.exp(-power * log_scale)


@pytest.mark.parametrize("power", [1, 2])
@given(experts(), st.randoms(use_true_random=False))
def test_p1_order_does_not_matter(power, q, random):
    loc, log_scale = q
    order = list(range(len(loc)))
    random.shuffle(order)
    for a, b in zip(
        product_of_experts(loc, log_scale, power=power),
        product_of_experts(loc[order], log_scale[order], power=power),
        strict=True,
    ):
        close(a, b)


@pytest.mark.parametrize("power", [1, 2])
@given(experts(minimum=3))
def test_p2_products_associate(power, q):
    loc, log_scale = q
    two = product_of_experts(loc[:2], log_scale[:2], power=power)
    rest = torch.cat([two[0][None], loc[2:]]), torch.cat([two[1][None], log_scale[2:]])
    expected = product_of_experts(loc, log_scale, power=power)
    for a, b in zip(product_of_experts(*rest, power=power), expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("filler", [0.0, 7.0, math.inf, -math.inf, math.nan])
@given(q=experts())
def test_p3_masked_and_flat_experts_change_no_bit(power, filler, q):
    loc, log_scale = q
    expected = product_of_experts(loc, log_scale, power=power)

    junk = torch.full_like(loc[:1], filler)
    mask = torch.tensor([True] * len(loc) + [False])[:, None]
    masked = product_of_experts(
        torch.cat([loc, junk]), torch.cat([log_scale, junk]), mask, power=power
    )
    flat = product_of_experts(
        torch.cat([loc, junk]),
        torch.cat([log_scale, torch.full_like(junk, math.inf)]),
        power=power,
    )
    for a, b, c in zip(masked, flat, expected, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)


@given(experts(log_scales=st.floats(-10, 10)))
def test_p4_p5_precisions_and_natural_means_add(q):
    loc, log_scale = q
    fused_loc, fused_log_scale = product_of_experts(loc, log_scale)
    total = precision(log_scale).sum(dim=0)
    close(precision(fused_log_scale) / total, torch.ones_like(total))
    # relative to the largest possible value: terms of opposite signs cancel
    close(
        (precision(fused_log_scale) * fused_loc - (precision(log_scale) * loc).sum(dim=0)) / total,
        torch.zeros_like(total),
    )


@given(experts(log_scales=st.floats(-10, 10)))
def test_inverse_scales_add_with_power_1(q):
    loc, log_scale = q
    _, fused = product_of_experts(loc, log_scale, power=1)
    close(torch.exp(-fused) / torch.exp(-log_scale).sum(dim=0), torch.ones_like(fused))


@pytest.mark.parametrize("power", [1, 2])
@given(experts())
def test_p6_mean_lies_between_the_means(power, q):
    loc, log_scale = q
    fused, _ = product_of_experts(loc, log_scale, power=power)
    slack = 1e-12 * loc.abs().amax(dim=0)
    assert (fused >= loc.amin(dim=0) - slack).all()
    assert (fused <= loc.amax(dim=0) + slack).all()


@given(experts(minimum=2))
def test_p7_variance_only_shrinks(q):
    loc, log_scale = q
    _, fewer = product_of_experts(loc[:-1], log_scale[:-1])
    _, fused = product_of_experts(loc, log_scale)
    assert (fused <= log_scale.amin(dim=0) + 1e-12).all()
    assert (fused <= fewer + 1e-12).all()


@given(experts(maximum=1), st.integers(1, 9))
def test_p8_copies_divide_the_variance(q, copies):
    loc, log_scale = (v.expand(copies, -1) for v in q)
    fused_loc, fused = product_of_experts(loc, log_scale)
    close(fused_loc, loc[0])
    close(fused, log_scale[0] - math.log(copies) / 2)
    _, published = product_of_experts(loc, log_scale, power=1)
    close(published, log_scale[0] - math.log(copies))


@pytest.mark.parametrize("power", [1, 2])
@given(experts(), st.floats(0.01, 100), LOCS, st.booleans())
def test_p9_affine_maps_commute(power, q, scale, shift, flip):
    loc, log_scale = q
    scale = -scale if flip else scale
    fused_loc, fused = product_of_experts(loc, log_scale, power=power)
    mapped_loc, mapped = product_of_experts(
        scale * loc + shift, log_scale + math.log(abs(scale)), power=power
    )
    close(mapped_loc, scale * fused_loc + shift, 1e-9)
    close(mapped, fused + math.log(abs(scale)))


@pytest.mark.parametrize("power", [1, 2])
@given(experts(log_scales=st.floats(-3, 3)))
def test_p10_a_certain_expert_wins(power, q):
    loc, log_scale = q
    log_scale = log_scale.clone()
    log_scale[0] = -60.0
    for a, b in zip(
        product_of_experts(loc, log_scale, power=power), (loc[0], log_scale[0]), strict=True
    ):
        close(a, b)


@pytest.mark.parametrize("power", [1, 2])
@given(experts(maximum=1))
def test_p11_one_expert_is_itself(power, q):
    loc, log_scale = q
    fused_loc, fused = product_of_experts(loc, log_scale, power=power)
    close(fused_loc, loc[0])
    close(fused, log_scale[0])


@given(experts(minimum=2, log_scales=st.floats(-3, 3)))
def test_p13_product_is_proportional_to_the_product_of_densities(q):
    loc, log_scale = q
    fused_loc, fused = product_of_experts(loc, log_scale)
    z = fused_loc + torch.linspace(-3, 3, 7)[:, None] * fused.exp()  # (7, D)
    together = Normal(loc[:, None], log_scale[:, None].exp()).log_prob(z).sum(dim=0)
    log_normaliser = together - Normal(fused_loc, fused.exp()).log_prob(z)  # (7, D)
    spread = log_normaliser.amax(dim=0) - log_normaliser.amin(dim=0)
    assert (spread <= 1e-10 * (1 + together.abs().amax(dim=0))).all()
    if len(loc) == 2:
        variance = (2 * log_scale).exp().sum(dim=0)
        expected = Normal(loc[1], variance.sqrt()).log_prob(loc[0])
        scale = 1 + together.abs().amax(dim=0)
        close(log_normaliser[0] / scale, expected / scale, 1e-9)


@pytest.mark.parametrize("power", [1, 2])
def test_p14_product_of_nothing_is_flat_with_zero_gradients(power):
    loc = torch.full((3, 2), math.nan, requires_grad=True)
    log_scale = torch.full((3, 2), math.nan, requires_grad=True)
    mask = torch.zeros(3, 1, dtype=torch.bool)
    fused_loc, fused = product_of_experts(loc, log_scale, mask, power=power)
    assert torch.equal(fused_loc, torch.zeros(2))
    assert torch.equal(fused, torch.full((2,), math.inf))
    gradients = torch.autograd.grad(fused_loc.sum() + fused.sum(), (loc, log_scale))
    assert all(torch.equal(g, torch.zeros(3, 2)) for g in gradients)


def test_published_rule_contrasts_with_the_exact_product():
    # prior N(0, 1), experts N(1, .5) and N(-2, 2), standard deviations
    loc = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    log_scale = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64).log()
    mean, scale = product_of_experts(loc, log_scale)
    assert mean.item() == pytest.approx(0.6666666667, abs=1e-10)
    assert scale.exp().item() == pytest.approx(0.4364357805, abs=1e-10)
    mean, scale = product_of_experts(loc, log_scale, power=1)
    assert mean.item() == pytest.approx(0.2857142857, abs=1e-10)
    assert scale.exp().item() == pytest.approx(0.2857142857, abs=1e-10)


@pytest.mark.parametrize(
    ("dtype", "spread", "tolerance"),
    [(torch.float32, 30, 2e-5), (torch.bfloat16, 10, 2e-2), (torch.float16, 10, 3e-3)],
)
def test_precision_against_float64(dtype, spread, tolerance):
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(5, 20_000, generator=generator).to(dtype)
    log_scale = (spread * (2 * torch.rand(5, 20_000, generator=generator) - 1)).to(dtype)
    expected = product_of_experts(loc.double(), log_scale.double())
    actual = product_of_experts(loc, log_scale)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert a.isfinite().all()
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance)


def test_gradients():
    loc = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    log_scale = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]]).bool()
    assert torch.autograd.gradcheck(lambda a, b: product_of_experts(a, b, mask), (loc, log_scale))
    assert torch.autograd.gradcheck(
        lambda a, b: kl_divergence(a[0], b[0], a[1], b[1]), (loc, log_scale)
    )
    assert torch.autograd.gradgradcheck(product_of_experts, (loc, log_scale))


@given(experts(minimum=2, maximum=2, log_scales=st.floats(-5, 5)))
def test_k2_divergence_is_that_of_torch(q):
    loc, log_scale = q
    expected = torch_kl(Normal(loc[0], log_scale[0].exp()), Normal(loc[1], log_scale[1].exp()))
    close(kl_divergence(loc[0], log_scale[0], loc[1], log_scale[1]), expected, 1e-9)


# a step whose square underflows moves the scale and not the divergence
NUDGES = st.floats(-1e-3, 1e-3).filter(lambda nudge: nudge == 0 or abs(nudge) > 1e-150)


@given(experts(minimum=2, maximum=2), NUDGES)
def test_k1_divergence_is_positive_and_zero_only_for_equals(q, nudge):
    loc, log_scale = q
    kl = kl_divergence(loc[0], log_scale[0], loc[1], log_scale[1])
    assert (kl >= 0).all()
    assert torch.equal(
        kl_divergence(loc[0], log_scale[0], loc[0], log_scale[0]), torch.zeros(3).double()
    )
    nearby = kl_divergence(loc[0], log_scale[0] + nudge, loc[0], log_scale[0])
    moved = log_scale[0] + nudge != log_scale[0]
    assert ((nearby > 0) == moved).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_of_nearly_equal_gaussians_does_not_cancel(dtype):
    # KL(N(0, e^{2d}) || N(0, 1)) = d^2 + 2 d^3 / 3 + ...
    for d in (1e-8, 1e-6, 1e-4, 1e-2, 0.04, 0.06):
        zero = torch.zeros((), dtype=dtype)
        u = 2 * torch.tensor(d, dtype=dtype).double().item()
        expected = sum(u**k / math.factorial(k) for k in range(2, 20)) / 2
        actual = kl_divergence(zero, torch.tensor(d, dtype=dtype), zero, zero).item()
        assert actual == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-13)


def test_divergence_has_finite_gradients_far_away():
    log_scale = torch.tensor([-30.0, 0.0, 30.0], requires_grad=True)
    zero = torch.zeros(3)
    kl_divergence(zero, log_scale, zero, zero).sum().backward()
    assert log_scale.grad is not None
    assert log_scale.grad.isfinite().all()


def test_equal_gaussians_have_no_divergence_however_narrow():
    narrow = torch.full((3,), -100.0, requires_grad=True)
    kl = kl_divergence(torch.ones(3), narrow, torch.ones(3), narrow)
    assert torch.equal(kl, torch.zeros(3))
    (gradient,) = torch.autograd.grad(kl.sum(), narrow)
    assert torch.equal(gradient, torch.zeros(3))


def test_sample_is_reparameterised():
    loc, log_scale = torch.tensor([1.0, -1.0]), torch.tensor([0.0, math.log(2)])
    noise = torch.tensor([0.5, 0.5])
    assert sample(loc, log_scale, noise).tolist() == pytest.approx([1.5, 0.0])
    assert sample(loc, log_scale, noise, temperature=0.0).tolist() == [1.0, -1.0]


def test_soft_clamp_is_smooth_and_bounded():
    x = torch.tensor([-1e6, -1e-3, 0.0, 1e-3, 1e6])
    assert soft_clamp(x, 5.0).tolist() == pytest.approx([-5, -1e-3, 0, 1e-3, 5], rel=1e-5)


def test_bad_input_is_named():
    one, two = torch.zeros(1, 2), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"'power' should be 2 .* but is 3"):
        product_of_experts(one, one, power=3)
    with pytest.raises(ValueError, match=r"'loc' and 'log_scale' .* \(1, 2\) and \(2, 2\)"):
        product_of_experts(one, two)
    with pytest.raises(ValueError, match=r"'mask' should be boolean, .*float32"):
        product_of_experts(one, one, one)
    with pytest.raises(ValueError, match=r"'mask' should broadcast .* \(1, 2\), .* \(3, 2\)"):
        product_of_experts(one, one, torch.ones(3, 2, dtype=torch.bool))
    # M = 2 = D: whether a mask of shape (2,) is meant for experts or dimensions is a guess
    with pytest.raises(ValueError, match=r"'mask' should broadcast .* \(2, 2\), .* \(2,\)"):
        product_of_experts(two, two, torch.ones(2, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"'loc' should be a floating-point tensor, but is torch.int64"
    ):
        product_of_experts(one.long(), one.long())
    with pytest.raises(ValueError, match="'loc' should be a floating-point tensor, but is list"):
        kl_divergence([0.0], one, one, one)
    with pytest.raises(ValueError, match="'loc' should hold at least one expert"):
        product_of_experts(one[:0], one[:0])


def test_nan_of_a_present_expert_is_not_hidden():
    loc = torch.tensor([[math.nan], [0.0]])
    assert product_of_experts(loc, torch.zeros(2, 1))[0].isnan().all()
    assert product_of_experts(torch.zeros(2, 1), loc)[1].isnan().all()


def test_widen_leaves_wide_types_alone():
    assert gaussian.widen(torch.zeros(1).half()).dtype == torch.float32
    assert gaussian.widen(torch.zeros(1).double()).dtype == torch.float64
