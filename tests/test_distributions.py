"""Distributions work in PyTorch and in Pyro; products are products, mixtures are mixtures."""

import math

import pyro
import pytest
import torch
from scipy import integrate
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)

from mmpoe.distributions import (
    DiagNormal,
    Draws,
    MixtureOfProducts,
    log_mixture,
    product_of_experts,
)
from mmpoe.likelihoods import Laplace

S, B, D = 3, 4, 2
# rows that use all components, two of them, and one
WEIGHT = torch.tensor([[0.2, 0.5, 0.0, 1.0], [0.3, 0.5, 0.0, 0.0], [0.5, 0.0, 1.0, 0.0]]).double()


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


# mixtures


def example(dims=D, weight=WEIGHT):
    generator = torch.Generator().manual_seed(0)
    shape = (*weight.shape, dims)
    loc, log_scale = (torch.randn(shape, generator=generator).double() for _ in range(2))
    return MixtureOfProducts(DiagNormal(loc, log_scale), weight)


def test_density_of_a_mixture_is_that_of_pytorch():
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


def test_density_of_a_mixture_integrates_to_one():
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


def test_a_component_of_no_weight_may_hold_anything():
    q = example()

    def run(filler):
        unused = (WEIGHT == 0)[..., None]
        loc = torch.where(unused, filler, q.components.loc).requires_grad_()
        log_scale = q.components.log_scale.clone().requires_grad_()
        mixture = MixtureOfProducts(DiagNormal(loc, log_scale), WEIGHT)
        results = [
            mixture.log_prob(torch.ones(B, D).double()),
            mixture.mean,
            mixture.variance,
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


def test_products_of_subsets_can_be_its_components():
    torch.manual_seed(0)
    prior = DiagNormal(torch.randn(B, D), torch.randn(B, D))
    experts = [DiagNormal(torch.randn(B, D), torch.randn(B, D)) for _ in range(2)]
    given = torch.tensor([[[1, 0]], [[0, 1]], [[1, 1]]]).bool().expand(3, B, 2)
    components = product_of_experts(
        prior.expand((3, B)), [expert.expand((3, B)) for expert in experts], given
    )
    z = torch.randn(B, D)
    each = torch.stack([product_of_experts(prior, experts, g).log_prob(z) for g in given])
    even = MixtureOfProducts(components, torch.full((3, B), 1 / 3))
    torch.testing.assert_close(even.log_prob(z), each.exp().mean(dim=0).log())
    weight = torch.tensor([0.5, 0.25, 0.25])[:, None].expand(3, B)
    weighted = MixtureOfProducts(components, weight)
    torch.testing.assert_close(weighted.log_prob(z), (weight * each.exp()).sum(dim=0).log())


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_mixture_is_the_logarithm_of_the_sum(dim):
    generator = torch.Generator().manual_seed(0)
    log_q = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    weight = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    expected = (weight * log_q.exp()).sum(dim=dim).log()
    torch.testing.assert_close(log_mixture(log_q, weight, dim), expected)
    log_q.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, w: log_mixture(q, w, dim), (log_q, weight))


@pytest.mark.parametrize("filler", [torch.nan, torch.inf, -torch.inf])
def test_log_mixture_never_uses_a_component_of_no_weight(filler):
    log_q = torch.tensor(
        [[0.3, filler], [filler, filler]], dtype=torch.float64, requires_grad=True
    )
    weight = torch.tensor([[0.5, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = log_mixture(log_q, weight, dim=1)
    assert found.tolist() == [0.3 + math.log(0.5), -math.inf]
    by_log_q, by_weight = torch.autograd.grad(found[0], [log_q, weight], retain_graph=True)
    assert by_log_q.tolist() == [[1, 0], [0, 0]]
    assert by_weight.tolist() == [[2, 0], [0, 0]]
    for gradient in torch.autograd.grad(found[1], [log_q, weight]):
        assert not gradient.any()


def test_mixture_works_in_pyro():
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
