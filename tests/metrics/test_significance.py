"""Means and paired tests against enumeration, SciPy and the definition of the correction."""

import itertools
import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmpoe.metrics import mean_with_error, paired_table, per_case, psnr

RNG = np.random.default_rng(0)
BASE = RNG.standard_normal(30)
SCORES = {
    "mean": BASE,
    "better": BASE + 1 + 0.5 * RNG.standard_normal(30),
    "same": BASE + 0.5 * RNG.standard_normal(30),
    "worse": BASE - 0.4 + 0.5 * RNG.standard_normal(30),
}


def rows(table):
    return {row.system: row for row in table.rows}


def signed_rank_p(difference):
    """The exact two-sided p-value, from all signs of the differences that are not zero."""
    difference = difference[difference != 0]
    rank = stats.rankdata(abs(difference))
    centre = rank.sum() / 2
    found = abs(rank[difference > 0].sum() - centre)
    sums = [rank @ signs for signs in itertools.product([0, 1], repeat=len(rank))]
    return np.mean(abs(np.array(sums) - centre) >= found - 1e-9)


@pytest.mark.parametrize(
    "difference",
    [
        [1.0, 2.0, 3.0, -4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
        [1.0, 1.0, 2.0, -2.0, 3.0, 3.0, 3.0, -1.0],  # ties
        [0.0, 0.0, 1.0, 2.0, -3.0, 4.0, 5.0, 6.0, 7.0, 8.0],  # zeros
    ],
)
def test_signed_rank_test_of_few_cases_is_exact(difference):
    difference = np.array(difference)
    scores = {"a": np.arange(len(difference)), "b": np.arange(len(difference)) + difference}
    (row,) = paired_table(scores, reference="a").rows
    assert row.p == pytest.approx(signed_rank_p(difference), rel=1e-9)
    assert row.n == len(difference)
    assert row.difference == np.median(difference)
    assert row.better


def test_rows_are_what_scipy_says():
    table = paired_table(SCORES, reference="mean")
    assert (table.reference, table.n) == ("mean", 30)
    assert (table.mean, table.sd) == pytest.approx((BASE.mean(), BASE.std(ddof=1)))
    assert list(rows(table)) == ["better", "same", "worse"]
    for name, row in rows(table).items():
        score = SCORES[name]
        assert row.p == pytest.approx(stats.wilcoxon(score, BASE).pvalue, rel=1e-9)
        assert row.corrected == min(1, 3 * row.p)
        assert row.significant == (row.corrected < 0.01)
        assert (row.mean, row.sd) == pytest.approx((score.mean(), score.std(ddof=1)))
        assert row.difference == pytest.approx(np.median(score - BASE))
    found = {name: row.better for name, row in rows(table).items() if row.significant}
    assert found == {"better": True, "worse": False}


def test_lower_can_be_better():
    high = rows(paired_table(SCORES, reference="mean"))
    low = rows(paired_table(SCORES, reference="mean", higher_is_better=False))
    for name in high:
        assert low[name] == replace(high[name], better=not high[name].better)


def test_direction_is_that_of_the_test():
    change = np.array([-1.0] * 6 + [10.0] * 5)  # the median falls, ranks and mean rise
    scores = {"a": np.zeros(11), "b": change}
    (row,) = paired_table(scores, reference="a").rows
    assert row.difference == -1
    assert row.better


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5, unique=True), st.integers(0, 99))
def test_correction_is_its_definition(shifts, seed):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(15)
    scores = {"base": base}
    scores |= {str(s): base + s + 0.5 * rng.standard_normal(15) for s in shifts}
    table = paired_table(scores, reference="base")
    for row in table.rows:
        alone = paired_table(
            {name: scores[name] for name in ("base", row.system)}, reference="base"
        )
        assert alone.rows[0].p == alone.rows[0].corrected == row.p
        assert row.corrected == min(1, len(shifts) * row.p)


def test_the_corrected_p_value_decides():
    change = np.array([1.0, 2, 3, -4, 5, 6, 7, 8, 9, 10])  # 7 of 1024 sums of ranks are as small
    scores = {"base": np.zeros(10), "a": change, "b": -change}
    for names, found in [("a", True), ("b", True), ("ab", False)]:
        chosen = {name: scores[name] for name in ("base", *names)}
        table = paired_table(chosen, reference="base", alpha=0.02)
        assert [row.significant for row in table.rows] == [found] * len(names)
        assert [row.p for row in table.rows] == pytest.approx([14 / 1024] * len(names))


