"""The linear product of experts is dense Gaussian conditioning, ridge and factor analysis."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpoe.posteriors import LinearPoE, linear

SIZES = {"a": 5, "b": 3, "c": 4}


def table(rows=60, seed=0, holes=0.0, absent=0.0):
    """Groups that share two factors, with missing cells and missing groups."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 2, generator=generator)
    groups = {}
    for name, d in SIZES.items():
        x = z @ torch.randn(2, d, generator=generator)
        x = x + 0.5 * torch.randn(rows, d, generator=generator) + 3
        x[torch.rand(rows, d, generator=generator) < holes] = np.nan
        x[torch.rand(rows, generator=generator) < absent] = np.nan
        groups[name] = x.double()
    return groups


def dense(poe, names):
    """The joint mean and covariance of some groups."""
    W = torch.cat([poe.loadings[name] for name in names])
    psi = torch.cat([poe.variances[name] for name in names])
    return torch.cat([poe.loc[name] for name in names]), W @ W.T + psi.diag()


def conditioned(poe, row, target, given):
    """Dense conditioning of a target on the observed cells of one row."""
    mu, S = dense(poe, [target, *given])
    x = torch.cat([row[name] for name in given])
    t = torch.arange(len(mu)) < len(poe.loc[target])
    o = torch.cat([torch.zeros(len(poe.loc[target]), dtype=torch.bool), ~x.isnan()])
    A = torch.linalg.solve(S[o][:, o], S[o][:, t]).T
    return mu[t] + A @ (x[~x.isnan()] - mu[o]), S[t][:, t] - A @ S[o][:, t]


# ---------------------------------------------------------------- oracles


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 100),
    factors=st.integers(1, 6),
    holes=st.sampled_from([0.0, 0.2, 0.7]),
    absent=st.sampled_from([0.0, 0.4]),
)
def test_it_is_dense_conditioning_on_the_observed_cells(seed, factors, holes, absent):
    groups = table(30, seed, holes, absent)
    poe = LinearPoE(factors, steps=3).fit(groups)
    p = poe.conditional(groups, "c")
    drawn = torch.randn(30, SIZES["c"], dtype=torch.float64)
    for i in range(30):
        loc, S = conditioned(poe, {k: x[i] for k, x in groups.items()}, "c", ["a", "b"])
        torch.testing.assert_close(p.mean[i], loc, rtol=0, atol=1e-10)
        torch.testing.assert_close(p.covariance_matrix[i], S, rtol=0, atol=1e-10)
        torch.testing.assert_close(p.variance[i], S.diagonal(), rtol=0, atol=1e-10)
        oracle = torch.distributions.MultivariateNormal(loc, S)
        torch.testing.assert_close(
            p.log_prob(drawn)[i], oracle.log_prob(drawn[i]), rtol=0, atol=1e-8
        )


def test_given_nothing_it_is_the_evidence_of_a_factor_analyser():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    from sklearn.decomposition import FactorAnalysis

    groups = table(200)
    x = torch.cat(list(groups.values()), dim=1)
    poe = LinearPoE(2, shrinkage=1e-8, steps=1000, floor=1e-6).fit(groups)
    analyser = FactorAnalysis(2, tol=1e-12, max_iter=5000, svd_method="lapack")
    analyser.fit(x.numpy())
    evidence = poe.conditional(groups, list(SIZES), given=[]).log_prob(x).numpy()
    np.testing.assert_allclose(evidence, analyser.score_samples(x.numpy()), atol=1e-3)
    covariance = dense(poe, list(SIZES))[1].numpy()
    np.testing.assert_allclose(covariance, analyser.get_covariance(), atol=1e-4)
    # the posterior of the factors is that of the analyser, up to a rotation
    ours, theirs = poe.posterior(groups).loc, torch.from_numpy(analyser.transform(x.numpy()))
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=1e-2)


def test_the_factors_of_a_row_are_a_ridge_regression_on_the_loadings():
    sklearn = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    groups = table(20)
    poe = LinearPoE(4).fit(groups)
    poe.variances = {name: torch.full_like(psi, 0.7) for name, psi in poe.variances.items()}
    x = torch.cat([groups[name] - poe.loc[name] for name in "ab"], dim=1)
    W = torch.cat([poe.loadings[name] for name in "ab"])
    ridge = sklearn.Ridge(alpha=0.7, fit_intercept=False).fit(W.numpy(), x.T.numpy())
    z = poe.posterior(groups, given=["a", "b"]).loc
    np.testing.assert_allclose(z.numpy(), ridge.coef_, atol=1e-10)


