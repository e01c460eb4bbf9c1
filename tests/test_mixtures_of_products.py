"""The mixture of products as a distribution: density, samples, moments and divergences."""

import math

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from mmpoe.distributions import (
    DiagNormal,
    MixtureOfProducts,
    mixture_of_products,
    product_of_experts,
)

S, B, D = 3, 4, 2
# rows that use all components, two of them, and one
WEIGHT = torch.tensor([[0.2, 0.5, 0.0, 1.0], [0.3, 0.5, 0.0, 0.0], [0.5, 0.0, 1.0, 0.0]]).double()


def example(dims=D, weight=WEIGHT):
    generator = torch.Generator().manual_seed(0)
    shape = (*weight.shape, dims)
    loc, log_scale = (torch.randn(shape, generator=generator).double() for _ in range(2))
    return MixtureOfProducts(DiagNormal(loc, log_scale), weight)


def test_density_is_that_of_pytorch():
    q = example()
    expected = MixtureSameFamily(
        Categorical(WEIGHT.T),
        Independent(Normal(q.components.loc.movedim(0, 1), q.components.scale.movedim(0, 1)), 1),
    )
    # near the centre: where all densities are small, PyTorch's least probability, not 0, shows
    z = torch.randn(5, B, D, generator=torch.Generator().manual_seed(1)).double() / 4
    torch.testing.assert_close(q.log_prob(z), expected.log_prob(z))
    torch.testing.assert_close(q.log_prob(z[0]), expected.log_prob(z[0]))
    torch.testing.assert_close(q.mean, expected.mean)
    torch.testing.assert_close(q.variance, expected.variance)
    torch.testing.assert_close(q.stddev, expected.variance.sqrt())


def test_density_integrates_to_one():
    q = example(dims=1)

    def density(z, row):
        value = torch.full((B, 1), z, dtype=torch.float64)
        return q.log_prob(value)[row].exp().item()

    for row in range(B):
        mass, _ = integrate.quad(
            density, -40, 40, args=(row,), limit=200, points=[-3, -1, 0, 1, 3]
        )
        assert mass == pytest.approx(1, abs=1e-6)


def test_samples_have_the_moments_of_the_mixture():
    torch.manual_seed(0)
    q, count = example(), 40_000
    z = q.sample((count,))
    error = (q.variance / count).sqrt()
    assert ((z.mean(dim=0) - q.mean).abs() < 5 * error).all()
    strata = q.stratified((count,))  # (N, S, B, D)
    mean = (q.weight[..., None] * strata).sum(dim=1).mean(dim=0)
    assert ((mean - q.mean).abs() < 5 * error).all()
    # the choice of a component adds variance that strata do not have
    assert ((q.weight[..., None] * strata).sum(dim=1).var(dim=0) <= 1.05 * q.variance).all()


def test_a_component_of_no_weight_may_hold_anything():
    q = example()

    def run(filler):
        unused = (WEIGHT == 0)[..., None]
        loc = torch.where(unused, filler, q.components.loc).requires_grad_()
        log_scale = q.components.log_scale.clone().requires_grad_()
        mixture = MixtureOfProducts(DiagNormal(loc, log_scale), WEIGHT)
        prior = DiagNormal(torch.zeros(B, D).double(), torch.zeros(B, D).double())
        results = [
            mixture.log_prob(torch.ones(B, D).double()),
            mixture.mean,
            mixture.variance,
            mixture.convex_kl(prior),
        ]
        gradients = torch.autograd.grad(sum(r.sum() for r in results), [loc, log_scale])
        assert not gradients[0][unused.expand_as(loc)].any()
        return [*results, *gradients]

    for a, b in zip(run(math.nan), run(3.0), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_weights_of_nothing_leave_gradients_finite():
    # learned weights that a mask of subsets closes for some rows
    unused = WEIGHT == 0
    assert unused.any()
    scores = torch.randn(S, B, dtype=torch.float64, requires_grad=True)
    z = torch.randn(5, B, D, dtype=torch.float64)

    def total(scores):
        weight = torch.where(unused, 0, scores.softmax(dim=0))
        mixture = MixtureOfProducts(example().components, weight)
        return mixture.log_prob(z).sum() + mixture.mean.sum() + mixture.variance.sum()

    assert torch.autograd.gradcheck(total, scores)


def test_jensen_shannon_is_what_convexity_loses():
    # in one dimension, everything can be integrated
    q = example(dims=1)
    zero = torch.zeros(B, 1).double()
    prior = DiagNormal(zero, zero)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    z = q.components.loc + q.components.scale * nodes[:, None, None, None]  # (N, S, B, 1)
    jensen_shannon = (weights[:, None] * q.jensen_shannon(z)).sum(dim=0)
    assert (jensen_shannon >= -1e-6).all()
    assert jensen_shannon[2:].abs().max() < 1e-9  # a single component

    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None, None].expand(-1, B, 1)
    log_q, log_p = q.log_prob(grid), prior.log_prob(grid)
    kl = torch.trapezoid(log_q.exp() * (log_q - log_p), grid[..., 0], dim=0)
    torch.testing.assert_close(q.convex_kl(prior) - kl, jensen_shannon, rtol=0, atol=2e-3)


def test_products_are_its_components():
    torch.manual_seed(0)
    prior = DiagNormal(torch.randn(B, D), torch.randn(B, D))
    experts = [DiagNormal(torch.randn(B, D), torch.randn(B, D)) for _ in range(2)]
    given = torch.tensor([[[1, 0]], [[0, 1]], [[1, 1]]]).bool().expand(3, B, 2)
    q = mixture_of_products(prior, experts, given)
    z = torch.randn(B, D)
    each = torch.stack([product_of_experts(prior, experts, g).log_prob(z) for g in given])
    torch.testing.assert_close(q.log_prob(z), each.exp().mean(dim=0).log())
    weight = torch.tensor([0.5, 0.25, 0.25])[:, None].expand(3, B)
    weighted = mixture_of_products(prior, experts, given, weight)
    torch.testing.assert_close(weighted.log_prob(z), (weight * each.exp()).sum(dim=0).log())
    with pytest.raises(ValueError, match=r"'given' should have shape \(S, \*, M\) = \(S, 4, 2\)"):
        mixture_of_products(prior, experts, given[0])


def test_works_in_pyro():
    q = example()

    def program():
        with pyro.plate("rows", B):
            return pyro.sample("z", q)

    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (B,)
    wide = q.expand((5, B))
    assert wide.sample().shape == (5, B, D)
    assert wide.log_prob(wide.sample((2,))).shape == (2, 5, B)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            torch.ones(B, S),
            r"'weight' should have the batch shape of 'components'.*\(4, 3\) and \(3, 4\)",
        ),
        (torch.zeros(S, B), r"'weight' should be .* at least 0 everywhere and positive for some"),
        (-WEIGHT, r"'weight' should be finite and at least 0 everywhere"),
        (WEIGHT / WEIGHT.min(), r"'weight' should be finite"),
        (WEIGHT * torch.nan, r"'weight' should be finite"),
    ],
)
def test_bad_weights_are_named(weight, message):
    components = DiagNormal(torch.zeros(S, B, D), torch.zeros(S, B, D))
    with pytest.raises(ValueError, match=message):
        MixtureOfProducts(components, weight)
