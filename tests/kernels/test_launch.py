"""The fused CPU kernels against PyTorch in float64, and what must hold to the bit."""

import math
import platform

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from kernel_cases import DTYPES, distance, drawn, exact, gradients_for, make, needed, prior_of, run

from mmpoe.gaussian import exp_minus_tangent
from mmpoe.kernels import _cpu, _launch, gaussian_poe
from mmpoe.kernels._arguments import Outputs


@settings(max_examples=150)
@hypothesis_given(drawn())
@pytest.mark.slow
def test_outputs_and_gradients_equal_the_float64_reference(inputs):
    assert distance(inputs) < DTYPES[inputs.loc[0].dtype]


@pytest.mark.fault(54)
@settings(max_examples=10)
@hypothesis_given(drawn(experts=(9, 32), events=[(3,), (70,)]))
def test_many_experts(inputs):
    assert distance(inputs) < DTYPES[inputs.loc[0].dtype]


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_samples_of_many_chunks(dtype):
    inputs = make(event=(3, 110, 100), subsets=2, rows=2, dtype=dtype)
    assert distance(inputs) < DTYPES[dtype]


@pytest.mark.parametrize("event", [(4, 64), (4, 96), (5, 13)])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_writing_past_the_caches_changes_no_bit(monkeypatch, dtype, event):
    inputs = make(event=event, subsets=2, dtype=dtype)
    expected = run(inputs)
    monkeypatch.setattr(_cpu, "_LARGE", 0)
    for a, b in zip(run(inputs), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86-64 only")
@pytest.mark.slow
def test_processors_with_narrower_vectors(monkeypatch):
    monkeypatch.setattr(_cpu, "_libraries", {})
    monkeypatch.setenv("CXX", "g++ -mno-avx512f")
    for options in ({"noise": "seed"}, {"common": True, "clamp": 3.0, "power": 1}):
        inputs = make(event=(5, 77), subsets=3, rows=4, **options)
        assert distance(inputs) < 1e-5
    inputs.log_scale[0][..., ::3] -= 50.0
    assert all(t.isfinite().all() for t in run(inputs)[:4])


def test_threads_change_no_bit():
    inputs = make(event=(3, 128, 100), rows=2, noise="seed", common=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(inputs)
        torch.set_num_threads(3)
        together = run(inputs)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@settings(max_examples=30)
@hypothesis_given(drawn(dtypes=(torch.float32, torch.bfloat16)), st.integers(0, 2**20))
def test_p14_given_nothing_is_the_prior_to_the_bit(inputs, seed):
    inputs = inputs._replace(given=torch.zeros_like(inputs.given))
    outputs = _launch.forward(inputs, (False, True, True, True))
    if inputs.clamp == 0:
        zeros = torch.zeros_like(inputs.loc[0])
        for fused, prior in zip(outputs[1:3], prior_of(inputs) or (zeros, zeros), strict=True):
            prior = prior if inputs.rows is None else prior[inputs.rows]
            assert torch.equal(fused, prior.expand_as(fused))
    assert torch.equal(outputs.kl, torch.zeros_like(outputs.kl))


@pytest.mark.parametrize("filler", [0.0, 7.0, 1e30, math.inf, -math.inf])
@pytest.mark.parametrize("clamp", [0.0, 3.0])
def test_what_is_given_in_no_subset_changes_no_bit(filler, clamp):
    options = {"subsets": 3, "rows": 6, "clamp": clamp, "common": True}
    expected = run(make(filler=math.nan, **options))
    for a, b in zip(run(make(filler=filler, **options)), expected, strict=True):
        assert torch.equal(a, b)
        assert b.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, -200.0])
def test_an_expert_changes_no_bit_of_subsets_without_it(value):
    inputs = make(subsets=4, rows=5, event=(6, 20), common=True, share=1.0)
    inputs.given[0, :, 2], inputs.given[1:, :, 2] = True, False
    others = run(inputs)
    for part in (inputs.loc, inputs.log_scale):
        changed = list(part)
        changed[2] = torch.full_like(part[2], value)
        name = "loc" if part is inputs.loc else "log_scale"
        outputs = _launch.forward(inputs._replace(**{name: changed}), (True,) * 4)
        for output, other in zip(outputs, others[:4], strict=True):
            assert torch.equal(output[1:], other[1:])