def test_where_the_factors_are_known_a_column_is_a_ridge_regression_on_them():
    sklearn = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 4, dtype=torch.float64, generator=generator)
    x = z @ torch.randn(4, 6, dtype=torch.float64, generator=generator) + 3
    observed = torch.rand(50, 6, generator=generator) < 0.7
    layout = linear._Layout.of(observed)
    one = torch.cat([z, torch.ones(50, 1)], dim=1)
    outer = one[:, :, None] * one[:, None]  # a posterior of z without any variance
    sums = torch.stack([outer[observed[:, c[0]]].sum(dim=0) for c in layout.columns])
    moments = linear._Moments(sums, outer.sum(dim=0), one)
    filled = torch.where(observed, x, 0)
    regression, _ = linear._regress(
        filled, observed.sum(dim=0), layout.columns, moments, shrinkage=20.0
    )
    for j in range(6):
        o = observed[:, j]
        ridge = sklearn.Ridge(alpha=20.0).fit(z[o].numpy(), x[o, j].numpy())
        np.testing.assert_allclose(regression[:-1, j].numpy(), ridge.coef_, atol=1e-8)
        np.testing.assert_allclose(regression[-1, j].numpy(), ridge.intercept_, atol=1e-8)


# ---------------------------------------------------------------- properties


def test_the_product_of_experts_is_the_product():
    groups = table(10)
    poe = LinearPoE(3).fit(groups)
    precision = torch.eye(3, dtype=torch.float64)
    shift = torch.zeros(10, 3, dtype=torch.float64)
    for name in SIZES:
        q = poe.posterior(groups, given=[name])
        own = torch.linalg.inv(q.covariance[0])
        precision = precision + own - torch.eye(3, dtype=torch.float64)
        shift = shift + q.loc @ own
    q = poe.posterior(groups)
    torch.testing.assert_close(torch.linalg.inv(q.covariance[0]), precision)
    torch.testing.assert_close(q.loc, shift @ q.covariance[0])


def test_a_temper_is_a_power_and_given_nothing_is_the_prior():
    groups = {"a": table(10)["a"]}
    poe = LinearPoE(2).fit(groups)
    twice = LinearPoE(2).fit(groups)
    twice.variances = {"a": poe.variances["a"] / 0.3}
    tempered, wider = poe.posterior(groups, tempers={"a": 0.3}), twice.posterior(groups)
    torch.testing.assert_close(tempered.loc, wider.loc)
    torch.testing.assert_close(tempered.covariance, wider.covariance)
    empty = poe.posterior({"a": torch.full((10, 5), np.nan)})
    assert (empty.loc == 0).all()
    torch.testing.assert_close(empty.covariance[0], torch.eye(2, dtype=torch.float64))
    nothing = poe.posterior(groups, given=[])
    assert nothing.loc.shape == (10, 2)
    torch.testing.assert_close(nothing.covariance, empty.covariance)


def test_columns_that_are_missing_are_as_if_they_did_not_exist():
    groups = table(50)
    small = LinearPoE(3).fit({"a": groups["a"], "b": groups["b"]})
    # a group that no row has teaches nothing
    more = LinearPoE(3).fit({**groups, "c": torch.full((50, 4), np.nan)})
    for name in "ab":
        torch.testing.assert_close(
            small.loadings[name] @ small.loadings["a"].T,
            more.loadings[name] @ more.loadings["a"].T,
        )
        torch.testing.assert_close(small.variances[name], more.variances[name])


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_it_does_not_depend_on_the_units_of_columns(factor):
    groups = table(50, holes=0.1)
    scaled = {name: x * factor - 7 * factor for name, x in groups.items()}
    own = LinearPoE(3).fit(groups).conditional(groups, "c")
    other = LinearPoE(3).fit(scaled).conditional(scaled, "c")
    torch.testing.assert_close(other.mean / factor + 7, own.mean)
    torch.testing.assert_close(other.stddev / factor, own.stddev)


