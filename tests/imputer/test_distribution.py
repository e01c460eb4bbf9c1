"""The predictive distribution: densities against SciPy, draws, intervals that cover, units."""

import numpy as np
import pytest
from scipy import integrate, stats

from mmpoe import MultimodalImputer
from mmpoe.imputer._blend import Calibration
from mmpoe.imputer._student import crps

pd = pytest.importorskip("pandas", reason="data frames need pandas")


def omics(rows, seed=0, noise=0.7, units=True):
    """Three groups that share factors, exchangeable rows, in units of their own."""
    rng = np.random.default_rng(seed)
    loadings = {name: np.random.default_rng(9).normal(size=(3, 6)) for name in "abc"}
    z = rng.normal(size=(rows, 3))
    X = {name: z @ W + noise * rng.standard_t(6, size=(rows, 6)) for name, W in loadings.items()}
    scale = np.array([1.0, 10, 100, 1, 1, 0.01]) if units else 1.0
    return {name: x * scale + 5 for name, x in X.items()}


def without(X, seed=1, groups=0.3, cells=0.0):
    rng = np.random.default_rng(seed)
    holes = {}
    for name, x in X.items():
        absent = rng.random((len(x), 1)) < groups
        holes[name] = np.where(absent | (rng.random(x.shape) < cells), np.nan, x)
    return holes


@pytest.fixture(scope="module")
def fitted():
    return MultimodalImputer(networks=0, random_state=0).fit(without(omics(160), cells=0.05))


def frame(rows, seed=0):
    rng = np.random.default_rng(seed)
    level = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "size": 3 * level + rng.normal(size=rows),
            "weight": 100 * level + 20 * rng.normal(size=rows),
            "grade": np.array(["low", "mid", "high"], dtype=object)[
                np.digitize(level + 0.3 * rng.normal(size=rows), [-0.5, 0.5])
            ],
            "visits": rng.poisson(np.exp(1 + 0.6 * level)).astype(float),
        }
    )


@pytest.fixture(scope="module")
def mixed():
    X, rng = frame(200), np.random.default_rng(3)
    holes = X.copy()
    for j in range(X.shape[1]):
        holes.iloc[rng.permutation(200)[:40], j] = None
    return MultimodalImputer(kinds={"visits": "count"}, networks=0, random_state=0).fit(holes)


# ---------------------------------------------------------------- densities


def test_densities_are_those_of_a_student_t_of_scipy(fitted):
    X = omics(5, seed=2)
    p = fitted.predict_distribution(X, target="b")
    blend, (part,) = fitted._blend, p._prediction.parts
    f = slice(6, 12)
    W, psi = blend.loadings[f], blend.variances[f]
    unit = blend.features.scale[f] * [column.scale for column in fitted.columns_[f]]
    for i in range(5):
        V = part.posterior.covariance[part.posterior.pattern[i]].numpy()
        D = np.diag(p._prediction.factor[i, f] * unit)
        shape = D @ (W @ V @ W.T + np.diag(psi)) @ D
        oracle = stats.multivariate_t(p.mean[i], shape, df=part.freedom)
        x = X["b"][i]
        assert p.log_prob_joint(X["b"])[i] == pytest.approx(oracle.logpdf(x), abs=1e-8)
        some = np.where(np.arange(6) < 2, x, np.nan)
        rows = np.where(np.arange(5)[:, None] == i, some, np.nan)
        first = stats.multivariate_t(p.mean[i, :2], shape[:2, :2], df=part.freedom)
        assert p.log_prob_joint(rows)[i] == pytest.approx(first.logpdf(x[:2]), abs=1e-8)
        scale = np.sqrt(np.diag(shape))
        t = part.freedom, p.mean[i], scale
        np.testing.assert_allclose(p.log_prob(X["b"])[i], stats.t.logpdf(x, *t), atol=1e-8)
        np.testing.assert_allclose(p.stddev[i], stats.t.std(*t), rtol=1e-8)
        np.testing.assert_allclose(p.quantile(0.2)[i], stats.t.ppf(0.2, *t), rtol=1e-8)


@pytest.mark.parametrize("freedom", [3.0, 5.0, 200.0])
@pytest.mark.parametrize("x", [-2.5, 0.0, 1.0])
def test_the_crps_is_its_integral(freedom, x):
    t = stats.t(freedom)
    below = integrate.quad(lambda y: t.cdf(y) ** 2, -np.inf, x)[0]
    above = integrate.quad(lambda y: t.sf(y) ** 2, x, np.inf)[0]
    assert crps(np.array(x), np.array(freedom)) == pytest.approx(below + above, abs=1e-7)


