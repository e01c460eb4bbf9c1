"""Paired tests: by enumeration of signs, on pairs of cases, corrected for how many there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.medical_mri_us.evaluation import BASELINE, PROTOCOLS, Scores, compare, signed_rank

METRICS = [m.name for m in PROTOCOLS["strict"].metrics]


def by_enumeration(change):
    """The exact two-sided p of the signed-rank statistic, over all signs."""
    size = np.abs(change)
    rank = np.array([(size < s).sum() + ((size == s).sum() + 1) / 2 for s in size])
    seen = abs((rank * np.sign(change)).sum())
    signs = itertools.product([-1, 1], repeat=len(change))
    return np.mean([abs((rank * s).sum()) >= seen - 1e-9 for s in signs])


@pytest.mark.parametrize("seed", range(5))
def test_p_is_exact_for_few_cases(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.random(8) + 0.2, rng.random(8)
    found = signed_rank(ours, theirs)
    assert found["p"] == pytest.approx(by_enumeration(ours - theirs))
    assert found["n"] == 8
    assert found["median_difference"] == pytest.approx(np.median(ours - theirs))
    assert found["smallest_p"] == 2.0**-7


def test_effect_size_is_the_balance_of_ranks():
    found = signed_rank(np.array([1.0, 2.0, -3.0, 0.0]), np.zeros(4))
    assert found["rank_biserial"] == pytest.approx((1 + 2 - 3) / 6)
    assert found["n"] == 4
    assert found["smallest_p"] == 2.0**-2  # the pair without a difference does not count
    assert signed_rank(np.arange(1.0, 6), np.zeros(5))["rank_biserial"] == 1


def test_identical_vectors_have_p_1_and_say_so():
    found = signed_rank(np.ones(7), np.ones(7))
    assert found["identical"]
    assert (found["p"], found["rank_biserial"], found["n"]) == (1.0, 0.0, 7)


@settings(max_examples=15)
@given(st.lists(st.integers(-40, 40), min_size=2, max_size=9))
def test_exchanging_the_models_turns_the_effect_around(change):
    change = np.array(change, dtype=float)
    one, two = signed_rank(change, np.zeros(len(change))), signed_rank(-change, 0 * change)
    assert one["p"] == pytest.approx(two["p"])
    assert one["rank_biserial"] == pytest.approx(-two["rank_biserial"])
    assert 0 < one["p"] <= 1
    assert -1 <= one["rank_biserial"] <= 1
    assert one["p"] >= one["smallest_p"] - 1e-12


@pytest.mark.parametrize("bad", [[], [np.nan, 1.0]])
def test_numbers_that_cannot_be_tested_are_named(bad):
    with pytest.raises(ValueError, match=r"'ours' and 'others' should be finite numbers"):
        signed_rank(np.array(bad), np.zeros(len(bad)))


def scored(model, case, given, target, value, protocol="strict"):
    units = np.atleast_1d(np.asarray(value, dtype=float))
    values = {m.name: units for m in PROTOCOLS[protocol].metrics}
    return Scores(model, protocol, case, given, target, values)


def table(gain, protocol="strict"):
    """Ours above another model and the baseline, on 12 cases, from two inputs to two targets."""
    scores = []
    for k in range(12):
        case = f"case-{k}"
        for target in ("t2", "flair"):
            scores.append(scored(BASELINE, case, (), target, [k, k + 2.0], protocol))
            for held in (("us",), ("us", "cet1"), ("t2", "flair")):
                for model, more in (("ours", gain * (1 + k)), ("theirs", 0.0)):
                    value = [k + more + 1, k + more + 3]
                    scores.append(scored(model, case, held, target, value, protocol))
    return scores


def test_families_count_cross_modal_tests_of_all_models():
    tests = compare(table(1.0), "ours")
    cells = [t for t in tests if t["family"] == "cells" and t["metric"] == "psnr"]
    targets = [t for t in tests if t["family"] == "targets" and t["metric"] == "psnr"]
    assert len(cells) == 2 * 2 * 2  # inputs, targets, others
    assert len(targets) == 2 * 2
    assert all(t["comparisons"] == 8 for t in cells)
    assert all(t["comparisons"] == 4 for t in targets)
    assert all(t["corrected"] == pytest.approx(min(1, t["comparisons"] * t["p"])) for t in tests)
    assert all(t["target"] not in (t["given"] or []) for t in tests)
    assert all(t["n"] == 12 for t in tests)
    assert all(t["p"] == pytest.approx(2 / 2**12) for t in cells)
    assert all(t["significant"] for t in targets)
    assert all(t["cases_for_significance"] == 11 for t in cells)  # 2^(1 - 11) < 0.01 / 8
    assert 2.0 ** (1 - 11) < 0.01 / 8 < 2.0 ** (1 - 10)


@pytest.mark.parametrize(
    ("gain", "metric", "sign"), [(1, "psnr", 1), (1, "mae", -1), (-3, "mae", 1)]
)
def test_effects_are_positive_where_the_model_is_better(gain, metric, sign):
    tests = compare(table(gain), "ours")
    effects = {
        t["rank_biserial"] for t in tests if t["metric"] == metric and t["other"] == "theirs"
    }
    assert effects == {sign * 1.0}


def test_slices_are_averaged_before_they_are_tested():
    tests = compare(table(1.0, "mmhvae-2026"), "ours")
    assert {t["n"] for t in tests} == {12}  # not 24


def test_only_cases_that_both_have_are_paired():
    scores = [s for s in table(1.0) if not (s.model == "theirs" and s.case == "case-3")]
    tests = [t for t in compare(scores, "ours") if t["other"] == "theirs"]
    assert {t["n"] for t in tests} == {11}
