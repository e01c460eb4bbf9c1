"""Covariates reach the networks of likelihoods, and exposures multiply means."""

import pytest
import torch
from torch import nn

from mmpoe.likelihoods import (
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from mmpoe.nn import Conditional

COUNTS = [Poisson, NegativeBinomial, ZeroInflatedPoisson, ZeroInflatedNegativeBinomial]
every_count = pytest.mark.parametrize("build", COUNTS)
EXPOSURE = torch.tensor([0.5, 1.0, 4.0, 1e4])


def make(build, event=(3,), exposure="size"):
    torch.manual_seed(0)
    shape = build(nn.Identity()).network_shape(event)
    size = torch.Size(shape).numel()
    network = nn.Sequential(nn.Linear(2, size), nn.Unflatten(1, shape) if shape else nn.Flatten(0))
    return build(network, exposure=exposure)


def states(*shape):
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(3))


def test_a_network_gets_the_covariates_it_asks_for():
    z, age = states(4), torch.arange(4.0)
    likelihood = Normal(Conditional(nn.Linear(3, 2), ["age"]), "optimal")
    assert likelihood.asks_for_context
    expected = likelihood.network.network(torch.cat([z, age[:, None]], dim=1))
    assert torch.equal(likelihood(z, context={"age": age}).mean, expected)
    both = likelihood(z.reshape(2, 2, 2), 2, {"age": age})
    assert torch.equal(both.mean, expected.reshape(2, 2, 2))
    with pytest.raises(ValueError, match=r"the covariate 'age', but holds nothing"):
        likelihood(z)


def test_others_are_called_as_they_were():
    likelihood = Normal(nn.Linear(2, 3))
    assert not likelihood.asks_for_context
    z = states(4)
    assert torch.equal(likelihood(z, context={"age": z}).mean, likelihood(z).mean)


@every_count
@pytest.mark.parametrize("event", [(), (3,), (2, 3)])
def test_an_exposure_multiplies_the_mean(build, event):
    likelihood, z = make(build, event), states(4)
    plain = make(build, event, exposure=None)
    plain.load_state_dict(likelihood.state_dict())
    assert likelihood.asks_for_context
    assert not plain.asks_for_context
    size = EXPOSURE.reshape(4, *(1,) * len(event))
    for exposure in (EXPOSURE, EXPOSURE[:, None], EXPOSURE.double(), size.expand(4, *event)):
        p = likelihood(z, context={"size": exposure})
        torch.testing.assert_close(p.mean, size * plain(z).mean, rtol=1e-5, atol=0)
    twice = likelihood(z.expand(2, 4, 2), 2, {"size": EXPOSURE.repeat(2)})
    torch.testing.assert_close(twice.mean[1], p.mean)
    unit = likelihood(z, context={"size": torch.ones(4, dtype=torch.long)})
    x = unit.sample()
    assert torch.equal(unit.log_prob(x), plain(z).log_prob(x))


def test_an_exposure_may_differ_between_elements():
    exposure = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    p = Poisson(nn.Identity(), exposure="time")(torch.zeros(2, 3), context={"time": exposure})
    torch.testing.assert_close(p.mean, exposure)
    inflated = ZeroInflatedPoisson(nn.Unflatten(1, (2, 3)), exposure="time")
    p = inflated(torch.zeros(2, 6), context={"time": exposure})
    torch.testing.assert_close(p.mean, exposure / 2)


def test_the_best_rate_is_that_of_all_counts_over_all_exposure():
    torch.manual_seed(0)
    time = torch.rand(50, dtype=torch.float64) * 10 + 0.1
    x = torch.poisson(time[:, None] * torch.tensor([0.2, 3.0]))
    log_rate = (x.sum(dim=0) / time.sum()).log().requires_grad_()
    p = Poisson(nn.Identity(), exposure="time")(log_rate.expand(50, 2), context={"time": time})
    (slope,) = torch.autograd.grad(p.log_prob(x).sum(), log_rate)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, r"but holds nothing"),
        ({"age": EXPOSURE}, r"but holds 'age'"),
        ({"size": EXPOSURE[:3]}, r"with shape \(4,\), .* to \(4, 3\), .* is \(3,\)"),
        ({"size": EXPOSURE.expand(4, 4)}, r"with shape .* is \(4, 4\)"),
        ({"size": torch.ones(4, 1, 3)}, r"with shape .* is \(4, 1, 3\)"),
        ({"size": torch.tensor(1.0)}, r"with shape .* is \(\)"),
        ({"size": EXPOSURE - 0.5}, r"positive and finite, but it holds 0"),
        ({"size": -EXPOSURE}, r"positive and finite, but it holds -0\.5"),
        (
            {"size": EXPOSURE * torch.nan},
            r"positive and finite, but it holds nan\. Where it is not known, 1",
        ),
        ({"size": EXPOSURE * torch.inf}, r"positive and finite, but it holds inf"),
    ],
)
@every_count
def test_bad_exposures_are_named(build, context, message):
    pattern = rf"'context' should hold 'size', the exposure of {build.__name__}, {message}"
    with pytest.raises(ValueError, match=pattern):
        make(build)(states(4), context=context)


def test_an_exposure_is_a_name():
    for build in COUNTS:
        with pytest.raises(ValueError, match=r"'exposure' should be the name .* type Tensor"):
            build(nn.Identity(), exposure=EXPOSURE)


def test_exposures_and_covariates_compile():
    likelihood = ZeroInflatedNegativeBinomial(
        nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (2, 3))), exposure="size"
    )
    context = {"size": EXPOSURE}

    def step(z, x, context):
        return likelihood(z, context=context).log_prob(x)

    z = states(4)
    x = likelihood(z, context=context).sample()
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z, x, context), step(z, x, context))
