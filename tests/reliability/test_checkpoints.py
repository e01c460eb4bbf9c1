"""Damaged, foreign and unfinished checkpoints: what is said, and what is left."""

import errno
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import warnings
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
    save_checkpoint,
    save_state,
)
from mmpoe.training._formats import FORMAT

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


ENTRIES = {
    1: "also averaged best bounds known learners passes position random row scaler "
    "seconds skipped start",
}
ENTRIES[2] = f"{ENTRIES[1]} deal format restarted"
"""The entries of the state of a run by its format. An entry that is added is one of a new format,
with a migration for states of the one before."""


@pytest.mark.fault(68)
def test_the_entries_of_a_format_are_fixed(checkpoints):
    state = checkpoints.load(6).state
    assert list(ENTRIES) == list(range(1, FORMAT + 1))
    assert state["format"] == FORMAT
    assert sorted(state) == sorted(ENTRIES[FORMAT].split())
    assert [sorted(learner) for learner in state["learners"]] == [["made", "network", "optimizer"]]
    assert json.loads((checkpoints.path(6) / "training.json").read_text())["format"] == 1


def stopped(folder):
    """The checkpoints of a run of eight steps, and those of one that was killed in the seventh."""
    train(folder / "whole", steps=8)
    shutil.copytree(folder / "whole", folder / "cut")
    shutil.rmtree(folder / "cut" / "checkpoints" / "step-00000008")
    return [Checkpoints(folder / name / "checkpoints") for name in ("whole", "cut")]


def same_at(step, whole, cut):
    """Whether the weights of a step are the same, to the last bit."""
    a, b = (load_checkpoint(checkpoints.path(step))[0] for checkpoints in (whole, cut))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rewrite(path, change):
    """Writes a checkpoint anew with another state, so that all its checksums are right."""
    weights, description, state = Checkpoints(path.parent).load(int(path.name[5:]))
    shutil.rmtree(path)
    return Checkpoints(path.parent).save(description["step"], weights, description, change(state))


@pytest.mark.fault(68)
@pytest.mark.parametrize("written", [1, 2])
def test_runs_of_older_formats_resume_to_the_same_bits(written, tmp_path):
    """The first did not say its format, nor the class of an optimiser."""
    whole, cut = stopped(tmp_path)

    def as_before(state):
        state["learners"] = [
            {k: v for k, v in e.items() if k != "made"} for e in state["learners"]
        ]
        return {name: state[name] for name in ENTRIES[written].split()}

    rewrite(cut.path(6), as_before)
    assert len(train(tmp_path / "cut", steps=8).bounds) == 8
    assert same_at(8, whole, cut)


@pytest.mark.fault(68)
@pytest.mark.parametrize("found", [FORMAT + 1, 0, "2", None])
def test_runs_of_later_formats_are_refused(found, checkpoints, tmp_path):
    rewrite(checkpoints.path(6), lambda state: {**state, "format": found})
    with pytest.raises(CheckpointError, match=rf"up to {FORMAT}, which .* format is {found}"):
        train(tmp_path)


@pytest.mark.fault(66)
@pytest.mark.parametrize(
    "change",
    [
        lambda state: [],
        lambda state: {k: v for k, v in state.items() if k != "bounds"},
        lambda state: {**state, "random": 3},
        lambda state: {**state, "random": [{}]},
        lambda state: {**state, "learners": [{}]},
        lambda state: {**state, "bounds": "none"},
    ],
)
def test_a_state_that_is_none_of_a_run_is_refused_though_its_checksums_hold(
    change, checkpoints, tmp_path
):
    path = rewrite(checkpoints.path(6), change)
    with pytest.raises(CheckpointError, match=r"should hold the state of a run") as caught:
        train(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.fault(66)
def test_files_that_are_no_json_or_safetensors_are_refused_though_their_checksums_hold(tmp_path):
    save_state(tmp_path / "a", {"x": torch.ones(1)})
    head = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.safetensors").write_bytes(b"none")
    sha256 = hashlib.sha256(b"none").hexdigest()
    (tmp_path / "a.json").write_text(json.dumps({**head, "sha256": sha256}))
    with pytest.raises(CheckpointError, match=r"a.safetensors is not valid safetensors"):
        load_state(tmp_path / "a")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"a.json is not valid JSON"):
        load_state(tmp_path / "a")
    save_checkpoint(tmp_path, {"x": torch.ones(1)}, {"deep": 1})
    description = json.loads((tmp_path / "model.json").read_text())
    del description["description_sha256"]
    (tmp_path / "model.safetensors").write_bytes(b"none")
    (tmp_path / "model.json").write_text(json.dumps({**description, "sha256": sha256}))
    with pytest.raises(CheckpointError, match=r"model.safetensors is not valid safetensors"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"model.json is not valid JSON"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, {"x": torch.ones(1)}, {})  # over a useless one
    assert load_checkpoint(tmp_path)[0]["x"] == 1


