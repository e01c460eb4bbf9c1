"""The training loop learns, survives interrupts and bad gradients, and checkpoints are checked."""

import csv
import json
import math
import os
import signal
import sys
import types
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from example_models import NAMES, OBSERVED, batch, flat, hierarchical, make
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import mmpoe
from mmpoe.training import (
    Adversary,
    CheckpointError,
    CollapseWarning,
    NonFiniteError,
    Run,
    fit,
    load_checkpoint,
    load_state,
    loop,
    save_checkpoint,
    save_state,
    shard,
)
from mmpoe.training.nested import flatten, unflatten


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
        ("floor", 1.5, r"in \[0, 1\]"),
        ("accumulate", 0, "an integer of at least 1"),
        ("patience", 0, "an integer of at least 1"),
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


# steps that are skipped


class Steep(nn.Module):
    """A model whose bound and gradient are those of a product with the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25, 2.0]))

    def forward(self, x):
        return x @ self.weight


def product(model, x, done):
    return model(x)


GOOD = torch.tensor([[0.1, 0.3, -0.2], [0.4, -0.1, 0.2]])


@pytest.mark.parametrize(
    "bad",
    [
        torch.full((2, 3), math.nan),
        torch.tensor([[math.inf, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        torch.full((2, 3), 3e38),  # bound and gradient overflow
    ],
)
def test_a_skipped_step_changes_no_bit_of_weights_and_optimiser(bad):
    states = []

    def watch(optimizer, *_):
        states.append([v.clone() for s in optimizer.state.values() for v in s.values()])

    results = []
    for batches in ([GOOD, bad, 2 * GOOD], [GOOD, 2 * GOOD]):
        model = Steep()
        states.clear()
        handle = register_optimizer_step_pre_hook(watch)
        options = {"lr": 0.1, "floor": 1.0, "warmup": 0, "progress": False}
        history = fit(model, batches, product, steps=len(batches), **options)
        handle.remove()
        assert history.skipped == len(batches) - 2
        results.append([model.weight.detach(), *states[-1]])
    assert len(results[0]) == 4  # weights, two moments and the number of steps
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_bound_that_is_not_finite_is_skipped_even_if_its_gradient_is():
    model = Steep()
    history = fit(model, [GOOD], lambda *a: product(*a) + math.inf, steps=3, progress=False)
    assert history.skipped == 3
    assert torch.equal(model.weight, Steep().weight)


def test_a_gradient_that_is_not_finite_is_skipped_even_if_its_bound_is():
    def kink(model, x, done):
        value = model(x)
        return (value - value.detach()).abs().sqrt()  # 0, with a slope of infinity times 0

    model = Steep()
    history = fit(model, [GOOD], kink, steps=3, progress=False)
    assert history.bounds == [0.0] * 3
    assert history.skipped == 3
    assert torch.equal(model.weight, Steep().weight)


def test_training_stops_after_skipped_steps_in_a_row_and_keeps_the_batch(tmp_path):
    bad = {"x": [torch.tensor([1.0, math.nan, -2.0]), None], "names": ("a", "b")}
    batches = [{"x": [torch.ones(3), None]}, bad]

    def objective(model, batch, done):
        return model(batch["x"][0]) * (1 if done < 0.4 else math.nan)

    run = Run(tmp_path, save_every=2, log_every=1)
    with pytest.raises(NonFiniteError, match=r"^3 steps in a row were skipped") as caught:
        fit(Steep(), batches, objective, steps=10, patience=3, run=run, progress=False)
    path = tmp_path / "bad-batch"
    assert f"load_state({str(path)!r})" in str(caught.value)
    (found,) = load_state(path)
    assert found["names"] == ("a", "b")
    assert found["x"][1] is None
    torch.testing.assert_close(found["x"][0], bad["x"][0], equal_nan=True, rtol=0, atol=0)

    with pytest.raises(NonFiniteError, match=r"batches are in /.*mmpoe-.*bad-batch.safetensors"):
        fit(Steep(), [torch.full((1, 3), math.nan)], product, steps=10, progress=False)
    strange = [(torch.full((3,), math.nan), object())]
    with pytest.raises(NonFiniteError, match=r"cannot be saved: 'state/0/1' should be a tensor"):
        fit(Steep(), strange, lambda m, b, d: m(b[0]), steps=10, progress=False)


# what a step is made of


def test_accumulated_gradients_are_those_of_the_joined_batch():
    model, generator = make(flat), torch.Generator().manual_seed(3)
    noise = [torch.randn(8, 4, generator=generator)]

    def objective(model, rows, done):
        x = {m: v[rows] for m, v in batch().items()}
        given = OBSERVED[rows]
        return mmpoe.elbo(model(x, given, noise=[n[rows] for n in noise]), x, given)

    found = []
    for size in (8, 4, 2, 1):
        copy = make(flat)
        copy.load_state_dict(model.state_dict())
        with recorded_steps() as (_, gradients):
            options = {"accumulate": 8 // size, "clip": math.inf, "progress": False}
            history = fit(copy, torch.arange(8).split(size), objective, steps=1, **options)
        found.append((gradients, history.bounds))
    for gradients, bounds in found[1:]:
        assert bounds == pytest.approx(found[0][1], rel=1e-5)
        for one, other in zip(gradients, found[0][0], strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other))


def test_optimisers_and_the_last_rate_can_be_chosen():
    # the published schedule: from 2e-3 to 1e-4
    options = {
        "optimizer": torch.optim.Adamax,
        "lr": 2e-3,
        "floor": 0.05,
        "warmup": 0,
        "weight_decay": 0,
    }
    with recorded_steps() as (rates, _):
        fit(Steep(), [GOOD], product, steps=4, progress=False, **options)
    expected = [1e-4 + 1.9e-3 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates == pytest.approx(expected)


def test_an_adversary_learns_against_the_model():
    class Scale(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

    model, critic, seen = Scale(1.0), Scale(2.0), []

    def objective(model, x, done):
        assert not critic.value.requires_grad
        seen.append(model.value.detach().clone())
        return -model.value * critic.value * x  # d/dvalue is minus the critic's value

    def loss(network, x, done):
        assert network is critic
        assert network.value.requires_grad
        assert torch.equal(seen[-1], model.value)  # before the model's step
        return network.value * x

    sgd = {"optimizer": lambda parameters, lr, weight_decay=0: torch.optim.SGD(parameters, lr)}
    adversary = Adversary(critic, loss, lr=0.5, start=0.5, **sgd)
    options = {"lr": 0.1, "warmup": 0, "floor": 1.0, "clip": math.inf, "average": 0}
    data = [torch.ones(2)]
    fit(model, data, objective, steps=4, adversary=adversary, **options, **sgd, progress=False)
    # the critic is 2, 2, 2, 1.5 in the four steps, and then 1
    assert model.value.item() == pytest.approx(1 - 0.1 * (2 + 2 + 2 + 1.5))
    assert critic.value.item() == pytest.approx(1.0)
    assert critic.training


def test_half_precision_leaves_data_and_weights_in_full():
    seen = []

    def watch(model, data, progress):
        x, observed = data
        output = model(x, given=observed)
        bound = mmpoe.elbo(output, x, observed)
        seen.append((x["us"].dtype, output.kl[0].dtype, bound.dtype))
        return bound

    torch.manual_seed(0)
    model = make(flat)
    inside = next(m for m in model.modules() if isinstance(m, nn.Linear))
    inside.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    history = train(model, objective=watch, precision="bf16-mixed", accelerator="cpu")
    assert seen[:2] == [torch.bfloat16, (torch.float32,) * 3]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert sum(history.bounds[-5:]) > sum(history.bounds[:5]) + 5


@pytest.fixture
def scaled(monkeypatch):
    """Half precision with a scaler on the CPU, from a scale that overflows a few times."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import MixedPrecision

    scalers = []

    def make_fabric(precision, accelerator):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**scale, growth_interval=4)
        scalers.append(scaler)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
        fabric.launch()
        return fabric

    scale = 30
    monkeypatch.setattr(loop, "make_fabric", make_fabric)
    return scalers