def test_missing_experts_get_gradients_of_zero():
    inputs = make(subsets=3, rows=8)
    missing = ~inputs.given.any(dim=0)
    assert missing.any()
    into = _launch.backward(inputs, gradients_for(run(inputs)[:4]), needed(inputs))
    for m in range(4):
        for gradient in (into[m], into[4 + m]):
            assert torch.equal(gradient[missing[:, m]], torch.zeros_like(gradient[missing[:, m]]))


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("mean", [0.0, 1e30, math.inf, math.nan])
def test_an_expert_without_information_is_neutral_whatever_its_mean(backend, mean):
    inputs = make(experts=3, rows=4, event=(5, 20), share=1.0)

    def fuse(loc, log_scale):
        leaves = [t.clone().requires_grad_() for t in (*loc, *log_scale)]
        count = len(loc)
        q = gaussian_poe(
            leaves[:count],
            leaves[count:],
            inputs.given[0, :, :count],
            prior_of(inputs),
            noise=inputs.noise[0],
            backend=backend,
        )
        total = q.z.sum() + q.log_scale.square().sum() + q.kl.sum()
        return q, torch.autograd.grad(total, leaves)

    loc, log_scale = inputs.loc, inputs.log_scale
    infinite, means = torch.full_like(loc[2], math.inf), torch.full_like(loc[2], mean)
    q, gradients = fuse([*loc[:2], means], [*log_scale[:2], infinite])
    without, expected = fuse(loc[:2], log_scale[:2])
    if backend == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(q, without, strict=True))
    else:  # a sum of one more term is rounded otherwise
        for a, b in zip(q, without, strict=True):
            torch.testing.assert_close(a, b)
    for m, other in ((0, 0), (1, 1), (3, 2), (4, 3)):
        torch.testing.assert_close(gradients[m], expected[other])
    assert torch.equal(gradients[2], torch.zeros_like(loc[2]))
    assert torch.equal(gradients[5], torch.zeros_like(loc[2]))


@pytest.mark.parametrize("gap", [10.0, 29.0, 31.0, 50.0, 60.0, 100.0, 200.0])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("common", [True, False])
def test_a_subset_does_not_underflow_beside_a_sharper_one(gap, power, common):
    # expert 0 is sharper than the others by e^gap in scale; subsets with and without it
    inputs = make(
        experts=3, subsets=3, rows=2, event=(4, 40), power=power, common=common, share=1.0
    )
    inputs.given[:] = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 1]]).bool()[:, None]
    inputs.log_scale[0][..., ::3] -= gap
    outputs = _launch.forward(inputs, (True,) * 4)
    truth = exact(inputs)
    for output, expected in zip(outputs, truth, strict=False):
        torch.testing.assert_close(output.double(), expected, rtol=2e-5, atol=2e-5)
    alone = inputs._replace(
        loc=inputs.loc[1:],
        log_scale=inputs.log_scale[1:],
        given=inputs.given[:, :, 1:].contiguous(),
    )
    for together, apart in zip(outputs, _launch.forward(alone, (True,) * 4), strict=True):
        assert torch.equal(together[1:], apart[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("common", [True, False])
def test_a_far_expert_changes_no_bit_of_what_other_subsets_give(dtype, power, prior, common):
    # another kernel computes the pieces where an expert is far
    options = {"power": power, "prior": prior, "common": common, "share": 1.0, "event": (4, 80)}
    inputs = make(dtype=dtype, subsets=2, **options)
    inputs.given[:] = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 1]]).bool()[:, None]
    near = run(inputs)
    inputs.log_scale[0][..., ::150] -= 100.0
    far = run(inputs)
    assert not torch.equal(near[0][0], far[0][0])
    for a, b in zip(near[:4], far[:4], strict=True):
        assert torch.equal(a[1], b[1])
    for m in (1, 2, 3):
        for a, b in ((near[4 + m], far[4 + m]), (near[8 + m], far[8 + m])):
            assert torch.equal(a, b)


@pytest.mark.parametrize("gap", [45.0, 110.0])
def test_a_sharp_subset_does_not_underflow_beside_a_sharper_one(gap):
    inputs = make(experts=2, subsets=3, rows=2, event=(4, 40), share=1.0)
    inputs.given[:] = torch.tensor([[1, 1], [1, 0], [0, 1]]).bool()[:, None]
    inputs.log_scale[0][..., ::3] -= 40.0
    inputs.log_scale[1][..., ::3] -= gap
    outputs = _launch.forward(inputs, (True,) * 4)
    for output, expected in zip(outputs[:3], exact(inputs), strict=False):
        torch.testing.assert_close(output.double(), expected, rtol=2e-5, atol=2e-5)


def test_lanes_that_are_not_far_keep_every_bit_beside_some_that_are():
    inputs = make(experts=2, rows=1, event=(256,), share=1.0)
    plain = _launch.forward(inputs, (True, True, True, False))
    inputs.log_scale[0][:, 5::7] -= 50.0
    far = _launch.forward(inputs, (True, True, True, False))
    near = torch.ones(256, dtype=torch.bool)
    near[5::7] = False
    for a, b in zip(far[:3], plain[:3], strict=True):
        assert torch.equal(a[..., near], b[..., near])
        assert not torch.equal(a[..., ~near], b[..., ~near])


