"""Scores side by side: intervals, paired differences and tables."""

import numpy as np
import pytest
from scipy import stats

from benchmarks._comparison import (
    Column,
    best,
    interval,
    paired,
    strongest,
    summary,
    table,
    verdicts,
)

LOW = Column("x", "x", lambda v: v)
HIGH = Column("x", "x", lambda v: -v)


def test_the_best_mean_is_bold():
    scores = {
        "a": {"x": [1.0, 2.0, 3.0]},
        "b": {"x": [2.0, 3.0, 4.0]},
        "c": {"x": [None, None, None]},
    }
    assert best(scores, LOW) == "a"
    assert best(scores, HIGH) == "b"
    assert best(scores, Column("x", "x", lambda v: abs(v - 2.9))) == "b"
    assert best(scores, Column("x", "x", None)) is None
    assert interval([-1.0, -2.0, -3.0], 2).split() == ["\N{MINUS SIGN}2.00", "±", "2.48"]


def test_a_difference_is_that_of_a_paired_test():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 6)) + np.array([[0.7], [0.0]])
    found = paired(first, second, LOW)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.mean == pytest.approx((first - second).mean())
    assert found.mean - found.half == pytest.approx(expected.low)
    assert found.mean + found.half == pytest.approx(expected.high)


def test_who_is_ahead_depends_on_which_values_are_good():
    more, less = [3.0, 3.1, 2.9], [1.0, 1.1, 1.0]
    assert paired(more, less, HIGH).ahead
    assert paired(more, less, LOW).behind
    even = paired([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], LOW)
    assert not even.ahead
    assert not even.behind
    fewer = paired(more, less[:2], HIGH)  # the seeds that both have
    assert fewer.mean == pytest.approx(2.0)


def test_the_strongest_opponent_is_not_ours():
    scores = {"ours": {"x": [9.0]}, "a": {"x": [1.0]}, "b": {"x": [2.0]}, "c": {"x": [None]}}
    assert strongest(scores, HIGH, "ours") == "b"
    assert strongest({"ours": {"x": [9.0]}}, HIGH, "ours") is None


def test_the_strongest_opponent_is_so_on_the_seeds_that_both_have():
    scores = {"ours": {"x": [5.0, 9.0]}, "a": {"x": [4.0, 8.0]}, "b": {"x": [4.5]}}
    assert strongest(scores, HIGH, "ours") == "b"  # whose only seed was a hard one
    (verdict,) = verdicts("s", scores, [HIGH], "ours")
    assert verdict.winner == "–"
    assert "no intervals" in summary("data", [verdict], "ours")


def test_a_table_says_what_a_method_does_not_have():
    text = table("method", {"a": {"x": [1.0, 2.0]}, "b": {"x": [None, None]}}, [HIGH])
    assert text.splitlines()[-1] == "| b | – |"
    assert "**1.500" in text


def test_a_summary_says_where_a_method_is_behind():
    scores = {"ours": {"x": [1.0, 1.1, 1.0]}, "a": {"x": [3.0, 3.0, 3.1]}, "b": {"x": [2.0] * 3}}
    text = summary("data", [*verdicts("s", scores, [LOW, HIGH], "ours")], "ours")
    assert "ahead of the strongest opponent in 1 of 2 scores, and behind in 1: s (x, a)." in text
    assert text.splitlines()[-2].endswith("| ours |")
    assert text.splitlines()[-1].endswith("| a |")
    assert verdicts("s", {"ours": scores["ours"]}, [LOW], "ours") == []
