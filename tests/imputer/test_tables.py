"""Tables as numbers and back: every dtype, its holes and its cells."""

import datetime
import re
from decimal import Decimal

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpoe.imputer._tables import Column, Source, read, write

pd = pytest.importorskip("pandas", reason="data frames need pandas")


def filled(X, number=1e300):
    """The table with a number in each numeric hole, and the first category in each other."""
    sources = read(X)
    columns = [Column.learn(source, None) for source in sources]
    cells = []
    for column, source in zip(columns, sources, strict=True):
        encoded = column.encode(source)
        assert np.array_equal(np.isnan(encoded), source.missing)
        back, present = column.decode(encoded[~source.missing]), source.values[~source.missing]
        if column.kind == "numeric":
            present = present.astype(float)
            np.testing.assert_allclose(back, present, atol=1e-9 * np.abs(present).max())
        else:
            assert back.tolist() == present.tolist()
        categorical = column.kind == "categorical"
        there = np.zeros(source.missing.sum()) if categorical else (number - column.loc)
        cells.append(column.decode(np.full(source.missing.sum(), there / column.scale)))
    return write(X, cells, columns)


def integers(bits, signed):
    low = -(2 ** (bits - 1)) if signed else 0
    return st.integers(low, low + 2**bits - 1)


def floats(width):
    return st.floats(allow_nan=False, allow_infinity=False, width=width)


strings = st.sampled_from(["", "a", "b", "nan", "1", "é"])
DTYPES = {
    "float16": floats(16),
    "float32": floats(32),
    "float64": st.floats(-1e307, 1e307),
    "Float32": floats(32),
    "Float64": st.floats(-1e307, 1e307),
    **{f"Int{bits}": integers(bits, True) for bits in (8, 16, 32, 64)},
    **{f"UInt{bits}": integers(bits, False) for bits in (8, 16, 32, 64)},
    "boolean": st.booleans(),
    "string": strings,
    "str": strings,
    "object": strings | st.booleans(),
    "category": st.integers(-3, 90) | st.sampled_from([0.5, 2**60]),
    "category of strings": strings,
    "interval[float64, right]": st.floats(0, 5).map(lambda i: pd.Interval(i, i + 1.0)),
    "Sparse[float64]": st.floats(-1e150, 1e150),
}
ARROW = {
    "int8[pyarrow]": integers(8, True),
    "uint64[pyarrow]": integers(64, False),
    "float[pyarrow]": floats(32),
    "double[pyarrow]": st.floats(-1e150, 1e150),
    "bool[pyarrow]": st.booleans(),
    "string[pyarrow]": strings,
    "large_string[pyarrow]": strings,
    "decimal": st.decimals(-99, 99, places=2),
    "dictionary": strings,
}


def arrow_dtype(name):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    special = {
        "decimal": lambda: pa.decimal128(6, 2),
        "dictionary": lambda: pa.dictionary(pa.int32(), pa.string()),
    }
    return pd.ArrowDtype(special[name]()) if name in special else name


def check_round_trip(series):
    frame = pd.DataFrame({"a": series})
    for number in (1e300, -1e300, 0.3):
        out = filled(frame, number)["a"]
        assert out.dtype == series.dtype
        assert not out.isna().any()
        seen = ~series.isna()
        pd.testing.assert_series_equal(out[seen], frame["a"][seen])
        if series.dtype.kind in "iuf":
            number = pd.Series(out).astype(object).map(float)
            assert np.isfinite(number.to_numpy(dtype=float)).all()


@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("dtype", [*DTYPES, *ARROW])
@given(data=st.data())
def test_every_dtype_comes_back_without_holes(dtype, data):
    cells = {**DTYPES, **ARROW}[dtype]
    values = [data.draw(cells), *data.draw(st.lists(cells | st.none(), max_size=6)), None]
    dtype = arrow_dtype(dtype) if dtype in ARROW else dtype.split(" of ")[0]
    check_round_trip(pd.Series(values, dtype=dtype))


@given(
    declared=st.permutations(["low", "mid", "high", "top"]),
    codes=st.lists(st.integers(-1, 3), min_size=1, max_size=8),
    ordered=st.booleans(),
)
def test_a_category_keeps_what_it_declares_and_its_order(declared, codes, ordered):
    codes[0] = max(codes[0], 0)
    check_round_trip(pd.Series(pd.Categorical.from_codes(codes, declared, ordered=ordered)))


@pytest.mark.parametrize(
    ("declared", "wanted"),
    [
        (["low", "mid", "high"], ["low", "mid", "high"]),
        (["mid", "high"], ["low", "mid", "high"]),
        (["low", "high"], ["low", "mid", "high"]),
        (["high", "new"], ["low", "mid", "high", "new"]),
        (["new"], ["new", "low", "mid"]),
    ],
)
def test_a_category_that_is_filled_in_is_declared_in_its_place(declared, wanted):
    order = ["low", "mid", "high"]
    (source,) = read(pd.DataFrame({"a": pd.Categorical(order, order, ordered=True)}))
    column = Column.learn(source, None)
    holes = pd.DataFrame({"a": pd.Categorical([None, None], declared, ordered=True)})
    out = write(holes, [np.array(["low", "mid"], dtype=object)], [column])["a"]
    assert out.tolist() == ["low", "mid"]
    assert out.cat.categories.tolist() == wanted
    assert out.cat.ordered