@pytest.mark.fault(50)
@pytest.mark.parametrize("spread", [10.0, 30.0])
def test_extreme_scales_are_finite_and_right(spread):
    inputs = make(rows=8, event=(4, 64), subsets=3, share=1.0)
    clip = [t.mul(spread).clamp(-spread, spread) for t in inputs.log_scale]
    prior_log_scale = inputs.prior_log_scale.mul(spread).clamp(-spread, spread)
    inputs = inputs._replace(log_scale=clip, prior_log_scale=prior_log_scale)
    outputs = _launch.forward(inputs, (True,) * 4)
    for output, expected in zip(outputs[:3], exact(inputs)[:3], strict=True):
        scale = expected.abs().clamp(min=1)
        assert ((output.double() - expected).abs() / scale).max() < 2e-5
    torch.testing.assert_close(outputs.kl.double(), exact(inputs)[3], rtol=2e-6, atol=0)


@pytest.mark.parametrize("power", [1, 2])
def test_small_divergences_are_right_and_grow(power):
    # one expert, with precisions from e^-36 to e^0 of that of the prior
    ratio = torch.linspace(-36, 0, 1000)
    log_scale = [(-ratio / power)[:, None]]
    zeros = [torch.zeros(1000, 1)]
    given = torch.ones(1000, 1, dtype=torch.bool)
    q = gaussian_poe(zeros, log_scale, given, sample=False, power=power, backend="cpu")
    delta = torch.log1p((power * -log_scale[0].double()).exp())[:, 0]
    expected = exp_minus_tangent(-2 * delta / power) / 2
    positive = expected > 1e-30
    assert ((q.kl.double() / expected)[positive] - 1).abs().max() < 2e-6
    assert (q.kl >= 0).all()
    assert (q.kl[1:] >= q.kl[:-1])[positive[1:]].all()


def test_common_noise_of_zero_is_the_plain_product_to_the_bit():
    inputs = make(experts=3, rows=4, event=(5, 30), subsets=3, common=True)
    zero = run(inputs._replace(common_noise=torch.zeros(5)))
    plain = run(inputs._replace(common_noise=None))
    assert all(torch.equal(a, b) for a, b in zip(plain, zero[:-1], strict=True))


def test_common_noise_with_gaps_between_its_numbers():
    inputs = make(experts=3, rows=4, event=(5, 30), common=True)
    spaced = torch.stack([inputs.common_noise, torch.full((5,), torch.nan)], dim=1)[:, 0]
    plain, found = run(inputs), run(inputs._replace(common_noise=spaced))
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_only_what_is_wanted_and_needed_is_computed():
    inputs = make(rows=4, event=(6, 30), subsets=2)
    everything = _launch.forward(inputs, (True,) * 4)
    for k in range(4):
        want = [n == k for n in range(4)]
        for n, output in enumerate(_launch.forward(inputs, want)):
            assert output is None if n != k else torch.equal(output, everything[k])
    gradients = gradients_for(everything)
    full = _launch.backward(inputs, gradients, needed(inputs))
    part = [True, False, False, True, *[False] * 6, False, True, False, False, False]
    some = _launch.backward(inputs, gradients, part)
    for gradient, expected, need in zip(some, full, part, strict=True):
        assert torch.equal(gradient, expected) if need else gradient is None


def test_a_sample_without_noise_is_the_mean():
    inputs = make(rows=4, noise=None)
    outputs = _launch.forward(inputs, (True,) * 4)
    assert torch.equal(outputs.z, outputs.loc)


@pytest.mark.parametrize("which", range(4))
def test_gradients_of_each_output_alone(which):
    inputs = make(rows=4, event=(6, 30), subsets=2)
    gradients = gradients_for(_launch.forward(inputs, (True,) * 4))
    alone = Outputs(*(g if k == which else None for k, g in enumerate(gradients)))
    zeros = Outputs(*(g if k == which else g * 0 for k, g in enumerate(gradients)))
    a = _launch.backward(inputs, alone, needed(inputs))
    b = _launch.backward(inputs, zeros, needed(inputs))
    for x, y in zip(a[:8], b[:8], strict=True):
        torch.testing.assert_close(x, y)


def test_chunks_of_one_tensor_are_not_copied():
    halves = torch.randn(3, 8, 16, 16).chunk(2, dim=1)
    assert all(_launch.dense(t) is t for t in halves)
    assert _launch.dense(halves[0].transpose(2, 3)).is_contiguous()


def test_outputs_as_asked():
    inputs = make(rows=4)
    arguments = (inputs.loc, inputs.log_scale, inputs.given[0], prior_of(inputs))
    for backend in ("cpu", "eager"):
        q = gaussian_poe(*arguments, noise=inputs.noise[0], outputs=("z", "kl"), backend=backend)
        assert q.loc is None
        assert q.log_scale is None
        assert q.z.shape == inputs.loc[0].shape
        assert q.kl.shape == (4,)
    with pytest.raises(ValueError, match=r"'outputs' should name some of z, loc, .*'scale'"):
        gaussian_poe(*arguments, outputs=("scale",))
    q = gaussian_poe(*arguments, sample=False, outputs=("z",))
    assert torch.equal(q.z, gaussian_poe(*arguments, sample=False).loc)
    assert q.loc is None
