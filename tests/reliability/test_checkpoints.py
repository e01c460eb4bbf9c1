"""Damaged, foreign and unfinished checkpoints: what is said, and what is left."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conditions import fill, small_disk
from torch import nn

from mmpoe.training import (
    CheckpointError,
    Checkpoints,
    Optimizer,
    Run,
    fit,
    load_checkpoint,
    load_state,
    load_weights,
    save_state,
)

FILES = [
    "manifest.json",
    "model.json",
    "model.safetensors",
    "training.json",
    "training.safetensors",
]


class Line(nn.Linear):
    """A model with modalities, and a bound that it can raise."""

    def __init__(self, modalities=("us", "t2"), size=3):
        super().__init__(size, 1)
        self.modalities = list(modalities)


def objective(model, batch, done):
    return -model(batch).square().flatten()


def train(folder, model=None, steps=6, make=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = Line() if model is None else model
    batches = [torch.ones(2, model.in_features)] * 2
    run = Run(folder, **{"save_every": 2, "resume": True, **options})
    how = {"optimizer": Optimizer(make=make), "accelerator": "cpu", "progress": False}
    return fit(model, batches, objective, steps=steps, run=run, **how)


@pytest.fixture
def checkpoints(tmp_path):
    """The checkpoints of a run of six steps, of which 4 and 6 are left."""
    train(tmp_path)
    found = Checkpoints(tmp_path / "checkpoints")
    assert found.steps() == [4, 6]
    assert sorted(p.name for p in found.path(6).iterdir()) == FILES
    return found


def test_the_entries_of_a_checkpoint_are_fixed(checkpoints):
    """Checkpoints of older versions load, and older versions load those of this one."""
    state = checkpoints.load(6).state
    parts = ["learners", "averaged", "scaler", "also", "passes", "position", "start", "random"]
    numbers = ["bounds", "skipped", "row", "restarted", "seconds", "best", "known"]
    assert sorted(state) == sorted([*parts, *numbers])
    assert [sorted(learner) for learner in state["learners"]] == [["made", "network", "optimizer"]]
    assert json.loads((checkpoints.path(6) / "training.json").read_text())["format"] == 1


@pytest.mark.fault(31)
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(name, checkpoints):
    """One bit of any file, wherever it is."""
    file = checkpoints.path(6) / name
    content = file.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 40)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"altered|damaged|incomplete") as caught:
            checkpoints.load(6)
        assert f"{checkpoints.path(4)} is intact; to resume" in str(caught.value)
    file.write_bytes(content)
    assert checkpoints.load(6).description["modalities"] == ["us", "t2"]


@pytest.mark.fault(30)
@pytest.mark.fault(33)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [None, 0.0, 0.5, 0.99])
def test_incomplete_files_are_named(name, part, checkpoints, tmp_path):
    """Truncated, empty, or not there."""
    file = checkpoints.path(6) / name
    content = file.read_bytes()
    file.unlink()
    if part is not None:
        file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"incomplete|damaged") as caught:
        train(tmp_path)
    assert name in str(caught.value)
    assert str(checkpoints.path(4)) in str(caught.value)

    shutil.rmtree(checkpoints.path(6))  # as it says
    assert len(train(tmp_path).bounds) == 6


def test_it_is_said_if_no_checkpoint_is_intact(checkpoints):
    for step in (4, 6):
        (checkpoints.path(step) / "training.json").unlink()
    with pytest.raises(CheckpointError, match=r"No other checkpoint is intact"):
        checkpoints.load(6)


@pytest.mark.fault(28)
def test_other_modalities_are_refused_with_both_lists(checkpoints, tmp_path):
    """Never by position."""
    for other in (["t2", "us"], ["us", "t2", "flair"]):
        with pytest.raises(CheckpointError) as caught:
            train(tmp_path, Line(other))
        assert f"should hold {other} as 'modalities'" in str(caught.value)
        assert "but holds ['us', 't2']" in str(caught.value)


@pytest.mark.fault(29)
def test_the_first_difference_is_named(checkpoints, tmp_path):
    """Another architecture or version."""
    with pytest.raises(CheckpointError, match=r"'weight' with shape \(1, 4\), but holds \(1, 3\)"):
        train(tmp_path, Line(size=4))
    state = {"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"here should hold 'bias', .* but does not"):
        load_weights(nn.Linear(3, 1), {"weight": state["weight"]}, "here")
    with pytest.raises(CheckpointError, match=r"here .* holds 'more', which it does not have"):
        load_weights(nn.Linear(3, 1), {**state, "more": torch.zeros(1)}, "here")


def test_descriptions_are_compared(tmp_path):
    def described(**architecture):
        description = {"architecture": {"widths": (4, 8), "scale": 0.1, **architecture}}
        return train(tmp_path, description=description)

    described()
    described()
    with pytest.raises(CheckpointError, match=r"'architecture', should hold \[4, 9\] as 'widths'"):
        described(widths=(4, 9))
    with pytest.raises(CheckpointError, match=r"should hold 3 as 'depth', .* but holds nothing"):
        described(depth=3)
    with pytest.raises(ValueError, match=r"'description' should be something JSON holds"):
        train(tmp_path / "other", description={"path": Path()})


@pytest.mark.fault(29)
def test_other_formats_are_refused(tmp_path):
    """Written by another version."""
    save_state(tmp_path / "a", {"x": torch.ones(1)})
    file = tmp_path / "a.json"
    head = json.loads(file.read_text())
    for version in (2, None, "1"):
        file.write_text(json.dumps({**head, "format": version}))
        with pytest.raises(CheckpointError, match=rf"format 1, .* but is of format {version}"):
            load_state(tmp_path / "a")
    file.write_text(json.dumps({**head, "state": {"tensor": "y"}}))
    with pytest.raises(CheckpointError, match=r"does not describe a.safetensors"):
        load_state(tmp_path / "a")


def test_what_was_not_kept_is_named(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match=r"should hold 'bank', of 'also', but holds nothing"):
        train(tmp_path, also={"bank": nn.Linear(1, 1)})


def test_another_optimiser_does_not_resume(checkpoints, tmp_path):
    """Its state would be of another meaning, or an error that says nothing."""
    with pytest.raises(CheckpointError, match=r"of the optimiser Adamax, .* that of AdamW"):
        train(tmp_path, make=torch.optim.Adamax)


@pytest.mark.fault(32)
def test_nothing_is_pickled(checkpoints):
    """Every byte is JSON or safetensors, which cannot name code to run."""
    for file in checkpoints.path(6).iterdir():
        content = file.read_bytes()
        if file.suffix == ".json":
            json.loads(content)
        else:
            assert file.suffix == ".safetensors"
            length = int.from_bytes(content[:8], "little")
            places = [e["data_offsets"] for e in json.loads(content[8 : 8 + length]).values()]
            assert sum(b - a for a, b in places) == len(content) - 8 - length
    with pytest.raises(TypeError, match=r"'state/1/run' should be a tensor, .* but is a function"):
        save_state(checkpoints.folder / "bad", [1, {"run": train}])


@pytest.mark.fault(37, simulated=True)
def test_a_full_disk_leaves_what_was_saved(checkpoints, tmp_path, monkeypatch):
    """No room for all of it."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100))
    with pytest.raises(OSError, match=r"No space left: .* MB are needed, but 0.0 MB are free"):
        train(tmp_path, steps=8)
    monkeypatch.undo()
    assert checkpoints.steps() == [4, 6]
    assert len(list(checkpoints.folder.iterdir())) == 2
    assert len(train(tmp_path, steps=8).bounds) == 8


