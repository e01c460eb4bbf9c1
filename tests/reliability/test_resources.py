"""Failures outside the model: named at once, with a remedy."""

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conditions import read_only, small_disk, without_override
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info
from trainings import Training, same

from mmpoe.training import CollapseWarning, DeviceMemoryError, Run, WorkerError, fit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"


class Deadly(Dataset):
    """The place of each sample; whoever loads the seventh is killed, in another process only."""

    def __len__(self):
        return 12

    def __getitem__(self, place):
        if place == 7 and get_worker_info() is not None:
            time.sleep(0.5)  # until the batches before have arrived
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([float(place)])


def learn(loader, folder, steps=12):
    """Trains on numbers, and returns those of each batch."""
    seen = []

    def objective(model, batch, done):
        seen.append(batch.flatten().int().tolist())
        return -model(batch).square().flatten()

    torch.manual_seed(0)
    options = {"steps": steps, "progress": False, "accelerator": "cpu"}
    fit(nn.Linear(1, 1), loader, objective, run=Run(folder, save_every=1), **options)
    return seen


@pytest.mark.fault(38)
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_what_was_loading_is_named_if_its_process_is_killed(persistent, generator, tmp_path):
    """At once, and with the checkpoint to resume from."""

    def load(**options):
        if generator is not None:
            generator.manual_seed(1)
        return DataLoader(Deadly(), 3, shuffle=True, generator=generator, **options)

    passed = learn(load(), tmp_path / "whole", steps=4)
    deadly = next(batch for batch in passed if 7 in batch)
    position = passed.index(deadly)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"has died: DataLoader worker ") as caught:
        learn(load(num_workers=1, persistent_workers=persistent), tmp_path / "cut")
    assert time.monotonic() - start < 30
    said = str(caught.value)
    number = re.search(r"Batch (\d+) of pass 1 was to come next", said)
    assert number is not None
    assert position - 1 < int(number[1]) <= position + 1  # where news of the death comes early
    position = int(number[1]) - 1
    assert deadly in passed[position : position + 2]
    under_way = "; ".join(", ".join(map(str, batch)) for batch in passed[position : position + 2])
    assert f"by batch: {under_way}. Too little memory" in said
    checkpoint = tmp_path / "cut" / "checkpoints" / f"step-{position:08d}"
    assert f"With resume=True, the run resumes from {checkpoint}." in said


@pytest.mark.fault(38, simulated=True)
def test_a_batch_that_is_lost_with_its_process_is_awaited_no_more(tmp_path):
    """Whatever error that gives in this process, and whenever."""

    class Batches(DataLoader):
        def __iter__(self):
            yield torch.ones(1, 1)
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    with pytest.raises(WorkerError, match=r"died: \[Errno 104\] .* Batch 2 of pass 1 was to come"):
        learn(Batches(Deadly(), 3, num_workers=1), tmp_path)


@pytest.mark.fault(38)
def test_a_program_whose_loader_is_killed_ends():
    program = (
        "from test_resources import *; learn(DataLoader(Deadly(), 3, num_workers=2), sys.argv[1])"
    )
    paths = os.pathsep.join(map(str, [ROOT, HELPERS, Path(__file__).parent]))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, folder],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 1
    assert "WorkerError: A process that loads batches has died" in done.stderr.splitlines()[-1]


def test_errors_in_a_loader_are_their_own(tmp_path):
    """Errors of a data set are passed on, from another process or not."""

    class Bad(Deadly):
        def __getitem__(self, place):
            raise EOFError(f"image {place}")

    class Odd(Deadly):
        def __getitem__(self, place):
            raise RuntimeError(f"image {place}")

    with pytest.raises(EOFError, match=r"image 0"):
        learn(DataLoader(Bad(), 3), tmp_path)
    with pytest.raises(EOFError, match=r"image 0"):
        learn(DataLoader(Bad(), 3, num_workers=1), tmp_path)
    with pytest.raises(RuntimeError, match=r"image 0") as caught:
        learn(DataLoader(Odd(), 3, num_workers=1), tmp_path)
    assert not isinstance(caught.value, WorkerError)


@pytest.mark.fault(40, simulated=True)
def test_a_device_without_memory_ends_the_run_with_advice(tmp_path):
    """With enough of it, training resumes from the last checkpoint to the same bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        whole = Training()
        whole.fit(12)
        training = Training()
        objective = training.objective

        def short(model, batch, done):
            if done > 0.5:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"
                )
            return objective(model, batch, done)

        training.objective = short
        with pytest.raises(DeviceMemoryError) as caught:
            training.fit(12, tmp_path)
        said = str(caught.value)
        assert "ran out of memory in step 8: CUDA out of memory. A batch of half the size" in said
        assert "'accumulate'" in said
        assert f"the run resumes from {tmp_path / 'checkpoints' / 'step-00000005'}." in said
        assert isinstance(caught.value, MemoryError)

        again = Training(seed=3)
        again.fit(12, tmp_path, resume=True)
    assert same(again.tensors(), whole.tensors())


@contextmanager
def unwritable(tmp_path, what):
    """A folder that cannot be made or written to, for a reason of each kind."""
    if what == "a file in its place":
        (tmp_path / "file").write_text("")
        yield tmp_path / "file" / "run", errno.ENOTDIR
    elif what == "a file system that takes none":
        if not Path("/proc/self").exists():
            pytest.skip("this system has no /proc")
        yield Path("/proc/run"), errno.ENOENT
    elif what == "a disk that is read-only":
        with small_disk(tmp_path / "disk", 100_000) as disk:
            (disk / "run").mkdir()
            with read_only(disk):
                yield disk / "run", errno.EROFS
    else:
        tmp_path.chmod(0o500)
        try:
            with without_override():
                yield tmp_path / "run", errno.EACCES
        finally:
            tmp_path.chmod(0o700)


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    "what",
    [
        "a file in its place",
        "a file system that takes none",
        "a disk that is read-only",
        "permissions",
    ],
)
def test_a_folder_that_cannot_be_written_to_is_found_before_the_first_step(what, tmp_path):
    seen = []
    objective = lambda model, batch, done: seen.append(batch)
    with (
        unwritable(tmp_path, what) as (folder, number),
        pytest.raises(OSError, match=r"'folder' should be one that can be written") as caught,
    ):
        fit(nn.Linear(1, 1), [0], objective, steps=1, run=Run(folder), progress=False)
    assert caught.value.errno == number
    assert str(folder) in str(caught.value)
    assert seen == []


@pytest.mark.fault(43, simulated=True)
def test_a_gpu_that_is_not_there_is_named_before_the_first_step(tmp_path, monkeypatch):
    """Unless any device will do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    objective = lambda model, batch, done: model(batch).flatten()
    options = {"steps": 1, "progress": False}
    with pytest.raises(ValueError, match=r"'accelerator' should be 'cpu' or 'auto' without a GPU"):
        fit(nn.Linear(1, 1), [torch.ones(1, 1)], objective, accelerator="cuda", **options)
    fit(nn.Linear(1, 1), [torch.ones(1, 1)], objective, accelerator="auto", **options)
