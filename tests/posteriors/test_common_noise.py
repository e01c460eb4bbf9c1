"""Experts that share noise are the consensus of dependent experts, by dense linear algebra."""

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from mmpoe.posteriors import CommonNoisePoE


def consensus(loc, log_scale, given, prior, gamma):
    """The mean and variance of a consensus of dependent experts times the prior, (R, D).

    The experts of a pair err together, with a covariance matrix that is inverted for each latent.
    """
    prior_variance = (2 * prior[1]).exp()  # (R, D)
    mean, variance = torch.empty_like(prior[0]), torch.empty_like(prior[0])
    for r, seen in enumerate(given):
        mu = torch.stack([v[r] for v in loc], dim=1)[:, seen]  # (D, n)
        own = torch.stack([(2 * v[r]).exp() for v in log_scale], dim=1)[:, seen]
        covariance = torch.diag_embed(own) + (gamma * prior_variance[r])[:, None, None]
        weight = torch.linalg.solve(covariance, torch.ones_like(own))
        total = weight.sum(dim=1) + 1 / prior_variance[r]
        mean[r] = ((weight * mu).sum(dim=1) + prior[0][r] / prior_variance[r]) / total
        variance[r] = 1 / total
    return mean, variance


@hypothesis_given(st.integers(0, 10_000))
def test_it_is_the_consensus_of_dependent_experts(seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2 * 5 + 2, 4, 3, generator=generator, dtype=torch.float64)
    loc, log_scale, prior = list(draws[:5]), list(draws[5:10]), tuple(draws[10:])
    given = torch.rand(4, 5, generator=generator) < 0.6
    rule = CommonNoisePoE(3, gamma=[0.05, 0.6, 7.0]).double()
    q = rule(loc, log_scale, given, prior, temperature=0.0)
    mean, variance = consensus(loc, log_scale, given, prior, rule.gamma)
    assert ((2 * q.log_scale).exp() / variance - 1).abs().max().item() < 1e-14
    torch.testing.assert_close(q.loc, mean, rtol=1e-12, atol=1e-13)


def test_two_equal_experts_that_err_alike_are_worth_one():
    # variances 1 and common noise c of a standard normal prior: 1 / (c + 1 / 2) + 1
    one = [torch.ones(1, 1, dtype=torch.float64)] * 2
    rule = CommonNoisePoE(1, gamma=1e6).double()
    q = rule(one, [0 * v for v in one], torch.ones(1, 2).bool(), temperature=0.0)
    assert (-2 * q.log_scale).exp().item() == pytest.approx(1 + 1 / (1e6 + 0.5), rel=1e-7)
