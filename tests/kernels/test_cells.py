"""Fused instance normalisation and depthwise convolution, against PyTorch in float64."""

import os
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import SimulatedLauncher
from torch.func import vmap
from torch.library import opcheck
from torch.nn import functional

from mmpoe.kernels import (
    _cells,
    _comparison,
    _cpu,
    backends,
    depthwise_convolution,
    gaussian_poe,
    instance_norm,
    jit,
    last_backend,
    use_backend,
)
from mmpoe.kernels._comparison import Row
from mmpoe.kernels.cells import _ACTIVATIONS, eager_norm

ERRORS = {torch.float32: 4e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
"""The largest errors, relative to the largest number."""

SIMULATED = SimulatedLauncher()
exhaustive = pytest.mark.skipif(
    not os.environ.get("MMPOE_EXHAUSTIVE"), reason="takes minutes: make test-kernels"
)


def images(*shape, dtype=torch.float32, layout="channels_last", seed=0):
    """Draws images whose channels have other means and scales."""
    generator = torch.Generator().manual_seed(seed)
    channels = (1, shape[1], *(1,) * (len(shape) - 2))
    scale = torch.rand(channels, generator=generator) * 3 + 0.1
    x = torch.randn(*shape, generator=generator) * scale
    x = x + 5 * torch.randn(channels, generator=generator)
    return laid_out(x.to(dtype), layout)


def laid_out(x, layout):
    if layout == "channels_last":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats.get(x.dim(), torch.contiguous_format))
    if layout == "gaps":
        return torch.stack([x, x + 1], dim=-1)[..., 0]
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x.contiguous()


def error(found, exact, scale=1.0):
    """The largest error, relative to the largest number, or to a scale if that is larger."""
    assert found.shape == exact.shape
    return ((found.double() - exact).abs().max() / exact.abs().max().clamp(min=scale)).item()


def assert_norm_is_right(found, exact, x, gradient):
    """Checks outputs and gradients: a mean is rounded, as in PyTorch, and gradients cancel."""
    x = x.double().flatten(2)
    variance, mean = torch.var_mean(x, dim=2, correction=0)
    steepness = (variance + 1e-5).rsqrt()
    bound = ERRORS[found[0].dtype] + (2**-23 * mean.abs() * steepness).max().item()
    scales = [1.0, (steepness.max() * gradient.double().abs().max()).item(), 1.0]
    for a, b, scale in zip(found, exact, scales, strict=False):
        assert a.dtype == found[0].dtype
        assert error(a, b, max(scale, 1.0)) < bound


def norm_and_gradients(x, activation, added, gradient, run):
    leaves = [t.detach().requires_grad_() for t in (x, added) if t is not None]
    y = run(leaves[0], activation, added=leaves[1] if added is not None else None)
    return [y, *torch.autograd.grad(y, leaves, gradient)]


def plain(x, activation, added=None):
    return eager_norm(x, added, activation)


sizes = st.tuples(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(2, 9)
) | st.tuples(st.integers(1, 2), st.integers(1, 9), *[st.integers(1, 4)] * 2, st.integers(2, 4))


@settings(max_examples=60)
@given(
    sizes,
    st.sampled_from(sorted(_ACTIVATIONS)),
    st.sampled_from(list(ERRORS)),
    st.sampled_from(["channels_last", "usual", "gaps", "transposed"]),
    st.booleans(),
)
def test_norm_equals_pytorch_in_float64(shape, activation, dtype, layout, adds):
    x = images(*shape, dtype=dtype, layout=layout)
    added = images(*shape, dtype=dtype, layout=layout, seed=1) if adds else None
    gradient = images(*shape, dtype=dtype, seed=2)
    run = partial(instance_norm, backend="cpu")
    found = norm_and_gradients(x, activation, added, gradient, run)
    double = [None if t is None else t.double() for t in (x, added, gradient)]
    exact = norm_and_gradients(double[0], activation, *double[1:], plain)
    if activation in ("relu", "leaky_relu"):  # which jump at 0
        away = functional.group_norm(double[0], shape[1]).abs() > 1e-3
        found[1], exact[1] = found[1] * away, exact[1] * away
    assert_norm_is_right(found, exact, x, gradient)


