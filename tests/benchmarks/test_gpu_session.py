"""The session on a GPU: a dry run of all of it, and what happens to a stage that goes wrong."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.bench_poe import EXPERTS
from benchmarks.gpu import build, facts, memory, rivals, session
from benchmarks.gpu.device import Device, attempted, check
from benchmarks.gpu.report import markdown
from benchmarks.gpu.session import Session
from benchmarks.gpu.stages import STAGES, Stage
from benchmarks.gpu.waits import count_waits
from mmpoe.kernels import gaussian_poe

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CPU = Device(dry=True)


# everything, tiny


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """Runs all stages; returns the process, the folder, and the results."""
    folder = tmp_path_factory.mktemp("gpu")
    done = run_session("--out", str(folder), "--dry")
    return done, folder, json.loads((folder / "gpu.json").read_text())


def run_session(*arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_every_stage_runs_dry(dry):
    done, folder, content = dry
    assert done.returncode == 0, done.stdout + done.stderr
    records = content["stages"]
    assert [*records] == [stage.name for stage in STAGES]
    assert {record["state"] for record in records.values()} == {"done"}
    for stage in STAGES:
        assert records[stage.name]["rows"] or stage.command
    assert (folder / "gpu.md").read_text() == markdown(content)
    assert "A dry run on a CPU" in (folder / "gpu.md").read_text()
    assert len([*folder.iterdir()]) == 3


@pytest.mark.slow
def test_all_ways_compute_the_same_in_a_dry_run(dry):
    """Triton runs in its interpreter; errors were checked by the stage, which says them."""
    rows = [*dry[2]["stages"]["kernels"]["rows"], *dry[2]["stages"]["compiled"]["rows"]]
    ways = {row["way"] for row in rows}
    assert ways == {"fused", "eager", "minimal", "triton", "minimal compiled", "eager compiled"}
    assert all("failed" not in row for row in rows)
    for row in rows:
        assert float(row["error"]) < (1e-5 if row["dtype"] == "float32" else 1e-2)


@pytest.mark.slow
def test_finished_stages_do_not_run_again(dry):
    _, folder, before = dry
    started = time.monotonic()
    done = run_session("--out", str(folder), "--dry")
    assert done.returncode == 0
    assert done.stdout.count("done before") == len(STAGES)
    assert json.loads((folder / "gpu.json").read_text())["stages"] == before["stages"]
    assert time.monotonic() - started < 60


# stages that go wrong


@pytest.fixture
def impatient(monkeypatch):
    """Gives a dry run no more time than another one."""
    monkeypatch.setattr(session, "DRY_PATIENCE", 1)


def python(name, code, limit=60.0, **options):
    return Stage(name, limit, f"About {name}.", command=("-c", code), **options)


def test_a_stage_that_fails_is_recorded_and_the_next_goes_on(tmp_path, capsys):
    stages = [
        python("bad", "print('before'); raise RuntimeError('the reason')"),
        python("mute", "print('nothing of that')", says=("passed", "passed")),
        python("good", "print('2 passed')", says=("passed", "passed")),
    ]
    assert not Session(tmp_path, dry=True).run(stages)
    records = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert [r["state"] for r in records.values()] == ["failed", "failed", "done"]
    assert "RuntimeError: the reason" in records["bad"]["output"]
    assert "before" in records["bad"]["output"]
    assert records["mute"]["output"][-1] == "(The output should hold 'passed'.)"
    assert "the reason" in capsys.readouterr().out
    assert "RuntimeError: the reason" in (tmp_path / "gpu.log").read_text()


@pytest.mark.slow
def test_a_stage_that_takes_too_long_is_killed_with_all_that_it_started(tmp_path, impatient):
    pids = tmp_path / "pids"
    child = "import time; time.sleep(60)"
    code = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"open({str(pids)!r}, 'w').write(str(child.pid))\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    running = Session(tmp_path / "out", dry=True)
    assert not running.run([python("slow", code, limit=3), python("next", "")])
    assert time.monotonic() - started < 30
    records = running.content["stages"]
    assert records["slow"]["state"] == "out of time"
    assert records["slow"]["output"] == ["started", "(Killed after 3 s.)"]
    assert records["next"]["state"] == "done"
    deadline = time.monotonic() + 10  # until whoever inherited the child has taken note
    while is_running(int(pids.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_what_no_longer_fits_into_the_budget_is_skipped(tmp_path, impatient):
    running = Session(tmp_path, dry=True)
    stages = [python("first", ""), python("long", "", limit=500), python("short", "")]
    assert not running.run(stages, budget=100)
    states = {name: r["state"] for name, r in running.content["stages"].items()}
    assert states == {"first": "done", "long": "skipped", "short": "done"}
    (reason,) = running.content["stages"]["long"]["output"]
    assert reason.endswith("s are left, its limit is 500")
    # with more time, only what was skipped runs
    again = Session(tmp_path, dry=True)
    assert again.run(stages, budget=1000)
    assert again.content["stages"]["first"] == running.content["stages"]["first"]


def test_what_is_not_there_is_said_first(tmp_path, capsys):
    stages = [
        python("one", "print('ran')"),
        python("two", "", needs=("torch", "nothing_of_that_name")),
        python("three", "", needs=("nothing_of_that_name.inside",)),
    ]
    running = Session(tmp_path, dry=True)
    assert not running.run(stages)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "NOT THERE: nothing_of_that_name. Without it these do not run: two"
    states = [r["state"] for r in running.content["stages"].values()]
    assert states == ["done", "missing", "missing"]


def test_programs_are_looked_for_on_a_gpu_alone():
    stage = python("tool", "", tool=("no-such-program", "--option"))
    assert session.missing(stage, dry=False) == ["no-such-program"]
    assert session.missing(stage, dry=True) == []
    rows = Path("rows")
    assert session.command(stage, rows, dry=False)[:2] == ["no-such-program", "--option"]
    assert session.command(stage, rows, dry=True)[0] == sys.executable


@pytest.mark.slow
def test_a_session_starts_without_the_packages_of_mmpoe():
    """So that it can say what is missing; only stages import the library."""
    code = (
        "import sys\n"
        "for name in ('pyro', 'lightning_fabric', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks.gpu.__main__ import main\n"
        "from benchmarks.gpu import session\n"
        "from benchmarks.gpu.stages import STAGES\n"
        "able = [s.name for s in STAGES if not session.missing(s, dry=True)]\n"
        "assert able == ['facts', 'ceilings'], able\n"
        "from benchmarks.gpu import ceilings, facts\n"
        "assert 'mmpoe' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_results_of_other_code_or_sizes_are_not_mixed(tmp_path, monkeypatch):
    Session(tmp_path, dry=True).run([python("one", "")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"'--out' should hold .* profile full.* those of dry"):
        Session(tmp_path, dry=False)
    path = tmp_path / "gpu.json"
    path.write_text(path.read_text().replace('"commit": "', '"commit": "x'))
    with pytest.raises(ValueError, match=r"'--out' should hold results of the commit"):
        Session(tmp_path, dry=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees a CUDA device")
def test_without_a_gpu_nothing_runs(tmp_path):
    with pytest.raises(ValueError, match="PyTorch sees no CUDA device"):
        Session(tmp_path / "out", dry=False)
    assert not (tmp_path / "out").exists()


# what is found, and what is made of it


def test_a_check_that_does_not_hold_or_a_row_that_failed_is_not_right():
    record = {"state": "done", "rows": [check("a", True)], "output": []}
    assert session.is_right(record)
    assert not session.is_right(record | {"state": "out of time"})
    assert not session.is_right(record | {"rows": [check("a", False)]})
    row = attempted({"case": "a"}, lambda: 1 / 0)
    assert row == {"case": "a", "failed": "ZeroDivisionError: division by zero"}
    assert not session.is_right(record | {"rows": [row]})


def test_rows_of_a_stage_that_was_killed_while_it_wrote(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert session.read_rows(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert session.read_rows(path) == [{"a": 1}, {"a": 2}]


def test_counters_of_ncu():
    text = (
        "==PROF== Connected to process 7\nlaunched\n"
        '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","7","gpoe_forward","gpu__time_duration.sum","ns","12,345"\n'
        '"0","7","gpoe_forward","launch__registers_per_thread","register/thread","154"\n'
        '"1","7","gpoe_backward","gpu__time_duration.sum","ns","99"\n'
    )
    assert session.counters(text) == [
        {
            "kernel": "gpoe_forward",
            "gpu__time_duration.sum (ns)": "12,345",
            "launch__registers_per_thread (register/thread)": "154",
        },
        {"kernel": "gpoe_backward", "gpu__time_duration.sum (ns)": "99"},
    ]
    assert session.counters("no table\n") == []


def test_the_report_shows_failures_and_what_was_said(tmp_path):
    content = Session(tmp_path, dry=True).content
    content["stages"] = {
        "threads": {
            "state": "done",
            "seconds": 1.0,
            "rows": [check("both", False, said="a | b")],
            "output": [],
        },
        "network": {"state": "failed", "seconds": 2.0, "rows": [], "output": ["the reason"]},
    }
    text = markdown(content)
    assert "| both | **no** | a \\| b |" in text
    assert "| network | **failed** | 2.0 |" in text
    assert "```text\nthe reason\n```" in text
    assert "| kernels | not run |" in text


# what only a GPU runs, with PyTorch's part of it replaced


class Event:
    """An event of CUDA that notes the order of what happens."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        CALLS.append("record")

    def synchronize(self):
        CALLS.append("wait")

    def elapsed_time(self, end):
        assert isinstance(end, Event)
        return 0.25  # ms


