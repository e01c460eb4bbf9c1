"""When adversarial terms act, and how much."""

import math

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from torch import nn

import mmpoe
from mmpoe import likelihoods
from mmpoe.adversarial import PUBLISHED, Schedule


def test_published_schedule():
    """In epochs, as in the published code."""
    for epoch, beta, weight, discriminator, bank, restart in [
        (0, 0.0, 0.0, False, False, False),
        (25, 5e-4, 0.0, False, False, False),
        (50, 1e-3, 0.0, False, False, False),
        (779, 1e-3, 0.0, False, False, False),
        (780, 1e-3, 0.0, False, False, True),
        (781, 1e-3, 0.0, False, False, False),
        (788, 1e-3, 0.0, False, False, False),
        (789, 1e-3, 0.0, False, True, False),
        (790, 1e-3, 0.0, True, True, False),
        (799, 1e-3, 0.0, True, True, False),
        (800, 1e-3, 0.025, True, True, False),
        (999, 1e-3, 0.025, True, True, False),
    ]:
        found = PUBLISHED(epoch)
        assert found == (pytest.approx(beta), weight, discriminator, bank, restart)


@hypothesis_given(
    st.integers(0, 60), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20),
    st.integers(0, 20), st.floats(0, 10), st.floats(0, 10),
)  # fmt: skip
def test_schedules_rise_and_stay(step, warmup, start, lead, ramp, beta, weight):
    schedule = Schedule(beta, warmup, weight, start + lead, ramp, start)
    found, following = schedule(step), schedule(step + 1)
    assert found.beta == pytest.approx(beta * min(1, step / warmup if warmup else 1))
    share = min(1, (step - start - lead) / ramp if ramp else 1)
    assert found.generator == pytest.approx(weight * share if step >= start + lead else 0)
    assert found.discriminator == found.bank == (step >= start)
    assert not found.restart
    for now, later in zip(found, following, strict=True):
        assert now <= later
    assert (
        found.discriminator or found.generator == 0
    )  # a discriminator that knows nothing has no say


@hypothesis_given(
    st.integers(1, 3000),
    st.integers(0, 3000),
    st.builds(
        Schedule,
        warmup=st.integers(0, 400),
        generator=st.integers(200, 400),
        ramp=st.integers(0, 99),
        discriminator=st.integers(0, 200),
        bank=st.none() | st.integers(0, 300),
        restart=st.none() | st.integers(0, 300),
    ),
)
def test_shares_of_a_training_have_the_weights_of_their_steps(length, step, schedule):
    """To the bit where something sets in: both are one division of the same integers."""
    found, expected = schedule.over(length)(step / length), schedule(step)
    assert found[2:] == expected[2:]
    assert found[:2] == pytest.approx(expected[:2], abs=1e-9)
    assert (found.generator > 0) == (expected.generator > 0) or schedule.ramp > 0


def test_bad_schedules_are_named():
    with pytest.raises(ValueError, match=r"'length' should be positive, but is 0"):
        PUBLISHED.over(0)
    with pytest.raises(ValueError, match=r"'warmup' should be at least 0, but is -1"):
        Schedule(warmup=-1)
    with pytest.raises(ValueError, match=r"'restart' should be at least 0, but is -2"):
        Schedule(restart=-2)
    with pytest.raises(ValueError, match=r"'weight' should be at least 0, but is nan"):
        Schedule(weight=math.nan)
    with pytest.raises(ValueError, match=r"'discriminator' .* no later .* but they are 5 and 4"):
        Schedule(generator=4, discriminator=5)
    with pytest.raises(ValueError, match=r"'step' and 'steps' should be at least 0, but are -1"):
        PUBLISHED(-1)
    with pytest.raises(AttributeError):
        PUBLISHED.beta = 1.0


def test_published_weights_belong_to_a_bound():
    """The published loss is a bound, up to a constant, as the documentation says."""
    torch.manual_seed(0)
    decoder = lambda: nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4)))
    model = mmpoe.MVAE(
        {m: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)) for m in ("us", "t2")},
        {m: likelihoods.Laplace(decoder(), scale=0.002) for m in ("us", "t2")},
    ).double()
    x = {m: torch.randn(5, 1, 4, 4, dtype=torch.float64) for m in model.modalities}
    observed = torch.ones(5, 2, dtype=torch.bool)
    output = model(x, ["us"])
    for epoch in (0, 20, 300):
        weights = PUBLISHED(epoch)
        bound = mmpoe.elbo(output, x, observed, weights.beta / PUBLISHED.beta)
        found = -PUBLISHED.beta * bound / (16 * 2)
        errors = [(x[m] - output.likelihoods[m].mean).abs().mean(dim=(1, 2, 3)) for m in x]
        published = sum(errors) / 2 / 2 + weights.beta * output.kl[0] / (16 * 2)
        constant = PUBLISHED.beta * math.log(2 * 0.002)
        torch.testing.assert_close(found, published + constant)
