"""Models and objectives against a linear-Gaussian model whose evidence is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from oracle import GOLDEN, NAMES, PSI, B, W, X, data, linear_gaussian
from scipy.stats import multivariate_normal

import mmpoe
from mmpoe.missing import as_mask
from mmpoe.objectives import mixture_elbo

# the bound is quadratic in z here, so that a few Gauss-Hermite nodes integrate it exactly
NODES, WEIGHTS = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(5))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
BOTH = torch.ones(len(NODES), 2, dtype=torch.bool)


def exact_bound(vae, given, observed=BOTH):
    x = data(len(NODES))
    output = vae(x, given, noise=[NODES[:, None]])
    return (WEIGHTS * mmpoe.elbo(output, x, observed)).sum().item()


@pytest.mark.parametrize("subset", GOLDEN)
def test_posterior_of_every_subset_is_exact(subset):
    mean, variance, _, kl, _ = GOLDEN[subset]
    output = linear_gaussian()(data(), list(subset))
    assert output.posteriors[0].loc.item() == pytest.approx(mean, abs=1e-11)
    assert output.posteriors[0].scale.square().item() == pytest.approx(variance, abs=1e-11)
    assert output.kl[0].item() == pytest.approx(kl, abs=1e-11)


@pytest.mark.parametrize("subset", GOLDEN)
def test_bound_of_a_subset_on_itself_is_the_evidence(subset):
    observed = as_mask(list(subset), NAMES, len(NODES))
    bound = exact_bound(linear_gaussian(), list(subset), observed)
    assert bound == pytest.approx(GOLDEN[subset][2], abs=1e-10)


@pytest.mark.parametrize("subset", GOLDEN)
def test_bound_on_everything_is_below_by_the_divergence_of_posteriors(subset):
    bound = exact_bound(linear_gaussian(), list(subset))
    assert bound == pytest.approx(GOLDEN[subset][4], abs=1e-10)

    mean, variance, *_ = GOLDEN[subset]
    full_mean, full_variance, evidence, *_ = GOLDEN["a", "b"]
    gap = 0.5 * (
        variance / full_variance
        + (mean - full_mean) ** 2 / full_variance
        - 1
        - math.log(variance / full_variance)
    )
    assert evidence - bound == pytest.approx(gap, abs=1e-10)


def test_mixture_bound_is_golden():
    # uniform over {a}, {b}, {a, b}; one noise node per row, the same for all three subsets
    vae, x = linear_gaussian(), data(len(NODES))
    total = 0.0
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        noise = [node.expand(3, len(NODES), 1)]
        model = Fixed(vae, noise)
        total += weight.item() * mixture_elbo(model, x, BOTH)[0].item()
    assert total == pytest.approx(-3.845222211, abs=1e-9)


class Fixed:
    """A model whose noise is given in advance."""

    def __init__(self, vae, noise):
        self.vae, self.noise, self.modalities = vae, noise, vae.modalities

    def __call__(self, x, given):
        return self.vae(x, given, noise=self.noise)


@hypothesis_given(st.floats(-3, 3))
def test_importance_weights_are_constant(node):
    # with the exact posterior, log p(x, z) - log q(z | x) is log p(x) whatever z
    output = linear_gaussian()(data(), noise=[torch.full((1, 1), node, dtype=torch.float64)])
    z = output.z[0]
    log_w = sum(p.log_prob(data()[m]) for m, p in output.likelihoods.items())
    log_w = log_w + output.priors[0].log_prob(z) - output.posteriors[0].log_prob(z)
    assert log_w.item() == pytest.approx(GOLDEN["a", "b"][2], abs=1e-10)


def test_golden_evidence_against_scipy():
    w, psi = np.array(W), np.diag(PSI)
    expected = multivariate_normal(np.array(B), np.outer(w, w) + psi).logpdf(np.array(X))
    assert GOLDEN["a", "b"][2] == pytest.approx(expected, abs=1e-11)


def test_published_fusion_rule_falls_short_of_the_evidence():
    # a test of the tests: a wrong product must be noticed
    vae = linear_gaussian()
    vae.groups[0].posterior.power = 1
    assert exact_bound(vae, NAMES) < GOLDEN["a", "b"][2] - 0.01
