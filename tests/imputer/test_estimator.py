"""The estimator: what it promises about observed cells, types, seeds, errors and scikit-learn."""

import inspect
import math
import threading
import warnings

import numpy as np
import pytest
import torch

import mmpoe
from mmpoe import MultimodalImputer
from mmpoe.imputer._tables import read

pd = pytest.importorskip("pandas", reason="data frames need pandas")


def quick(**options):
    return MultimodalImputer(**{"networks": 0, "steps": 3, "random_state": 0} | options)


def numbers(rows=60, columns=3, seed=0):
    """Columns that go together, with missing cells, and the same without."""
    rng = np.random.default_rng(seed)
    whole = rng.normal(size=(rows, 1)) * np.arange(1, columns + 1) + 10
    whole = whole + 0.1 * rng.normal(size=whole.shape)
    holes = np.where(rng.random(whole.shape) < 0.3, np.nan, whole)
    holes[0] = whole[0]
    return whole, holes


def mixed(rows=40, seed=0):
    rng = np.random.default_rng(seed)
    level = rng.integers(0, 3, rows)
    frame = pd.DataFrame(
        {
            "size": level + 0.1 * rng.normal(size=rows),
            "grade": np.array(["low", "mid", "high"], dtype=object)[level],
            "old": pd.array(level > 1, dtype="boolean"),
            "age": pd.array(20 + level, dtype="Int64"),
            "kind": pd.Categorical.from_codes(level, ["c", "b", "a"]),
            "visits": rng.poisson(2.0 + level).astype(float),
        },
        index=[f"row {i}" for i in range(rows)],
    )
    holes = frame.copy()
    for j in range(frame.shape[1]):
        holes.iloc[rng.permutation(rows)[:8], j] = None
    return frame, holes


# ---------------------------------------------------------------- cells and types


def test_observed_cells_come_back_as_they_are_and_missing_ones_are_filled():
    _, holes = numbers()
    before = holes.copy()
    imputer = quick().fit(holes)
    for filled in (imputer.transform(holes), *imputer.impute(holes, draws=2)):
        seen = ~np.isnan(holes)
        assert filled.shape == holes.shape
        assert filled.dtype == holes.dtype
        assert np.array_equal(filled[seen], holes[seen])
        assert np.isfinite(filled).all()
    assert np.array_equal(holes, before, equal_nan=True)


def test_a_row_does_not_depend_on_the_others():
    _, holes = numbers()
    imputer = quick().fit(holes)
    together = imputer.transform(holes)
    alone = np.concatenate([imputer.transform(row[None]) for row in holes])
    np.testing.assert_allclose(alone, together, rtol=1e-5)


def test_a_row_without_any_cell_is_filled_from_the_prior():
    _, holes = numbers()
    imputer = quick().fit(holes)
    empty = np.full((2, 3), np.nan)
    filled = imputer.transform(empty)
    assert np.isfinite(filled).all()
    assert np.array_equal(filled[0], filled[1])
    assert imputer.score(empty) == 0


def test_a_data_frame_comes_back_with_its_types():
    frame, holes = mixed()
    imputer = quick(kinds={"visits": "count"}).fit(holes)
    kinds = {column.label: column.kind for column in imputer.columns_}
    assert kinds == {
        "size": "numeric",
        "grade": "categorical",
        "old": "categorical",
        "age": "numeric",
        "kind": "categorical",
        "visits": "count",
    }
    for filled in (imputer.transform(holes), *imputer.impute(holes, draws=2)):
        pd.testing.assert_series_equal(filled.dtypes, frame.dtypes)
        pd.testing.assert_index_equal(filled.index, frame.index)
        assert not filled.isna().any().any()
        seen = holes.notna()
        pd.testing.assert_frame_equal(filled.where(seen), holes.where(seen))
        assert set(filled["grade"]) <= {"low", "mid", "high"}
        assert (filled["visits"] >= 0).all()
    assert list(imputer.get_feature_names_out()) == list(frame.columns)
    assert list(imputer.feature_names_in_) == list(frame.columns)


def test_draws_of_counts_are_counts():
    _, holes = mixed()
    imputer = quick(kinds={"visits": "count"}).fit(holes)
    drawn = np.concatenate([filled["visits"] for filled in imputer.impute(holes, draws=5)])
    assert (drawn % 1 == 0).all()