@pytest.mark.parametrize(
    "shape", [(1, 96, 70, 70), (2, 1, 300, 301), (3, 48, 2, 1), (1, 7, 80, 90)]
)
def test_norm_of_several_segments_and_threads_has_the_same_bits(shape):
    x, gradient = images(*shape), images(*shape, seed=1)
    threads = torch.get_num_threads()
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        try:
            run = partial(instance_norm, backend="cpu")
            results.append(norm_and_gradients(x, "silu", None, gradient, run))
        finally:
            torch.set_num_threads(threads)
    exact = norm_and_gradients(x.double(), "silu", None, gradient.double(), plain)
    for found in results:
        assert_norm_is_right(found, exact, x, gradient)
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4])
def test_variances_far_from_zero_are_right(offset):
    # the first pixels far from the others too
    x = images(1, 16, 40, 40)
    x[:, :, :3] += 30.0
    x += offset
    exact = plain(x.double(), "identity")
    tolerance = 1e-6 + 2e-7 * abs(offset)  # the mean itself is rounded, and so was x
    assert (instance_norm(x).double() - exact).abs().max() < tolerance * exact.abs().max()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("activation", sorted(_ACTIVATIONS))
def test_what_is_not_finite_spoils_what_it_does_in_pytorch(bad, activation):
    x, gradient = images(2, 20, 5, 7), images(2, 20, 5, 7, seed=1)
    x[0, 3, 2, 2] = bad
    gradient[1, 4, 0, 0] = bad
    run = partial(instance_norm, backend="cpu")
    found = norm_and_gradients(x, activation, None, gradient, run)
    expected = norm_and_gradients(x.contiguous(), activation, None, gradient.contiguous(), plain)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        assert not a.isfinite().all()


def test_the_backend_of_products_is_told_apart():
    one = [torch.zeros(1, 2)]
    gaussian_poe(one, one, torch.ones(1, 1, dtype=torch.bool))
    instance_norm(torch.randn(1, 3, 4, 4))  # by PyTorch, in this layout
    assert (last_backend(), last_backend("cells")) == ("cpu", "eager")


def test_a_depthwise_convolution_is_that_of_pytorch_but_on_a_cpu(monkeypatch):
    """Whatever backend is asked for of all calls: a GPU has no kernel for it."""
    monkeypatch.setenv("MMPOE_BACKEND", "cuda")
    x, weight = torch.ones(1, 2, 3, 3, device="meta"), torch.ones(2, 1, 5, 5, device="meta")
    assert depthwise_convolution(x, weight).shape == x.shape


def test_a_constant_channel_is_zero():
    x = torch.full((1, 16, 6, 6), 3.7).contiguous(memory_format=torch.channels_last)
    assert torch.equal(instance_norm(x, backend="cpu"), torch.zeros_like(x))


def test_the_layout_is_kept_and_decides_which_backend_runs():
    x = images(2, 16, 4, 4)
    assert instance_norm(x).stride() == x.stride()
    assert last_backend("cells") == "cpu"
    usual = x.contiguous()
    assert instance_norm(usual).stride() == usual.stride()
    assert last_backend("cells") == "eager"  # PyTorch, which is as fast
    with use_backend("cpu"):
        torch.testing.assert_close(instance_norm(usual), instance_norm(x))
        assert last_backend("cells") == "cpu"
    assert instance_norm(x.double()).dtype == torch.float64
    assert last_backend("cells") == "eager"


def test_an_empty_batch_is_empty():
    x = torch.zeros(0, 16, 4, 4).requires_grad_()
    y = instance_norm(x)
    assert y.shape == x.shape
    y.sum().backward()


def test_what_is_added_may_have_another_dtype():
    x, added = images(1, 16, 4, 4, dtype=torch.bfloat16), images(1, 16, 4, 4, seed=1)
    y = instance_norm(x, "relu", added=added)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, added + instance_norm(x, "relu"))


