"""Likelihoods have the right densities and moments, and all keep one contract."""

import copy
import io
import math
from typing import NamedTuple

import numpy as np
import pyro
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Distribution

import mmpoe
from mmpoe.distributions import Draws
from mmpoe.likelihoods import (
    Bernoulli,
    Categorical,
    Laplace,
    LowRankNormal,
    NegativeBinomial,
    Normal,
    OptimalScale,
    Ordinal,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from mmpoe.likelihoods import _elements as elements
from mmpoe.likelihoods._elements import stirling_error

LIKELIHOODS = {
    "Normal": lambda f: Normal(f, 0.5),
    "Normal, learned": lambda f: Normal(f, 0.5, learn_scale=True),
    "Normal, optimal": lambda f: Normal(f, "optimal"),
    "Normal, per element": lambda f: Normal(f, torch.tensor([0.5, 1.0, 2.0]), learn_scale=True),
    "Laplace": lambda f: Laplace(f, torch.tensor([0.5, 1.0, 2.0])),
    "Laplace, learned": lambda f: Laplace(f, 0.5, learn_scale=True),
    "Laplace, optimal": lambda f: Laplace(f, "optimal"),
    "StudentT": lambda f: StudentT(f, 0.5, torch.tensor([3.0, 6.0, 9.0])),
    "StudentT, learned": lambda f: StudentT(f, 0.5, 5.0, learn_scale=True, learn_df=True),
    "LowRankNormal": lambda f: LowRankNormal(f, rank=3, scale=0.5),
    "Bernoulli": Bernoulli,
    "Categorical": lambda f: Categorical(f, 4),
    "Ordinal": lambda f: Ordinal(f, 4),
    "Ordinal, 2 levels": lambda f: Ordinal(f, 2),
    "Poisson": Poisson,
    "NegativeBinomial": NegativeBinomial,
    "NegativeBinomial, per element": lambda f: NegativeBinomial(f, torch.tensor([0.5, 2.0, 9.0])),
    "ZeroInflatedPoisson": ZeroInflatedPoisson,
    "ZeroInflatedNegativeBinomial": lambda f: ZeroInflatedNegativeBinomial(f, 2.0),
}
REAL = ("Normal", "Laplace", "StudentT", "LowRankNormal")
# those here with a parameter for each of 3 elements
PER_ELEMENT = ("Normal, per element", "Laplace", "StudentT", "NegativeBinomial, per element")
every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)
INDEPENDENT = [name for name in LIKELIHOODS if name != "LowRankNormal"]
"""Those whose elements are independent given the latents."""
EVENTS = [(), (3,), (2, 3)]

numbers = st.floats(-5, 5)
logs = st.floats(-4, 4)
counts = st.integers(0, 60)


class Outcome(NamedTuple):
    likelihoods: dict[str, Distribution]
    kl: list[torch.Tensor]


def bound(p, x, seen, valid=None, **options):
    """The bound of one modality, with a divergence of zero."""
    outcome = Outcome({"m": p}, [torch.zeros(p.batch_shape)])
    valid = None if valid is None else {"m": valid}
    return mmpoe.elbo(outcome, {"m": x}, seen[:, None], valid=valid, **options)


def make(name, event=(2, 3), seed=0):
    """A likelihood of entries of shape `event`, from latent states of 2 dimensions."""
    torch.manual_seed(seed)
    outputs = LIKELIHOODS[name](nn.Identity()).outputs
    shape = event if outputs is None else (outputs, *event)
    network = nn.Sequential(nn.Linear(2, math.prod(shape)), nn.Unflatten(1, shape))
    return LIKELIHOODS[name](network if shape else nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))


def states(*shape, dtype=torch.float32):
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(3)).to(dtype)


def density(likelihood, phi, x):
    """The log-density of one element in float64."""
    phi, x = torch.tensor(phi, dtype=torch.float64), torch.tensor(np.asarray(x))
    p = likelihood.double()(phi[None, ..., None])
    return p.base_dist.log_prob(x).item()


def close(actual, expected, rtol=1e-10):
    assert actual == pytest.approx(expected, rel=rtol, abs=1e-10)


# densities ------------------------------------------------------------------------------------


@given(numbers, numbers, logs)
def test_normal_and_laplace(phi, x, log_scale):
    scale = math.exp(log_scale)
    for likelihood, truth in ((Normal, scipy.stats.norm), (Laplace, scipy.stats.laplace)):
        expected = truth.logpdf(x, phi, scale)
        close(density(likelihood(nn.Identity(), scale), phi, x), expected)
        learned = likelihood(
            nn.Identity(), torch.tensor(scale, dtype=torch.float64), learn_scale=True
        )
        close(density(learned, phi, x), expected)


