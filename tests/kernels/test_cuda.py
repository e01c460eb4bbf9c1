"""The kernels of the GPU, grid and shuffles and all, run by simulated threads; and its driver."""

import inspect
import os
import struct
import threading
from types import SimpleNamespace

import pytest
import torch
from driver_api import OUT_OF_MEMORY, PRIMARY, DriverAPI
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from kernel_cases import DTYPES, distance, drawn, exact, make, run
from simulator import SimulatedLauncher, SimulationError

from mmpoe.kernels import _cuda, _launch, _philox, jit
from mmpoe.kernels._arguments import SIZE

FEW = SimulatedLauncher()
EXACT = SimulatedLauncher(exact=True)
exhaustive = pytest.mark.skipif(
    not os.environ.get("MMPOE_EXHAUSTIVE"), reason="takes minutes: make test-kernels"
)


@pytest.mark.parametrize("threads", [32, 64, 96, 128])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.slow
def test_any_order_and_number_of_threads(order, threads):
    FEW.driver.order, FEW.threads = order, threads
    try:
        for event in [(4, 8, 8), (3, 5, 7), (1000,)]:
            inputs = make(event=event, subsets=3, common=True, clamp=3.0, noise="seed")
            assert distance(inputs, FEW) < 1e-5
    finally:
        FEW.driver.order, FEW.threads = 0, None


@settings(max_examples=40)
@hypothesis_given(drawn(dtypes=(torch.float32,), experts=(2, 2)), st.integers(0, 9))
@pytest.mark.slow
def test_two_experts(inputs, order):
    FEW.driver.order = order
    try:
        assert distance(inputs, FEW) < 1e-5
    finally:
        FEW.driver.order = 0


@exhaustive
@settings(max_examples=300)
@hypothesis_given(drawn(), st.integers(0, 9))
def test_outputs_and_gradients_equal_the_float64_reference(inputs, order):
    EXACT.driver.order = order
    assert distance(inputs, EXACT) < DTYPES[inputs.loc[0].dtype]


@exhaustive
def test_gradients_that_overflow_half_precision_are_infinite():
    """That of a log scale is of the order of its variance, 2e7 here."""
    inputs = make(experts=1, dtype=torch.float16, prior=False, prior_in="never", share=1.0)
    inputs.log_scale[0].fill_(8.5)
    assert torch.isinf(exact(inputs)[-1].half()).all()
    assert distance(inputs, EXACT) < DTYPES[torch.float16]


@exhaustive
@pytest.mark.parametrize("experts", [8, 9, 16, 17, 32])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_many_experts(experts, dtype):
    inputs = make(experts=experts, event=(4, 70), noise="seed", dtype=dtype, subsets=2)
    assert distance(inputs, EXACT) < DTYPES[dtype]


def test_the_same_noise_for_any_width_and_on_the_cpu():
    inputs = make(event=(50,), subsets=2, noise="seed", share=0.0, prior=False, filler=0.0)
    inputs = inputs._replace(temperature=1.0, clamp=0.0)
    noise = _philox.normal(inputs.seed, 6, 50).view(2, 3, 50)
    for on in (None, FEW):
        z = _launch.forward(inputs, (True, False, False, False), on).z
        torch.testing.assert_close(z.double(), noise, rtol=1e-5, atol=2e-6)