@pytest.mark.fault(37)
@pytest.mark.parametrize("left", [0, 9000])
def test_a_disk_that_fills_up_leaves_what_was_saved(left, tmp_path):
    """No room at all, and room for some of the files of a checkpoint."""
    with small_disk(tmp_path / "disk", 200_000) as disk:
        train(disk)
        checkpoints = Checkpoints(disk / "checkpoints")
        filler = fill(disk, left)
        with pytest.raises(OSError, match="No space left") as caught:
            train(disk, steps=8)
        assert caught.value.errno == errno.ENOSPC
        assert str(disk) in str(caught.value)
        assert checkpoints.steps() == [4, 6]
        assert len(list(checkpoints.folder.iterdir())) == 2
        assert checkpoints.load(6)
        filler.unlink()
        assert len(train(disk, steps=8).bounds) == 8


@pytest.mark.fault(37)
def test_a_write_that_fails_leaves_what_was_saved(checkpoints, tmp_path):
    """The system refuses a write halfway."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
        with pytest.raises(OSError, match=r"File too large"):
            train(tmp_path, steps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoints.steps() == [4, 6]
    assert len(list(checkpoints.folder.iterdir())) == 2
    assert checkpoints.load(6)


@pytest.mark.fault(34, simulated=True)
def test_a_save_that_is_cut_short_leaves_whole_checkpoints(tmp_path, monkeypatch):
    """Stopped before any operation on files, including those that remove old ones."""

    def stop_at(operation, patch):
        calls = iter(range(10**6))

        def counted(function):
            def call(*args, **options):
                if next(calls) >= operation:
                    raise KeyboardInterrupt
                return function(*args, **options)

            return call

        for owner, name in [
            (os, "fsync"),
            (Path, "replace"),
            (os, "unlink"),
            (os, "rmdir"),
        ]:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        return calls

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": torch.ones(2)}, {}, {"step": 1})
    newest, operation, cut = 1, 0, True
    while cut:
        new = newest + 1
        with monkeypatch.context() as patch:
            stop_at(operation, patch)
            try:
                checkpoints.save(new, {"w": new * torch.ones(2)}, {}, {"step": new})
                cut = False
            except KeyboardInterrupt:
                operation += 1
        steps = checkpoints.steps()
        assert steps[-1] in (newest, new)
        for step in steps:
            weights, _, state = checkpoints.load(step)
            assert state == {"step": step}
            assert weights["w"].tolist() == [step, step]
        newest = steps[-1]
        checkpoints.clean()
    assert operation > 15
    assert checkpoints.steps()[-1] == newest
    assert not list(tmp_path.glob(".*"))


def test_the_last_two_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 7):
        checkpoints.save(step, {}, {}, None, best=min(step, 2))
    assert checkpoints.steps() == [2, 5, 6]


def test_a_checkpoint_is_also_one_of_the_model(checkpoints):
    weights, description = load_checkpoint(checkpoints.path(6))
    model = Line()
    load_weights(model, weights, "the checkpoint")
    assert description["step"] == 6


@pytest.mark.fault(42)
def test_one_run_at_a_time(tmp_path):
    """Two runs in one folder."""

    def evaluate(model, step):
        code = (
            "from pathlib import Path; from mmpoe.training import lock\n"
            f"with lock(Path({str(tmp_path)!r})): pass"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        seen.append(done.stderr.splitlines()[-1])

    seen = []
    train(tmp_path, steps=1, evaluate=evaluate)
    assert f"{tmp_path} is in use by process {os.getpid()} on " in seen[0]
    train(tmp_path)  # it is free again
