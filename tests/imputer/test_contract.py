"""The imputer as a transformer of scikit-learn: its checks, output containers, odd columns."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse

from mmpoe import MultimodalImputer

pd = pytest.importorskip("pandas", reason="data frames need pandas")
checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="needs scikit-learn")


def quick(**options):
    return MultimodalImputer(networks=0, random_state=0, **options)


def frame(rows=30, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=rows)
    out = pd.DataFrame({"a": z, "b": 2 * z + 1, "c": np.where(z > 0, "up", "down")})
    return out.mask(pd.DataFrame(rng.random(out.shape) < 0.2, columns=out.columns))


def all_checks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(checks.estimator_checks_generator(quick(), legacy=True))


@pytest.mark.parametrize(
    ("imputer", "check"),
    all_checks(),
    ids=lambda v: getattr(getattr(v, "func", v), "__name__", ""),
)
def test_it_passes_the_checks_of_scikit_learn(imputer, check):
    from sklearn.exceptions import SkipTestWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        warnings.filterwarnings("ignore", "Columns without an observed cell")
        try:
            check(imputer)
        except checks.SkipTest as reason:
            pytest.skip(str(reason))


OUTPUT = [
    "check_set_output_transform",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
]  # others expect an array of a data frame, unless a data frame is asked for


@pytest.mark.slow
@pytest.mark.parametrize("check", OUTPUT)
def test_it_passes_the_checks_of_output_containers(check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(checks, check)("MultimodalImputer", quick())


def tables():
    a = frame()[["a", "b"]].to_numpy()
    return {
        "frame": frame(),
        "array": a,
        "objects": frame().to_numpy(dtype=object),
        "dictionary": {"view": a, "label": frame()["c"].to_numpy(dtype=object)},
    }


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("kind", list(tables()))
def test_every_table_comes_back_as_a_data_frame(kind, library):
    pytest.importorskip(library, reason=f"needs {library}")
    X = tables()[kind]
    plain = quick().fit_transform(X)
    imputer = quick().set_output(transform=library)
    out = imputer.fit_transform(X)
    assert type(out).__module__.split(".")[0] == library
    names = {
        "frame": ["a", "b", "c"],
        "array": ["x0", "x1"],
        "objects": ["x0", "x1", "x2"],
        "dictionary": ["view[0]", "view[1]", "label"],
    }[kind]
    assert list(out.columns) == list(imputer.get_feature_names_out()) == names
    flat = np.column_stack(list(plain.values())) if isinstance(plain, dict) else plain
    for j, name in enumerate(names):
        assert list(out[name]) == np.asarray(flat)[:, j].tolist()


def test_the_choice_of_all_of_scikit_learn_holds_unless_there_is_another():
    import sklearn

    X = tables()["array"]
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(quick().fit_transform(X), pd.DataFrame)
        assert isinstance(quick().set_output(transform="default").fit_transform(X), np.ndarray)
        assert isinstance(quick().set_output().fit_transform(X), pd.DataFrame)
    chosen = sklearn.base.clone(quick().set_output(transform="pandas"))
    assert isinstance(chosen.fit_transform(X), pd.DataFrame)
    with pytest.raises(ValueError, match=r"'transform' should be one of .* polars, but is 'xml'"):
        quick().set_output(transform="xml")


def test_a_data_frame_of_an_array_has_no_index_of_its_own_but_a_frame_keeps_it():
    X = frame().set_axis([f"row {i}" for i in range(30)])
    out = quick().set_output(transform="pandas").fit_transform(X)
    pd.testing.assert_index_equal(out.index, X.index)


def test_names_of_columns_can_be_given():
    X = tables()["array"]
    imputer = quick().fit(X)
    assert imputer.get_feature_names_out(["u", "v"]).tolist() == ["u", "v"]
    with pytest.raises(
        ValueError, match=r"input_features should have .* \(2: x0, x1\): it has 1, u"
    ):
        imputer.get_feature_names_out(["u"])
    with pytest.raises(ValueError, match=r"input_features is not equal to .*: it has 3, a, b, z"):
        quick().fit(frame()).get_feature_names_out(["a", "b", "z"])


def test_scikit_learn_is_imported_by_nobody_but_the_user():
    code = (
        "import sys, numpy as np; from mmpoe import MultimodalImputer as I;"
        "X = np.array([[1., 2], [3, np.nan], [2, 1]]);"
        "I(networks=0).set_output(transform='default').fit_transform(X);"
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- odd columns


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_a_sparse_table_is_filled_as_the_dense_one(layout):
    X = tables()["array"].copy()
    X[::4, 0] = 0
    dense, sparse = (
        quick().fit_transform(X),
        quick().fit_transform(getattr(scipy.sparse, f"{layout}_array")(X)),
    )
    assert sparse.format == layout
    np.testing.assert_array_equal(sparse.toarray(), dense)
    with pytest.raises(ValueError, match=r"'X' should be dense to be returned as .* of pandas"):
        quick().set_output(transform="pandas").fit_transform(scipy.sparse.csr_array(X))


def test_a_category_that_is_new_is_an_error_or_says_nothing():
    imputer = quick().fit(frame())
    X = frame(seed=1)
    other = X.assign(c=["new", *X["c"][1:]])
    with pytest.raises(
        ValueError, match=r"'c' \('down', 'up'\), but holds 'new'\. .* handle_unknown="
    ):
        imputer.transform(other)
    imputer.set_params(handle_unknown="missing")
    out, without = imputer.transform(other), imputer.transform(X.assign(c=[None, *X["c"][1:]]))
    assert out["c"][0] == "new"
    pd.testing.assert_frame_equal(out[["a", "b"]], without[["a", "b"]])
    with pytest.raises(ValueError, match=r"'handle_unknown' should be one of error, missing"):
        quick(handle_unknown="ignore").fit(X)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", ["frame", "array", "sparse", "dictionary", "group"])
def test_a_column_without_an_observed_cell_is_left_out_or_stays(kind, keep):
    a = tables()["array"]
    with_empty = np.column_stack([a[:, 0], np.full(30, np.nan), a[:, 1]])
    X = {
        "frame": pd.DataFrame(with_empty, columns=["a", "e", "b"]),
        "array": with_empty,
        "sparse": scipy.sparse.csr_array(with_empty),
        "dictionary": {"v": with_empty, "w": np.full(30, np.nan)},
        "group": pd.DataFrame(with_empty, columns=["a", "e", "b"]),
    }[kind]
    groups = {"g": ["a", "e"], "h": ["b"]} if kind == "group" else None
    imputer = quick(groups=groups, keep_empty_features=keep)
    with pytest.warns(UserWarning, match=r"Columns without .* (stay as they are|are left out)"):
        out = imputer.fit_transform(X)
    names = imputer.get_feature_names_out()
    if kind == "dictionary":
        assert list(out) == (["v", "w"] if keep else ["v"])
        assert np.isnan(out["w"]).all() if keep else True
        out, names = out["v"], names[: len(out["v"].T)]
    out = out.toarray() if kind == "sparse" else np.asarray(out)
    assert out.shape == (30, len(names)) == (30, 3 if keep else 2)
    wanted = quick(groups={"g": [0], "h": [1]} if groups else None).fit_transform(a)
    if kind != "dictionary":
        np.testing.assert_array_equal(out[:, [0, -1]], wanted)
    assert np.isnan(out).sum() == (30 if keep else 0)
    assert imputer.n_features_in_ == (4 if kind == "dictionary" else 3)


def test_a_table_without_any_cell_is_an_error():
    with pytest.raises(ValueError, match=r"should have an observed cell, but has none in 0, 1"):
        quick().fit(np.full((3, 2), np.nan))


@pytest.mark.long
def test_seventy_columns_are_no_limit():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 1)) + 0.1 * rng.normal(size=(40, 70))
    X[rng.random(X.shape) < 0.1] = np.nan
    out = MultimodalImputer(networks=1, steps=2, random_state=0).fit_transform(X)
    assert np.isfinite(out).all()
