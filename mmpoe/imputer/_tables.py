r"""Tables of mixed types as tensors, and back: arrays, data frames, dictionaries of arrays."""

from __future__ import annotations

__all__ = ["KINDS", "Column", "Source", "contain", "read", "write"]

import datetime
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

KINDS = ("numeric", "categorical", "count")
CONSTANT = 1e-14
"""The deviation, relative to the size of a column, that rounding alone can leave."""


class Source(NamedTuple):
    """One column as it was handed over."""

    modality: str
    """The array of a dictionary that it is part of, else its own name."""
    label: Hashable
    """The name that the caller gave it."""
    values: np.ndarray
    """Its cells, of any dtype, with shape (n)."""
    missing: np.ndarray
    """The cells that are missing, boolean, with shape (n)."""
    kind: str | None = None
    """The kind that its dtype declares, None if its cells have to tell."""
    categories: Sequence[Any] = ()
    """The categories that its dtype declares, in their order."""


class Column(NamedTuple):
    """The encoding of one column: how its cells become numbers."""

    label: Hashable
    kind: str
    categories: list[Any]
    """The categories, in the order of their codes; empty for numbers."""
    loc: float
    scale: float

    @staticmethod
    def learn(source: Source, kind: str | None) -> Column:
        """Looks at the observed cells of a column, of some kind or of the kind that they show."""
        present = source.values[~source.missing]
        if len(present) == 0:
            raise ValueError(
                f"'X' should have an observed cell in each column, but {source.label!r} has none."
            )
        kind = _kind_of(source, present) if kind is None else kind
        if kind == "categorical":
            return Column(source.label, kind, _categories(source, present), 0.0, 1.0)

        numbers = _numbers(present, source.label)
        if kind == "count":
            _check_counts(numbers, source.label)
            return Column(source.label, kind, [], 0.0, 1.0)
        return Column(source.label, kind, [], *_moments(numbers))

    def encode(self, source: Source, unknown: str = "error", argument: str = "X") -> np.ndarray:
        """Returns numbers with NaN where cells are missing: codes, or standardised values.

        Arguments:
            source: The column.
            unknown: What a category that was not learned is: an ``"error"``, or ``"missing"``.
            argument: The name of the argument that holds the column, for messages.
        """
        numbers = np.full(len(source.values), np.nan)
        present = source.values[~source.missing]
        if self.kind == "categorical":
            codes = {category: code for code, category in enumerate(self.categories)}
            found = np.array([codes.get(value, -1) for value in present.tolist()], dtype=float)
            if unknown == "missing":
                found[found < 0] = np.nan
            if (found < 0).any():
                advice = " To read others as missing, set handle_unknown='missing'."
                raise ValueError(
                    f"'{argument}' should hold categories that were there when it was fitted in "
                    f"{self.label!r} ({', '.join(map(repr, self.categories))}), "
                    f"but holds {present[found < 0].tolist()[0]!r}."
                    f"{advice if argument == 'X' else ''}"
                )
        else:
            found = (_numbers(present, self.label, argument) - self.loc) / self.scale
            if self.kind == "count":
                _check_counts(found, self.label, argument)
        numbers[~source.missing] = found
        return numbers

    def decode(self, numbers: np.ndarray) -> np.ndarray:
        """Returns cells in the units of the caller."""
        if self.kind != "categorical":
            return numbers * self.scale + self.loc
        last = len(self.categories) - 1  # a single category has a code to spare
        return _objects(self.categories[min(int(code), last)] for code in numbers)


def read(X: Any) -> list[Source]:  # noqa: ANN401
    """Takes a table apart.

    Arguments:
        X: An array (n, d), a sparse matrix, a data frame, or a mapping from names to arrays (n) or
            (n, k).
    """
    if is_mapping(X):
        sources = _read_mapping(X)
    elif is_frame(X):
        labels = list(X.columns)
        if len(set(labels)) < len(labels):
            raise ValueError(f"'X' should have columns of distinct names, but has {labels}.")
        sources = [_series(label, X.iloc[:, j]) for j, label in enumerate(labels)]
    else:
        array = _array(X.toarray() if is_sparse(X) else X, "'X'")
        if array.ndim != 2:
            raise ValueError(
                "'X' should have two dimensions, rows and columns, "
                f"but has shape {array.shape}. Reshape your data with 'X.reshape(-1, 1)' if it "
                "has a single column."
            )
        sources = [_source(f"x{j}", j, part) for j, part in enumerate(array.T)]
    if not sources or len(sources[0].values) == 0:
        shape = (0, 0) if is_mapping(X) else tuple(np.shape(X))
        # the second sentence is that of scikit-learn, whose tools look for it
        more = "" if sources else f" Found 0 feature(s) (shape={shape}) while a minimum of 1 is "
        raise ValueError(
            "'X' should have at least one row and one column, "
            f"but has shape {shape}.{more + 'required.' if more else ''}"
        )
    return sources


