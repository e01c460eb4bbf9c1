"""Which backend runs, and that nothing about it is silent."""

import logging
import subprocess
import sys

import pytest
import torch
from kernel_cases import make, prior_of

from mmpoe import kernels
from mmpoe.kernels import (
    _cache,
    _cpu,
    _cuda,
    gaussian_poe,
    jit,
    last_backend,
    status,
    use_backend,
)


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """A machine where nothing has been compiled, loaded or said yet."""
    monkeypatch.setattr(_cpu, "_libraries", {})
    monkeypatch.setattr(_cache, "_said", set())
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_compiler(unbuilt, monkeypatch):
    """A machine without a compiler."""
    monkeypatch.setenv("CXX", "no-such-compiler")


def set_compiler(monkeypatch, tmp_path, script):
    compiler = tmp_path / "compiler"
    compiler.write_text(script)
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    return compiler


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


class Fusion(torch.nn.Module):
    """The operation as a module, to record in programs."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, loc, log_scale, given):
        return gaussian_poe([loc], [log_scale], given, sample=False, **self.options).loc


def arguments(rows):
    generator = torch.Generator().manual_seed(rows)
    loc, log_scale = torch.randn(2, rows, 3, generator=generator)
    return loc, log_scale, torch.arange(rows)[:, None] % 2 == 0


def export(strict, **options):
    rows = {0: torch.export.Dim.DYNAMIC}
    shapes = (rows, rows, rows)
    return torch.export.export(
        Fusion(**options), arguments(4), dynamic_shapes=shapes, strict=strict
    )


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_consists_of_operators_of_pytorch(strict):
    program = export(strict)
    assert not any("mmpoe" in name for name in operators(program))
    torch.testing.assert_close(program.module()(*arguments(7)), Fusion()(*arguments(7)))
    assert last_backend() == "cpu"  # what runs here is fused all the same


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_a_backend_that_is_asked_for_is_kept_in_an_exported_program(forced, strict):
    program = export(strict, **forced[0])
    assert "mmpoe.gaussian_poe.default" in operators(program)
    torch.testing.assert_close(program.module()(*arguments(7)), Fusion()(*arguments(7)))


LOADED = """
import sys, torch
from mmpoe.kernels import gaussian_poe
try:
    torch.export.load(sys.argv[1])
except Exception as error:
    print("not registered:", error)