def test_an_array_of_objects_holds_numbers_and_strings():
    X = np.array([[1.5, "a"], [None, "b"], [2.5, None], [float("nan"), "a"]], dtype=object)
    imputer = quick().fit(X)
    assert [column.kind for column in imputer.columns_] == ["numeric", "categorical"]
    filled = imputer.transform(X)
    assert isinstance(filled[1, 0], float)
    assert filled[2, 1] in {"a", "b"}
    assert filled[0].tolist() == [1.5, "a"]


def test_a_dictionary_of_arrays_has_its_groups_with_missing_rows_and_cells():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 1))
    X = {"view": z * [1.0, -1.0, 2.0], "label": np.where(z[:, 0] > 0, "up", "down").astype(object)}
    X["view"][:10] = np.nan
    X["view"][10:20, 1] = np.nan
    X["label"][20:30] = None
    imputer = quick().fit(X)
    assert [m.name for m in imputer.modalities_] == ["view", "label"]
    for filled in (imputer.transform(X), *imputer.impute(X, draws=2)):
        assert filled["view"].shape == (50, 3)
        assert np.isfinite(filled["view"]).all()
        seen = ~np.isnan(X["view"])
        assert np.array_equal(filled["view"][seen], X["view"][seen])
        assert set(filled["label"][20:30]) <= {"up", "down"}


def test_columns_of_a_group_are_read_together():
    whole, holes = numbers(columns=4)
    imputer = quick(groups={"pair": [2, 0]}).fit(holes)
    assert [m.name for m in imputer.modalities_] == ["pair", "x1", "x3"]
    filled = imputer.transform(holes)
    seen = ~np.isnan(holes)
    assert np.array_equal(filled[seen], holes[seen])
    # in the units of each column, not of its neighbour: columns differ in spread by factors
    assert np.abs((filled - whole) / whole.std(axis=0)).max() < 0.5


@pytest.mark.parametrize("networks", [0, 1])
def test_a_group_of_mixed_columns_is_hidden_and_predicted_whole(networks):
    frame, holes = mixed(rows=60)
    clinical = ["grade", "size", "visits", "age"]
    imputer = quick(
        groups={"clinical": clinical}, kinds={"visits": "count"}, networks=networks
    ).fit(holes)
    assert [m.name for m in imputer.modalities_] == ["clinical", "old", "kind"]
    p = imputer.predict_distribution(frame, target="clinical")
    assert p.columns == clinical
    assert p.predicted.all()
    assert np.isfinite(p.mean[:, 1:]).all()
    other = frame.assign(grade="low", size=0.0, visits=7.0, age=pd.array([1] * 60, dtype="Int64"))
    q = imputer.predict_distribution(other, target="clinical")
    np.testing.assert_array_equal(p.mean, q.mean)  # none of it is read
    np.testing.assert_array_equal(p.probabilities["grade"], q.probabilities["grade"])
    order = list(imputer.columns_[1].categories)
    likely = np.array(order)[p.probabilities["grade"].argmax(axis=1)]
    assert (likely == frame["grade"]).mean() > 0.8  # it follows from the kind
    drawn = p.sample(3)
    assert (drawn[:, :, 2].astype(float) % 1 == 0).all()
    assert np.isfinite(p.log_prob_joint(frame[clinical])).all()
    assert imputer.score(frame) > imputer.score(
        frame.assign(grade=frame["grade"].iloc[::-1].array)
    )
    for filled in (imputer.transform(holes), *imputer.impute(holes, draws=1)):
        seen = holes.notna()
        pd.testing.assert_series_equal(filled.dtypes, frame.dtypes)
        assert not filled.isna().any().any()
        pd.testing.assert_frame_equal(filled.where(seen), holes.where(seen))


def test_an_array_of_a_dictionary_may_be_mixed():
    _, holes = mixed()
    table = holes[["size", "grade"]].astype(object).to_numpy()
    X = {"table": table, "age": holes["age"].to_numpy(dtype=float, na_value=np.nan)}
    filled = quick().fit_transform(X)
    assert set(filled["table"][:, 1]) == {"low", "mid", "high"}
    assert np.isfinite(filled["table"][:, 0].astype(float)).all()