@given(numbers, numbers, logs, st.floats(-3, 8))
def test_student_t(phi, x, log_scale, log_df):
    scale, df = math.exp(log_scale), math.exp(log_df)
    expected = scipy.stats.t.logpdf(x, df, phi, scale)
    close(density(StudentT(nn.Identity(), scale, df), phi, x), expected, rtol=1e-9)


@given(st.floats(-30, 30), st.sampled_from([0.0, 0.25, 1.0]))
def test_bernoulli(phi, x):
    expected = x * scipy.special.log_expit(phi) + (1 - x) * scipy.special.log_expit(-phi)
    close(density(Bernoulli(nn.Identity()), phi, x), expected)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=5), st.data())
def test_categorical(phi, data):
    x = data.draw(st.integers(0, len(phi) - 1))
    expected = scipy.special.log_softmax(phi)[x]
    close(density(Categorical(nn.Identity(), len(phi)), phi, x), expected)


def cut(likelihood, phi, level):
    """The log-probability of a level from the distribution function of a logistic variable."""
    edges = [-math.inf, *likelihood.thresholds.tolist(), math.inf]
    low, high = edges[level] - phi, edges[level + 1] - phi
    if low > 0:  # the upper tail, where differences keep their digits
        low, high = -high, -low
    return math.log(scipy.special.expit(high) - scipy.special.expit(low))


@given(st.floats(-12, 12), st.integers(0, 4), st.lists(st.floats(-4, 4), min_size=4, max_size=4))
def test_ordinal(phi, level, parameters):
    likelihood = Ordinal(nn.Identity(), 5).double()
    with torch.no_grad():
        likelihood.lowest.fill_(parameters[0])
        likelihood.gaps.copy_(torch.tensor(parameters[1:]))
    close(density(likelihood, phi, level), cut(likelihood, phi, level), rtol=1e-7)


@given(st.floats(-5, 5), counts)
def test_poisson(log_rate, x):
    expected = scipy.stats.poisson.logpmf(x, math.exp(log_rate))
    close(density(Poisson(nn.Identity()), log_rate, x), expected)


def negative_binomial(x, log_mean, log_r):
    """The log-probability, as a sum over counts without gamma functions of r."""
    mean, r = math.exp(log_mean), math.exp(log_r)
    rising = math.fsum(math.log1p(k / r) - math.log1p(mean / r) for k in range(x))
    return rising + x * log_mean - r * math.log1p(mean / r) - math.lgamma(x + 1)


@given(st.floats(-5, 5), logs, counts)
def test_negative_binomial(log_mean, log_r, x):
    likelihood = NegativeBinomial(nn.Identity(), torch.tensor(log_r, dtype=torch.float64).exp())
    mean, r = math.exp(log_mean), math.exp(log_r)
    expected = scipy.stats.nbinom.logpmf(x, r, r / (r + mean))
    close(density(likelihood, log_mean, x), expected, rtol=1e-8)
    close(negative_binomial(x, log_mean, log_r), expected, rtol=1e-8)


@given(st.floats(-30, 30), st.floats(-30, 30), st.sampled_from([0, 1, 7, 300]))
def test_negative_binomial_of_any_dispersion(log_mean, log_r, x):
    expected = negative_binomial(x, log_mean, log_r)
    likelihood = NegativeBinomial(nn.Identity(), torch.tensor(log_r, dtype=torch.float64).exp())
    close(density(likelihood, log_mean, x), expected, rtol=1e-9)
    phi = torch.tensor([[log_mean]], dtype=torch.float32, requires_grad=True)
    single = likelihood.float()(phi).log_prob(torch.tensor([[x]]))
    assert abs(single.item() - expected) < 1e-5 * (abs(expected) + 30 * x + 30)
    gradients = torch.autograd.grad(single, [phi, likelihood.log_inverse_dispersion])
    assert all(gradient.isfinite().all() for gradient in gradients)


@given(st.floats(-5, 5), st.sampled_from([0, 1, 30]))
def test_poisson_is_the_limit_of_the_negative_binomial(log_mean, x):
    likelihood = NegativeBinomial(nn.Identity(), torch.tensor(1e12).double())
    expected = scipy.stats.poisson.logpmf(x, math.exp(log_mean))
    close(density(likelihood, log_mean, x), expected, rtol=1e-8)


def test_dispersion_stops_mattering_in_float32():
    log_r = torch.linspace(9, 30, 50, requires_grad=True)
    likelihood = NegativeBinomial(nn.Identity(), torch.ones(50))
    log_mean = torch.full((1, 50), 3.0)
    p = torch.func.functional_call(likelihood, {"log_inverse_dispersion": log_r}, (log_mean,))
    (gradient,) = torch.autograd.grad(p.log_prob(torch.full((1, 50), 30)).sum(), log_r)
    mean, r = math.exp(3.0), log_r.detach().double().exp()
    expected = (30 - (mean - 30) ** 2) / (2 * r)  # of the next term of the expansion in 1 / r
    torch.testing.assert_close(gradient.double(), expected, rtol=0.01, atol=2e-5)


