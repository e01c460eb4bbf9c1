"""Images and a table in one model: draw the image of a table, read the table off an image.

    python -m examples.image_and_table [--smoke]

Each of 1797 handwritten digits is an image of 8 x 8 pixels and a table: which digit it is, and
five measures of its stroke (how much ink, how wide, how tall, how slanted, how low its weight is).
In two thirds of the digits, which train the model, a quarter of the images and of the cells of the
tables are missing at random. The rest is complete and tests it.

It prints how well each is predicted from the other, next to linear models, and writes a figure to
runs/image_and_table/: digits as they were, as drawn from their tables, and digits that nobody
wrote, from tables made up on the spot.

Data: "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, UCI Machine
Learning Repository, CC BY 4.0, https://doi.org/10.24432/C50P49, as bundled with scikit-learn. The
measures of the stroke are computed here.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader

import mmpoe
from mmpoe.distributions import Draws
from mmpoe.extras import needs
from mmpoe.likelihoods import Categorical, Normal
from mmpoe.missing import mcar, random_subsets
from mmpoe.models import MMHVAE, vector_mmhvae
from mmpoe.training import Optimizer, fit

with needs("examples"):
    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression, RidgeCV

Data = dict[str, torch.Tensor]
STROKES = ["ink", "width", "height", "slant", "weight below"]
MODALITIES = ["image", "digit", *STROKES]
TRAIN = 1200
DRAWS = 50
FIGURE = Path("runs/image_and_table/image_and_table.png")


def measure(images: np.ndarray) -> np.ndarray:
    """Measures strokes, from images (n, 8, 8) in [0, 1] to (n, 5): the ink and its moments."""
    ink = images.sum(axis=(1, 2))
    share = images / ink[:, None, None]
    pixel = np.arange(8) - 3.5
    x, y = (share * pixel).sum(axis=(1, 2)), (share * pixel[:, None]).sum(axis=(1, 2))
    dx, dy = pixel - x[:, None], pixel - y[:, None]
    width = np.sqrt((share.sum(axis=1) * dx**2).sum(axis=1))
    height = np.sqrt((share.sum(axis=2) * dy**2).sum(axis=1))
    slant = -np.einsum("nij,ni,nj->n", share, dy, dx) / height**2  # to the right, upwards
    return np.stack([ink, width, height, slant, y], axis=1)


def load(seed: int) -> tuple[Data, Data]:
    """Returns the modalities of training and test digits; measures of strokes are standardised."""
    flat, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(flat))
    images = flat.reshape(-1, 8, 8)[order] / 16
    strokes = measure(images)
    strokes = (strokes - strokes[:TRAIN].mean(axis=0)) / strokes[:TRAIN].std(axis=0)
    x = {name: torch.tensor(strokes[:, [j]]).float() for j, name in enumerate(STROKES)}  # (n, 1)
    x["image"] = torch.tensor(images).float().unsqueeze(1)  # (n, 1, 8, 8)
    x["digit"] = torch.tensor(digits[order])  # (n)
    return {m: v[:TRAIN] for m, v in x.items()}, {m: v[TRAIN:] for m, v in x.items()}


def image_likelihood(network: nn.Module) -> Normal:
    """The likelihood of an image, from a network that returns its 64 pixels."""
    return Normal(nn.Sequential(network, nn.Unflatten(1, (1, 8, 8))), scale=0.2, learn_scale=True)


def build() -> MMHVAE:
    """Builds the model: one expert and one likelihood for the image and for each cell."""
    one_class = lambda network: Categorical(nn.Sequential(network), classes=10)  # of ten outputs
    model = vector_mmhvae(
        {"image": 64, "digit": 10, **dict.fromkeys(STROKES, 1)},
        likelihoods={"image": image_likelihood, "digit": one_class},
        hidden=128,
        latents=(8, 24),
    )
    for name, reader in (("image", nn.Flatten()), ("digit", nn.Embedding(10, 10))):
        model.encoders[name] = nn.Sequential(reader, model.encoders[name])
    return model


def train_model(x: Data, observed: torch.Tensor, steps: int) -> MMHVAE:
    """Trains on all that was observed, and on random parts of it; then matches the experts."""
    columns = list(zip(MODALITIES, observed.T, strict=True))
    samples = [{m: x[m][n] for m, seen in columns if seen[n]} for n in range(TRAIN)]

    def bound(model: MMHVAE, batch: tuple[Data, torch.Tensor], done: float) -> torch.Tensor:
        x, seen = batch
        whole = torch.rand(len(seen), 1, device=seen.device) < 0.5
        given = torch.where(whole, seen, random_subsets(seen)[0])
        return mmpoe.elbo(model(x, given), x, given, beta=min(1.0, 5 * done))

    model = build()
    batches = DataLoader(samples, 128, shuffle=True, collate_fn=model.collate)  # pyright: ignore
    fit(model, batches, bound, steps=steps, optimizer=Optimizer(lr=3e-3))
    mmpoe.calibrate(model, samples, teacher="all", steps=steps)
    return model.cpu()


def rmse(prediction: torch.Tensor | np.ndarray, truth: torch.Tensor) -> float:
    """The root mean squared error."""
    return (torch.as_tensor(prediction) - truth).square().mean().sqrt().item()


def table_of(x: Data) -> np.ndarray:
    """The cells of the table as linear models read them, with shape (n, 15)."""
    return torch.cat([one_hot(x["digit"], 10), *(x[name] for name in STROKES)], dim=1).numpy()


def report(model: MMHVAE, x: Data, observed: torch.Tensor, test: Data) -> None:
    """Prints errors next to linear models, each fitted to all digits that have what it needs."""
    has = dict(zip(MODALITIES, observed.T, strict=True))
    pixels, pixels_test = x["image"].flatten(1), test["image"].flatten(1)
    alphas = np.logspace(-2, 3, 11)
    mean = x["image"][has["image"]].mean(dim=0)
    known = has["image"] & has["digit"]
    by_digit = torch.stack([x["image"][known & (x["digit"] == d)].mean(dim=0) for d in range(10)])
    whole = observed.all(dim=1)
    linear = RidgeCV(alphas).fit(table_of(x)[whole], pixels[whole]).predict(table_of(test))
    given_digit = model.predict(test, ["digit"], samples=DRAWS)["image"].mean
    given_table = model.predict(test, ["digit", *STROKES], samples=DRAWS)["image"].mean
    print("\nImage from the table, root mean squared error of pixels in [0, 1]:")
    print(f"  given nothing    the mean image   {rmse(mean, test['image']):.3f}")
    print(
        f"  given the digit  its mean image   {rmse(by_digit[test['digit']], test['image']):.3f}"
    )
    print(f"                   mmpoe            {rmse(given_digit, test['image']):.3f}")
    print(f"  given the table  ridge regression {rmse(linear, pixels_test):.3f}")
    print(f"                   mmpoe            {rmse(given_table, test['image']):.3f}")

    p = model.predict(test, ["image"], targets=["digit", *STROKES], samples=DRAWS)
    classifier = LogisticRegression(max_iter=1000).fit(pixels[known], x["digit"][known])
    right = (p["digit"].mean.argmax(dim=-1) == test["digit"]).float().mean().item()
    print("\nTable from the image, share right or error in standard deviations:")
    print(f"{'linear model':>27}   mmpoe")
    print(f"  digit {classifier.score(pixels_test, test['digit']):19.3f} {right:7.3f}")
    for name in STROKES:
        rows = has["image"] & has[name]
        linear = RidgeCV(alphas).fit(pixels[rows], x[name][rows, 0]).predict(pixels_test)
        errors = rmse(linear, test[name][:, 0]), rmse(p[name].mean, test[name])
        print(f"  {name:12} {errors[0]:12.3f} {errors[1]:7.3f}")


def draw(model: MMHVAE, test: Data) -> None:
    """Draws digits from their tables, and from tables that are made up."""
    shown = [int((test["digit"] == digit).nonzero()[0]) for digit in range(10)]
    x = {m: v[shown] for m, v in test.items()}

    def images(x: Data, given: list[str]) -> torch.Tensor:
        p = model.predict(x, given, targets=["image"], samples=DRAWS)["image"]
        assert isinstance(p, Draws)
        return p.components.mean  # (K, 10, 1, 8, 8), one image for each draw

    lines = {"truth": x["image"], "given its table": images(x, ["digit", *STROKES]).mean(dim=0)}
    for j in range(3):
        lines[f"given the digit, draw {j + 1}"] = images(x, ["digit"])[j]
    for stroke, value in (("ink", -2), ("ink", 2), ("slant", -2), ("slant", 2), ("width", 2)):
        made = {"digit": torch.arange(10), stroke: torch.full((10, 1), float(value))}
        lines[f"given the digit, {stroke} {value:+d}"] = images(made, list(made)).mean(dim=0)

    figure, axes = plt.subplots(len(lines), 10, figsize=(8, 6.5), layout="constrained")
    for line, (name, row) in zip(axes, lines.items(), strict=True):
        for axis, image in zip(line, row, strict=True):
            axis.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    """Trains, evaluates, prints and draws."""
    parser = argparse.ArgumentParser(description="Images and a table in one model.")
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    smoke = parser.parse_args().smoke
    torch.manual_seed(0)
    x, test = load(seed=0)
    observed = mcar(TRAIN, [0.25] * len(MODALITIES))
    model = train_model(x, observed, steps=60 if smoke else 2000)
    report(model, x, observed, test)

    draw(model, test)
    print(f"\nFigure: {FIGURE}")


if __name__ == "__main__":
    main()
