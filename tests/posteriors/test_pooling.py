"""Barycentres against numerical optima, and sums of features against the product."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from scipy import linalg, optimize, stats
from torch import nn

import mmpoe
from mmpoe.objectives import mopoe
from mmpoe.oracles import LinearGaussian
from mmpoe.posteriors import PoE, SumPooling, WassersteinBarycenter


def bures(mean, covariance, other, scale):
    """The squared 2-Wasserstein distance of two Gaussians, the second one diagonal."""
    root = np.diag(scale)
    cross = linalg.sqrtm(root @ covariance @ root).real
    distance = ((mean - other) ** 2).sum()
    return distance + np.trace(covariance) + (scale**2).sum() - 2 * np.trace(cross)


def test_barycentre_is_the_optimum_over_all_gaussians():
    means = np.array([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]])
    scales = np.array([[1.0, 0.3], [0.2, 2.0], [0.7, 0.9]])

    def cost(parameters):
        factor = np.array([[parameters[2], 0.0], [parameters[3], parameters[4]]])
        pairs = zip(means, scales, strict=True)
        return np.mean([bures(parameters[:2], factor @ factor.T, m, s) for m, s in pairs])

    found = optimize.minimize(cost, [0, 0, 1, 0.3, 1], tol=1e-12).x
    loc = [torch.tensor(m)[None] for m in means]
    log_scale = [torch.tensor(s).log()[None] for s in scales]
    q = WassersteinBarycenter()(loc, log_scale, torch.ones(1, 3).bool(), temperature=0.0)
    scale = q.log_scale.exp()[0].numpy()
    assert found[:2] == pytest.approx(q.loc[0].numpy(), abs=1e-5)
    assert [abs(found[2]), found[3], abs(found[4])] == pytest.approx(
        [scale[0], 0, scale[1]], abs=1e-4
    )
    best = cost([*q.loc[0].tolist(), scale[0], 0.0, scale[1]])
    assert best <= cost(found) + 1e-9


@hypothesis_given(st.integers(0, 10_000))
def test_quantiles_of_a_barycentre_are_the_mean_of_those_given(seed):
    generator = torch.Generator().manual_seed(seed)
    loc, log_scale = torch.randn(2, 4, 1, 3, generator=generator, dtype=torch.float64)
    given = torch.tensor([[True, False, True, True]])
    q = WassersteinBarycenter()(list(loc), list(log_scale), given, temperature=0.0)
    for level in (0.01, 0.3, 0.5, 0.99):
        parts = stats.norm.ppf(level, loc[:, 0], log_scale[:, 0].exp())
        together = stats.norm.ppf(level, q.loc[0], q.log_scale[0].exp())
        np.testing.assert_allclose(together, parts[[0, 2, 3]].mean(axis=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("log_scale", [-300.0, 80.0, 300.0])
def test_average_scales_do_not_overflow(log_scale):
    loc, scales = [torch.zeros(1, 1)] * 2, [torch.full((1, 1), v) for v in (log_scale, -400.0)]
    q = WassersteinBarycenter()(loc, scales, torch.ones(1, 2).bool(), temperature=0.0)
    assert q.log_scale.item() == pytest.approx(log_scale - math.log(2), rel=1e-6)


def test_a_barycentre_does_not_learn_from_agreement():
    one = [torch.ones(1, 1)] * 5
    for number in (1, 3, 5):
        given = (torch.arange(5) < number)[None]
        q = WassersteinBarycenter()(one, one, given, temperature=0.0)
        assert (q.loc.item(), q.log_scale.item()) == pytest.approx((1.0, 1.0))


def test_a_mixture_of_barycentres_is_an_objective():
    oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=2)
    parts = oracle.model()
    model = mmpoe.MVAE(parts.encoders, parts.decoders, posterior=WassersteinBarycenter())
    x, _ = oracle.sample(4)
    observed = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    bound = mopoe(model, x, observed)
    assert bound.isfinite().all()
    assert bound[3] == 0


class Natural(nn.Module):
    """The posterior of natural parameters under a standard normal prior."""

    def forward(self, total):
        natural, precision = total.chunk(2, dim=1)
        variance = 1 / (1 + precision)
        return torch.cat([variance * natural, variance.log() / 2], dim=1)


@hypothesis_given(st.integers(0, 10_000))
def test_the_product_is_a_sum_of_natural_parameters(seed):
    generator = torch.Generator().manual_seed(seed)
    loc, log_scale = torch.randn(2, 3, 5, 2, generator=generator, dtype=torch.float64)
    given = torch.rand(5, 3, generator=generator) < 0.6
    noise = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    precision = (-2 * log_scale).exp()
    q = SumPooling(Natural())(list(precision * loc), list(precision), given, noise=noise)
    p = PoE()(list(loc), list(log_scale), given, noise=noise)
    for a, b in zip(q, p, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_sum_moves_with_its_prior():
    torch.manual_seed(0)
    rule = SumPooling(nn.Linear(4, 4)).double()
    features = list(torch.randn(2, 5, 2, dtype=torch.float64))
    given, noise = torch.ones(5, 2).bool(), torch.randn(5, 2, dtype=torch.float64)
    standard = rule(features, features, given, noise=noise)
    prior = torch.full((5, 2), 3.0).double(), torch.full((5, 2), 0.5).double()
    q = rule(features, features, given, prior, noise=noise)
    torch.testing.assert_close(q.z, 3 + math.exp(0.5) * standard.z)
    torch.testing.assert_close(q.kl, standard.kl)


def test_a_network_that_returns_something_else_is_named():
    one = [torch.ones(3, 2)]
    message = r"'network' should return the shape of its input, \(3, 4\), but returns \(3, 2\)"
    with pytest.raises(ValueError, match=message):
        SumPooling(nn.Linear(4, 2))(one, one, torch.ones(3, 1).bool())