def test_densities_and_scores_follow_the_units(fitted):
    X = omics(5, seed=2)
    p = fitted.predict_distribution(X, target=["a"])
    scaled = {name: x * 7 for name, x in without(omics(160), cells=0.05).items()}
    q = MultimodalImputer(networks=0, random_state=0).fit(scaled)
    q = q.predict_distribution({name: x * 7 for name, x in X.items()}, target=["a"])
    np.testing.assert_allclose(q.mean, 7 * p.mean, rtol=1e-6)
    np.testing.assert_allclose(q.stddev, 7 * p.stddev, rtol=1e-6)
    np.testing.assert_allclose(q.crps(X["a"] * 7), 7 * p.crps(X["a"]), rtol=1e-6)
    np.testing.assert_allclose(
        q.log_prob(X["a"] * 7), p.log_prob(X["a"]) - np.log(7), rtol=0, atol=1e-6
    )


def test_probabilities_of_categories_and_counts_add_up(mixed):
    X = frame(20, seed=5)
    p = mixed.predict_distribution(X, target="grade")
    assert p.probabilities["grade"].shape == (20, 3)
    np.testing.assert_allclose(p.probabilities["grade"].sum(axis=1), 1)
    each = [
        np.exp(p.log_prob(np.full((20, 1), grade, dtype=object)))[:, 0]
        for grade in mixed.columns_[2].categories
    ]
    np.testing.assert_allclose(np.stack(each, axis=1), p.probabilities["grade"])
    assert np.isnan(p.mean).all()
    assert np.isnan(p.crps(X[["grade"]])).all()

    q = mixed.predict_distribution(X, target="visits")
    mass = [np.exp(q.log_prob(np.full((20, 1), float(k)))) for k in range(3000)]
    np.testing.assert_allclose(np.sum(mass, axis=0), 1, atol=1e-3)
    cumulative = np.cumsum(mass, axis=0)[:, :, 0]
    median = (cumulative < 0.5).sum(axis=0)
    np.testing.assert_array_equal(q.quantile(0.5)[:, 0], median)


def test_values_are_known_by_their_names(mixed):
    """A density of a column under the distribution of another would be wrong without a word."""
    X = frame(20, seed=5)
    p = mixed.predict_distribution(X, target=["grade", "visits", "size"])
    for names in (["visits", "grade", "size"], ["grade", "visits", "weight"]):
        with pytest.raises(ValueError, match="'values' should have the columns grade, visits, si"):
            p.log_prob(X[names])
    unnamed = X[["grade", "visits", "size"]].set_axis(range(3), axis=1)
    np.testing.assert_array_equal(p.log_prob(unnamed), p.log_prob(X[["grade", "visits", "size"]]))
    strange = X[["grade"]].assign(grade="strange")
    with pytest.raises(ValueError, match=r"'values' should hold categories .*'strange'\.$"):
        mixed.predict_distribution(X, target="grade").log_prob(strange)


@pytest.mark.parametrize("exponent", [-1000, -40, 40, 1000])
def test_units_of_any_size_change_nothing_else(exponent):
    """Powers of two are exact; squares of such numbers are not, and a column is constant."""
    rng = np.random.default_rng(0)
    X = np.c_[rng.normal(size=(30, 2)), np.full(30, 3.0)]
    X[:, 1] += X[:, 0]
    X[::4, 1] = X[::5, 2] = np.nan
    p, q = (
        MultimodalImputer(networks=0, random_state=0)
        .fit(x)
        .predict_distribution(x, given=["x0"], target=["x1", "x2"])
        for x in (X, np.ldexp(X, exponent))
    )
    ends = zip(p.interval(), q.interval(), strict=True)
    for one, other in [(p.mean, q.mean), (p.stddev, q.stddev), *ends]:
        np.testing.assert_array_equal(np.ldexp(one, exponent), other)


def test_the_joint_density_of_mixed_columns_adds_what_is_not_joint(mixed):
    X = frame(20, seed=5)
    p = mixed.predict_distribution(X, target=["grade", "visits", "size"])
    values = X[["grade", "visits", "size"]]
    np.testing.assert_allclose(p.log_prob_joint(values), p.log_prob(values).sum(axis=1))


# ---------------------------------------------------------------- draws


