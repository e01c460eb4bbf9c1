"""A low-rank normal is the normal distribution of its dense covariance."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import MultivariateNormal

import mmpoe
from mmpoe import distributions
from mmpoe.evidence import log_marginal
from mmpoe.likelihoods import Columns, LowRankNormal, Normal
from mmpoe.likelihoods._scoring import log_likelihood
from mmpoe.models import image_mmhvae

shapes = st.tuples(
    st.sampled_from([(), (4,), (2, 3)]),
    st.sampled_from([(), (1,), (5,), (2, 3)]),
    st.integers(1, 7),
)


def low_rank(batch, event, rank, spread=1.0, dtype=torch.float32):
    loc, log_scale = (torch.randn((*batch, *event), dtype=dtype) for _ in range(2))
    factors = spread * torch.randn((*batch, rank, *event), dtype=dtype)
    return distributions.LowRankNormal(loc, factors, log_scale, len(event))


def dense(p):
    """The same distribution by its covariance in float64, of flattened entries."""
    number, batch = math.prod(p.event_shape), tuple(p.batch_shape)
    factors = p.factors.double().reshape(*batch, p.factors.shape[len(batch)], number)
    noise = (2 * p.log_scale.double()).exp().reshape(*batch, number)
    covariance = factors.mT @ factors + torch.diag_embed(noise)
    return MultivariateNormal(p.loc.double().reshape(*batch, number), covariance)


def flat(x, p):
    return x.double().reshape(*x.shape[: x.dim() - len(p.event_shape)], -1)


@given(shapes, st.sampled_from([0.01, 1.0, 30.0]), st.integers(0, 99))
def test_the_density_is_that_of_the_dense_covariance(shape, spread, seed):
    torch.manual_seed(seed)
    p = low_rank(*shape, spread)
    x = p.sample((3,))
    expected = dense(p).log_prob(flat(x, p))
    assert p.log_prob(x).dtype == torch.float32
    torch.testing.assert_close(p.log_prob(x).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p.log_prob(x[0]), p.log_prob(x)[0], rtol=1e-5, atol=1e-5)
    marginal = dense(p).variance.reshape(p.mean.shape)
    torch.testing.assert_close(p.variance.double(), marginal, rtol=1e-5, atol=1e-6)


@given(shapes, st.integers(0, 99))
def test_what_is_not_valid_is_integrated_out(shape, seed):
    torch.manual_seed(seed)
    p = low_rank(*shape)
    valid = torch.rand(p.event_shape) < 0.6
    x = torch.where(valid, p.sample(), torch.nan)
    kept, q = valid.flatten().nonzero()[:, 0], dense(p)
    if len(kept) == 0:
        assert (p.log_prob(x, valid) == 0).all()
        return
    part = MultivariateNormal(
        q.loc[..., kept], q.covariance_matrix[..., kept, :][..., kept]
    ).log_prob(flat(x, p)[..., kept])
    torch.testing.assert_close(p.log_prob(x, valid).double(), part, rtol=1e-4, atol=1e-4)


def test_a_mask_may_differ_between_rows_and_states():
    torch.manual_seed(0)
    p, valid = low_rank((3, 4), (2, 3), 2), torch.rand(4, 2, 3) < 0.5
    x = torch.where(valid, torch.randn(4, 2, 3), torch.nan)
    found = log_likelihood(p, x, valid=valid)
    assert found.shape == (3, 4)
    for row in range(4):
        one = distributions.LowRankNormal(
            p.loc[:, row], p.factors[:, row], p.log_scale[:, row], event_dim=2
        )
        torch.testing.assert_close(found[:, row], one.log_prob(x[row], valid[row]))


@pytest.mark.parametrize("valid", [None, torch.tensor([[True, False, True]] * 2)])
def test_gradients_are_right_to_second_order(valid):
    torch.manual_seed(0)
    p = low_rank((2,), (3,), 2, dtype=torch.float64)
    leaves = [v.requires_grad_() for v in (p.loc, p.factors, p.log_scale, p.sample())]

    def log_prob(loc, factors, log_scale, x):
        return distributions.LowRankNormal(loc, factors, log_scale).log_prob(x, valid)

    assert torch.autograd.gradcheck(log_prob, leaves)
    assert torch.autograd.gradgradcheck(log_prob, leaves)


def test_large_factors_keep_their_digits():
    """Whose Gram matrix has a condition that float32 does not hold."""
    torch.manual_seed(0)
    factors = 300 * torch.randn(1, 4, 5000)
    factors[:, 1] = factors[:, 0] + 0.01 * torch.randn(5000)  # almost the same
    p = distributions.LowRankNormal(torch.zeros(1, 5000), factors, torch.zeros(1, 5000))
    q = torch.distributions.LowRankMultivariateNormal(
        torch.zeros(5000).double(), factors[0].double().T, torch.ones(5000).double()
    )
    x = p.sample()
    assert p.log_prob(x).item() == pytest.approx(q.log_prob(x[0].double()).item(), rel=1e-3)


def test_draws_have_the_covariance():
    torch.manual_seed(0)
    p = low_rank((2,), (2, 2), 2)
    x = flat(p.sample((40_000,)), p)
    error = torch.stack([torch.cov(x[:, row].T) for row in range(2)]) - dense(p).covariance_matrix
    scale = dense(p).variance.max()
    assert (x.mean(dim=0) - dense(p).loc).abs().max() < 5 * (scale / 40_000).sqrt()
    assert error.abs().max() < 8 * scale / 200
    common = torch.randn(7, 2, 2)
    torch.manual_seed(1)
    first = p.rsample_with(common)
    torch.manual_seed(1)
    own = torch.randn_like(first) * p.log_scale.exp()
    moved = torch.einsum("nbr,brij->nbij", common, p.factors)
    torch.testing.assert_close(first, p.loc + moved + own)


def test_the_network_returns_mean_deviation_and_factors():
    phi = torch.randn(5, 2 + 3, 2, 4)
    p = LowRankNormal(nn.Identity(), rank=3, scale=0.5)(phi)
    assert torch.equal(p.mean, phi[:, 0])
    torch.testing.assert_close(p.log_scale.exp(), 0.5 * phi[:, 1].exp())
    torch.testing.assert_close(p.factors, 0.05 * phi[:, 2:])
    marginal = LowRankNormal(nn.Identity(), 3, 0.5).distribution(phi.movedim(1, -1))
    torch.testing.assert_close(marginal.stddev, p.stddev)


@pytest.mark.slow
def test_images_train_and_their_evidence_sees_what_is_common():
    """Noise that a whole image shares is described by one factor, and not by white noise."""
    torch.manual_seed(0)
    x = {"a": 0.1 * torch.randn(64, 1, 8, 8) + torch.randn(64, 1, 1, 1)}
    found, seen = {}, torch.ones(64, 1, dtype=torch.bool)
    makers = {
        "white": lambda f: Normal(f, 0.3, learn_scale=True),
        "low rank": lambda f: LowRankNormal(f, rank=2, scale=0.3),
    }
    for name, make in makers.items():
        torch.manual_seed(0)
        vae = image_mmhvae(["a"], 8, widths=[8], latents=[1], likelihoods={"a": make})
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
        for _ in range(60):
            loss = -mmpoe.elbo(vae(x), x, seen).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[name] = log_marginal(vae, x, seen, samples=8).mean().item()
    assert found["low rank"] > found["white"] + 20


def test_bad_input_is_named():
    for rank in (0, 2.0, True):
        with pytest.raises(ValueError, match=r"'rank' should be an integer of at least 1, but"):
            LowRankNormal(nn.Identity(), rank)
    with pytest.raises(ValueError, match=r"'scale' should be positive and finite, but is -1"):
        LowRankNormal(nn.Identity(), scale=-1.0)
    with pytest.raises(ValueError, match=r"'scale' should be a number, but is a tensor"):
        LowRankNormal(nn.Identity(), scale=torch.ones(3))
    with pytest.raises(ValueError, match=r"'columns' .* elements are independent, but it makes"):
        Columns(nn.Identity(), [LowRankNormal])
    for shape in ((2, 4), (2, 1, 3), (3, 1, 4), (2, 0, 4)):
        with pytest.raises(ValueError, match=r"'loc', 'factors' and 'log_scale' should have"):
            distributions.LowRankNormal(torch.zeros(2, 4), torch.zeros(shape), torch.zeros(2, 4))