def test_each_system_is_compared_on_its_own_cases():
    # of n differences of one sign, p = 2^(1 - n): 1/128, 1/256, 1/512
    nan = math.nan
    scores = {"base": np.zeros(10), "a": [*range(1, 9), nan, nan], "b": [*range(1, 10), nan]}
    scores["c"] = np.arange(1.0, 11.0)
    found = rows(paired_table(scores, reference="base", alpha=0.025)).values()
    assert [r.p for r in found] == pytest.approx([1 / 128, 1 / 256, 1 / 512])
    assert [r.corrected for r in found] == pytest.approx([3 / 128, 3 / 256, 3 / 512])
    assert [r.n for r in found] == [8, 9, 10]
    assert [r.dropped for r in found] == [2, 1, 0]


def test_pairs_without_a_score_are_dropped():
    gaps = {name: score.copy() for name, score in SCORES.items()}
    gaps["mean"][3] = gaps["better"][[3, 8]] = gaps["same"][12] = math.nan
    table = paired_table(gaps, reference="mean")
    assert table.n == 29
    assert table.mean == pytest.approx(np.delete(BASE, 3).mean())
    found = rows(table)
    assert {name: (row.n, row.dropped) for name, row in found.items()} == {
        "better": (28, 2),
        "same": (28, 2),
        "worse": (29, 1),
    }
    kept = {name: np.delete(SCORES[name], [3, 8]) for name in ("mean", "better")}
    (expected,) = paired_table(kept, reference="mean").rows
    assert replace(found["better"], dropped=0, corrected=0) == replace(expected, corrected=0)


def test_without_any_difference_nothing_is_significant():
    (row,) = paired_table({"a": BASE, "b": BASE}, reference="a").rows
    assert (row.p, row.corrected, row.significant, row.better) == (1, 1, False, False)


def test_a_constant_difference_is_significant():
    scores = {"a": np.arange(10.0), "b": np.arange(10.0) + 0.5}
    (row,) = paired_table(scores, reference="a").rows
    assert row.p == pytest.approx(signed_rank_p(np.full(10, 0.5)))
    assert (row.significant, row.better) == (True, True)


def test_without_an_effect_few_systems_are_called_significant():
    rng = np.random.default_rng(0)
    scores = {str(i): rng.standard_normal(12) for i in range(400)}
    table = paired_table(scores | {"base": np.zeros(12)}, reference="base", alpha=0.5)
    share = np.mean([row.p < 0.05 for row in table.rows])

    rank = np.arange(1, 13)
    sums = np.array(list(itertools.product([0, 1], repeat=12))) @ rank - 39  # mean 39
    size = max(s for s in (np.mean(abs(sums) >= t) for t in range(79)) if s < 0.05)
    assert share == pytest.approx(size, abs=3 * math.sqrt(size / 400))


@pytest.mark.parametrize("systems", [1, 4])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 2**-6])
def test_too_few_cases_are_named_only_if_nothing_could_be_significant(systems, alpha):
    def table(count):
        rise = np.arange(1.0, count + 1)
        scores = {"base": 0 * rise} | {str(i): rise for i in range(systems)}
        return paired_table(scores, reference="base", alpha=alpha)

    enough = next(n for n in itertools.count() if systems * 2.0 ** (1 - n) < alpha)
    with pytest.raises(
        ValueError, match=rf"'scores' .* at least {enough} .* '0' has {enough - 1}"
    ):
        table(enough - 1)
    assert table(enough).rows[0].significant


def test_bad_tables_are_named():
    scores = {"a": BASE, "b": BASE}
    with pytest.raises(ValueError, match=r"'alpha' should be between 0 and 1, but is 5"):
        paired_table(scores, reference="a", alpha=5)
    with pytest.raises(ValueError, match=r"'scores' .* holds a, b, and 'reference' is 'c'"):
        paired_table(scores, reference="c")
    with pytest.raises(ValueError, match=r"'scores' .* holds a, and 'reference' is 'a'"):
        paired_table({"a": BASE}, reference="a")
    with pytest.raises(ValueError, match=r"'scores' .* holds shapes \(4,\), \(30,\)"):
        paired_table({"a": BASE, "b": BASE[:4]}, reference="a")
    with pytest.raises(ValueError, match=r"'scores' .* holds shapes \(5, 6\)"):
        paired_table({"a": BASE.reshape(5, 6), "b": BASE.reshape(5, 6)}, reference="a")
    with pytest.raises(ValueError, match=r"'scores' should be finite or NaN, but 'b' holds inf"):
        paired_table({"a": BASE, "b": BASE + np.inf}, reference="a")