@pytest.mark.fault(67)
@pytest.mark.parametrize("name", FILES[1:])
def test_a_manifest_that_names_no_file_vouches_for_none(name, checkpoints, tmp_path):
    """So that an edited state is not read."""
    file = checkpoints.path(6) / "manifest.json"
    entries = json.loads(file.read_text())
    for fewer in ({}, {k: v for k, v in entries.items() if k != name}):
        file.write_text(json.dumps(fewer))
        with pytest.raises(CheckpointError, match=r"manifest.json was altered: it does not name"):
            checkpoints.load(6)


@pytest.mark.fault(69)
@pytest.mark.parametrize("value", [math.nan, [1, math.nan], {"deep": [{"x": math.nan}]}, math.inf])
def test_numbers_that_are_none_in_a_description_resume(value, tmp_path):
    """NaN differs from itself, but is the same description."""
    train(tmp_path, steps=2, description={"x": value})
    assert len(train(tmp_path, steps=4, description={"x": value}).bounds) == 4
    with pytest.raises(
        CheckpointError, match=r"should hold 3 as 'x', as this run does, but holds"
    ):
        train(tmp_path, steps=6, description={"x": 3})


@pytest.mark.fault(69)
@pytest.mark.parametrize("key", ["sha256", "aliases", "description_sha256", "previous"])
def test_keys_of_the_checkpoint_itself_are_refused_before_the_first_step(key, tmp_path):
    run = Run(tmp_path / "run", description={key: "mine"})
    model, seen = Line(), []
    with pytest.raises(ValueError, match=rf"'description' should not hold '{key}', .* 'mine'"):
        fit(model, [torch.ones(2, 3)], lambda *a: seen.append(a), steps=1, run=run, progress=False)
    assert not seen
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(66)
def test_tensors_that_no_file_can_hold_are_named(tmp_path):
    """Sparse ones, and those without values."""
    eye = torch.eye(3)
    cases = {"sparse_coo": eye.to_sparse(), "meta": eye.to("meta")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that the format is new
        cases["sparse_csr"] = eye.to_sparse_csr()
    for said, tensor in cases.items():
        with pytest.raises(TypeError, match=rf"'state/w' should be a dense tensor, .*{said}"):
            save_state(tmp_path / "state", {"w": tensor})
        with pytest.raises(TypeError, match=rf"'w' should be a dense tensor, .*{said}"):
            save_checkpoint(tmp_path / "model", {"w": tensor}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(77)
def test_a_checkpoint_that_is_a_link_is_used_and_only_the_link_removed(tmp_path):
    """Such as one that was moved to another disk."""
    whole, cut = stopped(tmp_path)
    cut.path(6).rename(tmp_path / "elsewhere")
    cut.path(6).symlink_to(tmp_path / "elsewhere")
    train(tmp_path / "cut", steps=8)
    assert same_at(8, whole, cut)
    train(tmp_path / "cut", steps=12)
    assert cut.steps() == [10, 12]
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == FILES


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
    with pytest.raises(
        OSError, match=r"No space left: \d+ bytes are needed, but 100 by"
    ) as caught:
        train(tmp_path, steps=8)
    assert caught.value.filename == str(checkpoints.path(8))
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
        with pytest.raises(OSError, match=r"File too large") as caught:
            train(tmp_path, steps=8)
        assert caught.value.filename == str(checkpoints.path(8))
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
