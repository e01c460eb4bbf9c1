"""On a GPU, for those who have one: ``python -m pytest tests/kernels/test_gpu.py``."""

import threading

import pytest
import torch
from kernel_cases import DTYPES, distance, make, prior_of
from torch.utils.checkpoint import checkpoint

from mmpoe import kernels
from mmpoe.kernels import _comparison, _cuda, _launch, gaussian_poe
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


def test_a_cuda_graph_does_not_compile(monkeypatch):
    monkeypatch.setattr(_cuda.launcher(), "_functions", {})
    inputs = move(make(event=(8, 64)))
    stream = torch.cuda.Stream()
    with (
        pytest.raises(RuntimeError, match="while a CUDA graph is captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream),
    ):
        fuse(inputs, noise=inputs.noise)


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.device("cuda")])
def test_the_first_call_may_be_anywhere(monkeypatch, tmp_path, mode):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    monkeypatch.setattr(_comparison, "verdicts", {})
    inputs = move(make())
    with mode():
        fuse(inputs)
    assert kernels.last_backend() == "cuda"


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


def in_a_new_thread(function):
    """Runs a function where no context is current yet, and returns what it returns or raises."""
    found = []

    def run():
        try:
            found.append(function())
        except Exception as error:  # it would end with the thread
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def current_context():
    driver = _cuda._bindings()
    return int(_cuda._check(driver.cuCtxGetCurrent()))


def test_a_thread_without_a_context():
    inputs = move(make(event=(8, 64), noise="seed"))
    want = (True, True, True, True)
    expected = _launch.forward(inputs, want)
    for _ in range(2):
        found = in_a_new_thread(lambda: _launch.forward(inputs, want))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_launch_needs_no_context_and_leaves_none():
    inputs = move(make(event=(8, 64), noise="seed"))
    want = (True, True, True, False)  # without the divergence, which PyTorch adds up
    expected = _launch.forward(inputs, want)
    plan, packed = _cuda.launcher().plan("forward", inputs), []

    class Later:
        """Keeps the arguments of a launch."""

        def plan(self, direction, inputs):
            return plan._replace(launch=packed.append)

    found = _launch.forward(inputs, want, Later())

    def launch():
        before = current_context()
        plan.launch(*packed)
        return before, current_context()

    assert in_a_new_thread(launch) == (0, 0)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))


def test_backward_in_threads():
    inputs = move(make(event=(8, 64), share=1.0))

    def gradients():
        leaves = [t.detach().clone().requires_grad_() for t in (*inputs.loc, *inputs.log_scale)]
        q = fuse(inputs._replace(loc=leaves[:4], log_scale=leaves[4:]), noise=inputs.noise)
        q.z.sin().sum().backward()
        return [t.grad for t in leaves]

    expected = gradients()
    for _ in range(2):
        found = in_a_new_thread(gradients)
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_the_other_gpu_while_the_first_is_current():
    inputs = make(event=(8, 64))
    expected = fuse(move(inputs), noise=move(inputs).noise)
    there = move(inputs, "cuda:1")
    found = fuse(there, noise=there.noise)
    torch.cuda.synchronize("cuda:1")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu())


def test_a_backend_that_is_asked_for_is_a_promise():
    inputs = move(make(event=(8, 64)))
    fuse(inputs, backend="cuda")
    assert kernels.last_backend() == "cuda"
    with pytest.raises(RuntimeError, match=r"'cpu' .* runs on tensors on cpu"):
        fuse(inputs, backend="cpu")


def test_what_the_cache_keeps_of_a_comparison(monkeypatch, tmp_path):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    monkeypatch.setattr(_comparison, "verdicts", {})
    device = torch.device("cuda", 0)

    def full(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(_comparison, "compare", full)
        assert "out of memory" in _comparison.failure(device)
    assert list((tmp_path / "kernels").iterdir()) == []
    _comparison.verdicts.clear()
    assert _comparison.failure(device) is None
    (kept,) = (tmp_path / "kernels").glob("gpoe-comparison-*.txt")
    assert kept.read_text() == "right"


def test_an_exported_program():
    class Fusion(torch.nn.Module):
        def forward(self, loc, log_scale, given):
            return gaussian_poe([loc], [log_scale], given, sample=False).loc

    one, given = torch.randn(4, 3, device="cuda"), torch.ones(4, 1, device="cuda").bool()
    program = torch.export.export(Fusion(), (one, one, given))
    assert not any("mmpoe" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(one, one, given), Fusion()(one, one, given))
    assert kernels.last_backend() == "cuda"