def test_the_driver_receives_the_arguments_and_a_grid_that_covers_them():
    inputs = make(experts=2, rows=3, event=(5, 200), subsets=2, common=True, clamp=3.0)
    on = SimulatedLauncher(threads=64)
    outputs = _launch.forward(inputs, (True,) * 4, on)
    (blocks, threads, shared, packed) = on.driver.launched[0]
    assert len(packed) == SIZE + 48
    fields = struct.unpack("=31q4f12q", packed)
    assert fields[8:9] == (inputs.given.data_ptr(),)
    assert fields[13] == outputs.z.data_ptr()
    experts, subsets, samples, size, channel_size, chunks, length = fields[21:28]
    assert (experts, subsets, samples, size, channel_size) == (2, 2, 3, 1000, 200)
    slots, prior_in, aligned = fields[28:31]
    assert (slots, prior_in, aligned) == (2, 0, 1)
    assert fields[31:35] == (2.0, 0.5, 3.0, pytest.approx(0.8))
    assert fields[35:37] == (inputs.loc[0].data_ptr(), inputs.log_scale[0].data_ptr())
    assert blocks == samples * chunks
    assert length % (threads * 4) == 0
    assert (chunks - 1) * length < size <= chunks * length
    assert shared == 4 * subsets * (1 + threads // 32)


@pytest.mark.parametrize("size", [1, 31, 32, 127, 128, 129, 4096, 100_000])
@pytest.mark.parametrize("samples", [1, 7, 100])
def test_plans_cover_every_element_evenly(size, samples):
    inputs = make(experts=4, rows=1, event=(size,), filler=0.0)
    wide = inputs._replace(
        loc=[t.expand(samples, size) for t in inputs.loc],
        given=inputs.given.expand(1, samples, 4),
    )
    plan = FEW.plan("forward", wide)
    threads = FEW._threads(size, 4)
    assert threads % 32 == 0
    assert 32 <= threads <= 128
    chunks = -(-size // plan.length)
    assert plan.length % (4 * threads) == 0
    assert chunks * samples <= max(samples, 16 * 2 + samples)


@pytest.mark.parametrize("order", ["ascending", "any"])
@pytest.mark.parametrize("threads", [32, 96])
def test_more_pairs_of_a_sample_than_shared_memory_holds(order, threads, monkeypatch):
    inputs = make(experts=3, subsets=40, rows=2, event=(3, 50), order=order, clamp=3.0)
    plain = run(inputs, FEW)
    assert distance(inputs, FEW) < 1e-5
    monkeypatch.setattr(_cuda, "_SLOTS", 7)
    on = SimulatedLauncher(threads=threads)
    for a, b in zip(run(inputs, on), plain, strict=True):
        torch.testing.assert_close(a, b)
    assert {shared for _, _, shared, _ in on.driver.launched} == {4 * 7 * (1 + threads // 32)}


def test_rows_that_are_not_aligned_are_read_one_by_one():
    inputs = make(experts=2, event=(4, 8), rows=4, common=True, clamp=3.0)
    shifted = []
    for t in inputs.loc:
        memory = torch.zeros(t.numel() + 1)
        shifted.append(memory[1:].view_as(t).copy_(t))
    aligned, plain = run(inputs, FEW), run(inputs._replace(loc=shifted), FEW)
    assert all(torch.equal(a, b) for a, b in zip(aligned, plain, strict=True))


def broken(change, to):
    """Returns the sources with a mistake in them."""
    text = jit.sources()["gpoe.cuh"]
    assert text.count(change) == 1, change
    return jit.sources() | {"gpoe.cuh": text.replace(change, to)}


def test_the_simulation_sees_a_barrier_that_not_all_reach():
    sources = broken(
        "if (!a.kl) continue;\n    __syncthreads();",
        "if (!a.kl) continue;\n    if (threadIdx.x) __syncthreads();",
    )
    with pytest.raises(SimulationError, match="waits for one that does not come"):
        run(make(experts=2), SimulatedLauncher(sources=sources, threads=64))


def test_the_simulation_sees_a_packet_that_is_not_aligned():
    sources = broken("a.aligned && start + step <= end", "start + step <= end")
    inputs = make(experts=2, event=(513,), rows=3, filler=0.0)
    with pytest.raises(SimulationError, match="not aligned"):
        run(inputs, SimulatedLauncher(sources=sources))


def test_the_simulation_sees_writes_beyond_shared_memory():
    sources = broken("bits[k] = given_bits", "bits[k + 2] = given_bits")
    with pytest.raises(SimulationError, match="beyond its end"):
        run(make(experts=2), SimulatedLauncher(sources=sources))


def test_missing_is_never_loaded():
    # where nothing of an expert is given its pointer may be anything
    inputs = make(experts=2, subsets=2)
    inputs.given[:, :, 1] = False
    plain = run(inputs, FEW)
    other = inputs._replace(
        loc=[inputs.loc[0], torch.full_like(inputs.loc[1], torch.nan)],
        log_scale=[inputs.log_scale[0], torch.full_like(inputs.loc[1], torch.nan)],
    )
    assert all(torch.equal(a, b) for a, b in zip(run(other, FEW), plain, strict=True))
    assert len(exact(inputs)) == len(plain)


# ---- The driver -----------------------------------------------------------------------------

GPU = torch.device("cuda", 0)


@pytest.fixture
def install(monkeypatch):
    """Puts a driver API in the place of that of CUDA, and says which stream is the current one."""

    def install(api, stream=0):
        current = SimpleNamespace(cuda_stream=stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
        monkeypatch.setattr(_cuda, "_bindings", lambda: api)
        return api

    _cuda._primary_context.cache_clear()
    yield install
    _cuda._primary_context.cache_clear()


def launch(device=GPU):
    driver = _cuda.Driver()
    driver.launch(driver.load(b"binary", "name", device), 1, 32, 0, b"arguments", device)


def in_a_new_thread(function):
    """Runs a function where no context is current; returns what it raises."""
    raised = []

    def run():
        try:
            function()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def test_a_thread_without_a_context_launches_and_is_left_without_one(install):
    api, left = install(DriverAPI()), []
    assert in_a_new_thread(lambda: (launch(), launch(), left.append(list(api.stack)))) == []
    assert api.launched == [(0, PRIMARY)] * 2
    assert api.retained == [0]
    assert left == [[]]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("current", [PRIMARY, PRIMARY + 1, 5])
def test_the_context_of_the_device_is_current_during_a_launch_alone(install, index, current):
    api = install(DriverAPI())
    api.stack.append(current)
    launch(torch.device("cuda", index))
    assert api.launched == [(0, PRIMARY + index)]
    assert api.stack == [current]


@pytest.mark.parametrize("context", [PRIMARY, 5])
def test_a_stream_brings_its_context(install, context):
    api = install(DriverAPI(streams={1234: context}), stream=1234)
    assert in_a_new_thread(launch) == []
    assert api.launched == [(1234, context)]


@pytest.mark.parametrize("stream", [1, 2])
def test_other_names_of_the_default_stream_mean_that_of_the_device(install, stream):
    api = install(DriverAPI(), stream=stream)
    assert in_a_new_thread(launch) == []
    assert api.launched == [(stream, PRIMARY)]


def test_a_launch_that_fails_says_so_and_restores_the_context(install):
    api = install(DriverAPI())
    api.stack.append(5)
    api.refusal = OUT_OF_MEMORY
    with pytest.raises(RuntimeError, match="The CUDA driver says: out of memory"):
        launch()
    assert api.stack == [5]
    assert api.launched == []


@pytest.mark.parametrize("name", [name for name in vars(DriverAPI) if name.startswith("cu")])
def test_the_driver_api_of_the_tests_is_called_as_that_of_cuda(name):
    real = pytest.importorskip("cuda.bindings.driver")
    own = [*inspect.signature(getattr(DriverAPI, name)).parameters][1:]
    assert len(inspect.signature(getattr(real, name)).parameters) == len(own)
    assert int(real.CUfunction(int(real.CUkernel(77)))) == 77


def test_a_kernel_is_loaded_before_a_graph_is_captured(install, monkeypatch):
    install(DriverAPI())
    special = jit.Specialisation("forward", torch.float32, 2)
    monkeypatch.setattr(jit, "cuda_binary", lambda special, architecture: b"binary")
    monkeypatch.setattr(_cuda.Driver, "architecture", lambda self, device: 90)
    monkeypatch.setattr(_cuda.Driver, "is_capturing", lambda self: True)
    launcher = _cuda.Launcher(_cuda.Driver())
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
        launcher.function(special, GPU)
    monkeypatch.setattr(_cuda.Driver, "is_capturing", lambda self: False)
    loaded = launcher.function(special, GPU)
    monkeypatch.setattr(_cuda.Driver, "is_capturing", lambda self: True)
    assert launcher.function(special, GPU) is loaded
