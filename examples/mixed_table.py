"""Tables of mixed types with missing cells: mmpoe next to the imputers of scikit-learn.

    python -m examples.mixed_table [--smoke]

Cells of two tables are hidden: 10, 30 or 50 % of them completely at random, or 30 % at random
given the first column, which stays (MAR: the larger it is, the more is hidden). Then
`mmpoe.MultimodalImputer` and the imputers of scikit-learn fill them. The first table has 178 wines
with 13 chemical analyses and their cultivar, one of three. The second has 442 patients with
diabetes: age, sex, body mass index, blood pressure, six blood values and the progression of the
disease after a year.

It prints, over the hidden cells, the root mean squared error of numbers in standard deviations,
the share of categories that are right, and how often 90 % intervals of several completed tables
cover the truth, and writes a figure to runs/mixed_table/.

Data, as bundled with scikit-learn: "Wine" by S. Aeberhard and M. Forina, UCI Machine Learning
Repository, CC BY 4.0, https://doi.org/10.24432/C5PC7J; the diabetes data of "Least Angle
Regression" (Efron et al., 2004), https://doi.org/10.1214/009053604000000067
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch

from mmpoe import MultimodalImputer
from mmpoe.extras import needs
from mmpoe.metrics import coverage
from mmpoe.missing import mar, mcar

with needs("examples"):
    import matplotlib.pyplot as plt
    import pandas as pd
    from sklearn.datasets import load_diabetes, load_wine
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

DRAWS = 50
FIGURE = Path("runs/mixed_table/mixed_table.png")
METHODS = ["mean or mode", "nearest rows", "iterative", "mmpoe"]


def load(name: str) -> pd.DataFrame:
    """Returns a complete table: numbers, and one column of categories."""
    if name == "wine":
        data, target = load_wine(return_X_y=True, as_frame=True)
        return pd.DataFrame(data).assign(cultivar=np.array(["A", "B", "C"])[target])
    data, target = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    data = pd.DataFrame(data).assign(progression=target)
    return data.assign(sex=np.where(data["sex"] == 1, "1", "2"))  # the source names no more


def hide(table: pd.DataFrame, pattern: str) -> np.ndarray:
    """Returns which cells are observed, by a percentage or MAR."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = table.shape
    if pattern != "MAR":
        rate = int(pattern.rstrip("%")) / 100
        return mcar(rows, [rate] * columns, generator=generator).numpy()
    driver = torch.tensor(table.iloc[:, 0].to_numpy(dtype=float))
    driver = (driver - driver.mean()) / driver.std()
    return mar(driver, [0.0] + [0.3] * (columns - 1), slope=2.0, generator=generator).numpy()


class Numbers:
    """The table as the imputers of scikit-learn take it: standardised, categories as indicators.

    The indicator of the last category is what the others leave.
    """

    def __init__(self, holes: pd.DataFrame) -> None:
        self.category = next(c for c in holes if not pd.api.types.is_numeric_dtype(holes[c]))
        numeric = holes.drop(columns=self.category)
        self.names, self.loc, self.scale = numeric.columns, numeric.mean(), numeric.std()
        self.levels = sorted(holes[self.category].dropna().unique())

    def encode(self, holes: pd.DataFrame) -> np.ndarray:
        """Returns numbers, NaN where cells are missing."""
        numeric = (holes.drop(columns=self.category) - self.loc) / self.scale
        for level in self.levels[:-1]:
            indicator = (holes[self.category] == level).astype(float)
            numeric[level] = indicator.where(holes[self.category].notna())
        return numeric.to_numpy(dtype=float)

    def decode(self, filled: np.ndarray, like: pd.DataFrame) -> pd.DataFrame:
        """Returns a table."""
        count = len(self.levels) - 1
        indicators = np.column_stack([filled[:, -count:], 1 - filled[:, -count:].sum(axis=1)])
        table = pd.DataFrame(filled[:, :-count], like.index, self.names)
        table = table * self.scale + self.loc
        table[self.category] = np.array(self.levels, dtype=object)[indicators.argmax(axis=1)]
        return table[like.columns]


