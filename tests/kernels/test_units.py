"""Accuracy where the special-function units of a GPU err by as much as they may."""

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from kernel_cases import distance, drawn, exact, make, prior_of
from simulator import SimulatedLauncher

from mmpoe.gaussian import exp_minus_tangent
from mmpoe.kernels import _launch, _philox

ERRORS = {errors: SimulatedLauncher(errors=errors) for errors in ("up", "down", "either")}
each_error = pytest.mark.parametrize("on", ERRORS.values(), ids=ERRORS)


@each_error
@settings(max_examples=15)
@hypothesis_given(drawn(dtypes=(torch.float32,), experts=(2, 2)))
@pytest.mark.slow
def test_outputs_and_gradients_equal_the_float64_reference(on, inputs):
    inputs = inputs._replace(seed=None)  # the units of the noise have a test of their own
    assert distance(inputs, on) < 1e-5


@each_error
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0])
def test_outputs_are_within_2e_6_of_the_reference(on, spread, power):
    inputs = make(experts=2, event=(4, 40), spread=spread, power=power, subsets=3)
    outputs = _launch.forward(inputs, (True,) * 4, on)
    for output, expected in zip(outputs, exact(inputs), strict=False):
        scale = expected.abs().clamp(min=1)
        assert ((output.double() - expected).abs() / scale).max() < 2e-6


@each_error
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("spread", [10.0, 30.0])
def test_extreme_scales_are_finite_and_right(on, spread, power):
    # that r_m is rounded to float32 is most of the error: 2^-24 of up to 120
    inputs = make(experts=2, event=(4, 64), power=power, subsets=3, share=1.0)
    log_scale = [t.mul(spread).clamp(-spread, spread) for t in inputs.log_scale]
    prior_log_scale = inputs.prior_log_scale.mul(spread).clamp(-spread, spread)
    inputs = inputs._replace(log_scale=log_scale, prior_log_scale=prior_log_scale)
    outputs, truth = _launch.forward(inputs, (True,) * 4, on), exact(inputs)
    for output, expected in zip(outputs[:3], truth[:3], strict=True):
        scale = expected.abs().clamp(min=1)
        assert ((output.double() - expected).abs() / scale).max() < 2e-5
    torch.testing.assert_close(outputs.kl.double(), truth[3], rtol=2e-6, atol=0)


@each_error
@pytest.mark.parametrize("power", [1, 2])
def test_small_divergences_are_right(on, power):
    # one expert, with precisions from e^-36 to e^4 of that of the prior
    ratio = torch.linspace(-36, 4, 1000)
    inputs = make(experts=2, rows=1000, event=(1,), prior=False, noise=None, power=power)
    inputs.given[:] = torch.tensor([True, False])
    inputs.loc[0][:] = 0.0
    inputs.log_scale[0][:] = (-ratio / power)[:, None]
    kl = _launch.forward(inputs, (False, False, False, True), on).kl[0]
    delta = torch.log1p((power * -inputs.log_scale[0].double()).exp())[:, 0]
    expected = exp_minus_tangent(-2 * delta / power) / 2
    positive = expected > 1e-30
    assert ((kl.double() / expected)[positive] - 1).abs().max() < 2e-6
    assert (kl >= 0).all()


@each_error
@pytest.mark.parametrize("prior", [True, False])
def test_given_nothing_is_the_prior_to_the_bit(on, prior):
    inputs = make(experts=2, event=(4, 40), prior=prior, share=0.0)
    if prior:  # exponents of all sizes
        inputs.prior_log_scale[:] = torch.linspace(-95, 95, 480).view(3, 4, 40)
    outputs = _launch.forward(inputs, (False, True, True, True), on)
    zeros = torch.zeros_like(inputs.loc[0])
    for output, expected in zip(outputs[1:3], prior_of(inputs) or (zeros, zeros), strict=True):
        assert torch.equal(output[0], expected)
    assert torch.equal(outputs.kl, torch.zeros_like(outputs.kl))


@each_error
@pytest.mark.parametrize("mean", [0.0, 1e30, torch.inf, torch.nan])
def test_an_expert_without_information_is_neutral_whatever_its_mean(on, mean):
    inputs = make(experts=2, event=(5, 20), share=1.0)
    inputs.loc[1][:], inputs.log_scale[1][:] = mean, torch.inf
    with_it = _launch.forward(inputs, (True,) * 4, on)
    inputs.given[..., 1] = False
    without = _launch.forward(inputs, (True,) * 4, on)
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


@each_error
def test_noise(on):
    inputs = make(event=(5000,), rows=2, experts=2, noise="seed", share=0.0, prior=False)
    inputs = inputs._replace(temperature=1.0)
    z = _launch.forward(inputs, (True, False, False, False), on).z[0].double()
    expected = _philox.normal(inputs.seed, 2, 5000)
    radius = expected.unflatten(-1, (-1, 2)).norm(dim=-1, keepdim=True)
    # of log 2^-21.5, seen through a square root, and of sine and cosine 2^-20.5
    bound = 2**-21.5 / radius.clamp(min=2**-10.75) + 2**-20.5 * radius + 2e-6
    assert ((z - expected).unflatten(-1, (-1, 2)).abs() <= bound).all()