def single(build, log_mean, x, log_r=None):
    """The log-probability in float32 of one count, and its gradients in the logarithms."""
    leaves = [torch.tensor([[log_mean]], requires_grad=True)]
    likelihood = build(nn.Identity())
    if log_r is not None:
        leaves.append(torch.tensor(log_r, requires_grad=True))
        parameters = {"log_inverse_dispersion": leaves[1]}
        p = torch.func.functional_call(likelihood, parameters, (leaves[0],))
    else:
        p = likelihood(leaves[0])
    log_p = p.log_prob(torch.tensor([[x]]))
    assert log_p.dtype == torch.float32
    return log_p.item(), *(g.item() for g in torch.autograd.grad(log_p.sum(), leaves))


def in_float32(low, high):
    low, high = (float(np.float32(v)) for v in (low, high))
    return st.floats(low, high, width=32)


large_counts = st.one_of(st.integers(0, 100), st.integers(0, 10_000_000))
offsets = st.one_of(in_float32(-0.01, 0.01), in_float32(-3, 3))


def mean_near(x, offset):
    """The float32 logarithm of a mean near a count."""
    return float(np.float32(math.log(max(x, 1)) + offset))


@given(large_counts, offsets, in_float32(math.log(0.1), math.log(1e4)))
def test_large_counts_have_their_digits_in_float32(x, offset, log_r):
    log_mean = mean_near(x, offset)
    mean, r = math.exp(log_mean), math.exp(log_r)
    log_p = math.lgamma(x + r) - math.lgamma(r) - math.lgamma(x + 1)
    log_p += x * math.log(mean / (r + mean)) - r * math.log1p(mean / r)
    by_mean = r * (x - mean) / (r + mean)
    by_r = scipy.special.digamma(x + r) - scipy.special.digamma(r) - math.log1p(mean / r)
    by_r = r * (by_r + (mean - x) / (r + mean))
    actual = single(NegativeBinomial, log_mean, x, log_r)
    assert actual[0] == pytest.approx(log_p, rel=5e-6, abs=0)
    assert actual[1] == pytest.approx(by_mean, rel=1e-6, abs=1e-7)
    assert actual[2] == pytest.approx(by_r, rel=5e-6, abs=1e-5)


@given(large_counts, offsets)
def test_large_counts_of_poisson_have_their_digits_in_float32(x, offset):
    log_mean = mean_near(x, offset)
    mean = math.exp(log_mean)
    log_p, by_mean = x * log_mean - mean - math.lgamma(x + 1), x - mean
    actual = single(Poisson, log_mean, x)
    assert actual[0] == pytest.approx(log_p, rel=1e-6, abs=0)
    assert actual[1] == pytest.approx(by_mean, rel=1e-6, abs=1e-7)


def test_large_counts_at_and_near_the_mode():
    log_p, by_mean, _ = single(NegativeBinomial, math.log(1.1e7), 10_000_000, math.log(5))
    assert log_p == pytest.approx(-16.27, abs=0.005)
    assert by_mean == pytest.approx(-0.4545, abs=5e-5)
    for x, expected in ((10**6, -7.827), (10**7, -8.978)):
        # a mean in float32 is off by up to 5e-7 of its value, a small part of a deviation
        assert single(Poisson, math.log(x), x)[0] == pytest.approx(expected, abs=1e-3)


@given(large_counts, offsets, in_float32(-10, 10))
def test_large_counts_with_more_zeros_have_their_digits_too(x, offset, gate):
    log_mean = mean_near(x, offset)
    for base, inflated in (
        (Poisson, ZeroInflatedPoisson),
        (NegativeBinomial, ZeroInflatedNegativeBinomial),
    ):
        drawn = scipy.special.log_expit(-gate) + density(base(nn.Identity()), log_mean, x)
        expected = np.logaddexp(scipy.special.log_expit(gate), drawn) if x == 0 else drawn
        p = inflated(nn.Identity())(torch.tensor([[[log_mean], [gate]]]))
        assert p.log_prob(torch.tensor([[x]])).item() == pytest.approx(expected, rel=1e-5, abs=0)


