"""Conformal intervals hold what they say, for each pattern, and say when they cannot tell."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from mmpoe.imputation import HeldOut, Imputation, impute
from mmpoe.imputation._conformal import conformal_rank, conformal_width, fewest_cases
from mmpoe.missing import as_mask
from mmpoe.oracles import LinearGaussian

NAMES = ["a", "b", "c"]
pytestmark = pytest.mark.filterwarnings("ignore::mmpoe.models.UncalibratedWarning")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def oracle():
    generator = torch.Generator().manual_seed(1)
    return LinearGaussian.random(NAMES, latent_dim=2, data_dim=3, generator=generator)


# the quantile ---------------------------------------------------------------------------------


@given(st.integers(1, 40), st.floats(0.05, 0.95))
def test_with_one_score_a_case_it_is_the_score_of_a_rank(count, coverage):
    scores = torch.rand(count, generator=torch.Generator().manual_seed(count))
    width = conformal_width(scores, torch.arange(count), coverage)
    rank = conformal_rank(count, coverage)
    assert rank == math.ceil(round((count + 1) * coverage, 9))
    assert (rank > count) == (count < fewest_cases(coverage))
    assert width == (math.inf if rank > count else scores.sort().values[rank - 1].item())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.sampled_from([0.5, 0.8, 0.9]))
def test_it_is_the_smallest_width_that_bounds_the_risk(sizes, coverage):
    generator = torch.Generator().manual_seed(sum(sizes))
    scores = torch.randint(0, 6, (sum(sizes), 3), generator=generator).float()  # with ties
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = torch.nan
    cases = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) * 7 - 3

    def risk(width):
        missed = [
            (own > width).double().mean().item()
            for case in cases.unique()
            if len(own := scores[cases == case][~scores[cases == case].isnan()])
        ]
        return (sum(missed) + 1) / (len(missed) + 1)

    width = conformal_width(scores, cases, coverage)
    if math.isinf(width):
        assert risk(math.inf) > 1 - coverage
        return
    assert risk(width) <= 1 - coverage + 1e-9
    smaller = [v for v in range(6) if v < width]
    assert all(risk(v) > 1 - coverage for v in smaller)


def test_fewest_cases():
    assert [fewest_cases(c) for c in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    assert conformal_width(torch.zeros(0, 1), torch.zeros(0).long(), 0.9) == math.inf


# intervals ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("functional", ["elements", "weights", "function"])
def test_each_pattern_is_covered(functional):
    """Even of a model that is wrong: here, one whose noise is a quarter of what it should be."""
    truth = oracle()
    model = truth.model()
    for likelihood in model.decoders.values():
        likelihood._fixed_scale = likelihood.scale / 4
    f = {
        "elements": None,
        "weights": torch.tensor([1.0, -2.0, 0.5]).double(),
        "function": lambda v: torch.stack([v.max(dim=1).values, v.mean(dim=1).exp()], dim=1),
    }[functional]
    patterns = [as_mask(names, NAMES, 1)[0] for names in (["a"], ["b"], ["a", "b"])]
    x = truth.sample(600)[0]
    given = torch.stack([patterns[row % 3] for row in range(600)])
    y = x["c"] if f is None else x["c"] @ f if functional == "weights" else f(x["c"])
    covered = torch.zeros(3, 2)  # of a level, and how many
    for _ in range(4):  # the guarantee is over held-out cases too
        held_out = HeldOut(truth.sample(99)[0])
        drawn = impute(model, x, given, 30, targets=["c"], held_out=held_out)["c"]
        low, high = drawn.interval(0.8, functional=f)
        assert low.shape == y.shape
        inside = ((low <= y) & (y <= high)).double().reshape(600, -1).mean(dim=1)
        for k in range(3):
            covered[k] += torch.tensor([inside[k::3].sum(), 200.0])
        narrow = impute(model, x, given, 30, targets=["c"])["c"].interval(0.8, functional=f)
        missed = ((narrow[0] <= y) & (y <= narrow[1])).double().mean()
        assert missed < 0.7
    # rows, and 4 times 99 cases that set the width
    deviation = math.sqrt(0.8 * 0.2 * (1 / 800 + 1 / 396))
    shares = covered[:, 0] / covered[:, 1]
    assert (shares > 0.8 - 3.5 * deviation).all()
    assert (shares < 0.8 + 0.01 + 3.5 * deviation).all()


@pytest.mark.slow
def test_coverage_is_exactly_the_rank_of_a_few_cases():
    """With nine cases, 90 % intervals are as wide as the largest score: they hold 9 of 10."""
    truth, number = oracle(), 150
    model, hits = truth.model(), 0
    weights = torch.ones(3).double()
    for _ in range(number):
        x = truth.sample(10)[0]
        held_out = HeldOut({m: v[:9] for m, v in x.items()})
        new = {m: v[9:] for m, v in x.items()}
        drawn = impute(model, new, ["a"], 8, targets=["c"], held_out=held_out)["c"]
        low, high = drawn.interval(0.9, functional=weights)
        hits += int(low <= new["c"] @ weights <= high)
    assert binom.cdf(hits, number, 0.9) > 1e-4
    assert binom.sf(hits - 1, number, 0.9) > 1e-4


def test_too_few_cases_are_infinite_and_say_so():
    truth = oracle()
    observed = torch.ones(12, 3, dtype=torch.bool)
    observed[8:, 0] = False  # eight have all of a, b, c; and twelve b and c
    held_out = HeldOut(truth.sample(12)[0], observed)
    x = truth.sample(4)[0]
    given = as_mask(["a"], NAMES, 4).clone()
    given[2:] = as_mask(["b"], NAMES, 2)
    drawn = impute(truth.model(), x, given, 20, held_out=held_out)
    wanted = r"hold 'c' given a with probability 0\.9 are infinite: it takes 9 .* there are 8\."
    with pytest.warns(UserWarning, match=wanted) as caught:
        low, high = drawn["c"].interval(0.9)
    assert caught[0].filename == __file__
    assert (low[:2] == -math.inf).all()
    assert (high[:2] == math.inf).all()
    assert low[2:].isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawn["c"].interval(0.8)[0].isfinite().all()
    with pytest.warns(UserWarning, match=r"'a' given b with .* there are 8"):
        low, high = drawn["a"].interval(0.9)
    assert torch.equal(low[:2], x["a"][:2])  # what was observed has an interval without width
    assert torch.equal(high[:2], x["a"][:2])


def test_slices_of_a_patient_are_one_case():
    truth = oracle()
    x = truth.sample(40)[0]
    new = truth.sample(3)[0]
    cases = torch.arange(40) // 5
    for held_out, finite in ((HeldOut(x), True), (HeldOut(x, cases=cases), False)):
        drawn = impute(truth.model(), new, ["a"], 20, targets=["c"], held_out=held_out)["c"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert drawn.interval(0.9)[0].isfinite().all() == finite


def test_elements_that_are_not_valid_do_not_count():
    truth = oracle()
    x, found = truth.sample(30)[0], []
    valid = torch.rand(30, 3) < 0.6
    new = truth.sample(3)[0]
    weights = torch.tensor([1.0, 0.0, 0.0])
    for filler in (0.0, 100.0):
        held = {**x, "c": torch.where(valid, x["c"], filler)}
        held_out = HeldOut(held, valid={"c": valid})
        torch.manual_seed(3)
        drawn = impute(truth.model(), new, ["a"], 20, targets=["c"], held_out=held_out)["c"]
        ends = []
        for f in (None, weights, lambda v: v.nanmean(dim=1)):
            torch.manual_seed(4)
            ends += drawn.interval(0.8, functional=f)
        found.append(ends)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    only = HeldOut(
        {m: v[valid[:, 0]] for m, v in x.items()},
    )  # the rows whose first element is there
    torch.manual_seed(3)
    drawn = impute(truth.model(), new, ["a"], 20, targets=["c"], held_out=only)["c"]
    ratio = (drawn.interval(0.8, functional=weights)[1] - found[0][3]).abs().max()
    assert ratio < 0.5 * drawn.draws[..., 0].std()


def test_without_held_out_cases_it_is_the_central_interval_of_the_draws():
    draws = torch.arange(1.0, 20.0)[:, None, None] * torch.tensor([[1.0, 10.0]])
    drawn = Imputation(draws)
    assert [v.tolist() for v in drawn.interval(0.9)] == [[[1.0, 10.0]], [[19.0, 190.0]]]
    weights = torch.tensor([[1.0, 0.1], [0.0, 0.0]])
    low, high = drawn.interval(0.9, functional=weights)
    torch.testing.assert_close(low, torch.tensor([[2.0, 0.0]]))
    torch.testing.assert_close(high, torch.tensor([[38.0, 0.0]]))
    low, high = drawn.interval(0.5, functional=lambda v: v.sum(dim=1))
    torch.testing.assert_close((low, high), (torch.tensor([55.0]), torch.tensor([165.0])))


def test_bad_input_is_named():
    drawn = Imputation(torch.randn(5, 2, 3))
    for coverage in (0, 1, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"'coverage' should be between 0 and 1, but is"):
            drawn.interval(coverage)
    with pytest.raises(ValueError, match=r"'functional' .* shape \(\*, 3\), .* has shape \(2,\)"):
        drawn.interval(functional=torch.ones(2))
    with pytest.raises(ValueError, match=r"'functional' .* one row per entry \(10\), .* \(3,\)"):
        drawn.interval(functional=lambda v: v.sum(dim=0))
    truth = oracle()
    x = truth.sample(4)[0]
    one = impute(truth.model(), x, ["a"], 1, held_out=HeldOut(x))["c"]
    with pytest.raises(ValueError, match=r"'draws' should be at least 2 for a conformal interval"):
        one.interval()
    with pytest.raises(ValueError, match=r"'x' should hold at least one modality"):
        HeldOut({})
    with pytest.raises(ValueError, match=r"'observed' .* one row per sample \(4\), .* \(3, 3\)"):
        HeldOut(x, torch.ones(3, 3).bool())
    with pytest.raises(ValueError, match=r"'cases' should hold a whole number for each .* \(4\)"):
        HeldOut(x, cases=torch.arange(3))
    with pytest.raises(ValueError, match=r"'valid' should be boolean, but 'a' has dtype"):
        HeldOut(x, valid={"a": torch.ones(4, 3)})
