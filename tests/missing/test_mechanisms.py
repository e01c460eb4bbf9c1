"""Mechanisms of missingness: exact rates, and the dependence that each is about."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binomtest, chi2_contingency, chisquare

from mmpoe.missing import mar, mcar, mechanisms, mnar, patterns

RATE = [0.2, 0.5, 0.35]
ROWS = 20_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def driver(rows=ROWS, seed=1):
    return torch.randn(rows, generator=seeded(seed), dtype=torch.float64)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def logistic_regression(y, *columns):
    """The coefficients of a logistic regression and their standard errors, intercept first."""
    x = np.stack([np.ones(len(y)), *(np.asarray(c, dtype=float) for c in columns)], axis=1)
    y, coefficients = np.asarray(y, dtype=float), np.zeros(x.shape[1])
    for _ in range(25):
        p = expit(x @ coefficients)
        information = (x * (p * (1 - p))[:, None]).T @ x
        coefficients += np.linalg.solve(information, x.T @ (y - p))
    return coefficients, np.sqrt(np.diag(np.linalg.inv(information)))


def missed_by_law(log_odds, at_least_one):
    """The probability of each pattern of missing modalities, by enumeration: (B, 2^M)."""
    kept = [
        p
        for p in itertools.product([0, 1], repeat=log_odds.shape[1])
        if 0 in p or not at_least_one
    ]
    weights = (log_odds.double() @ torch.tensor(kept).double().t()).softmax(dim=1)
    return torch.tensor(kept), weights


@given(
    st.lists(st.floats(0.01, 0.99), min_size=2, max_size=4),
    st.floats(-8, 8),
    st.integers(1, 30),
    st.booleans(),
)
def test_expected_rates_are_exact(rate, slope, rows, at_least_one):
    if at_least_one:  # in reach of rows that keep a modality
        rate = [r * min(1, 0.98 * (len(rate) - 1) / sum(rate)) for r in rate]
    drive = slope * torch.randn(rows, len(rate), generator=seeded(rows), dtype=torch.float64)
    log_odds = mechanisms._log_odds(drive, doubles(rate), at_least_one)
    missed, weights = missed_by_law(log_odds, at_least_one)
    expected = (weights @ missed.double()).mean(dim=0)
    torch.testing.assert_close(expected, doubles(rate), rtol=0, atol=1e-10)
    intercepts = log_odds - drive  # one for all rows
    torch.testing.assert_close(intercepts, intercepts[:1].expand_as(drive), rtol=0, atol=1e-9)


@pytest.mark.parametrize("slope", [0.0, 2.0, -30.0])
def test_intercepts_are_roots(slope):
    drive = slope * driver(200)
    ours = mechanisms._intercepts(drive[:, None], doubles([0.3])).item()
    assert expit(ours + drive.numpy()).mean() == pytest.approx(0.3, abs=1e-12)
    theirs = brentq(lambda a: expit(a + drive.numpy()).mean() - 0.3, -500, 500, xtol=1e-13)
    assert ours == pytest.approx(theirs, abs=1e-10)


def test_steep_slopes_censor_by_rank():
    observed = mar(driver(100), [0.3, 0.0], slope=500.0, generator=seeded())
    assert observed[:, 0].equal(driver(100) < driver(100).sort().values[70])
    assert observed[:, 1].all()


@pytest.mark.parametrize("slope", [10, -30, 100])
def test_rows_that_keep_a_modality_are_exact_if_all_are_lost_together(slope):
    drive = slope * driver(200)[:, None].expand(-1, 3)
    log_odds = mechanisms._log_odds(drive, doubles(RATE), at_least_one=True)
    missed, weights = missed_by_law(log_odds, at_least_one=True)
    expected = (weights @ missed.double()).mean(dim=0)
    torch.testing.assert_close(expected, doubles(RATE), rtol=0, atol=1e-10)


def mechanism(name, **options):
    if name == "mcar":
        return mcar(ROWS, RATE, **options)
    if name == "mar":
        return mar(driver(), RATE, slope=[1.0, -2.0, 0.5], **options)
    x = {m: torch.randn(ROWS, 2, generator=seeded(i)) for i, m in enumerate("abc")}
    return mnar(x, RATE, slope=1.5, **options)


@pytest.mark.parametrize("at_least_one", [False, True])
@pytest.mark.parametrize("name", ["mcar", "mar", "mnar"])
def test_rates_are_within_their_binomial_bounds(name, at_least_one):
    observed = mechanism(name, at_least_one=at_least_one, generator=seeded())
    assert observed.shape == (ROWS, 3)
    assert observed.dtype == torch.bool
    assert bool(observed.any(dim=1).all()) == at_least_one
    for column, rate in zip((~observed).t(), RATE, strict=True):
        # rows of unequal probabilities vary less than binomially: the bound is safe
        assert binomtest(int(column.sum()), ROWS, rate).pvalue > 0.001


@pytest.mark.parametrize("name", ["mcar", "mar", "mnar"])
def test_draws_depend_on_the_generator_alone(name):
    one, same, other = (mechanism(name, generator=seeded(s)) for s in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)


def test_mcar_columns_are_independent():
    missing = ~mcar(ROWS, RATE, at_least_one=False, generator=seeded())
    for m, n in itertools.combinations(range(3), 2):
        table = torch.bincount(2 * missing[:, m] + missing[:, n], minlength=4).reshape(2, 2)
        assert chi2_contingency(table).pvalue > 0.001
    table = torch.bincount(2 * (driver() > 0) + missing[:, 0], minlength=4).reshape(2, 2)
    assert chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize("at_least_one", [False, True])
def test_mcar_patterns_follow_their_law(at_least_one):
    missing = ~mcar(ROWS, RATE, at_least_one=at_least_one, generator=seeded())
    log_odds = mechanisms._log_odds(torch.zeros(1, 3).double(), doubles(RATE), at_least_one)
    kept, weights = missed_by_law(log_odds, at_least_one)
    if not at_least_one:
        torch.testing.assert_close(log_odds[0].sigmoid(), doubles(RATE))
    bits = 2 ** torch.arange(3)
    counts = torch.bincount((missing * bits).sum(dim=1), minlength=8)
    assert chisquare(counts[(kept * bits).sum(dim=1)], ROWS * weights[0]).pvalue > 0.001
    assert counts[-1] == 0 or not at_least_one


def test_mar_follows_its_driver_alone():
    d = driver()
    value = d + torch.randn(ROWS, generator=seeded(2), dtype=torch.float64)  # depends on it too
    observed = mar(d, RATE, slope=[1.0, -2.0, 0.0], at_least_one=False, generator=seeded())
    for m, slope in enumerate([1.0, -2.0, 0.0]):
        (_, b), (_, error) = logistic_regression(~observed[:, m], d)
        assert abs(b - slope) < 3 * error
        (_, _, c), (_, _, error) = logistic_regression(~observed[:, m], d, value)
        assert abs(c) < 3 * error
    (_, marginal), (_, error) = logistic_regression(~observed[:, 0], value)
    assert marginal > 10 * error  # without the driver, values do tell


def test_mar_has_its_slope_in_rows_that_keep_another_modality():
    d = driver()
    observed = mar(d, RATE, slope=[1.0, -2.0, 0.5], generator=seeded())
    for m, slope in enumerate([1.0, -2.0, 0.5]):
        other = observed[:, [n for n in range(3) if n != m]].any(dim=1)
        (_, b), (_, error) = logistic_regression(~observed[other, m], d[other])
        assert abs(b - slope) < 3 * error


def test_mar_takes_a_driver_for_each_modality():
    d = torch.randn(ROWS, 3, generator=seeded(5), dtype=torch.float64)
    observed = mar(d, RATE, slope=2.0, at_least_one=False, generator=seeded())
    for m in range(3):
        (_, *b), (_, *error) = logistic_regression(~observed[:, m], *d.t())
        for n in range(3):
            assert abs(b[n] - (2 if n == m else 0)) < 3.5 * error[n]


def test_mnar_censors_itself():
    x = {m: torch.randn(ROWS, 2, 2, generator=seeded(i)) for i, m in enumerate("abc")}
    observed = mnar(x, RATE, slope=[1.5, 0.0, -1.0], at_least_one=False, generator=seeded(9))
    summary = [v.flatten(1).mean(dim=1) for v in x.values()]
    summary = [(t - t.mean()) / t.std() for t in summary]
    for m, slope in enumerate([1.5, 0.0, -1.0]):
        (_, *b), (_, *error) = logistic_regression(~observed[:, m], *summary)
        for n in range(3):
            assert abs(b[n] - (slope if n == m else 0)) < 3.5 * error[n]


def test_mnar_takes_another_summary():
    x = {"a": torch.rand(ROWS, 3, generator=seeded(3))}
    observed = mnar(
        x,
        [0.4],
        slope=3.0,
        summary=lambda v: v.amax(dim=1),
        at_least_one=False,
        generator=seeded(),
    )
    (_, b), (_, error) = logistic_regression(~observed[:, 0], x["a"].amax(dim=1))
    assert abs(b - 3) < 3 * error


def test_cells_of_a_table_are_modalities_of_one_number():
    table = torch.randn(2000, 20, generator=seeded(4))
    cells = mnar(table, [0.3] * 20, slope=2.0, generator=seeded())
    columns = {str(d): table[:, d] for d in range(20)}
    assert cells.equal(mnar(columns, [0.3] * 20, slope=2.0, generator=seeded()))
    assert cells.any(dim=1).all()
    assert binomtest(int((~cells).sum()), 40_000, 0.3).pvalue > 0.001
    assert table[~cells].mean() > 0.5 > -0.2 > table[cells].mean()
    assert mnar(torch.ones(4, 2), [0.3, 0.3], generator=seeded()).shape == (4, 2)  # constant


def test_patterns_have_their_frequencies():
    known = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
    observed = patterns(known, ROWS, [1, 0, 3], generator=seeded())
    counts = torch.bincount((observed * 2 ** torch.arange(3)).sum(dim=1), minlength=8)
    assert counts[3] == 0
    assert chisquare(counts[[5, 6]], [ROWS / 4, 3 * ROWS / 4]).pvalue > 0.001
    even = patterns(known, ROWS, generator=seeded())
    counts = torch.bincount((even * 2 ** torch.arange(3)).sum(dim=1), minlength=8)
    assert chisquare(counts[[3, 5, 6]]).pvalue > 0.001
    assert observed.equal(patterns(known, ROWS, torch.tensor([1, 0, 3]), generator=seeded()))


def test_a_modality_of_rate_zero_is_always_observed():
    observed = mar(driver(), [0.0, 0.9, 0.8], generator=seeded())
    assert observed[:, 0].all()
    assert binomtest(int((~observed[:, 1]).sum()), ROWS, 0.9).pvalue > 0.001


def test_rates_that_nearly_lose_every_row():
    observed = mcar(ROWS, [0.66, 0.66, 0.66], generator=seeded())
    assert observed.any(dim=1).all()
    for column in (~observed).t():
        assert binomtest(int(column.sum()), ROWS, 0.66).pvalue > 0.001


def test_mechanisms_of_no_rows():
    assert mcar(0, RATE).shape == (0, 3)
    assert patterns(torch.ones(1, 3).bool(), 0).shape == (0, 3)


def test_mechanisms_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"'rate' should hold .* at least 0 and under 1, .*1\.0"):
        mcar(4, [0.1, 1.0])
    with pytest.raises(ValueError, match=r"'rate' should hold one number per modality"):
        mcar(4, [0.1, -0.1])
    with pytest.raises(
        ValueError, match=r"'rate' should hold one number per modality.* is 0\.3\.$"
    ):
        mcar(4, 0.3)
    with pytest.raises(
        ValueError, match=r"'rate' should hold one number per modality.* is 0\.3\.$"
    ):
        mnar(torch.zeros(4, 1), 0.3)
    with pytest.raises(ValueError, match=r"'rate' .* less than 1 if rows of 2 .* sums to 1\.$"):
        mcar(4, [0.4, 0.6])
    with pytest.raises(ValueError, match=r"'rate' .* less than 0 if rows of 1 .* sums to 0\.1\.$"):
        mcar(4, [0.1])
    with pytest.raises(ValueError, match=r"'driver' .* shape \(B\) or \(B, 3\), .* \(4, 2\)"):
        mar(torch.zeros(4, 2), RATE)
    with pytest.raises(ValueError, match=r"'driver' should have at least one row"):
        mar(torch.zeros(0), RATE)
    with pytest.raises(ValueError, match="'driver' and 'slope' should be finite"):
        mar(torch.tensor([0.0, torch.nan]), RATE)
    with pytest.raises(ValueError, match=r"'slope' should be one number or 3, .* \(2,\)"):
        mar(torch.zeros(4), RATE, slope=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"'slope' should be smaller, or 'rate'"):
        mar(driver(50), [0.4, 0.59], slope=1e5)
    with pytest.raises(ValueError, match=r"'x' should hold one modality per rate \(3\)"):
        mnar({"a": torch.zeros(4, 2)}, RATE)
    with pytest.raises(ValueError, match=r"'x' .* each with as many rows, .* \[\(4,\), \(5,\)\]"):
        mnar({"a": torch.zeros(4), "b": torch.zeros(5)}, [0.1, 0.1])
    with pytest.raises(ValueError, match=r"'x' should be a mapping or a table .* \(4,\)"):
        mnar(torch.zeros(4), [0.1])
    with pytest.raises(ValueError, match=r"'summary' should make one finite number of each row"):
        mnar({"a": torch.tensor([0.0, torch.nan])}, [0.1], at_least_one=False)
    with pytest.raises(ValueError, match=r"'summary' should make one finite number of each row"):
        mnar({"a": torch.zeros(4, 2)}, [0.1], summary=lambda v: v, at_least_one=False)
    with pytest.raises(ValueError, match="'observed' should hold at least one pattern"):
        patterns(torch.ones(0, 3).bool(), 4)
    for wrong in ([1.0], [0.0, 0.0], [-1.0, 2.0], [torch.inf, 1.0]):
        with pytest.raises(ValueError, match=r"'weight' should hold one number per pattern \(2\)"):
            patterns(torch.ones(2, 3).bool(), 4, wrong)