def test_draws_have_the_moments_and_correlations_of_the_distribution(fitted):
    X = omics(3, seed=2)
    p = fitted.predict_distribution(X, given=["a"], target=["b", "c"])
    drawn = p.sample(4000)
    np.testing.assert_allclose((drawn.mean(axis=0) - p.mean) / p.stddev, 0, atol=0.08)
    np.testing.assert_allclose(drawn.std(axis=0), p.stddev, rtol=0.1)
    (part,), W, psi = p._prediction.parts, fitted._blend.loadings, fitted._blend.variances
    V = part.posterior.covariance[0].numpy()
    S = (W @ V @ W.T + np.diag(psi))[6:, 6:]
    wanted = S / np.sqrt(np.outer(S.diagonal(), S.diagonal()))
    np.testing.assert_allclose(np.corrcoef(drawn[:, 0].T), wanted, atol=0.08)
    assert np.array_equal(p.sample(3), drawn[:3])
    assert not np.array_equal(p.sample(3, random_state=1), drawn[:3])


def test_categories_are_drawn_as_often_as_they_should_and_with_the_numbers(mixed):
    X = frame(30, seed=5)
    p = mixed.predict_distribution(X, given=["visits"], target=["size", "grade"])
    drawn = p.sample(2000)
    for k, grade in enumerate(mixed.columns_[2].categories):
        share = (drawn[:, :, 1] == grade).mean(axis=0)
        np.testing.assert_allclose(share, p.probabilities["grade"][:, k], atol=0.05)
    size = drawn[:, 0, 0].astype(float)
    assert size[drawn[:, 0, 1] == "high"].mean() > size[drawn[:, 0, 1] == "low"].mean() + 1


# ---------------------------------------------------------------- intervals


def test_the_width_is_a_conformal_quantile_of_each_column():
    rng = np.random.default_rng(0)
    residuals = np.abs(rng.normal(size=(99, 2))) * [1.0, 3.0]
    residuals[10:, 1] = np.nan
    one = np.ones(2)
    width = Calibration(1.0, one, one, one, 5.0, residuals).width(0.9)
    assert width[0] == pytest.approx(np.sort(residuals[:, 0])[89], rel=1e-14)  # the 90th of 99
    pooled = np.sort(residuals[~np.isnan(residuals)])
    assert width[1] == pytest.approx(pooled[98], rel=1e-14)  # of 109: ten rows are too few


@pytest.mark.parametrize("rows", [20, 26, 35])
def test_the_width_covers_few_rows_no_more_often_than_asked(rows):
    """The next residual above the share that is asked for would cover 91 to 93 %."""
    residuals = np.abs(np.random.default_rng(0).normal(size=(rows + 1, 6000)))
    one = np.ones(6000)
    width = Calibration(1.0, one, one, one, 5.0, residuals[1:]).width(0.9)
    assert (residuals[0] <= width).mean() == pytest.approx(0.9, abs=0.0095)


