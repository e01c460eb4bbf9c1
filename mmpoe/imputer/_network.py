r"""The model of a table: each column or group of columns is a modality."""

from __future__ import annotations

__all__ = ["Modality", "build"]

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from mmpoe.likelihoods import Categorical, NegativeBinomial
from mmpoe.models import MMHVAE, vector_mmhvae
from mmpoe.nn import MLPBottomUp, Recorded


class Modality(NamedTuple):
    """Columns that one expert reads, all of one kind."""

    name: str
    columns: list[int]
    """Their positions in the table."""
    kind: str
    classes: int
    """The number of categories, if they are categorical."""


class Cells(nn.Module):
    """Turns several numbers, NaN where they are missing, into themselves and which are there."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (N, k) to (N, 2k)."""
        there = ~x.isnan()
        return torch.cat([torch.where(there, x, 0), there.to(x)], dim=1)


class Indicators(Recorded, nn.Module):
    """Turns the code of a category into its indicator."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (N, 1) to (N, K)."""
        return one_hot(x.long().squeeze(1), self.classes).to(x)


class LogCounts(nn.Module):
    """Turns counts into the logarithms of one more."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (N, 1) to (N, 1)."""
        return x.log1p()


def build(modalities: Sequence[Modality], hidden: int, latents: Sequence[int]) -> MMHVAE:
    """Builds the model of a table whose cells are numbers: standardised values, codes, counts.

    Arguments:
        modalities: The modalities.
        hidden: The number of features of hidden layers and of the state.
        latents: The number of latents of each group, coarse to fine.
    """
    sizes, readers, likelihoods = {}, {}, {}
    for m in modalities:
        sizes[m.name] = m.classes if m.kind == "categorical" else len(m.columns)
        if m.kind == "categorical":
            readers[m.name] = Indicators(m.classes), m.classes
            likelihoods[m.name] = partial(_categorical, classes=m.classes)
        elif m.kind == "count":
            readers[m.name] = LogCounts(), 1
            likelihoods[m.name] = NegativeBinomial
        elif len(m.columns) > 1:
            readers[m.name] = Cells(), 2 * len(m.columns)
    model = vector_mmhvae(
        sizes, likelihoods=likelihoods, hidden=hidden, latents=latents, scale=0.5
    )
    for name, (reader, features) in readers.items():
        bottom_up = MLPBottomUp(features, hidden, len(latents))
        model.encoders[name] = nn.Sequential(reader, bottom_up)
    model.gather = False  # many small encoders run faster on all rows than on some
    model.validate = False  # cells are NaN inside groups that are observed in part
    return model


def _categorical(network: nn.Module, classes: int) -> Categorical:
    return Categorical(nn.Sequential(network, nn.Unflatten(1, (classes, 1))), classes)
