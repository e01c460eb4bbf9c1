"""The operation inside PyTorch: operators, derivatives of any order, compilation, transforms."""

import warnings

import pytest
import torch
from kernel_cases import gradients_for, make, needed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmpoe.kernels import _launch, _operators, gaussian_poe, last_backend, use_backend


@pytest.fixture(params=[None, "any"], ids=["subsets", "pairs"])
def inputs(request):
    return make(experts=3, subsets=2, rows=3, event=(4, 5), common=True, order=request.param)


def leaves(inputs):
    tensors = [*inputs.loc, *inputs.log_scale, *inputs[4:6], inputs.common_noise]
    return [torch.nan_to_num(t).requires_grad_() for t in tensors if t is not None]


def fuse(inputs, tensors, backend=None, noise=True):
    return gaussian_poe(
        tensors[:3],
        tensors[3:6],
        inputs.given,
        tuple(tensors[6:8]),
        rows=inputs.rows,
        noise=inputs.noise if noise else None,
        common_noise=tensors[8],
        backend=backend,
    )


def total(q):
    return q.z.sin().sum() + q.kl.sum() + q.log_scale.square().sum() + q.loc.cos().sum()


def assert_near(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


def test_gradients_equal_the_eager_backend(inputs):
    tensors = leaves(inputs)
    results = [
        torch.autograd.grad(total(fuse(inputs, tensors, backend)), tensors)
        for backend in ("cpu", "eager")
    ]
    assert_near(*results)


def test_gradients_of_gradients(inputs):
    tensors = leaves(inputs)

    def second(backend):
        first = torch.autograd.grad(
            total(fuse(inputs, tensors, backend)), tensors, create_graph=True
        )
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    assert_near(second("cpu"), second("eager"))


def test_gradients_of_gradients_with_noise_of_the_kernel(inputs):
    tensors = leaves(inputs)
    z = fuse(inputs, tensors, noise=False).z.sin().sum()
    plain = torch.autograd.grad(z, tensors, retain_graph=True)
    differentiable = torch.autograd.grad(z, tensors, create_graph=True)
    assert_near(differentiable, plain)
    again = torch.autograd.grad(sum(g.square().sum() for g in differentiable), tensors)
    assert all(g.isfinite().all() for g in again)


def test_one_tensor_in_two_places_gets_both_gradients(inputs):
    x = torch.randn(3, 4, 5, requires_grad=True)

    def run(a, b):
        given = inputs.given[..., :2]
        return gaussian_poe([a, b], [a, b], given, rows=inputs.rows, noise=inputs.noise)

    same = torch.autograd.grad(total(run(x, x)), x)[0]
    same_again = torch.autograd.grad(total(run(x, x)), x, create_graph=True)[0]
    copies = [x.detach().clone().requires_grad_() for _ in range(2)]
    apart = torch.autograd.grad(total(run(*copies)), copies)
    torch.testing.assert_close(same, apart[0] + apart[1])
    torch.testing.assert_close(same_again, same, rtol=1e-4, atol=1e-4)


def test_inputs_that_need_no_gradient_get_none(inputs):
    tensors = leaves(inputs)
    for k in (0, 4, 7):
        tensors[k].requires_grad_(False)
    total(fuse(inputs, tensors)).backward()
    assert [t.grad is None for t in tensors] == [k in (0, 4, 7) for k in range(9)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("noise", [True, False])
def test_compiles_without_a_graph_break(inputs, noise):
    tensors = leaves(inputs)
    compiled = torch.compile(
        lambda *t: fuse(inputs, t, noise=noise), fullgraph=True, backend="aot_eager"
    )
    torch.manual_seed(4)
    q = compiled(*tensors)
    torch.manual_seed(4)
    expected = fuse(inputs, tensors, noise=noise)
    assert last_backend() == "cpu"
    for a, b in zip(q, expected, strict=True):
        assert torch.equal(a, b)
    found = torch.autograd.grad(total(q), tensors)
    assert_near(found, torch.autograd.grad(total(expected), tensors))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_backend_of_what_is_compiled_is_chosen_when_it_is_traced(inputs):
    tensors = leaves(inputs)
    compiled = torch.compile(lambda *t: fuse(inputs, t), fullgraph=True, backend="aot_eager")
    with use_backend("eager"):
        compiled(*tensors)
    q, expected = compiled(*tensors), fuse(inputs, tensors, backend="eager")
    for a, b in zip(q, expected, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(q.z, fuse(inputs, tensors, backend="cpu").z)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointing_repeats_every_bit(inputs, reentrant):
    tensors = leaves(inputs)
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(5)
        if checkpointed:
            q = checkpoint(
                lambda *t: tuple(fuse(inputs, t, noise=False)), *tensors, use_reentrant=reentrant
            )
        else:
            q = tuple(fuse(inputs, tensors, noise=False))
        for t in tensors:
            t.grad = None
        (q[0].sin().sum() + q[3].sum()).backward()
        gradients.append([t.grad for t in tensors])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_functional_transforms_run_the_reference(inputs):
    tensors = [t.detach() for t in leaves(inputs)]

    def kl(x):
        return fuse(inputs, [x, *tensors[1:]]).kl.sum()

    gradient = torch.func.grad(kl)(tensors[0])
    assert last_backend() == "eager"
    x = tensors[0].clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(kl(x), x)[0], rtol=1e-4, atol=1e-5)
    batch = torch.stack([tensors[0], tensors[0] + 1])
    torch.testing.assert_close(torch.vmap(kl)(batch), torch.stack([kl(b) for b in batch]))


def test_forward_derivatives_run_the_reference(inputs):
    tensors = [t.detach() for t in leaves(inputs)]
    tangent = torch.randn(3, 4, 5)
    with warnings.catch_warnings():  # PyTorch scripts its own decompositions on first use
        warnings.simplefilter("ignore")
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(tensors[0], tangent)
            kl = fuse(inputs, [dual, *tensors[1:]]).kl.sum()
            found = torch.autograd.forward_ad.unpack_dual(kl).tangent
    x = tensors[0].clone().requires_grad_()
    gradient = torch.autograd.grad(fuse(inputs, [x, *tensors[1:]]).kl.sum(), x)[0]
    torch.testing.assert_close(found, (gradient * tangent).sum(), rtol=1e-4, atol=1e-4)


def test_noise_that_wants_a_gradient_gets_it(inputs):
    tensors = [t.detach() for t in leaves(inputs)]
    noise = inputs.noise.clone().requires_grad_()
    z = fuse(inputs._replace(noise=noise), tensors).z
    assert last_backend() == "eager"
    assert torch.autograd.grad(z.sum(), noise)[0].abs().min() > 0


def test_shapes_without_data(inputs):
    tensors = [t.detach() for t in leaves(inputs)]
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in tensors]
        like = inputs._replace(
            given=mode.from_tensor(inputs.given),
            rows=None if inputs.rows is None else mode.from_tensor(inputs.rows),
            noise=mode.from_tensor(inputs.noise),
        )
        q = fuse(like, fake)
    pairs = tuple(inputs.given.shape[:-1])
    assert [tuple(t.shape) for t in q] == [(*pairs, 4, 5)] * 3 + [pairs]
    meta = [t.to("meta") for t in tensors]
    on_meta = inputs._replace(
        given=inputs.given.to("meta"), rows=None if inputs.rows is None else inputs.rows.to("meta")
    )
    assert fuse(on_meta, meta, noise=False).z.shape == (*pairs, 4, 5)


def test_modes_see_the_operator(inputs):
    tensors = [t.detach() for t in leaves(inputs)]
    with FlopCounterMode(display=False):  # any dispatch mode
        q = fuse(inputs, tensors)
    for a, b in zip(q, fuse(inputs, tensors), strict=True):
        assert torch.equal(a, b)


def test_autocast_leaves_it_alone(inputs):
    tensors = leaves(inputs)
    plain = fuse(inputs, tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = fuse(inputs, tensors)
    assert all(torch.equal(a, b) for a, b in zip(q, plain, strict=True))
    half = [t.detach().bfloat16() for t in tensors[:8]]
    q = fuse(inputs, [*half, tensors[8]])
    assert q.z.dtype == torch.bfloat16
    assert q.kl.dtype == torch.float32


def operator_arguments(inputs, requires_grad):
    tensors = [t.detach().requires_grad_(requires_grad) for t in leaves(inputs)]
    others = (inputs.noise, inputs.seed, *(tensors[8:] or [None]), *inputs.numbers)
    return (tensors[:3], tensors[3:6], inputs.given, inputs.rows, tensors[6], tensors[7], *others)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({}, [True] * 4),
        ({"noise": None, "seed": torch.tensor(5), "clamp": 3.0}, [True, False, False, True]),
        ({"noise": None, "power": 1}, [False, True, True, True]),
        ({"prior_in": "never", "common_noise": None}, [True] * 4),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of PyTorch's own checks
def test_opcheck(inputs, change, want):
    inputs = inputs._replace(**change)
    for requires_grad in (False, True):
        arguments = operator_arguments(inputs, requires_grad)
        torch.library.opcheck(torch.ops.mmpoe.gaussian_poe.default, (*arguments, want))
    outputs = _launch.forward(inputs, (True,) * 4)
    gradients = [g if w else None for g, w in zip(gradients_for(outputs), want, strict=True)]
    arguments = operator_arguments(inputs, requires_grad=False)
    operator = torch.ops.mmpoe.gaussian_poe_backward.default
    torch.library.opcheck(operator, (*arguments, *gradients, needed(inputs)))


def test_the_operator_is_differentiated_again_where_gradients_are_needed(inputs):
    tensors = leaves(inputs)
    for k in (0, 4, 7):
        tensors[k].requires_grad_(False)
    needed = [t for t in tensors if t.requires_grad]

    def second(backend):
        q = fuse(inputs, tensors, backend)
        first = torch.autograd.grad(total(q), needed, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), needed)

    with FlopCounterMode(display=False):  # any dispatch mode
        found = second("cpu")
    assert_near(found, second("eager"))


def test_the_operator_computes_what_the_function_does(inputs):
    with use_backend("cpu"):
        tensors = leaves(inputs)
        found = torch.ops.mmpoe.gaussian_poe(
            *operator_arguments(inputs, requires_grad=False), [True] * 4
        )
        expected = _operators.run(
            inputs._replace(
                loc=tensors[:3], log_scale=tensors[3:6], common_noise=tensors[8].detach()
            ),
            [True] * 4,
        )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert inputs.common_noise is not None