CALLS = []


@pytest.fixture
def gpu(monkeypatch):
    """A device that takes itself for a GPU, with tensors on the CPU."""
    CALLS.clear()
    found = SimpleNamespace(
        name="a GPU", major=9, minor=0, multi_processor_count=100, total_memory=2**36
    )
    replaced = {
        "Event": Event,
        "synchronize": lambda: CALLS.append("synchronize"),
        "get_device_properties": lambda index: found,
        "get_device_capability": lambda: (9, 0),
        "Stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
        "current_stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
        "stream": nullcontext,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: CALLS.append("replay")),
        "graph": nullcontext,
        "reset_peak_memory_stats": lambda: CALLS.append("reset"),
        "max_memory_allocated": lambda: 3 * 2**30 + 16,
        "memory_allocated": lambda: 7,
        "mem_get_info": lambda: (memory.ROOM + 32, 2**36),
        "empty_cache": lambda: CALLS.append("empty"),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)  # an error if PyTorch has no such name
    device = Device(dry=False)
    device.type = "cpu"
    vars(device)["_scratch"] = torch.zeros(16, dtype=torch.uint8)
    return device


def test_a_call_is_timed_from_an_idle_device(gpu):
    timing = gpu.seconds(lambda: CALLS.append("call"), rounds=2)
    assert (timing.median, timing.us, timing.spread) == (0.25e-3, 250.0, 0.0)
    one = ["synchronize", "record", "call", "record", "wait"]
    assert ["call", *one, *one] == CALLS