def test_normal_is_the_limit_of_student_t():
    x = torch.linspace(-6, 6, 49)[None]
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-9)):
        for df in (1e6, 1e10, 1e13):
            p = StudentT(nn.Identity(), df=df)(torch.zeros(1, 49, dtype=dtype))
            expected = scipy.stats.norm.logpdf(x) - (2 * x**2 + 1 - x**4).numpy() / (4 * df)
            actual = p.base_dist.log_prob(x.to(dtype)).numpy()
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@given(st.floats(-30, 30), logs, counts, st.booleans())
def test_zero_inflation(gate, log_mean, x, dispersed):
    base = NegativeBinomial if dispersed else Poisson
    inflated = ZeroInflatedNegativeBinomial if dispersed else ZeroInflatedPoisson
    drawn = scipy.special.log_expit(-gate) + density(base(nn.Identity()), log_mean, x)
    expected = np.logaddexp(scipy.special.log_expit(gate), drawn) if x == 0 else drawn
    close(density(inflated(nn.Identity()), [log_mean, gate], x), expected)


@pytest.mark.parametrize("log_mean", [-30.0, 0.0, 30.0])
@pytest.mark.parametrize("build", [ZeroInflatedPoisson, ZeroInflatedNegativeBinomial])
def test_extremes_of_counts_are_finite(build, log_mean):
    gate = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0])
    phi = torch.stack([torch.full_like(gate, log_mean), gate])[None].requires_grad_()
    for x in (0, 5):
        log_p = build(nn.Identity())(phi).log_prob(torch.full((1, 5), x))
        (gradient,) = torch.autograd.grad(log_p.sum(), phi)
        assert log_p.isfinite().all()
        assert gradient.isfinite().all()


@given(st.one_of(st.floats(-20, 12), st.floats(1.9, 3)))
def test_stirling_error(log_a):
    a = math.exp(log_a)
    tensor = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    error = stirling_error(tensor)
    leading = (a - 0.5) * math.log(a) - a + math.log(2 * math.pi) / 2
    rounding = 4e-15 * (abs(leading) + 1)
    assert error.item() == pytest.approx(math.lgamma(a) - leading, rel=0, abs=rounding)
    (slope,) = torch.autograd.grad(error, tensor)
    expected = scipy.special.digamma(a) - math.log(a) + 0.5 / a
    assert slope.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


# what is particular to one kind -----------------------------------------------------------------


