"""Which backend runs, and that nothing about it is silent."""

import logging

import pytest
import torch
from kernel_cases import make, prior_of

from mmpoe import kernels
from mmpoe.kernels import _cpu, _cuda, gaussian_poe, jit, last_backend, status, use_backend


@pytest.fixture
def no_compiler(monkeypatch):
    """A machine without a compiler, where nothing has been loaded yet."""
    monkeypatch.setattr(_cpu, "_libraries", {})
    monkeypatch.setenv("CXX", "no-such-compiler")


def fuse(experts=2, rows=2, subsets=(), dtype=torch.float32, **options):
    loc = [torch.zeros(rows, 3, dtype=dtype)] * experts
    given = torch.ones(*subsets, rows, experts, dtype=torch.bool)
    return gaussian_poe(loc, loc, given, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.slow
def test_tensors_on_the_cpu_run_the_fused_kernels(dtype):
    assert status()["cpu"] == "available"
    fuse(dtype=dtype)
    assert last_backend() == "cpu"


@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.float64}, {"experts": 33}, {"rows": 0}],
)
def test_what_the_kernels_do_not_take_runs_in_pytorch(options):
    fuse(**options)
    assert last_backend() == "eager"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float64}, r"'cpu' asked for by 'backend' computes in float32, .*float64"),
        ({"experts": 33}, "'cpu' asked for by 'backend' has a mask of 32 bits, .* 33 experts"),
    ],
)
def test_a_backend_that_is_asked_for_does_not_fall_back(options, message):
    with pytest.raises(RuntimeError, match=message):
        fuse(**options, backend="cpu")


def test_a_backend_of_another_device_is_an_error():
    meta = [torch.zeros(2, 3, device="meta")]
    given = torch.ones(2, 1, dtype=torch.bool, device="meta")
    with pytest.raises(
        RuntimeError, match=r"'cpu' .* runs on tensors on cpu, but they are on meta"
    ):
        gaussian_poe(meta, meta, given, backend="cpu")


FORCED = [{"backend": "cpu"}, "use_backend", "MMPOE_BACKEND"]


@pytest.fixture(params=FORCED, ids=str)
def forced(request, monkeypatch):
    """The ways to ask for a backend: yields what to give to the call, and what errors name."""
    if request.param == "MMPOE_BACKEND":
        monkeypatch.setenv("MMPOE_BACKEND", "cpu")
        yield {}, "MMPOE_BACKEND"
    elif request.param == "use_backend":
        with use_backend("cpu"):
            yield {}, "use_backend"
    else:
        yield request.param, "backend"


def test_what_only_pytorch_differentiates_is_an_error_of_a_backend_that_is_asked_for(forced):
    options, source = forced
    noise = torch.zeros(2, 3, requires_grad=True)
    message = f"'cpu' asked for by '{source}' does not compute a gradient of 'noise': 'eager' does"
    with pytest.raises(RuntimeError, match=message):
        fuse(noise=noise, **options)
    with torch.no_grad():  # then there is none to compute
        fuse(noise=noise, **options)
    assert last_backend() == "cpu"

    with pytest.raises(RuntimeError, match=f"'{source}' does not run inside transforms of torch"):
        torch.vmap(lambda x: fuse(noise=x, **options).z)(torch.zeros(4, 2, 3))
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(RuntimeError, match=f"'{source}' does not compute forward-mode derivatives"),
    ):
        fuse(**options)


@pytest.mark.parametrize("rows", [(0, 3), (2, 0)])
def test_a_backend_that_is_asked_for_has_nothing_to_run_on_an_empty_batch(forced, rows):
    options, _ = forced
    rows, size = rows
    one = [torch.zeros(rows, size)]
    q = gaussian_poe(one, one, torch.ones(rows, 1, dtype=torch.bool), **options)
    assert last_backend() == "eager"
    assert q.z.shape == (rows, size)
    assert torch.equal(q.kl, torch.zeros(rows))


def test_the_call_then_the_block_then_the_environment_decide(monkeypatch):
    monkeypatch.setenv("MMPOE_BACKEND", "eager")
    fuse()
    assert last_backend() == "eager"
    with use_backend("cpu"):
        fuse()
        assert last_backend() == "cpu"
        fuse(backend="eager")
        assert last_backend() == "eager"
    monkeypatch.setenv("MMPOE_BACKEND", "")
    fuse()
    assert last_backend() == "cpu"


def test_names_are_checked(monkeypatch):
    with pytest.raises(ValueError, match="'backend' should be one of cuda, cpu, eager"):
        fuse(backend="tpu")
    with pytest.raises(ValueError, match=r"'name' should be one of .* but is 'tpu'"):
        use_backend("tpu")
    monkeypatch.setenv("MMPOE_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"'MMPOE_BACKEND' should be one of .* but is 'gpu'"):
        fuse()
    with use_backend("eager"):
        fuse()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said():
    assert status()["cuda"] == "not available: PyTorch sees no CUDA device"
    with pytest.raises(RuntimeError, match=r"'cuda' .* not available: PyTorch sees no CUDA"):
        use_backend("cuda")


def test_other_reasons_against_a_gpu_are_said(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "AMD" in _cuda.unavailable()
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def missing():
        raise jit.BuildError("no NVRTC: it is not installed")

    monkeypatch.setattr(jit, "nvrtc", missing)
    assert _cuda.unavailable() == "no NVRTC: it is not installed"


@pytest.mark.fault(53)
def test_without_a_compiler_pytorch_runs_and_that_is_said_once(no_compiler, caplog):
    inputs = make()
    arguments = (inputs.loc, inputs.log_scale, inputs.given[0], prior_of(inputs))
    with caplog.at_level(logging.INFO, logger="mmpoe.kernels"):
        q = gaussian_poe(*arguments, noise=inputs.noise[0])
        assert last_backend() == "eager"
        gaussian_poe(*arguments, noise=inputs.noise[0])
    assert len(caplog.records) == 1
    assert "no C++ compiler: 'no-such-compiler' is not on the PATH" in caplog.text
    expected = gaussian_poe(*arguments, noise=inputs.noise[0], backend="eager")
    assert all(torch.equal(a, b) for a, b in zip(q, expected, strict=True))
    assert "no C++ compiler" in status()["cpu"]
    with pytest.raises(RuntimeError, match=r"'cpu' .* not available: no C\+\+ compiler"):
        use_backend("cpu")


def test_a_compiler_that_fails_is_not_asked_again(monkeypatch, tmp_path, caplog):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho called >> \"$0.log\"\necho 'error: no luck' >&2\nexit 3\n")
    broken.chmod(0o700)
    monkeypatch.setattr(_cpu, "_libraries", {})
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    for _ in range(3):
        fuse()
        assert last_backend() == "eager"
    assert (tmp_path / "broken.log").read_text().count("called") == 1
    assert status()["cpu"].endswith("broken failed with 3: error: no luck")
    with pytest.raises(RuntimeError, match="failed with 3: error: no luck"):
        fuse(backend="cpu")


def test_build_says_what_will_run():
    assert kernels.build(4) == "cpu"
    assert kernels.build(4, torch.float64) == "eager"
    with use_backend("eager"):
        assert kernels.build(4) == "eager"


def test_each_thread_has_its_own_block():
    import threading

    found = []
    with use_backend("eager"):
        thread = threading.Thread(target=lambda: found.append((fuse(), last_backend())))
        thread.start()
        thread.join()
    assert found[0][1] == "cpu"
