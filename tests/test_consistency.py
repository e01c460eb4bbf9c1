"""P-values of modalities in the light of the others: valid for any model, small for swaps."""

import math

import pytest
import torch
from example_models import OBSERVED, batch, every_model, make
from scipy import stats

import mmpoe
from mmpoe.consistency import ConsistencyTest
from mmpoe.oracles import LinearGaussian

MODALITIES = ["a", "b", "c"]
PATTERNS = [[True, True, True], [True, True, False], [False, True, True]]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def linear_gaussian():
    oracle = LinearGaussian.random(MODALITIES, latent_dim=3, data_dim=6)
    return oracle, oracle.model()


def oracle_and_test(held_out=10):
    oracle, model = linear_gaussian()
    return oracle, ConsistencyTest(model, oracle.sample(held_out)[0], samples=2)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_alarms_of_sound_samples_have_their_rate_for_every_pattern(pattern):
    """The chance of an alarm, given N held-out samples, has the law Beta(k, N + 1 - k)."""
    oracle, model = linear_gaussian()
    test = ConsistencyTest(model, oracle.sample(99)[0], samples=2)
    p = test.p_values(oracle.sample(200)[0], torch.tensor([pattern]).expand(200, 3))
    assert torch.equal(~p.isnan(), torch.tensor([pattern]).expand(200, 3))
    for column in torch.tensor(pattern).nonzero()[:, 0].tolist():
        alarms, law = int((p[:, column] <= 0.2).sum()), stats.betabinom(200, 20, 80)
        assert law.cdf(alarms) > 1e-3
        assert law.sf(alarms - 1) > 1e-3


def area(sound, bad):
    """The area under the receiver operating characteristic."""
    above = bad[:, None] > sound
    return above.double().mean()


def test_swaps_are_told_as_well_as_exact_densities_can():
    oracle, model = linear_gaussian()
    x, _ = oracle.sample(600)
    test = ConsistencyTest(model, oracle.sample(99)[0], samples=64)
    swapped = {**x, "b": x["b"].roll(1, dims=0)}
    only, others, every = (
        torch.tensor([pattern]).expand(600, 3)
        for pattern in ([False, True, False], [True, False, True], [True, True, True])
    )
    exact = [
        oracle.log_prob(v, only) + oracle.log_prob(v, others) - oracle.log_prob(v, every)
        for v in (x, swapped)
    ]
    found = [test.scores(v)[:, 1] for v in (x, swapped)]
    assert area(*exact) > 0.8
    assert area(*found) > area(*exact) - 0.02
    sound, bad = (test.flags(v, rate=0.1).any(dim=1).double().mean() for v in (x, swapped))
    assert bad > 2 * sound


def test_a_held_out_sample_is_reduced_to_the_same_modalities():
    oracle, test = oracle_and_test(held_out=30)
    x, _ = oracle.sample(5)
    pattern = torch.tensor([[True, True, False]]).expand(5, 3)
    torch.manual_seed(1)
    reduced = ConsistencyTest(
        oracle.model(), test._x, torch.tensor([[True, True, False]]).expand(30, 3), samples=2
    )
    torch.manual_seed(1)
    a = reduced.p_values(x, pattern)
    torch.manual_seed(1)
    b = test.p_values(x, pattern)
    torch.testing.assert_close(a, b, equal_nan=True)


def test_without_others_or_held_out_samples_there_is_no_p_value():
    oracle, test = oracle_and_test(held_out=10)
    x, _ = oracle.sample(2)
    single = torch.tensor([[True, False, False], [True, True, True]])
    p = test.p_values(x, single)
    assert p[0].isnan().all()
    assert not p[1].isnan().any()
    assert not test.flags(x, single)[0].any()
    poor = ConsistencyTest(oracle.model(), x, torch.tensor([[True, True, False]]).expand(2, 3))
    assert poor.p_values(x).isnan().all()


@every_model
def test_every_model_is_tested_and_missing_entries_are_never_read(build):
    results = []
    for filler in (0.0, math.nan):
        model = make(build)
        torch.manual_seed(1)
        test = ConsistencyTest(model, batch(filler), OBSERVED, samples=2)
        results.append(test.p_values(batch(filler), OBSERVED))
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
    tested = OBSERVED & (OBSERVED.sum(dim=1, keepdim=True) > 1)
    assert torch.equal(~results[0].isnan(), tested)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, x: t.p_values({}), "'x' should hold at least one modality"),
        (lambda t, x: t.p_values({"d": x["a"]}), "'x' should"),
        (lambda t, x: t.p_values({"a": x["a"], "b": x["b"][:1]}), "'x' should hold one batch si"),
        (lambda t, x: t.p_values(x, torch.ones(2, 3)), "'observed' should be boolean"),
        (lambda t, x: t.flags(x, rate=1.0), "'rate' should be between 0 and 1, but is 1.0"),
        (lambda t, x: ConsistencyTest(t.model, x, samples=0), "'samples' should be an integer"),
    ],
)
def test_bad_input_is_named(call, message):
    oracle, test = oracle_and_test(held_out=5)
    with pytest.raises(ValueError, match=message):
        call(test, oracle.sample(2)[0])


def test_it_is_a_name_of_the_library():
    assert mmpoe.consistency.ConsistencyTest is ConsistencyTest