@given(st.lists(st.floats(-200, 200, width=32), min_size=5, max_size=5), st.floats(-60, 60))
def test_thresholds_stay_in_order(parameters, phi):
    likelihood = Ordinal(nn.Identity(), 6)
    with torch.no_grad():
        likelihood.lowest.fill_(parameters[0])
        likelihood.gaps.copy_(torch.tensor(parameters[1:]))
    assert (likelihood.thresholds.diff() >= 0).all()
    p = likelihood(torch.full((1, 1), phi)).base_dist
    log_p = torch.stack([p.log_prob(torch.full((1, 1), level)) for level in range(6)])
    assert log_p.isfinite().all()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    gradients = torch.autograd.grad(log_p.sum(), list(likelihood.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("levels", [2, 3, 7])
def test_levels_start_equally_likely(levels):
    likelihood = Ordinal(nn.Identity(), levels)
    assert likelihood.thresholds.shape == (levels - 1,)
    probs = likelihood(torch.zeros(1, 1)).base_dist.probs
    torch.testing.assert_close(probs, torch.full((1, 1, levels), 1 / levels))


def test_categorical_moments_are_those_of_indicators():
    p = make("Categorical", event=(2,))(states(3))
    assert p.mean.shape == p.stddev.shape == (3, 2, 4)
    indicators = nn.functional.one_hot(p.sample((20_000,)), 4).double()
    torch.testing.assert_close(indicators.mean(dim=0).float(), p.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(indicators.std(dim=0).float(), p.stddev, rtol=0, atol=0.02)
    assert torch.equal(p.mode, p.mean.argmax(dim=-1))


def test_categorical_draws_mix_probabilities():
    p = make("Categorical", event=())(states(5, 3), batch_dims=2)
    mixture = Draws(p)
    torch.testing.assert_close(mixture.mean, p.mean.mean(dim=0))
    torch.testing.assert_close(mixture.variance, mixture.mean * (1 - mixture.mean))


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "Categorical"])
def test_moments_are_those_of_samples(name):
    p = make(name)(states(4))
    torch.manual_seed(7)
    draws = p.sample((40_000,)).double()
    error = (draws.mean(dim=0) - p.mean).abs() / p.stddev
    assert error.max() < 5 / math.sqrt(40_000)
    heavy = name.startswith("StudentT")  # no fourth moment
    torch.testing.assert_close(
        draws.std(dim=0), p.stddev.double(), rtol=0.5 if heavy else 0.06, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
@every_likelihood
def test_data_may_have_any_dtype(name, dtype):
    p = make(name)(states(3))
    x = torch.tensor([0.0, 1.0, 1.0])[:, None, None].expand(3, 2, 3)
    seen = torch.ones(3, dtype=torch.bool)
    expected = bound(p, x, seen)
    torch.testing.assert_close(bound(p, x.to(dtype), seen).float(), expected)


def test_a_large_byte_is_a_count():
    p = Poisson(nn.Identity())(torch.full((1, 1), 5.0))
    x = torch.full((1, 1), 255)
    assert torch.equal(p.log_prob(x.byte()), p.log_prob(x.float()))


# the contract -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "event"),
    [
        (name, event)
        for name in LIKELIHOODS
        for event in EVENTS
        if event or name not in PER_ELEMENT
    ],
)
def test_shapes(name, event):
    likelihood = make(name, event)
    p = likelihood(states(5))
    assert p.batch_shape == (5,)
    assert p.event_shape == event
    x = p.sample((2,))
    assert x.shape == (2, 5, *event)
    assert p.log_prob(x).shape == (2, 5)
    nothing = torch.ones(0, dtype=torch.bool)
    assert bound(likelihood(states(0)), x[0, :0], nothing).shape == (0,)

    z = states(4, 5)
    both = likelihood(z, batch_dims=2)
    assert both.batch_shape == (4, 5)
    torch.testing.assert_close(both.log_prob(x[0])[2], likelihood(z[2]).log_prob(x[0]))

    wide = p.expand((4, 5))
    assert wide.sample().shape == (4, 5, *event)
    torch.testing.assert_close(wide.log_prob(x[0]), p.log_prob(x[0]).expand(4, 5))
    moments = wide.mean.shape, wide.variance.shape
    assert moments == ((4, *p.mean.shape), (4, *p.mean.shape))


@pytest.mark.parametrize("name", INDEPENDENT)
def test_elements_add_up(name):
    p = make(name)(states(5))
    x = p.sample()
    assert p.base_dist.log_prob(x).shape == x.shape
    torch.testing.assert_close(p.log_prob(x), p.base_dist.log_prob(x).sum(dim=(1, 2)))


@pytest.mark.parametrize("scale", [0.5, torch.tensor([0.5, 1.0, 2.0]).double()])
def test_normal_densities_are_summed_in_one_go(scale):
    torch.manual_seed(0)
    likelihood = Normal(nn.Identity(), scale, learn_scale=True).double()
    phi, x = torch.randn(2, 4, 5, 3).double().requires_grad_(), torch.randn(4, 5, 3).double()
    found = []
    for sum_up in (lambda p: p.total_log_prob(x, (2, 3)), lambda p: p.log_prob(x).sum(dim=(2, 3))):
        total = sum_up(likelihood(phi, batch_dims=2).base_dist)
        gradients = torch.autograd.grad(total.square().sum(), (phi, likelihood.log_scale))
        found.append((total, *gradients))
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@every_likelihood
def test_computes_in_float32_or_wider(name, dtype, wanted):
    likelihood = make(name).to(dtype)
    p = likelihood(states(5, dtype=dtype))
    x = p.sample()
    seen = torch.ones(5, dtype=torch.bool)
    assert p.mean.dtype == p.stddev.dtype == p.log_prob(x).dtype == wanted
    log_p = bound(p, x.to(dtype), seen)
    assert log_p.dtype == wanted
    log_p.sum().backward()
    for parameter in likelihood.parameters():
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()


@every_likelihood
def test_gradients_are_right(name):
    likelihood = make(name).double().eval()
    z = states(3, dtype=torch.float64)
    x = likelihood(z).sample()
    names, values = zip(*likelihood.named_parameters(), strict=True)

    def log_prob(*parameters):
        p = torch.func.functional_call(likelihood, dict(zip(names, parameters, strict=True)), (z,))
        return p.log_prob(x)

    assert torch.autograd.gradcheck(log_prob, values)


@every_likelihood
def test_what_is_not_scored_is_never_read(name):
    seen = torch.tensor([True, False, True, True])
    valid = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(5)) < 0.6
    valid[3] = False
    scored = valid & seen[:, None, None]
    results = []
    for filler in (0, 7, -3, 0.5, torch.nan, torch.inf):
        likelihood = make(name)
        p = likelihood(states(4))
        torch.manual_seed(1)
        x = torch.where(scored, p.sample(), filler)
        log_p = bound(p, x, seen, valid)
        gradients = torch.autograd.grad(log_p.sum(), list(likelihood.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
        results.append([log_p, *gradients, *likelihood.buffers()])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))

    log_p = results[0][0]
    assert log_p[1] == log_p[3] == 0
    likelihood.eval()
    p = likelihood(states(4))
    if "optimal" not in name and name in INDEPENDENT:
        elements = p.base_dist.log_prob(torch.where(scored, x, 0))
        expected = torch.stack([e[s].sum() for e, s in zip(elements, scored, strict=True)])
        torch.testing.assert_close(log_p, expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name not in PER_ELEMENT])
