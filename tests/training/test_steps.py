"""One step: what it is made of, and when it is skipped."""

import math
import os
import signal
from functools import partial

import pytest
import torch
from example_models import OBSERVED, batch, flat, make
from example_training import GOOD, Steep, product, recorded_steps, train
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import mmpoe
from mmpoe.training import (
    Adversary,
    Cosine,
    NonFiniteError,
    Optimizer,
    Run,
    fit,
    load_state,
    loop,
    processes,
)
from mmpoe.training.steps import Learner, moving_average


@pytest.mark.fault(39)
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
        options = {"optimizer": Optimizer(lr=0.1), "schedule": Cosine(warmup=0, floor=1.0)}
        history = fit(model, batches, product, steps=len(batches), progress=False, **options)
        handle.remove()
        assert history.skipped == len(batches) - 2
        results.append([model.weight.detach(), *states[-1]])
    assert len(results[0]) == 4  # weights, two moments and the number of steps
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.fault(39)
def test_a_bound_that_is_not_finite_is_skipped_even_if_its_gradient_is():
    model = Steep()
    history = fit(model, [GOOD], lambda *a: product(*a) + math.inf, steps=3, progress=False)
    assert history.skipped == 3
    assert torch.equal(model.weight, Steep().weight)


@pytest.mark.fault(39)
def test_a_gradient_that_is_not_finite_is_skipped_even_if_its_bound_is():
    def kink(model, x, done):
        value = model(x)
        return (value - value.detach()).abs().sqrt()  # 0, with a slope of infinity times 0

    model = Steep()
    history = fit(model, [GOOD], kink, steps=3, progress=False)
    assert history.bounds == [0.0] * 3
    assert history.skipped == 3
    assert torch.equal(model.weight, Steep().weight)


@pytest.mark.fault(39)
def test_training_stops_after_skipped_steps_in_a_row_and_keeps_the_batch(tmp_path):
    bad = {"x": [torch.tensor([1.0, math.nan, -2.0]), None], "names": ("a", "b")}
    batches = [{"x": [torch.ones(3), None]}, bad]

    def objective(model, batch, done):
        return model(batch["x"][0]) * (1 if done < 0.4 else math.nan)

    run, optimizer = Run(tmp_path, save_every=2, log_every=1), Optimizer(max_skipped=3)
    with pytest.raises(NonFiniteError, match=r"^3 steps in a row were skipped") as caught:
        fit(Steep(), batches, objective, steps=10, optimizer=optimizer, run=run, progress=False)
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
            options = {"optimizer": Optimizer(accumulate=8 // size, clip=math.inf)}
            rows = torch.arange(8).split(size)
            history = fit(copy, rows, objective, steps=1, progress=False, **options)
        found.append((gradients, history.bounds))
    for gradients, bounds in found[1:]:
        assert bounds == pytest.approx(found[0][1], rel=1e-5)
        for one, other in zip(gradients, found[0][0], strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other))


def test_optimisers_and_the_last_rate_can_be_chosen():
    # the published schedule: from 2e-3 to 1e-4
    options = {
        "optimizer": Optimizer(make=torch.optim.Adamax, lr=2e-3, weight_decay=0),
        "schedule": Cosine(warmup=0, floor=0.05),
    }
    with recorded_steps() as (rates, _):
        fit(Steep(), [GOOD], product, steps=4, progress=False, **options)
    expected = [1e-4 + 1.9e-3 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("share", "at"), [(0.0, 0), (0.5, 4), (0.51, 5), (2.0, None)])
def test_an_optimiser_starts_afresh_once_with_the_rate_that_it_had(share, at):
    """Its moments are those of the gradients since then; nothing else changes."""

    class Slopes(nn.Module):
        def __init__(self, value=0.0):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    slopes = [1.0, -3.0, 2.0, 5.0, -1.0, 0.5, 4.0, -2.0]
    own = {"lr": 0.1, "weight_decay": 0.1, "clip": math.inf, "average": 0, "restart": share}
    options = {"optimizer": Optimizer(**own), "schedule": Cosine(warmup=3)}
    model, product = Slopes(), lambda model, slope, done: model.value * slope
    with recorded_steps() as (rates, _):
        fit(model, slopes, product, steps=8, progress=False, **options)

    by_hand = Slopes()
    make = lambda: torch.optim.AdamW(by_hand.parameters(), betas=(0.9, 0.99), weight_decay=0.1)
    optimizer = make()
    for k, slope in enumerate(slopes):
        cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * k / 8)) / 2
        assert rates[k] == pytest.approx(0.1 * min(1, (k + 1) / 3) * cosine)
        if k == at:
            optimizer = make()
        optimizer.param_groups[0]["lr"] = rates[k]
        by_hand.value.grad = torch.tensor(-slope, dtype=torch.float64)
        optimizer.step()
    torch.testing.assert_close(model.value, by_hand.value)