def test_each_step_of_the_fit_raises_the_penalised_likelihood():
    groups = table(80, holes=0.2, absent=0.2)
    x = torch.cat(list(groups.values()), dim=1)
    values = []
    for steps in (1, 2, 4, 8, 16):
        poe = LinearPoE(2, shrinkage=1e-9, steps=steps, floor=1e-9).fit(groups)
        mu, S = dense(poe, list(SIZES))
        total = 0.0
        for row in x:
            o = ~row.isnan()
            if o.any():
                p = torch.distributions.MultivariateNormal(mu[o], S[o][:, o])
                total += p.log_prob(row[o]).item()
        values.append(total)
    assert values == sorted(values)
    assert values[-1] > values[0] + 1


def test_cells_that_are_missing_at_random_leave_the_mean_unbiased():
    """The mean of a is not the mean of what is left, if large values of b hide a."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 1, dtype=torch.float64, generator=generator)
    b = z + 0.2 * torch.randn(4000, 3, dtype=torch.float64, generator=generator)
    a = z + 0.2 * torch.randn(4000, 3, dtype=torch.float64, generator=generator)
    a[b[:, 0] > 0.3] = np.nan
    poe = LinearPoE(1, steps=50).fit({"a": a, "b": b})
    assert a.nanmean() < -0.4
    assert poe.loc["a"].abs().max() < 0.06


def test_chunks_change_nothing(monkeypatch):
    groups = table(50, holes=0.2)
    whole = LinearPoE(3).fit(groups)
    monkeypatch.setattr("mmpoe.posteriors.linear.CHUNK", 20)
    parts = LinearPoE(3).fit(groups)
    for name in SIZES:
        torch.testing.assert_close(whole.loadings[name], parts.loadings[name])
    torch.testing.assert_close(
        whole.conditional(groups, "a").stddev, parts.conditional(groups, "a").stddev
    )


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"factors": 0}, r"'factors' should be an integer of at least 1, but is 0"),
        ({"factors": 2.0}, r"'factors' should be an integer of at least 1, but is 2\.0"),
        ({"factors": 2, "steps": 0}, r"'steps' should be an integer of at least 1, but is 0"),
        ({"factors": 2, "shrinkage": 0.0}, r"'shrinkage' should be positive and finite"),
        ({"factors": 2, "floor": np.nan}, r"'floor' should be positive and finite, but is nan"),
    ],
)
def test_a_bad_option_is_an_error(options, match):
    with pytest.raises(ValueError, match=match):
        LinearPoE(**options)


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ({}, r"'groups' should have at least one group, but is empty"),
        ({"a": torch.ones(3)}, r"'groups\['a'\]' should have shape \(n, d\) .* has shape \(3,\)"),
        ({"a": torch.ones(3, 0)}, r"with at least one column, but has shape \(3, 0\)"),
        ({"a": torch.ones(0, 2)}, r"as many rows each, and at least one, .* \{'a': 0\}"),
        ({"a": torch.ones(3, 1), "b": torch.ones(2, 1)}, r"numbers are \{'a': 3, 'b': 2\}"),
        ({"a": torch.full((3, 1), torch.inf)}, r"'groups\['a'\]' should hold finite numbers"),
    ],
)
def test_bad_groups_are_an_error(groups, match):
    with pytest.raises(ValueError, match=match):
        LinearPoE(2).fit(groups)


def test_bad_questions_are_errors():
    groups = table(10)
    with pytest.raises(ValueError, match=r"should be fitted first: call 'fit'"):
        LinearPoE(2).posterior(groups)
    poe = LinearPoE(2).fit(groups)
    for call, match in [
        (lambda: poe.posterior({}), r"at least one group, but is empty"),
        (lambda: poe.posterior(groups, ["z"]), r"'given' should have groups .*a, b, c.* has 'z'"),
        (lambda: poe.posterior({"a": groups["a"]}, ["b"]), r"among 'groups' \(a\), but has 'b'"),
        (lambda: poe.posterior({"a": groups["b"]}), r"should have 5 columns, but has 3"),
        (
            lambda: poe.posterior({**groups, "a": groups["a"][:4]}),
            r"as many rows each, but has \{'a': 4",
        ),
        (lambda: poe.posterior(groups, tempers={"z": 1.0}), r"'tempers' should have groups"),
        (
            lambda: poe.posterior(groups, tempers={"a": 0.0}),
            r"positive and finite, but has .*0\.0",
        ),
        (lambda: poe.conditional(groups, "z"), r"'target' should have groups .* but has 'z'"),
        (lambda: poe.conditional(groups, []), r"'target' should name at least one group"),
        (lambda: poe.conditional(groups, "a", ["a"]), r"'target' should not be given, but 'a' is"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
