"""On a GPU, for those who have one: ``python -m pytest tests/kernels/test_gpu.py``."""

import pytest
import torch
from kernel_cases import DTYPES, distance, make, prior_of
from torch.utils.checkpoint import checkpoint

from mmpoe import kernels
from mmpoe.kernels import _comparison, _launch, gaussian_poe
from mmpoe.kernels._arguments import gather

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


def move(inputs, device="cuda"):
    moved = [None if t is None else t.to(device) for t in inputs.tensors]
    return gather(moved, inputs.numbers)


def fuse(inputs, **options):
    arguments = (inputs.loc, inputs.log_scale, inputs.given, prior_of(inputs))
    return gaussian_poe(*arguments, common_noise=inputs.common_noise, **options)


def test_it_is_available_and_chosen():
    assert kernels.status()["cuda"] == "available"
    fuse(move(make()))
    assert kernels.last_backend() == "cuda"


def test_comparison():
    for row in _comparison.compare("cuda"):
        assert row.error < row.tolerance, row


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("event", [(7,), (8, 64, 64), (3, 5, 7)])
@pytest.mark.parametrize("experts", [1, 4, 8, 12, 32])
def test_outputs_and_gradients_equal_the_float64_reference(dtype, event, experts):
    for noise in ("tensor", "seed"):
        inputs = make(experts=experts, event=event, subsets=3, dtype=dtype, noise=noise)
        assert distance(move(inputs)) < 2 * DTYPES[dtype]


def test_the_same_noise_as_on_the_cpu():
    inputs = make(event=(8, 40), noise="seed", prior=False, share=0.0, filler=0.0)
    want = (True, False, False, False)
    on_cpu, on_gpu = (_launch.forward(i, want).z for i in (inputs, move(inputs)))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)


def test_a_stream_of_its_own():
    inputs = move(make(event=(8, 64, 64)))
    noise = inputs.noise
    expected = fuse(inputs, noise=noise)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = fuse(inputs, noise=noise)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_cuda_graph():
    inputs = move(make(event=(8, 64)))
    kernels.build(4, device="cuda")
    fuse(inputs, noise=inputs.noise)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fuse(inputs, noise=inputs.noise)
    inputs.noise.normal_()
    graph.replay()
    expected = fuse(inputs, noise=inputs.noise)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_checkpointing_repeats_every_bit():
    inputs = move(make(event=(8, 64), share=1.0))
    leaves = [t.requires_grad_() for t in (*inputs.loc, *inputs.log_scale)]
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        run = lambda *t: fuse(inputs._replace(loc=[*t[:4]], log_scale=[*t[4:]])).z
        z = checkpoint(run, *leaves, use_reentrant=False) if checkpointed else run(*leaves)
        results.append(torch.autograd.grad(z.sin().sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