def write(
    X: Any,  # noqa: ANN401
    filled: Sequence[np.ndarray],
    columns: Sequence[Column],
    *,
    empty: Collection[int] = (),
    keep_empty: bool = True,
) -> Any:  # noqa: ANN401
    """Returns a copy of a table with its missing cells filled, of the same type and dtypes.

    Numbers are rounded to integers in columns of integers, and clipped to what a dtype can hold. A
    categorical dtype that does not declare a category that is filled in gets it.

    Arguments:
        X: The table.
        filled: For each column, as :func:`read` lists them, what its missing cells become.
        columns: The encodings of the columns.
        empty: The positions of columns that nothing is known of. They are neither in `filled` nor
            in `columns`.
        keep_empty: Whether to keep these as they are, or to leave them out.
    """
    sources, rest = read(X), iter(zip(filled, columns, strict=True))
    encoded = [None if j in empty else next(rest) for j in range(len(sources))]
    kept = [j for j in range(len(sources)) if keep_empty or j not in empty]
    if is_frame(X):
        out = X.copy()
        for j, (source, pair) in enumerate(zip(sources, encoded, strict=True)):
            if pair is not None and source.missing.any():
                out.isetitem(j, _filled_series(X.iloc[:, j], source, *pair))
        return out if len(kept) == len(sources) else out.iloc[:, kept]

    parts = [
        source.values if pair is None else _filled_array(source, pair[0])
        for source, pair in zip(sources, encoded, strict=True)
    ]
    if is_sparse(X):
        return _filled_sparse(X, parts, kept)
    if not is_mapping(X):
        whole = np.stack([parts[j] for j in kept], axis=1)
        return whole.astype(np.asarray(X).dtype, copy=False)
    out, start = {}, 0
    for name, array in X.items():
        array = np.asarray(array)
        stop = start + (1 if array.ndim == 1 else array.shape[1])
        own = [parts[j] for j in kept if start <= j < stop]
        if own:
            whole = own[0] if array.ndim == 1 else np.stack(own, axis=1)
            out[name] = whole.astype(array.dtype, copy=False)
        start = stop
    return out


def contain(table: Any, names: Sequence[str], library: str, like: Any) -> Any:  # noqa: ANN401
    """Returns a table as a data frame.

    Arguments:
        table: The table.
        names: The names of its columns.
        library: The library of the data frame, ``"pandas"`` or ``"polars"``; ``"default"`` leaves
            the table as it is.
        like: A table whose index a data frame of pandas gets, if it has one.

    Raises:
        ValueError: If the table is sparse.
    """
    if library == "default":
        return table
    if library == "pandas" and is_frame(table):
        return table.set_axis(list(names), axis=1)
    if is_sparse(table):
        raise ValueError(
            f"'X' should be dense to be returned as a data frame of {library}, but is a sparse "
            f"{type(table).__name__}: call 'toarray', or set_output(transform='default')."
        )
    columns = dict(zip(names, (source.values for source in read(table)), strict=True))
    if library == "pandas":
        import pandas as pd

        return pd.DataFrame(columns, index=getattr(like, "index", None))
    import polars as pl  # pyright: ignore[reportMissingImports]

    return pl.DataFrame({k: v.tolist() if v.dtype == object else v for k, v in columns.items()})


def is_frame(X: Any) -> bool:  # noqa: ANN401
    """Returns whether a table is a data frame of pandas."""
    return hasattr(X, "iloc") and hasattr(X, "columns")


def is_mapping(X: Any) -> bool:  # noqa: ANN401
    """Returns whether a table is a mapping from names to arrays."""
    return isinstance(X, Mapping) and not is_sparse(X)  # some sparse matrices are mappings, too


def is_sparse(X: Any) -> bool:  # noqa: ANN401
    """Returns whether a table is a sparse matrix or array of SciPy."""
    return hasattr(X, "toarray") and hasattr(X, "tocoo")