@pytest.mark.parametrize("kinds", [None, {2: "categorical"}])
def test_parts_of_a_group_are_given_and_hidden_together(kinds, monkeypatch):
    """Training draws which groups are given, never which of their columns."""
    _, holes = numbers(columns=4)
    holes[:, 2] = np.where(np.isnan(holes[:, 2]), np.nan, holes[:, 2] > 30)
    imputer = quick(groups={"g": [0, 2], "h": [1, 3]}, kinds=kinds, networks=1).fit(holes)
    network, given = imputer._blend.networks[0], []
    monkeypatch.setattr(
        type(network.training), "bound", lambda self, table, mask, beta: given.append(mask)
    )
    table = torch.from_numpy(imputer._encode(read(holes))).float()
    network._bound(network.training, table, 1.0)
    there, (mask,) = network._split(table)[1], given
    owner = network.owned.float().argmax(dim=1)
    assert owner.tolist() == ([0, 1] if kinds is None else [0, 0, 1])
    for m in (0, 1):
        part = mask[:, owner == m]
        together = (part == there[:, owner == m]).all(dim=1) | ~part.any(dim=1)
        assert together.all()
    assert not mask.all()


@pytest.mark.parametrize("columns", [1, 3])
def test_what_a_hole_of_a_group_held_is_never_read(columns):
    """Training hides parts of rows: neither they nor holes may reach the encoders."""
    _, holes = numbers()
    imputer = quick(groups={"all": [0, 1, 2]} if columns == 3 else None, networks=1).fit(holes)
    network = imputer._blend.networks[0]
    x, observed = network._split(torch.from_numpy(imputer._encode(read(holes))).float())
    x = {m: v.clone().requires_grad_() for m, v in x.items()}
    out = network.model(x, observed)
    valid = {m: ~v.isnan() for m, v in x.items()}
    mmpoe.elbo(out, x, observed, valid=valid).sum().backward()
    for v in x.values():
        assert (v.grad[v.isnan()] == 0).all()
        assert (v.grad[~v.isnan()] != 0).any()


def test_integers_of_a_category_come_back_as_they_went_in():
    X = np.array([[1.0, 3], [2, 4], [np.nan, 4], [2, np.nan]] * 3)
    filled = quick(kinds={1: "categorical"}).fit_transform(X)
    assert set(filled[:, 1]) == {3, 4}