def fill(method: str, holes: pd.DataFrame, smoke: bool) -> list[pd.DataFrame]:
    """Returns the table filled with what is expected, and then as it might have been, if known."""
    if method == "mmpoe":
        imputer = MultimodalImputer(networks=0 if smoke else 3, random_state=0)
        return [imputer.fit_transform(holes), *imputer.impute(holes, DRAWS)]
    numbers = Numbers(holes)
    cells = numbers.encode(holes)
    imputers = {
        "mean or mode": [SimpleImputer()],
        "nearest rows": [KNNImputer(n_neighbors=5, weights="distance")],
        "iterative": [IterativeImputer(max_iter=20, random_state=0)]
        + [
            IterativeImputer(max_iter=20, sample_posterior=True, random_state=seed)
            for seed in range(2 if smoke else DRAWS)
        ],
    }[method]
    return [numbers.decode(imputer.fit_transform(cells), holes) for imputer in imputers]


def scores(table: pd.DataFrame, holes: pd.DataFrame, filled: list[pd.DataFrame]) -> list[float]:
    """The error of numbers, the share of right categories and the coverage of intervals."""
    category = Numbers(holes).category
    numeric = [c for c in table if c != category]
    hidden = holes.isna()
    scale = holes[numeric].std()
    first, *draws = filled
    errors = ((first[numeric] - table[numeric]) / scale).to_numpy()[hidden[numeric]]
    right = (first[category] == table[category])[hidden[category]]
    covered = np.nan
    if draws:
        spread = torch.tensor(np.stack([d[numeric].to_numpy(dtype=float) for d in draws]))
        truth = torch.tensor(table[numeric].to_numpy(dtype=float))
        mask = torch.tensor(hidden[numeric].to_numpy())
        covered = coverage(spread, truth, 0.9, mask=mask).nanmean().item()
    return [float(np.sqrt((errors**2).mean())), float(right.mean()), covered]


def draw(results: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """Draws errors and coverage of all methods."""
    figure, axes = plt.subplots(
        2, len(results), figsize=(9, 6), layout="constrained", squeeze=False, sharey="row"
    )
    for column, (name, by_pattern) in enumerate(results.items()):
        for row, (score, label) in enumerate([(0, "error of numbers"), (2, "coverage of 90 %")]):
            axis = axes[row, column]
            for method, style in zip(METHODS, ("C0x-", "C1s-", "C2^-", "C3o-"), strict=True):
                heights = [by_method[method][score] for by_method in by_pattern.values()]
                if np.isfinite(heights).all():
                    axis.plot(list(by_pattern), heights, style, label=method)
            axis.set(title=name if row == 0 else None, ylabel=label if column == 0 else None)
            if row == 1:
                axis.axhline(0.9, color="k", linewidth=0.8, linestyle=":")
                axis.set_xlabel("missing cells")
    axes[0, 0].legend()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    """Hides cells, fills them by each method, prints and draws."""
    parser = argparse.ArgumentParser(description="Tables of mixed types with missing cells.")
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    smoke = parser.parse_args().smoke
    warnings.filterwarnings("ignore", message=".*Early stopping criterion not reached.*")
    results = {}
    print("table     missing  method         error of numbers  categories right  90 % intervals")
    for name in ["wine"] if smoke else ["wine", "diabetes"]:
        table = load(name)
        results[name] = {}
        for pattern in ["30%"] if smoke else ["10%", "30%", "50%", "MAR"]:
            holes = table.where(hide(table, pattern))
            results[name][pattern] = {}
            for method in METHODS:
                error, right, covered = scores(table, holes, fill(method, holes, smoke))
                results[name][pattern][method] = [error, right, covered]
                interval = "" if np.isnan(covered) else f"{covered:16.2f}"
                print(
                    f"{name:9} {pattern:8} {method:13} {error:17.3f} {right:17.2f} {interval}",
                    flush=True,
                )
    draw(results)
    print(f"\nFigure: {FIGURE}")


if __name__ == "__main__":
    main()