def _read_mapping(X: Mapping[Any, Any]) -> list[Source]:
    """Takes a mapping from names to arrays apart."""
    sources = []
    for name, array in X.items():
        if is_sparse(array):
            raise ValueError(
                f"'X' should hold dense arrays, but {name!r} is a sparse {type(array).__name__}: "
                "call 'toarray' on it."
            )
        array = _array(array, f"'X[{name!r}]'")
        if array.ndim not in (1, 2):
            raise ValueError(
                f"'X' should hold arrays of one or two dimensions, but {name!r} has shape "
                f"{array.shape}."
            )
        if 0 in array.shape:
            raise ValueError(
                "'X' should hold arrays of at least one row and one column, but "
                f"{name!r} has shape {array.shape}."
            )
        if array.ndim == 1:
            sources.append(_source(str(name), name, array))
        else:
            parts = enumerate(array.T)
            sources += [_source(str(name), f"{name}[{j}]", part) for j, part in parts]
    sizes = {source.modality: len(source.values) for source in sources}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"'X' should hold arrays of as many rows, but has {sizes}.")
    return sources


def _array(values: Any, argument: str) -> np.ndarray:  # noqa: ANN401
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(
            f"{argument} should have NaN or None where cells are missing, but is a masked array: "
            "call 'filled' on it."
        )
    array = np.asarray(values)
    if array.dtype.kind == "c":
        raise ValueError(f"{argument} should hold real numbers. Complex data not supported.")
    if array.dtype.kind in "Mm":
        raise _dates(argument, array.dtype)
    return array.astype(object) if array.dtype.kind in "SUT" else array


def _series(label: Hashable, series: Any) -> Source:  # noqa: ANN401
    """One column of a data frame."""
    declared, values = getattr(series.dtype, "categories", None), series.to_numpy()
    if declared is not None:
        values = series.astype(object).to_numpy()
        missing = series.isna().to_numpy()
        return Source(str(label), label, values, missing, "categorical", declared.tolist())
    kind = getattr(series.dtype, "kind", "O")
    if kind in "Mm" or str(series.dtype).startswith("period"):
        raise _dates(f"the column {label!r} of 'X'", series.dtype)
    if kind == "c":
        raise ValueError(f"{label!r} should hold real numbers. Complex data not supported.")
    if values.dtype.kind not in "biuf" or values.dtype.kind != kind:  # integers with holes, say
        values = series.astype(object).to_numpy()
    missing = series.isna().to_numpy() | _holes(values)
    return Source(str(label), label, values, missing, _kind_by_dtype(kind))


def _source(modality: str, label: Hashable, values: np.ndarray) -> Source:
    """One column of an array."""
    return Source(modality, label, values, _holes(values), _kind_by_dtype(values.dtype.kind))


