"""The training loop learns, survives interrupts and bad gradients, and checkpoints are checked."""

import json
import math
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from example_models import NAMES, OBSERVED, batch, flat, make
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

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


class Weight(nn.Module):
    """One weight or more, from 0. AdamW moves each by `lr` per step where the slope is fixed."""

    def __init__(self, *shape):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape, dtype=torch.float64))


@contextmanager
def recorded_steps():
    """Records the learning rate and the gradients of each step of an optimiser."""
    rates, gradients = [], []

    def record(optimizer, *_):
        (group,) = optimizer.param_groups
        rates.append(group["lr"])
        gradients.extend(p.grad.tolist() for p in group["params"])

    handle = register_optimizer_step_pre_hook(record)
    try:
        yield rates, gradients
    finally:
        handle.remove()


def final_weight(**options):
    model = Weight()
    options = {"lr": 1.0, "weight_decay": 0.0, "warmup": 0, "progress": False, **options}
    fit(model, [1.0], lambda model, data, progress: model.value * data, **options)
    return model.value.item()


COSINE = [1.0, 0.755, 0.265]
"""The learning rate over three steps without warm-up: 0.02 + 0.98 (1 + cos(pi k / 3)) / 2."""


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (0, COSINE),
        (1, COSINE),
        (2, [COSINE[0] / 2, COSINE[1], COSINE[2]]),
        (4, [rate * (k + 1) / 4 for k, rate in enumerate(COSINE)]),
    ],
)
def test_learning_rate_warms_up_and_follows_a_cosine(warmup, expected):
    with recorded_steps() as (rates, _):
        last = final_weight(steps=3, warmup=warmup, average=0)
    assert rates == pytest.approx(expected)
    assert last == pytest.approx(sum(expected))


def test_gradients_are_clipped_to_a_norm():
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)

    def steep(model, data, progress):
        return model.value @ data

    for clip, expected in [(0.5, [-0.3, -0.4]), (10.0, [-3, -4]), (math.inf, [-3, -4])]:
        with recorded_steps() as (_, gradients):
            fit(Weight(2), [slope], steep, steps=1, clip=clip, progress=False)
        assert gradients == [pytest.approx(expected, rel=1e-5)]


def test_the_model_ends_with_the_averaged_weights():
    steps = [1.0, 1.755, 2.02]  # the weight after each step
    assert final_weight(steps=3, average=0) == pytest.approx(steps[2])
    # the average starts at the first of them; its decay is (1 + n) / (10 + n) at first
    second = 2 / 11 * steps[0] + 9 / 11 * steps[1]
    assert final_weight(steps=3, average=0.99) == pytest.approx(0.25 * second + 0.75 * steps[2])
    second = 0.1 * steps[0] + 0.9 * steps[1]
    assert final_weight(steps=3, average=0.1) == pytest.approx(0.1 * second + 0.9 * steps[2])


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
    assert [math.isnan(bound) for bound in history.bounds] == [False] * 2 + [True] + [False] * 3
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


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("steps", 0, "an integer of at least 1"),
        ("steps", 2.5, "an integer of at least 1"),
        ("minutes", -1, "positive or None"),
        ("lr", 0.0, "positive and finite"),
        ("lr", math.nan, "positive and finite"),
        ("weight_decay", -0.1, "at least 0 and finite"),
        ("warmup", -1, "an integer of at least 0"),
        ("warmup", 0.5, "an integer of at least 0"),
        ("clip", 0, "positive"),
        ("average", 1.0, r"in \[0, 1\)"),
        ("average", -0.1, r"in \[0, 1\)"),
    ],
)
def test_bad_arguments_are_named(name, value, wanted):
    with pytest.raises(ValueError, match=f"'{name}' should be {wanted}, but is {value}"):
        train(make(flat), **{name: value})


def test_batches_that_run_out_are_named():
    with pytest.raises(ValueError, match="'batches' should hold at least one batch"):
        fit(make(flat), [], objective, steps=1, progress=False)
    once = iter([(batch(), OBSERVED)] * 2)
    with pytest.raises(
        ValueError, match=r"'batches' should be iterable again and again, .* list_"
    ):
        fit(make(flat), once, objective, steps=3, progress=False)
    once = iter([(batch(), OBSERVED)] * 3)  # just enough
    assert len(fit(make(flat), once, objective, steps=3, progress=False).bounds) == 3


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


def test_shared_tensors_are_stored_once(tmp_path):
    shared = nn.Linear(20, 20)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(20, 20)})
    model["c"].weight = shared.weight
    save_checkpoint(tmp_path, model.state_dict(), {})
    state, _ = load_checkpoint(tmp_path)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * 4 * 20 * 20


def test_views_of_a_tensor_keep_their_values(tmp_path):
    square = torch.arange(9.0).reshape(3, 3)
    number = torch.tensor([1 + 2j])
    views = {
        "square": square,
        "transposed": square.T,
        "integers": square.view(torch.int32),
        "part": square[:2],
        "column": square[:, 0],
        "number": number,
        "conjugate": number.conj(),
        "empty": square[:0],
        "nothing": torch.zeros(0),
    }
    save_checkpoint(tmp_path, views, {})
    state, _ = load_checkpoint(tmp_path)
    for name, value in views.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name


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
    for text in ("[]", "{}", '{"sha256": 1, "aliases": {}}', f'{{"sha256": "{"0" * 64}"}}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(CheckpointError, match="should hold an object with 'sha256'"):
            load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, model.state_dict(), {})  # over a useless description
    description = load_checkpoint(tmp_path)[1]
    for target in ("b", ["b"]):
        text = json.dumps({**description, "aliases": {"a": target}})
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"'aliases', but names .*'b'"):
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


def test_a_save_that_is_stopped_leaves_the_old_checkpoint_or_the_new(tmp_path, monkeypatch):
    def save(step):
        save_checkpoint(tmp_path, {"weight": torch.full((3,), float(step))}, {"step": step})

    def stop_at(operation, patch):
        """Stops the process at an operation on files, counted from 0."""
        calls = iter(range(operation + 1))
        sync, replace = os.fsync, Path.replace

        def counted(function):
            def call(*args):
                if next(calls) == operation:
                    raise KeyboardInterrupt
                return function(*args)

            return call

        patch.setattr(os, "fsync", counted(sync))
        patch.setattr(Path, "replace", counted(replace))

    save(0)
    current, found = 0, []
    for operation in range(9):
        with monkeypatch.context() as patch:
            stop_at(operation, patch)
            with pytest.raises(KeyboardInterrupt):
                save(operation + 1)
        state, description = load_checkpoint(tmp_path)
        step = description["step"]
        assert step in (current, operation + 1)
        assert state["weight"].tolist() == [step] * 3
        assert "previous" not in description
        current = step
        found.append(step)
    assert found == [0, 0, 0, 0, 0, 6, 7, 8, 9]  # the fifth one replaces the weights

    save(7)
    assert load_checkpoint(tmp_path)[1]["step"] == 7
    assert "previous" not in json.loads((tmp_path / "model.json").read_text())
    with pytest.raises(ValueError, match="'description' should not hold 'previous'"):
        save_checkpoint(tmp_path, {}, {"previous": 1})
