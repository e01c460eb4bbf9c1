"""Thirteen patterns of missing cells, at one rate.

Their names are those of MissBench; the definitions are ours. Four kinds of missingness are among
them: completely at random, at random given columns that are always there, of blocks, and not at
random. Each row keeps a cell.

References:
    | TabImpute: Accurate and Fast Zero-Shot Missing-Data Imputation (Feitelberg et al., 2025)
    | https://arxiv.org/abs/2510.02625
"""

from __future__ import annotations

__all__ = ["PATTERNS", "draw"]

from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from mmpoe.missing import mar, mcar, mnar

SLOPE = 2.0
"""The slope of log-odds, per standard deviation."""
BLOCKS = 10
"""The number of blocks of rows, where blocks are missing."""
DRIVERS = 0.3
"""The share of columns that are always there and drive the others, where columns do."""


def draw(name: str, z: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Returns which cells are there, boolean, with shape (n, d).

    Arguments:
        name: The pattern, of `PATTERNS`.
        z: The complete table as standardised numbers, (n, d), with at least two columns.
        rate: The share of cells that are missing; of patterns with columns that are always there,
            that of the others.
        seed: The seed.
    """
    generator = Generator().manual_seed(seed)
    observed = PATTERNS[name](torch.as_tensor(z), rate, generator).clone()
    empty = (~observed.any(dim=1)).nonzero().flatten()
    kept = torch.randint(z.shape[1], (len(empty),), generator=generator)
    observed[empty, kept] = True
    return observed.numpy()


def _completely_at_random(z: Tensor, rate: float, generator: Generator) -> Tensor:
    return mcar(len(z), [rate] * z.shape[1], at_least_one=False, generator=generator)


def _drivers(z: Tensor, generator: Generator) -> Tensor:
    """The columns that are always there, boolean, (d)."""
    count = max(1, round(DRIVERS * z.shape[1]))
    chosen = torch.zeros(z.shape[1], dtype=torch.bool)
    chosen[torch.randperm(z.shape[1], generator=generator)[:count]] = True
    return chosen


def _by(driver: Tensor, always: Tensor, rate: float, generator: Generator) -> Tensor:
    """Missing with log-odds by a standardised driver, but for columns that are always there."""
    deviation = driver.std(dim=0, unbiased=False).clamp(min=1e-6)
    standard = (driver - driver.mean(dim=0)) / deviation
    rates = torch.where(always, 0.0, rate)
    return mar(standard, rates, slope=SLOPE, at_least_one=False, generator=generator)


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _by_columns(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """A linear combination of columns that are always there drives each of the others."""
    always = _drivers(z, generator)
    weights = _normal(generator, int(always.sum()), z.shape[1])
    return _by(z[:, always] @ weights, always, rate, generator)


def _network(x: Tensor, outputs: int, generator: Generator) -> Tensor:
    """A random network of one hidden layer, (n, outputs)."""
    hidden = torch.tanh(x @ _normal(generator, x.shape[1], 8) + _normal(generator, 8))
    return hidden @ _normal(generator, 8, outputs)


def _by_network(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """A random network of columns that are always there drives each of the others."""
    always = _drivers(z, generator)
    return _by(_network(z[:, always], z.shape[1], generator), always, rate, generator)


def _blocks(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """Blocks of a tenth of the rows and a third of the columns are missing as one."""
    always = _drivers(z, generator)
    order = z[:, always] @ _normal(generator, int(always.sum()))
    block = order.argsort().argsort() * BLOCKS // len(z)  # (n)
    members = torch.nn.functional.one_hot(block, BLOCKS).to(z)  # (n, blocks)
    means = members.t() @ z[:, always] / members.sum(dim=0).clamp(min=1)[:, None]
    column = torch.randint(3, (z.shape[1],), generator=generator)
    nowhere = torch.zeros(3, dtype=torch.bool)
    observed = _by(_network(means, 3, generator), nowhere, rate, generator)
    return observed[block][:, column] | always


def _in_sequence(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """Whether a column is measured depends on what was measured before, in a random order."""
    observed = torch.ones(z.shape, dtype=torch.bool)
    order = torch.randperm(z.shape[1], generator=generator)
    for place, column in enumerate(order):
        if place == 0:
            continue
        before = order[:place]
        seen = observed[:, before]
        signs = torch.sign(_normal(generator, place))
        mean = (torch.where(seen, z[:, before], 0) * signs).sum(dim=1) / seen.sum(dim=1)
        nowhere = torch.zeros(1, dtype=torch.bool)
        observed[:, column] = _by(mean[:, None], nowhere, rate, generator)[:, 0]
    return observed


def _self_masking(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """The larger a value, the more likely it is missing."""
    return mnar(z, [rate] * z.shape[1], slope=SLOPE, at_least_one=False, generator=generator)


def _ranks(z: Tensor, generator: Generator) -> Tensor:
    """Ranks in each column in [0, 1), ties in random order."""
    shuffled = torch.randperm(len(z), generator=generator)
    ranks = torch.empty_like(z)
    ranks[shuffled] = z[shuffled].argsort(dim=0, stable=True).argsort(dim=0).to(z) / len(z)
    return ranks


def _censoring(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """The lowest values of a column are missing, or the highest."""
    ranks = _ranks(z, generator)
    low = torch.rand(z.shape[1], generator=generator) < 0.5
    return torch.where(low, ranks >= rate, ranks < 1 - rate)


def _panel(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """Rows drop out at a value that is large, and are missing from there on."""
    uniform = torch.rand(z.shape, generator=generator, dtype=z.dtype)

    def gone(intercept: float) -> Tensor:
        return (uniform < (intercept + z).sigmoid()).long().cumsum(dim=1) > 0

    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        few = gone(middle).double().mean() < rate
        low, high = (middle, high) if few else (low, middle)
    return ~gone(high)


def _polarisation(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """Values in the middle of a column are missing."""
    return (_ranks(z, generator) - 0.5).abs() > rate / 2


def _soft_polarisation(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """The nearer a value is to the middle, the more likely it is missing."""
    nowhere = torch.zeros(z.shape[1], dtype=torch.bool)
    return _by(-z.abs(), nowhere, rate, generator)


def _latent_factors(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """Three projections of the complete row drive all columns."""
    factors = z @ _normal(generator, z.shape[1], 3)
    nowhere = torch.zeros(z.shape[1], dtype=torch.bool)
    return _by(factors @ _normal(generator, 3, z.shape[1]), nowhere, rate, generator)


def _clusters(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """Clusters of rows have columns that they lack more often, or less."""
    sides = (z @ _normal(generator, z.shape[1], 3) > 0).long()
    cluster = sides @ torch.tensor([1, 2, 4])
    nowhere = torch.zeros(z.shape[1], dtype=torch.bool)
    return _by(_normal(generator, 8, z.shape[1])[cluster], nowhere, rate, generator)


def _two_phases(z: Tensor, rate: float, generator: Generator) -> Tensor:
    """Half of the columns are measured in all rows, and say which rows the others are for."""
    cheap = torch.zeros(z.shape[1], dtype=torch.bool)
    cheap[torch.randperm(z.shape[1], generator=generator)[: (z.shape[1] + 1) // 2]] = True
    score = z[:, cheap] @ _normal(generator, int(cheap.sum()))
    nowhere = torch.zeros(1, dtype=torch.bool)
    chosen = _by(score[:, None], nowhere, min(2 * rate, 0.8), generator)
    return chosen | cheap


PATTERNS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "MCAR": _completely_at_random,
    "Col-MAR": _by_columns,
    "NN-MAR": _by_network,
    "Block-NN-MAR": _blocks,
    "Seq-MAR": _in_sequence,
    "Self-masking-MNAR": _self_masking,
    "Censoring-MNAR": _censoring,
    "Panel-MNAR": _panel,
    "Polarisation-MNAR": _polarisation,
    "Soft-polarisation-MNAR": _soft_polarisation,
    "Latent-factor-MNAR": _latent_factors,
    "Cluster-MNAR": _clusters,
    "Two-phase": _two_phases,
}
"""The patterns, each a function of the table, the rate and a random generator."""