one = torch.ones(2, 3)
gaussian_poe([one], [one], torch.ones(2, 1).bool(), backend="cpu")
print(torch.export.load(sys.argv[1]).module()(one, one, torch.ones(2, 1).bool()))
"""


@pytest.mark.slow
def test_a_program_with_the_fused_operation_is_loaded_where_it_is_registered(tmp_path):
    torch.export.save(export(False, backend="cpu"), tmp_path / "program.pt2")
    command = [sys.executable, "-W", "ignore", "-c", LOADED, str(tmp_path / "program.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    one = torch.ones(2, 3)
    before, after = done.stdout.rsplit("tensor", 1)
    assert before.startswith("not registered: ")
    assert f"tensor{after.rstrip()}" == str(Fusion()(one, one, torch.ones(2, 1).bool()))


@pytest.mark.slow
def test_a_backend_that_is_asked_for_is_an_error_of_an_export_to_onnx():
    pytest.importorskip("onnxscript")
    with use_backend("cpu"), pytest.raises(Exception, match="Failed to export") as caught:
        torch.onnx.export(Fusion().eval(), arguments(4), dynamo=True, verbose=False)
    message = "'cpu' asked for by 'use_backend' is no operator of ONNX: 'eager' is made of them"
    assert message in str(caught.value)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_backend_that_is_asked_for_is_an_error_of_a_trace(forced):
    message = f"'cpu' asked for by '{forced[1]}' cannot be recorded by torch.jit.trace: 'eager'"
    with pytest.raises(RuntimeError, match=message):
        torch.jit.trace(Fusion(**forced[0]), arguments(4))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_records_operators_of_pytorch():
    traced = torch.jit.trace(Fusion(), arguments(4))
    torch.testing.assert_close(traced(*arguments(7)), Fusion()(*arguments(7)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float64}, "computes in float32, but is given torch.float64"),
        ({"experts": 33}, "has a mask of 32 bits, but is given 33 experts"),
    ],
)
def test_an_empty_batch_is_checked_as_others_are(forced, options, message):
    more, source = forced
    with pytest.raises(RuntimeError, match=f"'cpu' asked for by '{source}' {message}"):
        fuse(rows=0, **options, **more)


def test_a_name_is_checked_for_an_empty_batch_too(monkeypatch):
    with pytest.raises(ValueError, match="'backend' should be one of"):
        fuse(rows=0, backend="tpu")
    monkeypatch.setenv("MMPOE_BACKEND", "gpu")
    with pytest.raises(ValueError, match="'MMPOE_BACKEND' should be one of"):
        fuse(rows=0)
    monkeypatch.setenv("MMPOE_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="'cuda' asked for by 'MMPOE_BACKEND'"):
        fuse(rows=0)


def test_an_empty_batch_compiles_nothing(no_compiler, caplog):
    fuse(rows=0)
    fuse(rows=0, backend="cpu")
    assert not caplog.records


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


def test_a_compiler_that_fails_is_not_asked_again(unbuilt, monkeypatch, tmp_path):
    script = "#!/bin/sh\necho called >> \"$0.log\"\necho 'error: no luck' >&2\nexit 3\n"
    set_compiler(monkeypatch, tmp_path, script)
    for _ in range(3):
        fuse()
        assert last_backend() == "eager"
    assert (tmp_path / "compiler.log").read_text().count("called") == 1
    assert status()["cpu"].endswith("compiler failed with 3: error: no luck")
    with pytest.raises(RuntimeError, match="failed with 3: error: no luck"):
        fuse(backend="cpu")


def no_temporary_folder(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(jit.tempfile, "TemporaryDirectory", refuse)


def full_disk(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jit.Path, "write_text", refuse)


def compiler_that_hangs(monkeypatch, tmp_path):
    set_compiler(monkeypatch, tmp_path, "#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(jit, "_PATIENCE", 0.2)


def compiler_that_is_killed(monkeypatch, tmp_path):
    set_compiler(monkeypatch, tmp_path, "#!/bin/sh\nkill -9 $$\n")


def compiler_that_is_none(monkeypatch, tmp_path):
    set_compiler(monkeypatch, tmp_path, "no program")


def compiler_without_permission(monkeypatch, tmp_path):
    set_compiler(monkeypatch, tmp_path, "#!/bin/sh\n").chmod(0o600)


def compiler_that_cannot_be_read(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "g++ 'without an end")


FAULTS = [
    (no_temporary_folder, "No usable temporary directory found (set TMPDIR to a folder that"),
    (full_disk, "No space left on device (set TMPDIR to a folder that can be written and has"),
    (compiler_that_hangs, "compiler did not end within 0.2 s (set CXX)"),
    (compiler_that_is_killed, "compiler was ended by signal 9"),
    (compiler_that_is_none, "compiler cannot be run: [Errno 8] Exec format error"),
    (compiler_without_permission, "no C++ compiler"),
    (compiler_that_cannot_be_read, "CXX cannot be read as a command: No closing quotation"),
]


@pytest.mark.fault(53, simulated=True)
@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_pytorch_takes_over_where_kernels_cannot_be_built_and_that_is_said_once(
    unbuilt, monkeypatch, tmp_path, caplog, fault, reason
):
    expected = fuse(sample=False, backend="eager")
    fault(monkeypatch, tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        q = fuse(sample=False, dtype=dtype)
        assert last_backend() == "eager"
    assert all(torch.equal(a, b) for a, b in zip(q, expected, strict=True))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()
    assert "PyTorch runs instead; MMPOE_BACKEND=eager asks for that" in record.getMessage()


@pytest.mark.fault(53, simulated=True)
@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_where_kernels_cannot_be_built_a_backend_that_is_asked_for_is_an_error(
    unbuilt, monkeypatch, tmp_path, fault, reason
):
    fault(monkeypatch, tmp_path)
    with pytest.raises(RuntimeError, match=r"'cpu' .* is not available: ") as caught:
        fuse(backend="cpu")
    assert reason in str(caught.value)


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