def _holes(values: np.ndarray) -> np.ndarray:
    """Finds cells that are NaN, None or NA."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype == object:
        return np.fromiter(map(_is_missing, values), bool, len(values))
    return np.zeros(len(values), dtype=bool)


def _is_missing(cell: Any) -> bool:  # noqa: ANN401
    if cell is None:
        return True
    try:
        return bool(cell != cell)
    except TypeError:  # NA has no truth value
        return True
    except ValueError:  # an array, which is no cell: refused later
        return False


def _kind_by_dtype(kind: str) -> str | None:
    return "numeric" if kind in "iuf" else "categorical" if kind == "b" else None


def _kind_of(source: Source, present: np.ndarray) -> str:
    """The kind of a column that nobody chose."""
    if source.kind is not None:
        return source.kind
    for cell in present:
        if isinstance(cell, datetime.date | datetime.time | datetime.timedelta):
            raise _dates(f"the column {source.label!r} of 'X'", type(cell).__name__)
    return "numeric" if all(map(_is_number, present)) else "categorical"


def _is_number(cell: object) -> bool:
    return isinstance(cell, Real | Decimal) and not isinstance(cell, bool | np.bool_)


def _dates(what: str, dtype: object) -> ValueError:
    return ValueError(
        f"{what} should hold numbers or categories, but holds dates or times ({dtype}). Make a "
        "number of them, such as the days since some date, or categories, by astype(str)."
    )


def _categories(source: Source, present: np.ndarray) -> list[Any]:
    """The categories that a column holds: in the order that they are declared in, or sorted."""
    try:
        held = dict.fromkeys(present.tolist())
    except TypeError:
        raise ValueError(
            f"'X' should hold numbers or strings, but {source.label!r} holds {present[0]!r}."
        ) from None
    if source.categories:
        return [category for category in source.categories if category in held]
    try:
        return sorted(held)
    except TypeError:  # of several types
        return sorted(held, key=lambda c: (type(c).__name__, str(c)))


def _numbers(present: np.ndarray, label: Hashable, argument: str = "X") -> np.ndarray:
    try:
        numbers = present.astype(float)
    except (TypeError, ValueError):
        raise ValueError(
            f"'{argument}' should hold numbers in {label!r}, but holds {present[0]!r}."
        ) from None
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"'{argument}' should hold finite numbers, NaN where they are missing, but {label!r} "
            f"holds {numbers[~np.isfinite(numbers)][0]}."
        )
    return numbers


def _moments(numbers: np.ndarray) -> tuple[float, float]:
    """The mean and the scale of a column: its deviation, or its size if it is constant.

    A power of two takes its size away first, which is exact, so that no square leaves the range of
    floats.
    """
    largest = float(np.abs(numbers).max())
    if largest == 0:
        return 0.0, 1.0
    exponent = int(np.frexp(largest)[1])
    near_one = np.ldexp(numbers, -exponent)
    loc, spread = float(near_one.mean()), float(near_one.std())
    scale = abs(loc) if spread <= CONSTANT else spread
    return float(np.ldexp(loc, exponent)), float(np.ldexp(scale, exponent))


def _check_counts(numbers: np.ndarray, label: Hashable, argument: str = "X") -> None:
    bad = (numbers < 0) | (numbers % 1 != 0)
    if bad.any():
        raise ValueError(
            f"'{argument}' should hold integers of at least 0 in the counts {label!r}, "
            f"but holds {numbers[bad][0]:g}."
        )


def _filled_series(series: Any, source: Source, cells: np.ndarray, column: Column) -> Any:  # noqa: ANN401
    """A column of a data frame without holes, of the same dtype."""
    dtype = series.dtype
    if source.kind == "categorical" and source.categories:
        categories = _with_categories(source.categories, cells.tolist(), column.categories)
        dtype = type(dtype)(categories, ordered=dtype.ordered)
    whole = series.astype(object).to_numpy(copy=True)
    whole[source.missing] = _fit_dtype(cells, dtype)
    return type(series)(whole, index=series.index, name=series.name, dtype=dtype)


def _filled_array(source: Source, cells: np.ndarray) -> np.ndarray:
    values = source.values.copy()
    values[source.missing] = _fit_dtype(cells, values.dtype)
    return values


def _filled_sparse(X: Any, parts: Sequence[np.ndarray], kept: Sequence[int]) -> Any:  # noqa: ANN401
    """A sparse matrix without holes, which are entries: what has no entry is 0, and observed."""
    coo = X.tocoo(copy=True)
    coo.sum_duplicates()
    for entry in np.flatnonzero(_holes(coo.data)):
        coo.data[entry] = parts[coo.col[entry]][coo.row[entry]]
    return coo.tocsc()[:, list(kept)].asformat(X.format)


def _with_categories(declared: Sequence[Any], cells: Sequence[Any], order: list[Any]) -> list[Any]:
    """The declared categories and those of some cells, which go behind their predecessor.

    Arguments:
        declared: The categories that are declared, in their order.
        cells: Categories that may have to be added.
        order: All categories that cells can have, in their order.
    """
    categories, needed = list(declared), set(cells)
    for position, category in enumerate(order):
        if category in needed and category not in categories:
            before = [c for c in order[:position] if c in categories]
            after = [c for c in order[position:] if c in categories]
            if before:
                place = categories.index(before[-1]) + 1
            else:
                place = categories.index(after[0]) if after else len(categories)
            categories.insert(place, category)
    return categories


def _fit_dtype(cells: np.ndarray, dtype: Any) -> np.ndarray:  # noqa: ANN401
    """Rounds what goes into a column of integers, and clips numbers to what a dtype can hold."""
    kind = getattr(dtype, "kind", "O")
    if cells.dtype == object:  # categories, which are cells as they were
        return cells
    if kind == "f":
        largest = float(np.finfo(_numpy_dtype(dtype)).max)
        return cells.clip(-largest, largest)
    if kind in "iu":  # as objects, since a float cannot hold the largest integers
        low, high = np.iinfo(_numpy_dtype(dtype)).min, np.iinfo(_numpy_dtype(dtype)).max
        return _objects(min(max(round(cell), low), high) for cell in cells.tolist())
    arrow = getattr(dtype, "pyarrow_dtype", None)
    digits = getattr(arrow, "scale", None)
    if arrow is None or digits is None:
        return cells
    largest = Decimal(f"1e{arrow.precision - digits}") - Decimal(f"1e-{digits}")
    decimals = (Decimal(f"{cell:.{digits}f}") for cell in cells.tolist())
    return _objects(min(max(cell, -largest), largest) for cell in decimals)


def _numpy_dtype(dtype: Any) -> Any:  # noqa: ANN401
    """The dtype of the values of an extension dtype of pandas."""
    return getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype))


def _objects(cells: Iterable[Any]) -> np.ndarray:
    cells = list(cells)
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array