@pytest.mark.slow
def test_intervals_of_few_rows_cover():
    """Fits on the rows of a fold less claim less than the one that predicts."""
    shares = []
    for seed in range(2):
        imputer = MultimodalImputer(networks=0, random_state=seed)
        imputer.fit(without(omics(40, seed=10 + seed), groups=0.2))
        X = omics(300, seed=20 + seed)
        low, high = imputer.predict_distribution(X, target="a").interval()
        shares.append(((low <= X["a"]) & (X["a"] <= high)).mean())
    assert np.mean(shares) == pytest.approx(0.9, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_intervals_cover_in_every_pattern(coverage):
    """On exchangeable rows the shares are within binomial limits, counting rows, not cells."""
    training, X = omics(300, seed=4), omics(400, seed=5)
    imputer = MultimodalImputer(networks=0, random_state=0).fit(without(training))
    for given in (["b", "c"], ["b"], ["c"], []):
        p = imputer.predict_distribution(X, given=given, target="a")
        low, high = p.interval(coverage)
        covered = ((low <= X["a"]) & (X["a"] <= high)).mean(axis=0)
        # a column's share varies with the test rows and with the rows that were left out
        deviation = np.sqrt(coverage * (1 - coverage) * (1 / 400 + 1 / 150))
        assert np.abs(covered - coverage).max() < 4 * deviation
        assert abs(covered.mean() - coverage) < 2 * deviation


@pytest.mark.slow
def test_intervals_of_cells_cover():
    training, X = omics(300, seed=4), omics(300, seed=5)
    imputer = MultimodalImputer(networks=0, random_state=0)
    imputer.fit(without(training, groups=0.1, cells=0.1))
    holes = without(X, seed=8, groups=0.0, cells=0.15)
    p = imputer.predict_distribution(holes)
    low, high = p.interval()
    whole = np.concatenate(list(X.values()), axis=1)
    covered = ((low <= whole) & (whole <= high))[p.predicted]
    assert 0.87 < covered.mean() < 0.93


@pytest.mark.slow
def test_cells_that_many_factors_explain_are_predicted_from_their_own_modality():
    """Columns that are all but independent of the others take a factor each, with few rows too."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2, 140, 24))
    X = {
        name: np.concatenate([z, z + 0.2 * rng.normal(size=z.shape)], axis=1)
        for name, z in zip("ab", own, strict=True)
    }
    imputer = MultimodalImputer(networks=0, random_state=0)
    imputer.fit({name: x[:40] for name, x in X.items()})
    test = {name: x[40:] for name, x in X.items()}
    holes = without(test, groups=0.0, cells=0.1)
    filled = imputer.transform(holes)
    hidden = np.isnan(holes["a"])
    error = ((filled["a"] - test["a"])[hidden] ** 2).mean() / (test["a"][hidden] ** 2).mean()
    assert error < 0.9  # 1.00 with at most half as many factors as rows; 0.85 with as many


# ---------------------------------------------------------------- what is given and asked for


def test_cells_that_were_observed_are_certain(fitted):
    X = without(omics(10, seed=2), cells=0.1)
    p = fitted.predict_distribution(X)
    whole = np.concatenate(list(X.values()), axis=1)
    seen = ~np.isnan(whole)
    assert np.array_equal(p.predicted, ~seen)
    ends = p.interval()
    for values in (p.mean, p.quantile(0.3), *ends, p.sample(1)[0]):
        np.testing.assert_allclose(values[seen], whole[seen], rtol=1e-12)
        assert np.isfinite(values).all()
    assert (p.stddev[seen] == 0).all()
    assert (p.stddev[~seen] > 0).all()
    truth = np.concatenate(list(omics(10, seed=2).values()), axis=1)
    assert np.array_equal(np.isnan(p.log_prob(truth)), seen)
    filled = np.concatenate(list(fitted.transform(X).values()), axis=1)
    np.testing.assert_allclose(filled, p.mean, rtol=1e-12)


def test_a_target_is_never_read_and_neither_is_what_is_not_given(fitted):
    X = omics(10, seed=2)
    p = fitted.predict_distribution(X, given=["a"], target="b")
    other = fitted.predict_distribution({**X, "b": -X["b"], "c": X["c"] * np.nan}, ["a"], "b")
    assert p.columns == [f"b[{j}]" for j in range(6)]
    np.testing.assert_array_equal(p.mean, other.mean)
    np.testing.assert_array_equal(p.stddev, other.stddev)
    rest = fitted.predict_distribution(X, given=["a"])
    np.testing.assert_allclose(rest.mean[:, 6:12], p.mean)
    np.testing.assert_allclose(rest.mean[:, :6], X["a"])


def test_a_missing_cell_of_a_group_takes_no_part(fitted):
    """It is not read as the mean of its column: what is left predicts by itself."""
    X = omics(10, seed=2)
    holes = {**X, "a": X["a"].copy()}
    holes["a"][:, 2:] = np.nan
    filled = {**holes, "a": np.where(np.isnan(holes["a"]), X["a"].mean(axis=0), holes["a"])}
    p, q = (fitted.predict_distribution(x, given=["a"], target="b") for x in (holes, filled))
    assert (p.stddev > q.stddev).all()
    assert not np.allclose(p.mean, q.mean)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m, X: m.predict_distribution(X, target="z"), r"'target' should name modal.* 'z'"),
        (
            lambda m, X: m.predict_distribution(X, given=["z"]),
            r"'given' should name .*a, b, c.*'z'",
        ),
        (
            lambda m, X: m.predict_distribution(X, ["a"], "a"),
            r"'target' should not be given, .* 'a'",
        ),
        (lambda m, X: m.predict_distribution(X, given=5), r"'given' should name .* names 5"),
        (lambda m, X: m.predict_distribution(X, target=[["a"]]), r"'target' .* names \['a'\]"),
        (lambda m, X: m.predict_distribution(X, target=[]), r"'target' should name at least one"),
        (lambda m, X: m.predict_distribution(X).quantile(1.0), r"'q' should be a number between"),
        (
            lambda m, X: m.predict_distribution(X).quantile([0.1]),
            r"'q' should be a number between",
        ),
        (
            lambda m, X: m.predict_distribution(X).interval(90),
            r"'coverage' should be a number .* but is 90",
        ),
        (lambda m, X: m.predict_distribution(X).sample(0), r"'draws' should be an integer of at"),
        (
            lambda m, X: m.predict_distribution(X, target="a").crps(X["a"][:, :2]),
            r"'values' should have shape \(4, 6\), but has shape \(4, 2\)",
        ),
    ],
)
def test_bad_questions_are_errors(fitted, call, match):
    with pytest.raises(ValueError, match=match):
        call(fitted, omics(4))