def test_a_kernel_is_timed_behind_a_full_queue(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "host_seconds", lambda function: 1e-3)
    fills = []
    vars(gpu)["_scratch"] = SimpleNamespace(fill_=fills.append)
    gpu.seconds(lambda: CALLS.append("call"), rounds=1, queued=True)
    # the device writes for 0.25 ms, so eight times cover twice the millisecond of the host
    assert len(fills) == 2 + 1 + 8
    assert CALLS[-4:] == ["record", "call", "record", "wait"]
    assert "synchronize" not in CALLS


def test_a_graph_is_captured_after_calls_that_are_not(gpu):
    replay = gpu.captured(lambda: CALLS.append("call"))
    assert CALLS == ["call"] * 4
    replay()
    assert CALLS[-1] == "replay"


def test_peak_memory_is_without_that_of_the_session(gpu):
    assert gpu.peak_gib(lambda: CALLS.append("call")) == 3.0
    assert CALLS == ["reset", "call", "synchronize"]


def test_facts_of_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr(facts, "query", lambda fields: "")
    rows = {row["fact"]: row["value"] for row in facts.rows(gpu)}
    assert rows["device"] == "a GPU"
    assert rows["compute capability"] == "9.0"
    assert rows["memory, GiB"] == "64.0"
    assert "nvidia-smi does not say" in rows.values()
    assert facts.issue_rate(gpu) is None
    monkeypatch.setattr(facts, "query", lambda fields: "1500")
    assert facts.issue_rate(gpu) == 100 * 128 * 1.5e9
    assert build.architecture(gpu) == 90


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver")
def test_without_the_program_of_the_driver_nothing_is_known():
    assert facts.query("clocks.max.sm") == ""


def test_all_memory_but_some_is_taken(gpu, monkeypatch):
    monkeypatch.setattr(memory.torch, "empty", lambda n, dtype, device: (n, dtype, device))
    assert memory.fill(gpu) == (32, torch.uint8, "cuda")
    assert CALLS == ["empty"]
    assert memory.allocated(gpu) == 7
    assert memory.allocated(CPU) == 0


def test_kernels_are_built_for_all_that_runs_later(gpu):
    specials = build.specialisations(gpu)
    assert len(specials) == len(set(specials)) == 2 * 3 * (5 + 3)
    assert specials[0].experts == 32
    plain = {s.experts for s in specials if not (s.clamp or s.common_noise)}
    assert plain == {1, 4, 8, 12, 32}


@pytest.mark.parametrize(
    ("function", "number"),
    [
        (lambda x: (x.sum().item(), bool(x[0] > 0)), 2),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x[torch.tensor([1, 0])], 0),
        (lambda x: torch.where(x > 0, x, 0).sum(), 0),
    ],
)
def test_waits_of_the_host(function, number):
    call = lambda: function(torch.tensor([1.0, -2.0]))
    assert count_waits(call, "cpu") == number
    assert count_waits(call, "cuda") == 0