def test_scalar_entries_may_be_masked(name, kind):
    p = make(name, event=())(states(3))
    everything, valid = torch.ones(3, dtype=torch.bool), torch.tensor([True, False, True])
    x = torch.tensor([1, -9, 0]).to(kind)
    torch.testing.assert_close(bound(p, x, everything, valid), bound(p, x, valid))


@pytest.mark.parametrize("name", ["Normal", "Categorical", "Ordinal", "ZeroInflatedPoisson"])
def test_compiles(name):
    torch.compiler.reset()
    likelihood, z = make(name).eval(), states(4)
    x = likelihood(z).sample()
    compiled = torch.compile(
        lambda z, x: likelihood(z).log_prob(x), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(z, x), likelihood(z).log_prob(x))


@every_likelihood
def test_works_in_pyro(name):
    likelihood = make(name)
    p = likelihood(states(4))
    x = p.sample()
    seen = torch.tensor([True, False, True, False])

    def program(x=None):
        with pyro.plate("rows", 4), pyro.poutine.mask(mask=seen):
            return pyro.sample("x", likelihood(states(4)), obs=x)

    with pyro.validation_enabled():
        trace = pyro.poutine.trace(program).get_trace(x)
        torch.testing.assert_close(trace.log_prob_sum(), p.log_prob(x)[seen].sum())
        assert program().shape == x.shape


@every_likelihood
def test_is_saved_and_loaded(name):
    likelihood = make(name)
    x = likelihood(states(4)).sample()
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.add_(0.1)
    bound(likelihood(states(4)), x, torch.ones(4, dtype=torch.bool))
    file = io.BytesIO()
    torch.save(likelihood.state_dict(), file)
    file.seek(0)
    other = make(name, seed=1).eval()
    other.load_state_dict(torch.load(file))
    for p in (other(states(4)), copy.deepcopy(likelihood).eval()(states(4))):
        assert torch.equal(p.log_prob(x), likelihood.eval()(states(4)).log_prob(x))


def test_fixed_parameters_are_no_part_of_the_state():
    for name in ("Normal", "Laplace", "StudentT"):
        assert {key.split(".")[0] for key in make(name).state_dict()} == {"network"}
    assert make("Laplace").double().scale.dtype == torch.float64


@every_likelihood
def test_zero_is_in_the_support_and_the_rest_is_checked(name):
    p = make(name)(states(3))
    assert p.support.check(torch.zeros(3, 2, 3)).all()

    seen = torch.tensor([True, True, False])
    valid = torch.ones(3, 2, 3, dtype=torch.bool)
    valid[0] = False
    x = torch.zeros(3, 2, 3)
    x[0], x[1, 0, 2], x[2] = -1, -2, 0.5
    if name.startswith(REAL):
        bound(p, x, seen, valid)
    else:
        with pytest.raises(ValueError, match=r"'x' should hold .* but 'm' holds -2 in row 1"):
            bound(p, x, seen, valid)
        x[1, 0, 2] = 0
        bound(p, x, seen, valid)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("Bernoulli", 1.5, "numbers from 0 to 1"),
        ("Categorical", 4, "integers from 0 to 3"),
        ("Categorical", 1.5, "integers from 0 to 3"),
        ("Ordinal", 4, "integers from 0 to 3"),
        ("Poisson", 0.5, "integers of at least 0"),
        ("NegativeBinomial", -1, "integers of at least 0"),
        ("ZeroInflatedPoisson", 0.5, "integers of at least 0"),
        ("ZeroInflatedNegativeBinomial", -1, "integers of at least 0"),
    ],
)
def test_data_outside_the_support_are_named(name, value, wanted):
    p = make(name)(states(1))
    x = torch.full((1, 2, 3), value)
    with pytest.raises(ValueError, match=rf"'x' should hold {wanted}, but 'm' holds {value} in"):
        bound(p, x, torch.ones(1, dtype=torch.bool))


# the optimal scale ------------------------------------------------------------------------------

optimal = pytest.mark.parametrize("build", [Normal, Laplace])


def problem(build, dtype=torch.float64):
    """A likelihood, latent states, incomplete data, and what of them is scored."""
    torch.manual_seed(4)
    likelihood = build(nn.Linear(2, 5), "optimal").to(dtype)
    z, x = torch.randn(6, 2, dtype=dtype), 3 * torch.randn(6, 5, dtype=dtype)
    seen = torch.tensor([True, True, False, True, True, True])
    valid = torch.rand(6, 5) < 0.7
    return likelihood, z, x, seen, valid