@pytest.mark.parametrize(
    ("x", "options", "match"),
    [
        (torch.zeros(2, 3, 1, 1), {}, r"'x' should have more than one pixel a channel"),
        (torch.zeros(2, 3), {}, r"'x' should have more than one pixel a channel"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), {}, r"'x' should be floating-point"),
        (torch.zeros(2, 3, 4), {"activation": "gelu"}, r"'activation' should be one of identity"),
        (torch.zeros(2, 3, 4), {"added": torch.zeros(3, 4)}, r"'added' should have the shape"),
        (torch.zeros(2, 3, 4), {"backend": "gpu"}, r"'backend' should be one of"),
    ],
)
def test_norm_names_what_is_wrong(x, options, match):
    with pytest.raises(ValueError, match=match):
        instance_norm(x, **options)


# ---- Depthwise convolution ------------------------------------------------------------------


def depthwise_and_gradients(x, weight, bias, gradient, run):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = run(*leaves)
    return [y, *torch.autograd.grad(y, leaves, gradient)]


def convolved(x, weight, bias):
    return functional.conv2d(x, weight, bias, padding=2, groups=x.shape[1])


def depthwise_case(*shape, dtype=torch.float32, layout="channels_last"):
    generator = torch.Generator().manual_seed(3)
    weight = 0.3 * torch.randn(shape[1], 1, 5, 5, generator=generator)
    bias = torch.randn(shape[1], generator=generator)
    x, gradient = (images(*shape, dtype=dtype, layout=layout, seed=k) for k in (0, 1))
    return x, weight.to(dtype), bias.to(dtype), gradient


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from(["channels_last", "usual", "gaps"]),
)
def test_depthwise_equals_pytorch_in_float64(shape, dtype, layout):
    case = depthwise_case(*shape, dtype=dtype, layout=layout)
    found = depthwise_and_gradients(*case, partial(depthwise_convolution, backend="cpu"))
    exact = depthwise_and_gradients(*(t.double() for t in case), convolved)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == dtype
        assert error(a, b) < ERRORS[dtype]


def test_depthwise_of_many_rows_and_threads_has_the_same_bits():
    case = depthwise_case(2, 40, 90, 301)
    threads, results = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        try:
            results.append(_cells.depthwise_gradient(case[3], case[0]))
        finally:
            torch.set_num_threads(threads)
    exact = depthwise_and_gradients(*(t.double() for t in case), convolved)[2:]
    for a, b, c in zip(*results, exact, strict=True):
        assert torch.equal(a, b)
        assert error(a, c) < ERRORS[torch.float32]


def test_depthwise_without_what_needs_no_gradient():
    x, weight, bias, gradient = depthwise_case(2, 5, 6, 6)
    weight.requires_grad_()
    depthwise_convolution(x, weight).backward(gradient)
    expected = depthwise_and_gradients(x, weight, bias, gradient, convolved)[2]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-4)
    assert last_backend("cells") == "cpu"
    with torch.no_grad():
        depthwise_convolution(x, weight)
    assert last_backend("cells") == "eager"


def test_depthwise_in_autocast_computes_as_a_convolution_does():
    x, weight, bias, gradient = depthwise_case(2, 16, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise_and_gradients(
            x, weight, bias, gradient.bfloat16(), depthwise_convolution
        )
        expected = depthwise_and_gradients(x, weight, bias, gradient.bfloat16(), convolved)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert error(a, b.double()) < ERRORS[torch.bfloat16]


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((2, 3, 4), (3, 1, 5, 5), (3,)), r"'x' should have shape \(N, C, H, W\)"),
        (((2, 3, 4, 4), (3, 1, 3, 3), (3,)), r"'weight' should have shape \(3, 1, 5, 5\)"),
        (((2, 3, 4, 4), (3, 1, 5, 5), (2,)), r"'bias' should have shape \(3,\)"),
    ],
)
def test_depthwise_names_what_is_wrong(shapes, match):
    with pytest.raises(ValueError, match=match):
        depthwise_convolution(*map(torch.zeros, shapes))


