"""Learned weights of subsets: their gradients, and where they end."""

import numpy as np
import pytest
import torch
from example_models import OBSERVED, batch, flat, make
from oracle import GOLDEN, data, golden
from quadrature import BOTH, expect
from scipy import optimize
from torch.distributions import Normal as Gaussian

from mmpoe.objectives import SubsetWeights, mixture_elbo, mixture_iwae
from mmpoe.oracles import LinearGaussian

BOUNDS = torch.tensor([v[-1] for s, v in GOLDEN.items() if s], dtype=torch.float64)
"""The bounds of {a}, {b} and {a, b} in the golden model."""


def seeded(objective, *args, **options):
    torch.manual_seed(0)
    return objective(*args, **options)


def weighing(*logits, family="powerset"):
    weights = SubsetWeights(2, family).double()
    with torch.no_grad():
        weights.logits.copy_(torch.tensor(logits))
    return weights


def weighted(objective, weights, **options):
    """An objective with learned weights, as the helpers of quadrature call it."""

    def bound(model, x, observed):
        return objective(model, x, observed, family=weights(observed), **options)

    return bound


def ascend(total, weights):
    """Maximises a total in the weights alone, and returns them."""
    options = {"max_iter": 40, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(weights.parameters(), **options)

    def loss():
        optimizer.zero_grad()
        value = -total().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights(BOTH)[1][:, 0].detach()


@pytest.mark.parametrize("objective", [mixture_elbo, mixture_iwae])
@pytest.mark.parametrize("family", ["singletons", "powerset"])
def test_weights_start_even(objective, family):
    model, x = make(flat), batch()
    even = seeded(objective, model, x, OBSERVED, family=family)
    learned = SubsetWeights(3, family)(OBSERVED)
    torch.testing.assert_close(seeded(objective, model, x, OBSERVED, family=learned), even)


def test_weights_are_those_of_what_a_row_observed():
    weights = weighing(0.5, -1.0, 2.0)
    observed = torch.tensor([[True, True], [False, True], [False, False]])
    given, weight = weights(observed)
    patterns = [[True, False], [False, True], [True, True]]
    assert weights.patterns.tolist() == patterns
    assert given[:, 0].tolist() == patterns
    whole = torch.tensor([0.5, -1.0, 2.0]).double().softmax(dim=0)
    torch.testing.assert_close(
        weight, torch.stack([whole, torch.eye(3).double()[1], 0 * whole], 1)
    )
    weight.sum().backward()
    assert weights.logits.grad.isfinite().all()


@pytest.mark.parametrize("objective", [mixture_elbo, mixture_iwae])
def test_gradients_of_weights_are_those_of_finite_differences(objective):
    model, x, weights = golden().model(), data(3), weighing(0.5, -1.0, 0.3)
    observed = torch.tensor([[True, True], [True, False], [True, True]])

    def total(logits):
        family = torch.func.functional_call(weights, {"logits": logits}, observed)
        return seeded(objective, model, x, observed, family=family)

    logits = weights.logits.detach().requires_grad_()
    assert torch.autograd.gradcheck(total, logits)
    assert torch.autograd.grad(total(logits).sum(), logits)[0].abs().min() > 1e-3


def test_entropy_makes_the_best_weights_a_softmax_of_bounds():
    model, x, tau, weights = golden().model(), data(), 2.0, weighing(0.0, 0.0, 0.0)

    def total():
        entropy = torch.special.entr(weights(BOTH)[1]).sum()
        return expect(weighted(mixture_elbo, weights), model, x, BOTH, nodes=3) + tau * entropy

    found = ascend(total, weights)
    torch.testing.assert_close(found, (BOUNDS / tau).softmax(dim=0), atol=1e-6, rtol=0)
    best = tau * (BOUNDS / tau).logsumexp(dim=0)
    assert total().item() == pytest.approx(best.item(), abs=1e-9)


def test_an_average_alone_ends_at_the_best_subset():
    model, x, weights = golden().model(), data(), weighing(0.0, 0.0, 0.0)

    def total():
        return expect(weighted(mixture_elbo, weights), model, x, BOTH, nodes=3).sum()

    found = ascend(total, weights)
    assert found[2] > 0.99  # all that is given, whose bound is the evidence
    assert GOLDEN["a", "b"][2] - 0.01 < total().item() <= GOLDEN["a", "b"][2]


def test_the_bound_of_the_mixture_is_best_where_integration_says():
    # of two single modalities that disagree, whose posteriors are exact; neither alone is best
    one = torch.ones(1, 1, dtype=torch.float64)
    oracle = LinearGaussian(
        {"a": one, "b": one}, {"a": 0 * one[0], "b": 0 * one[0]}, {"a": one, "b": 1.5 * one}
    )
    x = {"a": one, "b": -0.6 * one}
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)

    def log_density(*given):
        mean, covariance = oracle.posterior(x, given)
        return Gaussian(mean[0, 0], covariance[0, 0, 0].sqrt()).log_prob(z)

    log_q, log_p = torch.stack([log_density("a"), log_density("b")]), log_density("a", "b")

    def gap(share):  # of the bound, which is the divergence from the exact posterior
        weight = torch.tensor([share, 1 - share], dtype=torch.float64)
        density = (weight.log()[:, None] + log_q).logsumexp(dim=0)
        return torch.trapezoid(density.exp() * (density - log_p), z).item()

    options = {"xatol": 1e-10}
    best = optimize.minimize_scalar(gap, bounds=(0.01, 0.99), method="bounded", options=options)
    share, least = float(best.x), float(best.fun)
    assert 0.1 < share < 0.9
    assert least < min(gap(0.01), gap(share - 0.1), gap(share + 0.1), gap(0.99)) - 1e-4

    weights = weighing(np.log(share), np.log1p(-share), family="singletons")
    bound = weighted(mixture_iwae, weights)
    value = expect(bound, oracle.model(), x, BOTH, nodes=200)
    assert value.item() == pytest.approx(oracle.log_prob(x, BOTH).item() - least, abs=1e-8)
    assert torch.autograd.grad(value, weights.logits)[0].abs().max() < 1e-6


def test_bad_weights_are_named():
    with pytest.raises(ValueError, match=r"'modalities' should be at least 1, but is 0"):
        SubsetWeights(0)
    with pytest.raises(ValueError, match=r"'family' should be one of"):
        SubsetWeights(2, "pairs")
    with pytest.raises(ValueError, match=r"'family' should hold boolean patterns .* \(S, 3\)"):
        SubsetWeights(2)(OBSERVED)
    with pytest.raises(ValueError, match=r"'family' should leave a subset"):
        SubsetWeights(2, "full")(torch.tensor([[True, False]]))