def test_markdown():
    nan = math.nan
    scores = {
        "mean": torch.zeros(12),
        "a|b": torch.arange(1.0, 13.0).requires_grad_(),
        "same": [1.0, -1.0] * 6,
        "worse": [*range(-11, 0), nan],
    }
    text = paired_table(scores, reference="mean").markdown(digits=1)
    assert text.split("\n") == [
        "| system | mean ± sd | median difference | p | corrected p | verdict | n |",
        "|---|---|---|---|---|---|---|",
        "| mean (reference) | 0.0 ± 0.0 | | | | | 12 |",
        "| a\\|b | 6.5 ± 3.6 | +6.5 | 0.00049 | 0.0015 | better | 12 |",
        "| same | 0.0 ± 1.0 | +0.0 | 1 | 1 | not different | 12 |",
        "| worse | -6.0 ± 3.3 | -6.0 | 0.00098 | 0.0029 | worse | 11 (1 dropped) |",
        "",
        "Wilcoxon signed-rank test, two-sided, Bonferroni-corrected for 3 comparisons, p < 0.01.",
    ]
    text = paired_table({"a": BASE, "b": BASE}, reference="a").markdown()
    assert text.endswith("two-sided, Bonferroni-corrected for 1 comparison, p < 0.01.")


# means


def test_standard_error_is_that_of_the_samples():
    values = RNG.standard_normal((40, 3, 2))
    expected = values.mean(axis=(1, 2))
    found = mean_with_error(torch.from_numpy(values))
    assert (found.mean, found.error) == pytest.approx((expected.mean(), stats.sem(expected)))
    assert found.n == 40
    assert astuple(mean_with_error(np.repeat(expected[:, None], 9, axis=1))) == pytest.approx(
        astuple(found)
    )


def test_means_leave_out_what_is_not_scored():
    nan = math.nan
    values = torch.tensor([[1.0, nan], [nan, nan], [3.0, 5.0]])
    assert astuple(mean_with_error(values)) == pytest.approx((2.5, 1.5, 2))
    assert astuple(mean_with_error([2.0])) == pytest.approx((2, nan, 1), nan_ok=True)
    assert astuple(mean_with_error([nan])) == pytest.approx((nan, nan, 0), nan_ok=True)
    assert astuple(mean_with_error(torch.zeros(0, 3))) == pytest.approx((nan, nan, 0), nan_ok=True)
    with pytest.raises(ValueError, match=r"'scores' should have shape \(N, \*\)"):
        mean_with_error(1.0)


def test_cases_are_averaged_in_sorted_order():
    nan = math.nan
    scores = torch.tensor([1.0, nan, 3.0, nan, 8.0, 2.0])
    names = ["b", "b", "b", "a", "c", "c"]
    expected = torch.tensor([nan, 2.0, 5.0], dtype=torch.float64)
    for cases in (names, np.array(names), torch.tensor([5, 5, 5, -1, 9, 9])):
        torch.testing.assert_close(per_case(scores, cases), expected, equal_nan=True)
    last = per_case(torch.tensor([1.0, nan]), [0, 1])  # no score in the last case
    torch.testing.assert_close(last, torch.tensor([1.0, nan]).double(), equal_nan=True)
    order = torch.tensor([4, 2, 5, 0, 3, 1])
    shuffled = per_case(scores[order], [names[i] for i in order])
    torch.testing.assert_close(shuffled, expected, equal_nan=True)
    assert per_case([], []).shape == (0,)
    with pytest.raises(ValueError, match=r"'scores' .* 'cases' .* \(6,\) and \(2,\)"):
        per_case(scores, names[:2])
    with pytest.raises(ValueError, match=r"'scores' .* 'cases' .* \(2, 3\) and \(2, 3\)"):
        per_case(scores.reshape(2, 3), np.zeros((2, 3)))


def test_channels_of_a_case_are_averaged():
    images, truth = torch.rand(4, 1, 16, 16), torch.rand(4, 1, 16, 16)
    patients = ["p2", "p1", "p2", "p1"]
    scores = psnr(images, truth)
    assert scores.shape == (4, 1)
    wanted = per_case(scores[:, 0], patients)
    torch.testing.assert_close(per_case(scores, patients), wanted)
    nan = math.nan
    several = torch.tensor([[1.0, 3.0], [nan, 5.0], [nan, nan]])
    found = per_case(several, [0, 0, 1])
    torch.testing.assert_close(found, torch.tensor([3.5, nan]).double(), equal_nan=True)
