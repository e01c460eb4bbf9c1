"""Single cells of four batches: RNA, chromatin and proteins, of which most cells have two.

    python -m examples.single_cells [--smoke]

The cells are generated, so that the truth is known. Three things differ between cells beside their
state: the batch, which multiplies the mean of each gene by a factor of its own; the depth, which
multiplies the means of all genes of a cell; and which assays were made. The batch is a covariate
of encoders and decoders, and the depth is the exposure of the counts.

For each objective, a model without and a model with the two are trained alike. Printed is the
evidence of the RNA of test cells, in nats a cell, and how much the two are worth. A last line has
the log-likelihood at the true means, which no model knows.
"""

import argparse
from functools import partial

import torch
from torch import Tensor, nn

from mmpoe import objectives
from mmpoe.evidence import log_marginal
from mmpoe.likelihoods import Bernoulli, NegativeBinomial, Poisson
from mmpoe.missing import Batch
from mmpoe.models import MVAE
from mmpoe.nn import MLP, Conditional

SIZES = {"rna": 200, "atac": 100, "protein": 20}
BATCHES, LATENT = 4, 6
ASSAYS = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).bool()
"""The assays that the cells of each batch have."""
DISPERSION = 4.0
OBJECTIVES = {
    "mvae": partial(objectives.mvae, samples=1),
    "mmvae": objectives.mmvae,
    "mopoe": objectives.mopoe,
    "mvtcae": objectives.mvtcae,
    "mhvae": objectives.mhvae,
    "mmhvae": objectives.mmhvae,
}


def make_cells(number: int, seed: int) -> tuple[Batch, Tensor, Tensor]:
    """Generates cells.

    Returns:
        The batch, with NaN where an assay was not made; what was observed, (B, 3); and the
        log-likelihood of the RNA of each cell at its true means, (B).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)  # genes and batches are the same in every call
        weights = {m: 0.5 * torch.randn(LATENT, size) for m, size in SIZES.items()}
        bias = {m: 0.7 * torch.randn(size) for m, size in SIZES.items()}
        shift = 0.7 * torch.randn(BATCHES, SIZES["rna"])

        torch.manual_seed(seed)
        z, batch = torch.randn(number, LATENT), torch.randint(BATCHES, (number,))
        depth = (0.6 * torch.randn(number)).exp()
        logits = {m: z @ weights[m] + bias[m] for m in SIZES}
        means = logits["rna"] + 1 + shift[batch] + depth.log()[:, None]
        distributions = {
            "rna": NegativeBinomial(nn.Identity(), DISPERSION)(means),
            "atac": Bernoulli(nn.Identity())(logits["atac"]),
            "protein": Poisson(nn.Identity())(logits["protein"] + 1),
        }
        entries = {m: p.sample() for m, p in distributions.items()}

    truth = distributions["rna"].log_prob(entries["rna"]).detach()
    observed = ASSAYS[batch]
    holed = {
        m: torch.where(observed[:, [column]], v, torch.nan)
        for column, (m, v) in enumerate(entries.items())
    }
    return Batch(holed, context={"batch": batch, "depth": depth}), observed, truth


class Scaled(nn.Module):
    """An encoder of counts per unit of depth, on a logarithmic scale."""

    def __init__(self, network: nn.Module, exposure: str | None) -> None:
        super().__init__()
        self.network, self.exposure = network, exposure

    def forward(self, x: Tensor, context: dict[str, Tensor]) -> Tensor:
        """Returns the mean and log standard deviation of an expert."""
        if self.exposure is not None:
            x = x / context[self.exposure][:, None]
        seen = x.log1p()
        if isinstance(self.network, Conditional):
            return self.network(seen, context)
        return self.network(seen)


def make_model(*, covariates: bool) -> MVAE:
    """Builds a model, which knows the batch and the depth of a cell or does not."""
    more = BATCHES if covariates else 0

    def network(inputs: int, outputs: int) -> nn.Module:
        mlp = MLP(inputs + more, outputs, hidden=[64])
        return Conditional(mlp, {"batch": BATCHES}) if covariates else mlp

    depth = "depth" if covariates else None
    encoders = {
        m: Scaled(network(size, 2 * LATENT), depth if m == "rna" else None)
        for m, size in SIZES.items()
    }
    decoders = {
        "rna": NegativeBinomial(
            network(LATENT, SIZES["rna"]), torch.ones(SIZES["rna"]), exposure=depth
        ),
        "atac": Bernoulli(network(LATENT, SIZES["atac"])),
        "protein": Poisson(network(LATENT, SIZES["protein"])),
    }
    return MVAE(encoders, decoders, latent_dim=LATENT)


def train(model: MVAE, objective, cells: Batch, observed: Tensor, steps: int) -> None:  # noqa: ANN001
    """Trains a model on batches of 128 cells."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        rows = torch.randint(len(observed), (128,))
        bound = objective(model, cells.take(rows), observed[rows])
        optimizer.zero_grad()
        (-bound.mean()).backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def evidence(model: MVAE, cells: Batch, observed: Tensor) -> float:
    """The evidence of the RNA of cells that have it, in nats a cell."""
    rows = observed[:, 0].nonzero()[:, 0]
    rna = torch.tensor([True, False, False]).expand(len(rows), 3)
    return log_marginal(model, cells.take(rows), rna, samples=100).mean().item()


def main() -> None:
    """Prints what covariates and exposures are worth under each objective."""
    parser = argparse.ArgumentParser(description="Single cells with covariates and exposures.")
    parser.add_argument("--smoke", action="store_true", help="few cells and steps, in seconds")
    smoke = parser.parse_args().smoke
    cells, observed, _ = make_cells(500 if smoke else 5000, seed=0)
    test, seen, truth = make_cells(200 if smoke else 1000, seed=1)

    print("log p(rna), nats a cell   without      with    worth")
    for name, objective in OBJECTIVES.items():
        values = []
        for covariates in (False, True):
            torch.manual_seed(0)
            model = make_model(covariates=covariates)
            train(model, objective, cells, observed, steps=10 if smoke else 300)
            values.append(evidence(model, test, seen))
        print(f"{name:24} {values[0]:9.1f} {values[1]:9.1f} {values[1] - values[0]:8.1f}")
    print(f"{'at the true means':24} {'':9} {truth[seen[:, 0]].mean():9.1f}")


if __name__ == "__main__":
    main()