@optimal
def test_optimal_scale_maximises_the_likelihood(build):
    likelihood, z, x, seen, valid = problem(build)
    at_best = bound(likelihood(z), x, seen, valid).sum().item()

    def loss(log_scale):
        fixed = build(likelihood.network, math.exp(log_scale))
        return -bound(fixed(z), x, seen, valid).sum().item()

    best = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded")
    assert at_best >= -best.fun
    assert at_best == pytest.approx(-best.fun, rel=1e-8)
    assert likelihood.scale.item() == pytest.approx(math.exp(best.x), rel=1e-4)


@optimal
def test_optimal_scale_has_the_gradient_of_the_maximum(build):
    likelihood, z, x, seen, valid = problem(build)
    actual = torch.autograd.grad(
        bound(likelihood(z), x, seen, valid).sum(), list(likelihood.network.parameters())
    )
    # the maximum in closed form, through which all gradients flow
    error = (x - likelihood.network(z))[valid & seen[:, None]]
    if build is Normal:
        maximum = -len(error) / 2 * (2 * math.pi * math.e * error.square().mean()).log()
    else:
        maximum = -len(error) * (2 * math.e * error.abs().mean()).log()
    expected = torch.autograd.grad(maximum, list(likelihood.network.parameters()))
    torch.testing.assert_close(actual, expected)


@optimal
def test_weights_move_the_optimal_scale(build):
    likelihood, z, x, *_ = problem(build)
    weight = torch.rand(6, 5).double().round(decimals=1)
    p = likelihood(z).fit(x, weight)
    repeated = torch.repeat_interleave(
        (x - likelihood.network(z)).detach().flatten(), (10 * weight).flatten().round().long()
    )
    moment = repeated.abs().pow(likelihood.power).mean()
    torch.testing.assert_close(p.base_dist.scale.flatten()[0] ** likelihood.power, moment)


@optimal
def test_optimal_scale_is_shared_by_subsets(build):
    likelihood, _, x, seen, valid = problem(build)
    z = torch.randn(3, 6, 2).double()
    bounds = bound(likelihood(z, batch_dims=2), x, seen, valid)
    scale = likelihood.scale.item()
    expected = bound(build(likelihood.network, scale)(z, batch_dims=2), x, seen, valid)
    torch.testing.assert_close(bounds, expected)
    other = problem(build)[0]
    flat = bound(other(z.flatten(0, 1)), x.repeat(3, 1), seen.repeat(3), valid.repeat(3, 1))
    assert other.scale.item() == pytest.approx(scale)
    torch.testing.assert_close(flat.reshape(3, 6), bounds)


@optimal
def test_evaluation_keeps_rows_apart(build):
    likelihood, z, x, seen, valid = problem(build)
    assert likelihood.scale == 1
    assert isinstance(likelihood(z), OptimalScale)
    assert likelihood(z).expand((2, 6)).fit(x, valid).batch_shape == (2, 6)
    likelihood, *_ = problem(build)
    for _ in range(2):
        bound(likelihood(z), x, seen, valid)
    kept = likelihood.scale.clone()
    likelihood.eval()
    p = likelihood(z)
    torch.testing.assert_close(p.base_dist.scale, kept.expand(6, 5), rtol=0, atol=0)
    together = bound(p, x, seen, valid)
    apart = [
        bound(likelihood(z[i : i + 1]), x[i : i + 1], seen[i : i + 1], valid[i : i + 1])
        for i in range(6)
    ]
    torch.testing.assert_close(together, torch.cat(apart))
    assert torch.equal(likelihood.scale, kept)


@optimal
def test_kept_scale_pools_batches(build):
    likelihood, z, x, *_ = problem(build)
    power, errors = likelihood.power, []
    for rows in (6, 1, 0, 3):
        likelihood(z[:rows]).fit(x[:rows], torch.ones(rows, 5, dtype=torch.bool))
        errors.append((x - likelihood.network(z)).detach()[:rows].abs() ** power)
    ages = torch.cat([torch.full((e.numel(),), 0.9**age) for age, e in enumerate(errors[::-1])])
    pooled = torch.cat([e.flatten() for e in errors[::-1]])
    moment = (ages * pooled).sum() / ages.sum()
    torch.testing.assert_close(likelihood.scale**power, moment)


@optimal
def test_optimal_scale_of_nothing_is_the_kept_one(build):
    likelihood, z, x, seen, _ = problem(build)
    nothing = torch.zeros_like(seen)
    bound(likelihood(z), x, nothing)
    assert likelihood.scale == 1
    bound(likelihood(z), x, seen)
    kept = likelihood.scale.clone()
    log_p = bound(likelihood(z), torch.full_like(x, torch.nan), nothing)
    assert log_p.tolist() == [0] * 6
    assert torch.equal(likelihood.scale, kept)