def test_restarts_leave_an_adversary_alone():
    """Only the model forgets."""
    made = {"model": 0, "discriminator": 0}

    def making(who):
        def make(parameters, lr, weight_decay=0):
            made[who] += 1
            return torch.optim.SGD(parameters, lr)

        return make

    discriminator = Steep()
    loss = lambda network, x, done: network(x)
    adversary = Adversary(discriminator, loss, make=making("discriminator"))
    optimizer = Optimizer(restart=0.5, make=making("model"))
    fit(Steep(), [GOOD], product, steps=6, optimizer=optimizer, adversary=adversary,
        progress=False)  # fmt: skip
    assert made == {"model": 2, "discriminator": 1}


def test_an_adversary_learns_against_the_model():
    class Scale(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

    model, discriminator, seen = Scale(1.0), Scale(2.0), []

    def objective(model, x, done):
        assert not discriminator.value.requires_grad
        seen.append(model.value.detach().clone())
        return (
            -model.value * discriminator.value * x
        )  # d/dvalue is minus the discriminator's value

    def loss(network, x, done):
        assert network is discriminator
        assert network.value.requires_grad
        assert torch.equal(seen[-1], model.value)  # before the model's step
        return network.value * x

    sgd = {"make": lambda parameters, lr, weight_decay=0: torch.optim.SGD(parameters, lr)}
    adversary = Adversary(discriminator, loss, lr=0.5, start=0.5, **sgd)
    options = {
        "optimizer": Optimizer(lr=0.1, clip=math.inf, average=0, **sgd),
        "schedule": Cosine(warmup=0, floor=1.0),
    }
    data = [torch.ones(2)]
    fit(model, data, objective, steps=4, adversary=adversary, **options, progress=False)
    # the discriminator is 2, 2, 2, 1.5 in the four steps, and then 1
    assert model.value.item() == pytest.approx(1 - 0.1 * (2 + 2 + 2 + 1.5))
    assert discriminator.value.item() == pytest.approx(1.0)
    assert discriminator.training


def test_half_precision_leaves_data_and_weights_in_full(monkeypatch):
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
    monkeypatch.setattr(processes, "computes_bfloat16", lambda: True)
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


@pytest.mark.fault(39)
def test_scales_that_overflow_are_not_held_against_a_run(scaled, tmp_path):
    model, whole = Steep(), Steep()
    options = {"precision": "16-mixed", "optimizer": Optimizer(lr=0.1, max_skipped=2)}
    options["progress"] = False
    history = fit(whole, [1000 * GOOD], product, steps=60, **options)
    scale = scaled[0].get_scale()
    assert 30 > history.skipped > 20  # until the scale fits
    assert not torch.equal(whole.weight, Steep().weight)

    def stop(model, batch, done):  # the scale is restored
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
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"'accelerator' should be .* without a GPU"):
            train(make(flat), accelerator="cuda")


def test_a_moving_average_is_that_of_each_tensor_to_the_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # which counts batches in integers
    averaged = moving_average(model, 0.9)
    wanted = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(1, 4):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        model(torch.randn(5, 3))
        rate = min(0.9, step / (9 + step))
        averaged.update_parameters(model)
        for k, v in model.state_dict().items():
            first = step == 1 or not v.is_floating_point()
            wanted[k] = v.clone() if first else wanted[k].lerp(v, 1 - rate)
    for k, v in averaged.module.state_dict().items():
        assert torch.equal(v, wanted[k])


def learner(build, precision="32-true"):
    fabric = mmpoe.training.processes.make_fabric(precision, "cpu")
    return Learner(fabric, nn.Linear(2, 1), lambda batch, done: batch, build)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_the_fused_optimiser_is_the_other_one_to_rounding(kind):
    torch.manual_seed(0)
    runs = []
    for fused in (None, False):
        torch.manual_seed(0)
        one = learner(partial(kind, lr=0.1, weight_decay=0.3, fused=fused))
        assert one.optimizer.param_groups[0]["fused"] is (fused is None)
        for _ in range(5):
            one.optimizer.zero_grad()
            sum((p.cos() * p).sum() for p in one.network.parameters()).backward()
            one.optimizer.step()
        runs.append(list(one.network.parameters()))
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "build",
    [
        partial(torch.optim.AdamW, fused=False),
        partial(torch.optim.AdamW, foreach=True),
        partial(torch.optim.AdamW, differentiable=True),
        torch.optim.Adamax,
    ],
)
def test_an_optimiser_is_not_fused_if_it_may_not_or_cannot(build):
    assert not learner(build).optimizer.param_groups[0].get("fused")


def test_a_state_that_another_kernel_wrote_leaves_the_kernel_of_this_device():
    old, new = learner(partial(torch.optim.AdamW, fused=False)), learner(torch.optim.AdamW)
    new.load_state_dict(old.state_dict(), "the state")
    assert new.optimizer.param_groups[0]["fused"]