# rivals


@pytest.mark.parametrize("case", rivals.CASES, ids=lambda c: f"{c.name}, {c.dtype}, {c.draws}")
def test_the_minimal_rival_equals_the_reference_with_its_gradients(case):
    inputs = rivals.make(case, CPU)
    expected = rivals.exact(inputs)
    z, kl = rivals.minimal(inputs.subsets)(*inputs.tensors, noise=inputs.noise)
    tolerance = 1e-5 if case.dtype == torch.float32 else 1e-2
    assert rivals.worst_error((z, kl), (expected.z, expected.kl)) < tolerance

    gradients = torch.autograd.grad((z, kl), inputs.tensors, inputs.gradients)
    wide = [t.detach().double().requires_grad_() for t in inputs.tensors]
    experts = wide[:EXPERTS], wide[EXPERTS : 2 * EXPERTS]
    noise = inputs.noise.double()
    q = gaussian_poe(*experts, inputs.given, (wide[-2], wide[-1]), noise=noise, backend="eager")
    upstream = [g.double() for g in inputs.gradients]
    exact = torch.autograd.grad((q.z, q.kl), wide, upstream)
    assert rivals.worst_error(gradients, exact) < tolerance


def test_noise_that_is_not_normal_or_not_independent_is_found():
    case = rivals.CASES[3]
    inputs = rivals.make(case, CPU)
    expected = rivals.exact(inputs)
    torch.manual_seed(0)
    eps = torch.randn_like(expected.loc)
    scale = expected.log_scale.exp()
    off = lambda eps: rivals.noise_error(expected.loc + scale * eps, expected)
    assert off(eps) < 6
    assert off(eps + 0.5) > 6
    assert off(1.5 * eps) > 6
    assert off(eps[:1].expand_as(eps)) > 6
    halves = eps.flatten(1)[:, : eps[0].numel() // 2].repeat_interleave(2, dim=1)
    assert off(halves.view_as(eps)) > 6


def test_bytes_are_those_of_each_tensor_once():
    case = rivals.CASES[0]
    elements = torch.Size(case.shape).numel()
    assert rivals.bytes_moved(case) == (44 * elements, 84 * elements)
    assert rivals.bytes_moved(rivals.CASES[1]) == (22 * elements, 42 * elements)
    given = rivals.CASES[2]
    assert rivals.bytes_moved(given) == (48 * elements, 88 * elements)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_the_triton_rival_compiles_for_a_gpu():
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from benchmarks.gpu.triton_rival import QUADS, _forward
kinds = {"bits": "*i32", "kl": "*fp32", "DRAWS": "constexpr", "GROUPS": "constexpr"}
kinds |= dict.fromkeys(("seed", "samples", "size", "subsets"), "i32")
for dtype in ("*fp32", "*bf16"):
    for draws in (True, False):
        signature = {name: kinds.get(name, dtype) for name in _forward.arg_names}
        source = ASTSource(_forward, signature, {"DRAWS": draws, "GROUPS": QUADS})
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# the documentation

UNRUN = [
    ("README.md", "has not run on a GPU yet"),
    ("docs/kernels.md", "It has not run on a GPU yet"),
    ("docs/kernels.md", "nothing has been timed on a GPU"),
]


@pytest.mark.parametrize(("page", "sentence"), UNRUN)
def test_pages_say_that_nothing_ran_on_a_gpu_as_long_as_nothing_did(page, sentence):
    text = " ".join((ROOT / page).read_text().split())
    assert (sentence in text) == (not (RESULTS / "gpu.json").exists())


def test_committed_results_are_of_a_gpu():
    """And their tables are made of them; there are none before somebody has run the session."""
    path = RESULTS / "gpu.json"
    if not path.exists():
        assert not (RESULTS / "gpu.md").exists()
        return
    content = json.loads(path.read_text())
    assert content["profile"] == "full"
    assert (RESULTS / "gpu.md").read_text() == markdown(content)


def test_the_page_on_kernels_shows_the_results(tmp_path):
    path = ROOT / "docs" / "_ext" / "benchmark_results.py"
    spec = importlib.util.spec_from_file_location("benchmark_results", path)
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    source = [(ROOT / "docs" / "kernels.md").read_text()]
    assert extension.LINE.findall(source[0]) == [("gpu", "make gpu")]
    extension.fill(None, "kernels", source)
    assert "{results}" not in source[0]
    assert extension.show("gpu", "make gpu") in source[0]
