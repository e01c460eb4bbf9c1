"""Distributions work in PyTorch and in Pyro, and their products are products."""

import pyro
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mmpoe.distributions import DiagNormal, Draws, product_of_experts
from mmpoe.likelihoods import Laplace


def diag_normal(*shape, event_dim=1):
    return DiagNormal(torch.randn(*shape), torch.randn(*shape), event_dim)


def test_is_a_diagonal_normal():
    q = diag_normal(5, 3, 2, event_dim=2)
    z = torch.randn(7, 5, 3, 2)
    assert q.batch_shape == (5,)
    assert q.event_shape == (3, 2)
    expected = Normal(q.loc, q.log_scale.exp()).log_prob(z).sum(dim=(-1, -2))
    torch.testing.assert_close(q.log_prob(z), expected)
    assert q.rsample((4,)).shape == (4, 5, 3, 2)


def test_divergence_sums_over_event_dimensions():
    q, p = diag_normal(5, 3, 2, event_dim=2), diag_normal(5, 3, 2, event_dim=2)
    expected = kl_divergence(Normal(q.loc, q.scale), Normal(p.loc, p.scale)).sum(dim=(1, 2))
    torch.testing.assert_close(kl_divergence(q, p), expected)
    assert torch.equal(kl_divergence(q, q), torch.zeros(5))


def test_divergence_broadcasts_over_batches():
    q, p = diag_normal(3), diag_normal(5, 3)
    expected = kl_divergence(Normal(q.loc, q.scale), Normal(p.loc, p.scale)).sum(dim=-1)
    torch.testing.assert_close(kl_divergence(q, p), expected)


def test_works_in_pyro():
    q = diag_normal(5, 3)

    def program():
        with pyro.plate("rows", 5):
            return pyro.sample("z", q)

    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (5,)
    assert q.expand((4, 5)).log_scale.shape == (4, 5, 3)


def test_product_is_proportional_to_the_product_of_densities():
    prior, experts = diag_normal(6, 3), [diag_normal(6, 3) for _ in range(3)]
    given = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    q = product_of_experts(prior, experts, given)
    z = torch.randn(50, 6, 3)
    together = prior.log_prob(z) + sum(
        torch.where(given[:, m], expert.log_prob(z), 0) for m, expert in enumerate(experts)
    )
    log_ratio = q.log_prob(z) - together
    torch.testing.assert_close(log_ratio, log_ratio[:1].expand(50, 6), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(q.loc[5], prior.loc[5], rtol=0, atol=0)
    torch.testing.assert_close(q.log_scale[5], prior.log_scale[5])


def test_product_without_mask_takes_everybody():
    prior, experts = diag_normal(4, 3), [diag_normal(4, 3) for _ in range(2)]
    everybody = product_of_experts(prior, experts, torch.ones(4, 2, dtype=torch.bool))
    torch.testing.assert_close(product_of_experts(prior, experts).loc, everybody.loc)


def test_draws_mix_their_components():
    torch.manual_seed(0)
    likelihood = Laplace(torch.nn.Identity(), scale=0.5)
    loc = torch.tensor([[[0.0], [1.0]], [[2.0], [1.0]]])  # (K, B, 1)
    mixture = Draws(likelihood(loc, batch_dims=2))
    assert mixture.mean.tolist() == [[1.0], [1.0]]
    within = 2 * 0.5**2
    torch.testing.assert_close(mixture.variance, torch.tensor([[within + 1.0], [within]]))
    many = torch.stack([mixture.sample() for _ in range(20_000)]).flatten(0, 1)
    torch.testing.assert_close(many.std(dim=0), mixture.stddev, rtol=0.03, atol=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"'loc' and 'log_scale' .* \(3, 2\) and \(3,\)"):
        DiagNormal(torch.zeros(3, 2), torch.zeros(3))
    prior, experts = diag_normal(4, 3), [diag_normal(4, 3)]
    with pytest.raises(ValueError, match=r"'given' should have one column per expert .* \(4, 2\)"):
        product_of_experts(prior, experts, torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="'given' should be boolean"):
        product_of_experts(prior, experts, torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"'experts\[0\]' should have the batch and event shapes"):
        product_of_experts(prior, [diag_normal(4, 2)])
    with pytest.raises(ValueError, match="event shapes should be equal"):
        kl_divergence(diag_normal(4, 2), diag_normal(4, 3))