def test_categories_that_are_numbers_are_categories():
    """A category of integers with holes was once taken for a measurement, and kept its holes."""
    frame = pd.DataFrame({"s": pd.Categorical([1, 2, 1, 2, None, None], categories=[2, 1, 3])})
    (source,) = read(frame)
    column = Column.learn(source, None)
    assert column.kind == "categorical"
    assert column.categories == [2, 1]
    assert filled(frame)["s"].tolist() == [1, 2, 1, 2, 2, 2]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_array_of_floats_stays_finite(dtype):
    X = np.array([[1.0, 2.0], [np.nan, 3.0]], dtype=dtype)
    out = filled(X)
    assert out.dtype == X.dtype
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    "X",
    [
        np.array([["a", "b"], ["c", "d"]]),
        np.array([[True, False], [True, True]]),
        np.array([[1, 2], [3, 4]], dtype=np.int8),
        {"a": np.array(["u", "v"]), "b": np.array([[1, 2], [3, 4]], dtype=np.uint8)},
    ],
)
def test_a_whole_array_comes_back_as_it_is(X):
    out = filled(X)
    pairs = zip(out.values(), X.values(), strict=True) if isinstance(X, dict) else [(out, X)]
    for a, b in pairs:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_an_array_of_objects_knows_all_words_for_missing():
    X = np.array([[1.5, "a"], [None, pd.NA], [np.nan, "a"], [pd.NaT, None]], dtype=object)
    first, second = read(X)
    assert first.missing.tolist() == [False, True, True, True]
    assert second.missing.tolist() == [False, True, False, True]


def test_decimals_are_numbers():
    (source,) = read(np.array([[Decimal("1.5")], [2], [None]], dtype=object))
    assert Column.learn(source, None).kind == "numeric"


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "dok", "lil"])
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_what_has_no_entry_in_a_sparse_matrix_is_zero_and_observed(layout, kind):
    dense = np.array([[0, 2.0, np.nan], [np.nan, 0, 0], [4, 5, 6]])
    X = getattr(scipy.sparse, f"{layout}_{kind}")(dense)
    sources = read(X)
    assert [source.missing.tolist() for source in sources] == np.isnan(dense).T.tolist()
    out = filled(X, number=7.0)
    assert type(out) is type(X)
    assert out.nnz == X.nnz
    np.testing.assert_allclose(out.toarray(), np.where(np.isnan(dense), 7, dense))


DAY = datetime.date(2020, 1, 1)


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (np.array([["2020-01-01"]], dtype="M8[D]"), r"'X' .* holds dates or times \(datetime64"),
        (np.array([[DAY], [None]], dtype=object), r"the column 0 .* dates or times \(date\)"),
        (pd.DataFrame({"d": pd.to_datetime(["2020", None])}), r"the column 'd' of 'X' should"),
        (pd.DataFrame({"d": pd.to_timedelta([1, 2])}), r"days since some date"),
        (pd.DataFrame({"d": pd.period_range("2020", periods=2)}), r"or categories, by astype"),
        (np.ma.masked_less([[1.0, 2.0]], 1.5), r"is a masked array: call 'filled' on it"),
        (np.array([[[1], 2], [[3], 4]], dtype=object), r"numbers or strings, but 0 holds \[1\]"),
        (pd.DataFrame({"c": [1j]}), r"'c' should hold real numbers\. Complex data not supported"),
        ({"a": [DAY, None]}, r"the column 'a' .* dates or times"),
    ],
)
def test_what_is_no_number_and_no_category_is_an_error(X, match):
    with pytest.raises(ValueError, match=match):
        [Column.learn(source, None) for source in read(X)]


def test_a_sparse_matrix_in_a_dictionary_is_an_error():
    with pytest.raises(ValueError, match=r"dense arrays, but 'a' is a sparse csr_array: call"):
        read({"a": scipy.sparse.csr_array(np.ones((2, 2)))})


def test_dates_that_are_declared_categories_are_categories():
    days = pd.to_datetime(["2020-01-01", "2020-01-02"])
    frame = pd.DataFrame({"d": pd.Categorical([days[1], days[0], pd.NaT], categories=days)})
    out = filled(frame)["d"]
    assert out.dtype == frame["d"].dtype
    assert out.tolist() == [days[1], days[0], days[0]]


def test_an_unknown_category_is_an_error_or_missing():
    (source,) = read(pd.DataFrame({"a": ["x", "y", None]}))
    (other,) = read(pd.DataFrame({"a": ["z", "x", None]}))
    column = Column.learn(source, None)
    with pytest.raises(ValueError, match=r"'a' \('x', 'y'\), but holds 'z'\. .* handle_unknown="):
        column.encode(other)
    assert np.array_equal(column.encode(other, "missing"), [np.nan, 0, np.nan], equal_nan=True)


def test_categories_of_several_types_have_an_order():
    values = np.array([2, "b", 1, "a", None], dtype=object)
    column = Column.learn(Source("m", "m", values, values == None), "categorical")  # noqa: E711
    assert column.categories == [1, 2, "a", "b"]


@pytest.mark.parametrize("shape", [(4, 0), (0, 3)])
def test_an_empty_table_shows_its_shape(shape):
    for X in (np.empty(shape), pd.DataFrame(np.empty(shape))):
        with pytest.raises(ValueError, match=re.escape(f"but has shape {shape}.")):
            read(X)
    with pytest.raises(ValueError, match=re.escape(f"but 'a' has shape {shape}.")):
        read({"a": np.empty(shape)})