def test_a_column_with_one_value_keeps_it():
    X = pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [7.0, np.nan, 7, 7], "c": ["x", None, "x", "x"]})
    filled = quick().fit_transform(X)
    assert filled["c"].tolist() == ["x"] * 4
    drawn = quick().fit(X).impute(X, draws=3)
    assert all(d["c"].tolist() == ["x"] * 4 for d in drawn)


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize("networks", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_it_learns_to_predict_what_columns_have_in_common(networks):
    whole, holes = numbers(rows=200)
    imputer = quick(networks=networks, steps=100).fit(holes)
    missing = np.isnan(holes) & (np.isnan(holes).sum(axis=1, keepdims=True) < 3)
    error = ((imputer.transform(holes) - whole) / whole.std(axis=0))[missing]
    assert np.sqrt((error**2).mean()) < 0.15  # the mean of the column is 1 away
    assert imputer.score(whole) > imputer.score(whole[:, [0, 2, 1]])


def test_the_score_of_one_gaussian_column_is_that_of_its_best_fit():
    """With nothing to share, the score tends to the density of a normal distribution."""
    X = np.random.default_rng(0).normal(5.0, 20.0, size=(400, 1))
    imputer = quick().fit(X)
    best = -0.5 * math.log(2 * math.pi * math.e * X.var())
    assert imputer.score(X) == pytest.approx(best, abs=0.03)
    scaled = quick().fit(X * 100)
    assert scaled.score(X * 100) == pytest.approx(imputer.score(X) - math.log(100), abs=1e-6)


@pytest.mark.slow
def test_networks_get_weight_where_the_relation_is_not_linear():
    rng = np.random.default_rng(0)
    z = rng.uniform(-2, 2, size=(400, 1))
    X = {"a": z + 0.1 * rng.normal(size=(400, 6)), "b": z**2 + 0.1 * rng.normal(size=(400, 6))}
    held_out = {name: x[300:] for name, x in X.items()}
    errors = []
    for networks in (0, 1):
        imputer = quick(networks=networks, steps=250).fit({k: x[:300] for k, x in X.items()})
        p = imputer.predict_distribution(held_out, target="b")
        errors.append(np.mean((p.mean - held_out["b"]) ** 2))
    assert imputer._blend.calibrations[imputer._blend.main].weights[1] > 0.5
    assert errors[1] < 0.3 * errors[0]


# ---------------------------------------------------------------- seeds


def test_the_same_seed_gives_the_same_and_leaves_the_state_outside_alone():
    _, holes = numbers()
    torch.manual_seed(7)
    outside = torch.get_rng_state()
    runs = []
    for seed in (3, 3, 4):
        imputer = quick(random_state=seed, networks=1).fit(holes)
        runs.append((imputer.transform(holes), *imputer.impute(holes, draws=2)))
        assert np.array_equal(imputer.impute(holes, draws=2)[0], runs[-1][1])
        imputer.score(holes)
    assert torch.equal(torch.get_rng_state(), outside)
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not np.array_equal(runs[0][1], runs[2][1])
    assert not np.array_equal(runs[0][1], runs[0][2])


def test_random_states_of_numpy_and_none_are_seeds():
    _, holes = numbers()
    runs = [
        quick(random_state=state).fit(holes).impute(holes, draws=1)[0]
        for state in (np.random.RandomState(0), np.random.RandomState(0), None, None)
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[2], runs[3])


# ---------------------------------------------------------------- scikit-learn


def test_the_constructor_only_stores_its_arguments():
    values = {name: object() for name in inspect.signature(MultimodalImputer).parameters}
    imputer = MultimodalImputer(values.pop("groups"), **values)
    params = imputer.get_params()
    assert vars(imputer) == params
    assert all(params[name] is value for name, value in values.items())
    assert imputer.set_params(steps=5) is imputer
    assert imputer.steps == 5
    with pytest.raises(ValueError, match=r"'params' should hold arguments among .* 'epochs'"):
        imputer.set_params(epochs=3)
    assert repr(MultimodalImputer(steps=5)) == "MultimodalImputer(steps=5)"


CHECKS = [
    "check_dict_unchanged",
    "check_estimators_fit_returns_self",
    "check_estimators_overwrite_params",
    "check_estimators_pickle",
    "check_estimators_unfitted",
    "check_fit2d_1feature",
    "check_fit2d_1sample",
    "check_fit_idempotent",
    "check_get_params_invariance",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_n_features_in",
    "check_n_features_in_after_fitting",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_transformer_general",
    "check_transformers_unfitted",
]


@pytest.mark.parametrize("check", CHECKS)
def test_it_passes_the_checks_of_scikit_learn(check):
    checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="needs scikit-learn")
    from sklearn.base import clone

    run = getattr(checks, check)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run("MultimodalImputer", clone(quick()))


def test_it_works_in_a_pipeline():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    whole, holes = numbers()
    pipeline = make_pipeline(quick(), LinearRegression())
    search = GridSearchCV(pipeline, {"multimodalimputer__random_state": [0, 1]}, cv=2)
    search.fit(holes, whole.sum(axis=1))
    assert search.predict(holes).shape == (60,)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (np.empty((0, 2)), r"at least one row and one column, but has shape \(0, 2\)"),
        (np.empty((2, 0)), r"at least one row and one column, but has shape \(2, 0\)"),
        (pd.DataFrame(index=range(4)), r"one row and one column, but has shape \(4, 0\)"),
        ({"a": np.empty((4, 0)), "b": np.ones((4, 1))}, r"but 'a' has shape \(4, 0\)"),
        (np.array([[1.0], [np.inf]]), r"finite numbers, NaN where they are missing, but 0 .* inf"),
        (np.zeros(3), r"'X' should have two dimensions, .* shape \(3,\)\. Reshape"),
        (np.zeros((3, 2), dtype=complex), r"Complex data not supported"),
        ({"a": np.zeros((3, 2)), "b": np.zeros(2)}, r"as many rows, but has \{'a': 3, 'b': 2\}"),
        ({"a": np.zeros((3, 2, 2))}, r"one or two dimensions, but 'a' has shape \(3, 2, 2\)"),
        ({}, r"'X' should have at least one row and one column"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), r"distinct names, but has \['a', 'a'\]"),
    ],
)
def test_a_bad_table_is_an_error(X, match):
    with pytest.raises(ValueError, match=match):
        quick().fit(X)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"groups": {"g": ["a", "z"]}}, r"'groups' should name columns .*\(a, b, c\), .* 'z'"),
        ({"groups": {"g": ["a"], "h": ["a"]}}, r"each in one group and once, but 'h' has \['a'\]"),
        ({"groups": {"g": ["a", "a"]}}, r"each in one group and once, but 'g' has \['a', 'a'\]"),
        ({"groups": {"g": []}}, r"'groups' should have columns, .* but 'g' has \[\]"),
        ({"groups": {"b": ["a"]}}, r"other names than the columns outside, but one is 'b'"),
        ({"kinds": {"z": "count"}}, r"'kinds' should name columns of 'X' \(a, b, c\), .* 'z'"),
        ({"kinds": {"a": "ordinal"}}, r"'kinds' should be among numeric, .* 'a' is 'ordinal'"),
        ({"kinds": {"a": "count"}}, r"integers of at least 0 in the counts 'a', but holds 0\.5"),
        ({"kinds": {"c": "numeric"}}, r"'X' should hold numbers in 'c', but holds 'x'"),
        ({"networks": -1}, r"'networks' should be an integer of at least 0, but is -1"),
        ({"steps": 0}, r"'steps' should be an integer of at least 1, but is 0"),
        ({"random_state": "seed"}, r"'random_state' should be an integer of .* is 'seed'"),
        ({"random_state": -1}, r"'random_state' should be an integer of at least 0, .* is -1"),
        ({"groups": ["a"]}, r"'groups' should map names to lists of columns, .* is \['a'\]"),
        ({"groups": {"g": "a"}}, r"'groups' should map names to lists .*'g' has the string 'a'"),
        ({"kinds": ["count"]}, r"'kinds' should map columns to what .* is \['count'\]"),
    ],
)
def test_a_bad_argument_is_an_error(options, match):
    X = pd.DataFrame({"a": [0.5, 1.5], "b": [1.0, 2.0], "c": ["x", "y"]})
    with pytest.raises(ValueError, match=match):
        quick(**options).fit(X)


