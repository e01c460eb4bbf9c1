"""Memory of the machine that runs out, under a real limit of the system."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.medical_mri_us.__main__ import explain
from mmpoe.models import in_chunks, is_out_of_memory
from mmpoe.training import CheckpointError, DeviceMemoryError

ROOT = Path(__file__).parents[2]

LIMIT = """
import resource, sys
from pathlib import Path
def limit(megabytes):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""
"""Limits the memory of a process to what it has and some more."""


def run(program, *arguments):
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system has no /proc")
    return subprocess.run(
        [sys.executable, "-c", LIMIT + program, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "tests" / "helpers"])),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


TRAIN = """
import torch
from torch import nn
from mmpoe.training import DeviceMemoryError, Run, fit
def objective(model, batch, done):
    if done >= 0.5:
        batch = batch[:1].expand(200_000_000, 1)
    return -(model(batch) + 1).square().flatten()
run = Run(sys.argv[1], save_every=1)
fit(nn.Linear(1, 1), [torch.ones(2, 1)], objective, steps=1, accelerator="cpu", progress=False)
limit(300)
try:
    fit(nn.Linear(1, 1), [torch.ones(2, 1)], objective, steps=4, run=run, accelerator="cpu",
        progress=False)
except DeviceMemoryError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.fault(71)
def test_training_ends_with_advice_and_a_checkpoint(tmp_path):
    done = run(TRAIN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ran out of memory in step 3: [enforce fail" in done.stdout, done.stdout
    assert "A batch of half the size with twice the 'accumulate' takes" in done.stdout
    assert f"the run resumes from {tmp_path / 'checkpoints' / 'step-00000002'}." in done.stdout


CHUNKS = """
import torch
from mmpoe.models import in_chunks
x = torch.ones(64, 1)
sizes = []
def double(rows):
    value = x[rows].expand(-1, 1_000_000).clone()  # 4 MB a row
    sizes.append(len(value))
    return 2 * value[:, :1]
limit(100)
print(int(torch.cat(in_chunks(double, 64)).sum()), max(sizes))
"""


@pytest.mark.slow
@pytest.mark.fault(71)
def test_inference_takes_fewer_rows_at_a_time():
    done = run(CHUNKS)
    assert done.returncode == 0, done.stderr
    total, largest = map(int, done.stdout.split())
    assert total == 128
    assert 1 <= largest <= 16


SYNTHESIZE = """
from volumes import make_run, volume, write
from examples.medical_mri_us import __main__ as cli
from examples.medical_mri_us import models
folder, where = Path(sys.argv[1]), sys.argv[2]
run = make_run(folder / "run")
us = write(folder / "p.nii.gz", volume(0))
import torch
build = models.BUILDERS["image_mmhvae"]
def hungry(*arguments, **options):
    if where == "loading":
        limit(100)
    model = build(*arguments, **options)
    if where == "loading":
        model.memory = torch.zeros(2_000_000_000)
    if where == "running":
        limit(150)
        model.encoders["us"].register_forward_hook(lambda *_: torch.zeros(2_000_000_000))
    return model
models.BUILDERS["image_mmhvae"] = hungry
if where == "reading":
    us = write(folder / "p.nii.gz", volume(0, (400, 400, 200)))
    limit(50)
sys.argv[1:] = ["synthesize", str(run), "--us", str(us), "--out", str(folder / "out")]
sys.exit(cli.main())
"""


@pytest.mark.slow
@pytest.mark.fault(71)
@pytest.mark.parametrize("where", ["loading", "reading", "running"])
def test_subcommands_exit_with_5_and_advice(where, tmp_path):
    """Whatever it is that needs the memory: a model, an image, a batch."""
    done = run(SYNTHESIZE, tmp_path, where)
    assert done.returncode == 5, done.stderr
    assert "memory" in done.stderr
    assert "Take a smaller batch, model or size" in done.stderr
    assert "Traceback" not in done.stderr


MESSAGES = [
    MemoryError(),
    MemoryError("Unable to allocate 7.45 GiB for an array"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    RuntimeError("std::bad_alloc"),
    RuntimeError("unable to mmap 4096 bytes from file: Cannot allocate memory (12)"),
    DeviceMemoryError("The device ran out of memory in step 3."),
]


@pytest.mark.parametrize("error", MESSAGES, ids=repr)
def test_errors_for_want_of_memory_are_told_from_others(error):
    assert is_out_of_memory(error)
    assert explain(error)[0] == 5
    assert not is_out_of_memory(ValueError(str(error)))


@pytest.mark.parametrize("error", [CheckpointError("damaged"), RuntimeError("shape"), KeyError()])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)
    calls = []

    def fail(rows):
        calls.append(rows)
        raise error

    with pytest.raises(type(error)):
        in_chunks(fail, 4)
    assert len(calls) == 1