def test_scales_that_overflow_are_not_held_against_a_training(scaled, tmp_path):
    model, whole = Steep(), Steep()
    options = {"precision": "16-mixed", "patience": 2, "lr": 0.1, "progress": False}
    history = fit(whole, [1000 * GOOD], product, steps=60, **options)
    scale = scaled[0].get_scale()
    assert 30 > history.skipped > 20  # until the scale fits
    assert not torch.equal(whole.weight, Steep().weight)

    def stop(model, batch, done):  # the scale goes on from where it was
        if done > 0.6 and not stopped:
            stopped.append(done)
            os.kill(os.getpid(), signal.SIGTERM)
        return product(model, batch, done)

    stopped = []
    for again in (False, True):
        run = Run(tmp_path, resume=again)
        history = fit(model, [1000 * GOOD], stop, steps=60, run=run, **options)
    assert torch.equal(model.weight, whole.weight)
    assert scaled[-1].get_scale() == scale

    with pytest.raises(NonFiniteError, match=r"^2 steps in a row"):
        fit(Steep(), [GOOD * math.nan], product, steps=60, **options)


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match=r"'precision' should be one of .*, but is '8-bit'"):
        train(make(flat), precision="8-bit")
    with pytest.raises(ValueError, match=r"'precision' should be '32-true' or .* on a CPU"):
        train(make(flat), precision="16-mixed", accelerator="cpu")
    for name in ("save_every", "log_every"):
        with pytest.raises(ValueError, match=rf"'{name}' should be an integer of at least 1"):
            train(make(flat), run=Run("unused", **{name: 0}))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"'accelerator' should be .* without a GPU"):
            train(make(flat), accelerator="cuda")


