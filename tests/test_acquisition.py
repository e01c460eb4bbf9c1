"""Closed forms, on linear-Gaussian models, of how much another modality tells."""

import math

import pytest
import torch
from example_models import MODELS, NAMES, OBSERVED, SIZES, batch, every_model, make

import mmpoe
from mmpoe.acquisition import Reduction, information_gain, variance_reduction
from mmpoe.imputation import add_matched_experts
from mmpoe.missing import Batch
from mmpoe.oracles import LinearGaussian, LinearGaussianHierarchy

MODALITIES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def flat_oracle():
    oracle = LinearGaussian.random(MODALITIES, latent_dim=2, data_dim=3)
    return oracle, oracle.model(), oracle.sample(2)[0]


def variances(oracle, x, given):
    return oracle.conditional(x, given, ["c"])[1].diagonal(dim1=-2, dim2=-1)


@pytest.mark.parametrize("given", [["a"], []])
def test_the_variance_falls_as_in_the_closed_form(given):
    oracle, model, x = flat_oracle()
    found = variance_reduction(model, x, "c", given, draws=3000)
    now = variances(oracle, x, given)
    for m in ("a", "b"):
        wanted = now - variances(oracle, x, sorted({*given, m}))
        assert (found[m].variance / now - 1).abs().max() < 0.15
        assert (found[m].expected - wanted).abs().max() < 0.05 * now.max()
        torch.testing.assert_close(
            found[m].share, wanted.sum(dim=1) / now.sum(dim=1), atol=0.05, rtol=0
        )
        if m in given:
            assert (found[m].expected == 0).all()


def test_the_variance_falls_as_in_the_closed_form_of_a_hierarchy():
    oracle = LinearGaussianHierarchy.random(MODALITIES, levels=2, latent_dim=2, data_dim=2)
    model = oracle.model("common_noise")
    x, _ = oracle.sample(2)
    found = variance_reduction(model, x, "c", ["a"], draws=3000)["b"].expected
    now, then = (variances(oracle.flat, x, given) for given in (["a"], ["a", "b"]))
    assert (found - (now - then)).abs().max() < 0.05 * now.max()


def test_a_functional_may_be_nonlinear():
    """Given m and v before and v' after, the mean of the square varies by 2 d^2 + 4 m^2 d."""
    oracle, model, x = flat_oracle()
    square = lambda values: values[:, 0].square()
    found = variance_reduction(model, x, "c", ["a"], functional=square, draws=4000, samples=16)
    mean = oracle.conditional(x, ["a"], ["c"])[0][:, 0]
    fall = (variances(oracle, x, ["a"]) - variances(oracle, x, ["a", "b"]))[:, 0]
    wanted = 2 * fall.square() + 4 * mean.square() * fall
    now = variances(oracle, x, ["a"])[:, 0]
    total = 2 * now.square() + 4 * mean.square() * now
    assert ((found["b"].variance - total).abs() < 0.15 * total).all()
    assert ((found["b"].expected - wanted).abs() < 0.06 * total).all()


@pytest.mark.parametrize("given", [["a"], []])
def test_the_entropy_falls_as_in_the_closed_form(given):
    oracle, model, x = flat_oracle()
    found = information_gain(model, x, "c", given, draws=3000, samples=2)
    log_det = lambda given: torch.logdet(oracle.conditional(x, given, ["c"])[1])
    for m in ("a", "b"):
        wanted = 0.5 * (log_det(given) - log_det(sorted({*given, m})))
        torch.testing.assert_close(found[m], wanted, atol=0.05, rtol=0)


def matched_model(build):
    model = make(build)
    model.fix_shapes(batch())
    add_matched_experts(model)
    return model


@every_model
def test_every_model_tells_and_missing_entries_are_never_read(build):
    given = OBSERVED.clone()
    given[:, 2] = False
    for ask, numbers in (
        (variance_reduction, {"draws": 3, "samples": 2}),
        (information_gain, {"draws": 2, "samples": 2}),
    ):
        results = []
        for filler in (0.0, math.nan):
            model = matched_model(build)
            torch.manual_seed(1)
            found = ask(model, batch(filler), NAMES[2], given, **numbers)
            parts = [tuple(r) if isinstance(r, Reduction) else (r,) for r in found.values()]
            results.append([t for part in parts for t in part])
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
        assert all(t.isfinite().all() for t in results[0])
        for column, m in enumerate(NAMES[:2]):
            value = found[m].expected if isinstance(found[m], Reduction) else found[m]
            assert value[given[:, column]].abs().max() < 1e-4


def test_what_was_observed_is_encoded_once():
    model, calls = matched_model(MODELS["hierarchical"]), []
    model.encoders["us"].register_forward_hook(lambda *call: calls.append(len(call[1][0])))
    given = torch.tensor([[True, False, False]]).expand(8, 3)
    variance_reduction(model, batch(), NAMES[2], given, candidates=[NAMES[1]], draws=4)
    assert sum(calls) == 8


def test_covariates_go_with_their_samples():
    model, x = matched_model(MODELS["flat"]), batch()
    x = Batch(x, context={"site": torch.arange(8)})
    found = variance_reduction(model, x, NAMES[2], NAMES[:1], draws=2)
    assert found[NAMES[1]].expected.shape == (8, SIZES[NAMES[2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "flair"}, "'target' should"),
        ({"observed": ["a", "c"]}, "'target' should be missing in every row, but 'c' was"),
        ({"candidates": ["c"]}, "'candidates' should not hold the target, 'c'"),
        ({"candidates": ["d"]}, "'candidates' should"),
        ({"draws": 1}, "'draws' should be an integer of at least 2, but is 1"),
        ({"samples": 1.5}, "'samples' should be an integer of at least 2, but is 1.5"),
        ({"functional": torch.sum}, "'functional' should return one row per entry"),
        ({"x": {}}, "'x' should hold at least one modality"),
        ({"x": {"a": torch.zeros(0, 3)}}, "'x' should hold at least one row"),
        ({"observed": ["d"]}, "'observed' should hold modalities among a, b, c"),
    ],
)
def test_bad_input_is_named(change, message):
    _, model, x = flat_oracle()
    arguments = {"x": x, "target": "c", "observed": ["a"], "draws": 2} | change
    with pytest.raises(ValueError, match=message):
        variance_reduction(model, **arguments)


def test_it_is_a_name_of_the_library():
    assert mmpoe.acquisition.information_gain is information_gain
