"""The training loop learns, survives interrupts and bad gradients, and checkpoints are checked."""

import json
import os
import signal

import pytest
import torch
from test_models import NAMES, OBSERVED, batch, flat, make

import mmpoe
from mmpoe.training import CheckpointError, fit, load_checkpoint, save_checkpoint


def objective(model, data, progress):
    x, observed = data
    return mmpoe.elbo(model(x, given=observed), x, observed)


def train(model, **options):
    options = {"steps": 40, "lr": 1e-2, "progress": False, **options}
    return fit(model, [(batch(), OBSERVED)], options.pop("objective", objective), **options)


def test_training_improves_the_bound():
    torch.manual_seed(0)
    model = make(flat)
    history = train(model)
    assert len(history.bounds) == 40
    assert sum(history.bounds[-5:]) > sum(history.bounds[:5]) + 5
    assert not model.training
    assert history.skipped == 0
    assert not history.interrupted


def test_training_is_deterministic():
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = make(flat)
        torch.manual_seed(4)
        train(model, steps=5)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_averaged_weights_are_smoother_than_the_last():
    model = make(flat)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, steps=1, average=0.99)
    # the average starts at the weights after the first step
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_progress_runs_from_zero_towards_one():
    seen = []

    def watch(model, data, progress):
        seen.append(progress)
        return objective(model, data, progress)

    train(make(flat), objective=watch, steps=4)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_a_time_limit_ends_the_training():
    history = train(make(flat), steps=100_000, minutes=0.5 / 60)
    assert 0 < len(history.bounds) < 100_000
    assert history.seconds < 5


def test_bad_gradients_are_skipped_and_counted():
    calls = []

    def sometimes_nan(model, data, progress):
        calls.append(progress)
        bound = objective(model, data, progress)
        return bound * float("nan") if len(calls) == 3 else bound

    model = make(flat)
    history = train(model, objective=sometimes_nan, steps=6)
    assert history.skipped == 1
    assert all(p.isfinite().all() for p in model.parameters())


def test_interrupt_ends_after_the_step_with_weights_in_order():
    def interrupting(model, data, progress):
        if progress == 0.5:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(model, data, progress)

    previous = signal.getsignal(signal.SIGINT)
    model = make(flat)
    history = train(model, objective=interrupting, steps=20)
    assert history.interrupted
    assert len(history.bounds) == 11
    assert all(p.isfinite().all() for p in model.parameters())
    assert signal.getsignal(signal.SIGINT) is previous


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'steps' should be at least 1, but is 0"):
        train(make(flat), steps=0)
    with pytest.raises(ValueError, match="'minutes' should be positive or None, but is -1"):
        train(make(flat), minutes=-1)
    with pytest.raises(ValueError, match="'batches' should hold at least one batch"):
        fit(make(flat), [], objective, steps=1, progress=False)


def test_checkpoint_round_trip(tmp_path):
    model = make(flat)
    save_checkpoint(tmp_path / "model", model.state_dict(), {"modalities": NAMES})
    state, description = load_checkpoint(tmp_path / "model")
    assert description["modalities"] == NAMES
    other = flat()
    other.load_state_dict(state)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


def test_damaged_checkpoints_are_refused(tmp_path):
    model = make(flat)
    save_checkpoint(tmp_path, model.state_dict(), {})
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()

    flipped = bytearray(content)
    flipped[-1] ^= 1
    for damaged in (bytes(flipped), content[:-10], b""):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="incomplete or was altered"):
            load_checkpoint(tmp_path)

    weights.write_bytes(content)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.json").unlink()
    with pytest.raises(CheckpointError, match="'folder' should hold"):
        load_checkpoint(tmp_path)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model = make(flat)
    save_checkpoint(tmp_path, model.state_dict(), {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, model.state_dict(), {"step": 2})
    assert load_checkpoint(tmp_path)[1]["step"] == 1
    assert json.loads((tmp_path / "model.json").read_text())["step"] == 1
    assert len(list(tmp_path.iterdir())) == 2