@optimal
def test_optimal_scale_of_a_perfect_fit_is_finite(build):
    likelihood, z, _, seen, _ = problem(build, torch.float32)
    log_p = bound(likelihood(z), likelihood.network(z).detach(), seen)
    gradients = torch.autograd.grad(log_p.sum(), list(likelihood.network.parameters()))
    assert log_p.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@optimal
def test_optimal_scale_trains(build):
    torch.manual_seed(0)
    z = torch.randn(400, 2)
    noise = torch.distributions.Normal if build is Normal else torch.distributions.Laplace
    x = z @ torch.tensor([[1.0, -2.0], [0.5, 3.0]]) + noise(0.0, 0.2).sample((400, 2))
    likelihood = build(nn.Linear(2, 2), "optimal")
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.1)
    for _ in range(150):
        loss = -bound(likelihood(z), x, torch.ones(400, dtype=torch.bool)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert likelihood.scale.item() == pytest.approx(0.2, rel=0.1)


# bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, None])
def test_a_scale_is_positive(scale):
    for build in (Normal, Laplace, StudentT):
        with pytest.raises(ValueError, match=r"'scale' should be positive and finite, but is"):
            build(nn.Identity(), scale)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"'scale' .* everywhere, but goes from 0 to 1\."):
        Normal(nn.Identity(), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"'scale' .* or 'optimal', but is 'best'"):
        Laplace(nn.Identity(), "best")
    with pytest.raises(ValueError, match=r"'scale' should be positive .* 'optimal'"):
        StudentT(nn.Identity(), "optimal")
    with pytest.raises(ValueError, match=r"'learn_scale' should be False if 'scale' is 'optimal'"):
        Normal(nn.Identity(), "optimal", learn_scale=True)
    with pytest.raises(ValueError, match=r"'df' should be positive and finite, but is -1"):
        StudentT(nn.Identity(), df=-1.0)
    with pytest.raises(ValueError, match=r"'inverse_dispersion' should be positive .* but is 0"):
        NegativeBinomial(nn.Identity(), 0.0)
    for classes in (1, 2.0, True):
        with pytest.raises(ValueError, match=r"'classes' should be an integer of at least 2"):
            Categorical(nn.Identity(), classes)
        with pytest.raises(ValueError, match=r"'levels' should be an integer of at least 2"):
            Ordinal(nn.Identity(), classes)


def test_wrong_shapes_are_named():
    z = torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"network of Categorical .* \(5, 4, \*\), .* \(5, 3\)"):
        Categorical(nn.Identity(), 4)(z)
    with pytest.raises(ValueError, match=r"ZeroInflatedPoisson .* \(5, 2, \*\), .* \(5, 3\)"):
        ZeroInflatedPoisson(nn.Identity())(z)
    with pytest.raises(ValueError, match=r"network of Normal .* \(5, \*\), but returns \(15,\)"):
        Normal(nn.Flatten(0))(z)
    for output, kind in (({"loc": z}, "dict"), ((z, z), "tuple")):
        network = nn.Identity()
        network.forward = lambda z, output=output: output
        with pytest.raises(ValueError, match=rf"network of Normal .* a tensor, .* of type {kind}"):
            Normal(network)(z)
    for shape in ((4,), (5, 3), (1, 3)):
        likelihood = Laplace(nn.Identity(), torch.ones(shape), learn_scale=True)
        with pytest.raises(ValueError, match=r"'scale' should be a number or .* entry, \(3,\), "):
            likelihood(z)
    with pytest.raises(ValueError, match=r"'inverse_dispersion' .* entry, \(3,\), .* \(2,\)"):
        ZeroInflatedNegativeBinomial(nn.Unflatten(1, (2, 3)), torch.ones(2))(torch.zeros(5, 6))


@pytest.mark.parametrize("name", ["Normal", "Laplace"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)])
def test_location_and_scale_agree_with_pytorch(name, shape):
    """Values and gradients, whatever the scale broadcasts from."""
    torch.manual_seed(0)
    loc, x = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    scale = torch.rand(shape, dtype=torch.float64) + 0.1
    gradients = []
    for module in (elements, torch.distributions):
        leaves = [v.clone().requires_grad_() for v in (loc, scale, x)]
        log_p = getattr(module, name)(*leaves[:2]).log_prob(leaves[2])
        gradients.append([log_p, *torch.autograd.grad(log_p.square().sum(), leaves)])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_a_normal_likelihood_is_compared_with_data_of_more_dimensions():
    p = elements.Normal(torch.zeros(3), 2.0)
    x = torch.randn(5, 3)
    torch.testing.assert_close(p.log_prob(x), torch.distributions.Normal(0.0, 2.0).log_prob(x))
