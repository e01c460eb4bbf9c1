r"""Tables of mixed types as tensors, and back: arrays, data frames, dictionaries of arrays."""

from __future__ import annotations

__all__ = ["KINDS", "Column", "Source", "read", "write"]

from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

KINDS = ("numeric", "categorical", "count")


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
        kind = _kind_of(source.values.dtype, present) if kind is None else kind
        if kind == "categorical":
            categories = list(dict.fromkeys(present.tolist()))
            try:
                categories.sort()
            except TypeError:  # of several types
                categories.sort(key=lambda c: (type(c).__name__, str(c)))
            return Column(source.label, kind, categories, 0.0, 1.0)

        numbers = _numbers(present, source.label)
        if kind == "count":
            _check_counts(numbers, source.label)
            return Column(source.label, kind, [], 0.0, 1.0)
        spread = float(numbers.std())
        constant = spread <= 1e-9 * float(np.abs(numbers).max())
        return Column(source.label, kind, [], float(numbers.mean()), 1.0 if constant else spread)

    def encode(self, source: Source) -> np.ndarray:
        """Returns numbers with NaN where cells are missing: codes, or standardised values."""
        numbers = np.full(len(source.values), np.nan)
        present = source.values[~source.missing]
        if self.kind == "categorical":
            codes = {category: code for code, category in enumerate(self.categories)}
            found = np.array([codes.get(value, -1) for value in present.tolist()], dtype=float)
            if (found < 0).any():
                raise ValueError(
                    f"'X' should hold categories that were there when it was fitted in "
                    f"{self.label!r} ({', '.join(map(repr, self.categories))}), "
                    f"but holds {present[found < 0].tolist()[0]!r}."
                )
        else:
            found = (_numbers(present, self.label) - self.loc) / self.scale
            if self.kind == "count":
                _check_counts(found, self.label)
        numbers[~source.missing] = found
        return numbers

    def decode(self, numbers: np.ndarray) -> np.ndarray:
        """Returns cells in the units of the caller."""
        if self.kind != "categorical":
            return numbers * self.scale + self.loc
        cells = np.empty(len(numbers), dtype=object)
        last = len(self.categories) - 1  # a single category has a code to spare
        cells[:] = [self.categories[min(int(code), last)] for code in numbers]
        return cells


def read(X: Any) -> list[Source]:  # noqa: ANN401
    """Takes a table apart.

    Arguments:
        X: An array (n, d), a data frame, or a mapping from names to arrays (n) or (n, k).
    """
    if isinstance(X, Mapping):
        sources = []
        for name, array in X.items():
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
    elif _is_frame(X):
        labels = list(X.columns)
        if len(set(labels)) < len(labels):
            raise ValueError(f"'X' should have columns of distinct names, but has {labels}.")
        sources = []
        for j, label in enumerate(labels):
            series = X.iloc[:, j]
            values = series.to_numpy()
            if values.dtype.kind not in "biuf":
                values = series.astype(object).to_numpy()
            sources.append(Source(str(label), label, values, series.isna().to_numpy()))
    else:
        array = _array(X, "'X'")
        if array.ndim != 2:
            raise ValueError(
                "'X' should have two dimensions, rows and columns, "
                f"but has shape {array.shape}. Reshape your data with 'X.reshape(-1, 1)' if it "
                "has a single column."
            )
        sources = [_source(f"x{j}", j, part) for j, part in enumerate(array.T)]
    if not sources or len(sources[0].values) == 0:
        shape = (0, 0) if isinstance(X, Mapping) else tuple(np.shape(X))
        raise ValueError(
            f"'X' should have at least one row and one column, but has shape {shape}."
        )
    return sources


def write(X: Any, filled: Sequence[np.ndarray]) -> Any:  # noqa: ANN401
    """Returns a copy of a table with its missing cells filled.

    Arguments:
        X: The table.
        filled: For each column, as :func:`read` lists them, what its missing cells become.
    """
    sources = read(X)
    if _is_frame(X):
        out = X.copy()
        for j, (source, cells) in enumerate(zip(sources, filled, strict=True)):
            if source.missing.any():
                series = X.iloc[:, j]
                cells = _fit_dtype(cells, series.dtype)
                whole = series.astype(object).to_numpy(copy=True)
                whole[source.missing] = cells
                out.isetitem(j, type(series)(whole, index=series.index, name=series.name))
                out.isetitem(j, out.iloc[:, j].astype(series.dtype))
        return out

    columns = []
    for source, cells in zip(sources, filled, strict=True):
        column = source.values.copy()
        column[source.missing] = cells
        columns.append(column)
    if not isinstance(X, Mapping):
        dtype = _array(X, "'X'").dtype
        return np.stack(columns, axis=1).astype(dtype, copy=False)
    out, rest = {}, iter(columns)
    for name, array in X.items():
        shape = np.shape(array)
        parts = [next(rest) for _ in range(1 if len(shape) == 1 else shape[1])]
        out[name] = parts[0] if len(shape) == 1 else np.stack(parts, axis=1)
    return out


def _is_frame(X: Any) -> bool:  # noqa: ANN401
    return hasattr(X, "iloc") and hasattr(X, "columns")


def _array(values: Any, argument: str) -> np.ndarray:  # noqa: ANN401
    if hasattr(values, "toarray"):
        raise ValueError(f"{argument} should be dense, but is a sparse {type(values).__name__}.")
    array = np.asarray(values)
    if array.dtype.kind == "c":
        raise ValueError(f"{argument} should hold real numbers. Complex data not supported.")
    return array.astype(object) if array.dtype.kind in "SUMm" else array


def _source(modality: str, label: Hashable, values: np.ndarray) -> Source:
    if values.dtype.kind == "f":
        missing = np.isnan(values)
    elif values.dtype == object:
        missing = np.array([v is None or v != v for v in values], dtype=bool)
    else:
        missing = np.zeros(len(values), dtype=bool)
    return Source(modality, label, values, missing)


def _kind_of(dtype: np.dtype, present: np.ndarray) -> str:
    if dtype.kind in "iuf":
        return "numeric"
    numbers = all(isinstance(v, Real) and not isinstance(v, (bool, np.bool_)) for v in present)
    return "numeric" if dtype.kind == "O" and numbers else "categorical"


def _numbers(present: np.ndarray, label: Hashable) -> np.ndarray:
    try:
        numbers = present.astype(float)
    except (TypeError, ValueError):
        raise ValueError(
            f"'X' should hold numbers in {label!r}, but holds {present[0]!r}."
        ) from None
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"'X' should hold finite numbers, NaN where they are missing, but {label!r} holds "
            f"{numbers[~np.isfinite(numbers)][0]}."
        )
    return numbers


def _check_counts(numbers: np.ndarray, label: Hashable) -> None:
    bad = (numbers < 0) | (numbers % 1 != 0)
    if bad.any():
        raise ValueError(
            f"'X' should hold integers of at least 0 in the counts {label!r}, "
            f"but holds {numbers[bad][0]:g}."
        )


def _fit_dtype(cells: np.ndarray, dtype: Any) -> np.ndarray:  # noqa: ANN401
    """Rounds what goes into a column of integers."""
    return np.rint(cells.astype(float)) if getattr(dtype, "kind", "O") in "iu" else cells