# what is logged


def numbers(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_log_has_a_row_per_interval(tmp_path):
    kls = []

    def watch(model, data, progress):
        x, observed = data
        output = model(x, given=observed)
        kls.append([kl.mean().item() for kl in output.kl])
        return mmpoe.elbo(output, x, observed)

    run = Run(tmp_path, save_every=100, log_every=4, evaluate=lambda model, step: 0.5 * step)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        history = train(make(hierarchical), objective=watch, steps=10, run=run)
    rows = numbers(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["4", "8", "10"]
    for row in rows[:2]:
        step = int(row["step"])
        assert float(row["bound"]) == pytest.approx(sum(history.bounds[step - 4 : step]) / 4)
        found = [float(row["kl_1"]), float(row["kl_2"])]
        assert found == pytest.approx(kls[step - 1])
        assert row["score"] == ""
    assert rows[2]["score"] == "5.0"
    assert history.best == history.checkpoint


def test_collapsed_groups_are_told_once(tmp_path):
    def ignoring(model, data, progress):  # the divergence costs so much that latents are useless
        x, observed = data
        return mmpoe.elbo(model(x, given=observed), x, observed, beta=1000.0)

    run = Run(tmp_path, log_every=2)
    torch.manual_seed(0)
    with pytest.warns(CollapseWarning, match=r"of 2 latent groups, .* kl_1 = .* nats") as caught:
        train(make(hierarchical), objective=ignoring, steps=300, lr=3e-2, run=run)
    told = [name for w in caught for name in ("kl_1 =", "kl_2 =") if name in str(w.message)]
    assert len(told) == len(set(told))


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"mmpoe\[tensorboard\]"):
        train(make(flat), run=Run(tmp_path, tensorboard=True))

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.folder, self.purge_step, self.rows = folder, purge_step, []
            writers.append(self)

        def add_scalar(self, name, value, step):
            self.rows.append((name, step))

        def flush(self):
            pass

        def close(self):
            self.rows.append("closed")

    writers = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(make(flat), steps=4, run=Run(tmp_path, log_every=2, save_every=9, tensorboard=True))
    (writer,) = writers
    assert writer.folder == tmp_path / "tensorboard"
    assert writer.purge_step == 1
    assert [row[1] for row in writer.rows if row[0] == "bound"] == [2, 4]
    assert writer.rows[-1] == "closed"


# states, shares


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
tensors = st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor)
states = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=8,
)


def equal(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        keys = [(type(k), k) for k in a] == [(type(k), k) for k in b]
        return keys and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@given(states)
def test_nested_states_are_put_together_again(state):
    held, rest = flatten(state)
    assert equal(unflatten(held, json.loads(json.dumps(rest))), state)


def test_states_of_optimisers_are_kept(tmp_path):
    model = make(flat)
    for kind in (torch.optim.AdamW, torch.optim.Adamax, torch.optim.RMSprop):
        optimizer = kind(model.parameters(), lr=0.1)
        objective(model, (batch(), OBSERVED), 0).mean().backward()
        optimizer.step()
        save_state(tmp_path / "state", optimizer.state_dict())
        assert equal(load_state(tmp_path / "state"), optimizer.state_dict())


def test_cases_are_shared_out(monkeypatch):
    cases = list("abcdefg")
    for world in range(1, 9):
        shares = [shard(cases, rank, world) for rank in range(world)]
        assert sorted(case for share in shares for case in share) == cases
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shard(cases) == cases
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert shard(cases) == ["c", "f"]
    with pytest.raises(ValueError, match=r"'rank' should be from 0 to 1, but is 2"):
        shard(cases, 2, 2)