def test_a_dictionary_has_the_arrays_that_were_fitted():
    X = {"a": np.arange(8.0).reshape(4, 2), "b": np.arange(4.0)}
    imputer = quick().fit(X)
    for other in ({"b": X["b"], "a": X["a"]}, {"a": X["a"]}, {**X, "c": X["b"]}):
        with pytest.raises(ValueError, match=r"in their order \(a, b\), but holds"):
            imputer.transform(other)
    filled = imputer.transform({**X, "a": np.full((4, 2), np.nan)})
    assert np.isfinite(filled["a"]).all()


def test_a_dictionary_takes_no_groups():
    with pytest.raises(ValueError, match=r"'groups' should be None: a dictionary"):
        quick(groups={"g": ["a"]}).fit({"a": np.zeros(3)})


@pytest.fixture(scope="module")
def fitted_to_mixed():
    return quick().fit(mixed()[1])


@pytest.mark.parametrize("method", ["transform", "impute", "score", "predict_distribution"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f: f.assign(grade="top"), r"categories that were there .* 'grade' .* holds 'top'"),
        (lambda f: f.drop(columns="age"), r"X has 5 features, but MultimodalImputer is expecting"),
        (lambda f: f.rename(columns={"age": "years"}), r"columns that it had .* but has .* years"),
        (lambda f: f[f.columns[::-1]], r"columns that it had when it was fitted"),
        (lambda f: f.assign(size=-math.inf), r"finite numbers, .* but 'size' holds -inf"),
    ],
)
def test_another_table_than_was_fitted_is_an_error(fitted_to_mixed, method, change, match):
    with pytest.raises(ValueError, match=match):
        getattr(fitted_to_mixed, method)(change(mixed()[1]))


def test_no_draws_are_an_error():
    imputer = quick().fit(numbers()[1])
    with pytest.raises(ValueError, match=r"'draws' should be an integer of at least 1, but is 0"):
        imputer.impute(numbers()[1], draws=0)


# ---------------------------------------------------------------- threads


def test_threads_fit_and_draw_as_one_does():
    tables = [numbers(seed=seed)[1] for seed in range(2)]

    def results(table):
        imputer = quick(networks=1, steps=8).fit(table)
        return [imputer.transform(table), *imputer.impute(table, draws=2), imputer.score(table)]

    alone = [results(table) for table in tables]
    together, start = {}, threading.Barrier(2)

    def run(i):
        start.wait()
        together[i] = results(tables[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, wanted in enumerate(alone):
        for a, b in zip(wanted, together[i], strict=True):
            np.testing.assert_array_equal(a, b)
