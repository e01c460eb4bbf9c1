"""A distribution is scored by its own density, replaced or not."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from mmpoe.likelihoods import Normal
from mmpoe.likelihoods import _elements as elements
from mmpoe.likelihoods._scoring import log_likelihood

X = torch.tensor([[0.5, -1.0], [2.0, 0.0]])


def halved(self, value):
    return torch.distributions.Normal.log_prob(self, value) / 2


class Halved(elements.Normal):
    log_prob = halved


class Weighted(dist.Independent):
    def log_prob(self, value):
        return super().log_prob(value) / 2


def by_class(p):
    return Halved(p.base_dist.loc, p.base_dist.scale).to_event(1)


def by_instance(p):
    p.base_dist.log_prob = lambda value: halved(p.base_dist, value)
    return p


def by_event(p):
    return Weighted(p.base_dist, 1)


@pytest.mark.parametrize("change", [by_class, by_instance, by_event])
def test_a_density_of_ones_own_is_scored(change):
    likelihood = Normal(nn.Identity(), scale=0.5)
    expected = likelihood(torch.zeros(2, 2)).log_prob(X) / 2
    actual = log_likelihood(change(likelihood(torch.zeros(2, 2))), X)
    torch.testing.assert_close(actual, expected)


def test_a_patched_density_is_scored(monkeypatch):
    p = Normal(nn.Identity(), scale=0.5)(torch.zeros(2, 2))
    expected = p.log_prob(X) / 2
    monkeypatch.setattr(elements.Normal, "log_prob", halved)
    torch.testing.assert_close(log_likelihood(p, X), expected)


def test_a_density_of_ones_own_cannot_be_masked():
    p = by_event(Normal(nn.Identity())(torch.zeros(2, 2)))
    with pytest.raises(ValueError, match=r"'valid' needs a likelihood .* but got Weighted"):
        log_likelihood(p, X, valid=torch.ones(2, 2, dtype=torch.bool))
