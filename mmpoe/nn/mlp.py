r"""Multi-layer perceptrons, and the parts of a hierarchy of vectors that are made of them."""

from __future__ import annotations

__all__ = ["MLP", "MLPBottomUp", "MLPTopDown"]

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from .recorded import Recorded


class MLP(Recorded, nn.Sequential):
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


class MLPBottomUp(Recorded, nn.Module):
    """Maps a vector to one feature vector for each latent group, each from the one below.

    Arguments:
        features: The number of features of the input.
        width: The number of features of each level.
        levels: The number of levels, one per latent group.

    Example:
        >>> [f.shape for f in MLPBottomUp(3, 8, levels=2)(torch.zeros(5, 3))]
        [torch.Size([5, 8]), torch.Size([5, 8])]
    """

    def __init__(self, features: int, width: int, levels: int) -> None:
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.blocks = nn.ModuleList(_block(width) for _ in range(levels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the features of each level, coarse to fine."""
        feature, features = self.stem(x), []
        for block in self.blocks:
            feature = feature + block(feature)
            features.append(feature)
        return features[::-1]


class MLPTopDown(Recorded, nn.Module):
    r"""The step down from one group of vectors to the next: :math:`h' = s + f(s), s = h + W z`.

    The state :math:`h` carries all latents above. A Markov step forgets it, :math:`s = W z`: what
    is below then depends on this group alone.

    Arguments:
        latent: The number of features of the latent variable :math:`z`.
        width: The number of features of the state :math:`h`.
        markov: Whether to forget the state.

    Example:
        >>> MLPTopDown(3, 8)(None, torch.zeros(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(self, latent: int, width: int, *, markov: bool = False) -> None:
        super().__init__()
        self.markov = markov
        self.inject = nn.Linear(latent, width)
        self.block = _block(width)

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """Returns the next state."""
        state = self.inject(z)
        if h is not None and not self.markov:
            state = state + h
        return state + self.block(state)


def _block(width: int) -> nn.Sequential:
    """Pre-activated layers, to be added to their input."""
    return nn.Sequential(nn.SiLU(), *MLP(width, width, hidden=[width]))
