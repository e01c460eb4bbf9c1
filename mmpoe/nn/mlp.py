r"""Multi-layer perceptrons."""

from __future__ import annotations

__all__ = ["MLP"]

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class MLP(nn.Sequential):
    """Multi-layer perceptron: linear layers with an activation between them.

    Arguments:
        features: The number of input features.
        out_features: The number of output features.
        hidden: The number of features of each hidden layer.
        activation: The activation, built anew for each layer.

    Example:
        >>> MLP(3, 2, hidden=[8])(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        out_features: int,
        hidden: Sequence[int] = (64, 64),
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        sizes = [features, *hidden, out_features]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        super().__init__(*layers[:-1])