# ---- Inside PyTorch -------------------------------------------------------------------------


def cell(x, weight, bias):
    return depthwise_convolution(instance_norm(x, "silu", added=x), weight, bias)


@pytest.mark.filterwarnings("ignore")  # of PyTorch's own checks
def test_operators_pass_the_checks_of_pytorch():
    from mmpoe.kernels import _cell_operators  # noqa: F401

    operators = torch.ops.mmpoe
    for layout in ("channels_last", "usual"):
        x, *_, gradient = depthwise_case(2, 20, 3, 4, layout=layout)
        statistics = _cells.norm_forward(x, None, _ACTIVATIONS["silu"])[1]
        x.requires_grad_()
        opcheck(operators.instance_norm, (x, None, True, 1.0))
        opcheck(operators.instance_norm, (x, gradient, False, 0.2))
        x = x.detach()
        opcheck(operators.instance_norm_backward, (gradient, x, statistics, True, 1.0))
        opcheck(operators.depthwise_gradient, (gradient, x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiles_without_a_graph_break():
    case = depthwise_case(2, 20, 3, 4)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    found = depthwise_and_gradients(*case, compiled)
    assert last_backend("cells") == "cpu"
    for a, b in zip(found, depthwise_and_gradients(*case, cell), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_gradients():
    x, weight, bias, _ = depthwise_case(2, 3, 4, 5)

    def second(dtype, backend):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        with use_backend(backend):
            first = torch.autograd.grad(cell(*leaves).sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for a, b in zip(second(torch.float32, "cpu"), second(torch.float64, "eager"), strict=True):
        assert error(a, b) < 1e-4


def test_transforms_run_in_pytorch():
    x = images(2, 3, 16, 4, 5, layout="usual")
    found = vmap(lambda t: instance_norm(t, "silu"))(x)
    torch.testing.assert_close(found, torch.stack([plain(t, "silu") for t in x]))


# ---- On a GPU -------------------------------------------------------------------------------


def simulated(x, activation, added, gradient, on):
    """Runs the kernels of a GPU by simulated threads."""
    y, statistics = _cells.norm_forward(x, added, _ACTIVATIONS[activation], on)
    into = _cells.norm_backward(gradient, x, statistics, _ACTIVATIONS[activation], on)
    return [y, into, *([gradient] if added is not None else [])]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("layout", ["channels_last", "usual"])
@pytest.mark.parametrize("shape", [(2, 20, 5, 7), (1, 150, 4, 3), (1, 5, 60, 61)])
@pytest.mark.parametrize("activation", ["silu", pytest.param("leaky_relu", marks=exhaustive)])
@pytest.mark.slow
def test_norm_on_simulated_threads_equals_pytorch(activation, shape, layout, order):
    on = SIMULATED
    on.driver.order = order
    x, added, gradient = (images(*shape, layout=layout, seed=k) for k in range(3))
    found = simulated(x, activation, added, gradient, on)
    double = [t.double() for t in (x, added, gradient)]
    exact = norm_and_gradients(double[0], activation, *double[1:], plain)
    assert_norm_is_right(found, exact, x, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("stage", ["forward_sums", "forward_map", "backward_sums", "backward_map"])
def test_kernels_of_a_gpu_compile(stage, dtype):
    try:
        jit.nvrtc()
    except jit.BuildError as error:
        pytest.skip(str(error))
    kernel = _cells.NormKernel(stage, dtype, silu=True)
    assert jit.cuda_binary(kernel, 90)


def test_comparison_with_pytorch_on_first_use(monkeypatch, tmp_path):
    assert all(row.error <= row.tolerance for row in _comparison.compare_norm("cpu"))
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    monkeypatch.setattr(_comparison, "verdicts", {})
    monkeypatch.setattr(_comparison._cuda, "launcher", lambda: SIMULATED)
    wrong = Row("odd", torch.float32, 2.0, 1.0)
    monkeypatch.setattr(_comparison, "compare_norm", lambda device: [wrong])
    assert "differ by 2 times" in _comparison.failure(torch.device("cpu"), _cells.CELLS)
    assert set(_comparison.verdicts) == {(90, "cells")}


def test_the_depthwise_gradient_has_no_kernel_on_a_gpu():
    call = backends.Call(
        torch.device("cuda"), torch.float32, 1, program=_cells.CELLS.name, kernel_on_gpu=False
    )
    assert backends._choose(None, call) == "eager"
    assert "has no kernel for it" in backends._cannot("cuda", call)


# ---- Mistakes -------------------------------------------------------------------------------

MUTANTS = {
    "the mean of the first segment": ("mean += sums[2 * channels * s + c]", "mean += sums[c]"),
    "segments as if they had one mean": ("squares += away * away", "squares += 0 * away"),
    "nothing near which to sum": ("mean[c + l] = sum[l] / count", "mean[c + l] = 0 * sum[l]"),
    "numbers beyond the end": ("count < LANES ? first_lanes(b, count) : b", "b"),
    "channels in another order": (
        "c + 1 < channels ? c + 1 : 0)\n      lanes",
        "c ? 0 : 1)\n      lanes",
    ),
    "what is added forgotten": ("if (adds) y = y", "if (false) y = y"),
    "a gradient that is not centred": ("(u - sum[v] - h", "(u - h"),
    "a gradient along what is normalised": ("- h * product[v]", ""),
    "the derivative of another function": ("(1.f + h * (1.f - s))", "(1.f + h * s)"),
    "a border that is not zero": ("0 <= w && w < width", "w < width"),
    "rows that meet": ("h - AROUND, rows + 2", "h, rows + 2"),
    "a tap left out": ("c - t < SIDE)", "c - t < SIDE - 1)"),
    "biases of one image": ("bias = bias + g[i]", "bias = g[i]"),
}


def problems():
    """Says what the kernels get wrong."""
    found = []
    run = partial(instance_norm, backend="cpu")
    for shape in [(2, 20, 5, 7), (1, 96, 40, 40)]:
        x, added, gradient = (images(*shape, seed=k) for k in range(3))
        for activation in ("silu", "leaky_relu"):
            results = norm_and_gradients(x, activation, added, gradient, run)
            double = (t.double() for t in (x, added, gradient))
            exact = norm_and_gradients(next(double), activation, *double, plain)
            # of 150 000 numbers some few are where leaky_relu jumps
            near = [
                torch.quantile((a - b).abs().flatten()[:100_000], 0.999)
                for a, b in zip(results, exact, strict=True)
            ]
            found += [(shape, activation)] * any(n > 1e-4 for n in near)
    far = images(1, 16, 40, 40) + 1e4
    found += ["far"] * (error(run(far), plain(far.double(), "identity")) > 5e-3)
    case = depthwise_case(2, 20, 90, 70)
    results = depthwise_and_gradients(*case, partial(depthwise_convolution, backend="cpu"))
    exact = depthwise_and_gradients(*(t.double() for t in case), convolved)
    found += ["depthwise"] * any(error(a, b) > 1e-4 for a, b in zip(results, exact, strict=True))
    return found


def mutated(name):
    change, to = MUTANTS[name]
    sources = jit.sources(_cells.CELLS)
    changed = {file: text.replace(change, to) for file, text in sources.items()}
    assert changed != sources, f"the source has changed: {change}"
    return changed


def test_without_a_mistake_nothing_is_found():
    assert problems() == []


@exhaustive
@pytest.mark.parametrize("name", MUTANTS)
def test_every_mistake_is_found(name, monkeypatch, tmp_path):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    monkeypatch.setattr(_cpu, "_libraries", {})
    sources = mutated(name)
    monkeypatch.setattr(jit, "sources", lambda program: sources)
    assert problems()


def test_the_source_still_has_what_the_mistakes_change():
    for name in MUTANTS:
        mutated(name)
