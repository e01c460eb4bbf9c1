"""The training loop learns, by its schedules, and survives interrupts."""

import math
import os
import signal

import pytest
import torch
from context_models import SHIFTED, shifted_batches
from example_models import OBSERVED, SIZES, batch, flat, hierarchical, make
from example_training import Weight, objective, recorded_steps, train
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import mmpoe
from mmpoe.objectives import mixture_elbo
from mmpoe.training import (
    Adversary,
    Checkpoints,
    Cosine,
    ObjectiveWarning,
    Optimizer,
    Run,
    fit,
    load_checkpoint,
)


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


def final_weight(average, warmup=0):
    model, optimizer = Weight(), Optimizer(lr=1.0, weight_decay=0.0, average=average)
    how = {"optimizer": optimizer, "schedule": Cosine(warmup=warmup), "progress": False}
    fit(model, [1.0], lambda model, data, progress: model.value * data, steps=3, **how)
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
        last = final_weight(average=0, warmup=warmup)
    assert rates == pytest.approx(expected)
    assert last == pytest.approx(sum(expected))


def test_gradients_are_clipped_to_a_norm():
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)

    def steep(model, data, progress):
        return model.value @ data

    for clip, expected in [(0.5, [-0.3, -0.4]), (10.0, [-3, -4]), (math.inf, [-3, -4])]:
        with recorded_steps() as (_, gradients):
            optimizer = Optimizer(clip=clip)
            fit(Weight(2), [slope], steep, steps=1, optimizer=optimizer, progress=False)
        assert gradients == [pytest.approx(expected, rel=1e-5)]


def test_the_model_ends_with_the_averaged_weights():
    steps = [1.0, 1.755, 2.02]  # the weight after each step
    assert final_weight(average=0) == pytest.approx(steps[2])
    # the average starts at the first of them; its decay is (1 + n) / (10 + n) at first
    second = 2 / 11 * steps[0] + 9 / 11 * steps[1]
    assert final_weight(average=0.99) == pytest.approx(0.25 * second + 0.75 * steps[2])
    second = 0.1 * steps[0] + 0.9 * steps[1]
    assert final_weight(average=0.1) == pytest.approx(0.1 * second + 0.9 * steps[2])


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
    ],
)
def test_bad_arguments_are_named(name, value, wanted):
    with pytest.raises(ValueError, match=f"'{name}' should be {wanted}, but is {value}"):
        train(make(flat), **{name: value})


def test_an_optimiser_that_is_none_of_ours_is_named():
    with pytest.raises(TypeError, match=r"'optimizer' should be .*Optimizer\(lr=.*Adamax'>"):
        train(make(flat), optimizer=torch.optim.Adamax)
    model = make(flat)
    with pytest.raises(TypeError, match=r"'fit' makes an optimiser.* instance of Adamax"):
        train(model, optimizer=torch.optim.Adamax(model.parameters()))


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


def test_compiled_networks_are_kept_under_their_own_names(tmp_path):
    def loss(discriminator, data, done):
        return discriminator(data[0]["us"]).square()

    kept = []
    for compiled in (False, True):
        model = make(flat)
        model(batch(), OBSERVED)
        discriminator = nn.Linear(SIZES["us"], 1)
        torch.manual_seed(0)
        networks = [
            torch.compile(n, backend="eager") if compiled else n for n in (model, discriminator)
        ]
        folder = tmp_path / str(compiled)
        adversary = Adversary(networks[1], loss, lr=1e-2)
        train(networks[0], steps=4, run=Run(folder), adversary=adversary)
        step = Checkpoints(folder / "checkpoints").path(4)
        assert not model.training
        assert load_checkpoint(step)[0].keys() == model.state_dict().keys()
        names = {name for path in step.glob("*.safetensors") for name in load_file(path)}
        kept.append((names, model.state_dict()))
    (plain_names, plain), (compiled_names, compiled) = kept
    assert plain_names == compiled_names
    for name, value in plain.items():
        torch.testing.assert_close(value, compiled[name])


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (lambda bound: bound.mean().item(), "returns a float"),
        (lambda bound: (bound, 1), "returns a tuple"),
        (lambda bound: bound.detach(), r"without a gradient: was it detached"),
        (lambda bound: bound > 0, r"dtype torch\.bool and shape \(8,\)"),
        (lambda bound: bound[:, None, None], r"shape \(8, 1, 1\)"),
        (lambda bound: bound[:0], r"shape \(0,\)"),
    ],
)
def test_an_objective_that_returns_something_else_is_told(result, shown):
    def odd(model, data, progress):
        return result(objective(model, data, progress))

    with pytest.raises(ValueError, match=f"'objective' should return .*{shown}"):
        train(make(flat), objective=odd, steps=1)


def test_an_adversary_that_returns_something_else_is_told():
    adversary = Adversary(nn.Linear(1, 1), lambda network, data, done: 0.0)
    with pytest.raises(ValueError, match=r"'adversary\.loss' should return .* a float"):
        train(make(flat), adversary=adversary, steps=1)


LOSSES = {
    "negative bound": lambda model, data, done: -objective(model, data, done),
    "negative mean": lambda model, data, done: -objective(model, data, done).mean(),
    "over subsets": lambda model, data, done: -mixture_elbo(model, *data),
}


@pytest.mark.parametrize("build", [flat, hierarchical])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_loss_that_is_maximised_is_told(loss, build):
    with pytest.warns(ObjectiveWarning, match="If it is a loss, return its negative"):
        train(make(build), objective=loss, steps=1)
    train(make(build), objective=lambda *given: -loss(*given), steps=1)  # without a warning


def test_objectives_that_free_bits_or_lack_divergences_are_not_taken_for_losses():
    def free(model, data, done):
        output = model(data[0], data[1])
        return mmpoe.elbo(output._replace(kl=[q.clamp(min=9.0) for q in output.kl]), *data)

    def likelihood(model, data, done):
        return mmpoe.elbo(model(data[0], data[1]), *data, beta=0.0)

    train(make(flat), objective=free, steps=1)
    train(make(flat), objective=likelihood, steps=1)


def test_batches_that_carry_covariates_reach_the_objective_whole():
    model, (_, x) = make(SHIFTED["flat"]).double(), shifted_batches(filler=0.0)
    samples = [
        {
            **{m: v[row] for m, v in x.items()},
            "context": {name: v[row] for name, v in x.context.items()},
            "id": row,
        }
        for row in range(8)
    ]
    batches = DataLoader(samples, 4, collate_fn=model.collate, num_workers=1)
    seen = []

    def objective(model, batch, done):
        x, observed = batch
        seen.append(x.ids)
        return mixture_elbo(model, x, observed).mean()

    fit(model, batches, objective, steps=2, progress=False)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]]
