r"""Private latents: parts of a latent group with one block for each modality.

The latent variable of such a group is a stack of :math:`M` blocks along the first event dimension,
:math:`w = (w_1, \dots, w_M)`. Modality :math:`m` tells about block :math:`w_m` alone
(:class:`PrivateExpert`), the blocks join the state (:class:`Concatenate`), and the decoder of
modality :math:`m` sees the state above and its own block (:class:`OwnBlock`). The block of a
modality that is not given stays at the prior.
"""

from __future__ import annotations

__all__ = ["Concatenate", "OwnBlock", "PrivateExpert"]

import torch
from torch import Tensor, nn

from .recorded import Recorded


class PrivateExpert(Recorded, nn.Module):
    r"""An expert about one block of the latent variable, which says nothing about the others.

    Elsewhere its mean is 0 and its log standard deviation :math:`+\infty`: a factor that changes
    no bit of a product. A soft clamp would make that scale finite, so the group needs a rule
    without one, ``PoE(clamp=None)``.

    Arguments:
        network: Maps features to the mean and log standard deviation of the block, stacked along
            the first event dimension: :math:`(N, 2C, *)`.
        block: The index of the block.
        blocks: The number of blocks, which is that of modalities.

    Raises:
        ValueError: If `block` is not below `blocks`.

    Example:
        >>> expert = PrivateExpert(nn.Identity(), block=1, blocks=3)
        >>> expert(torch.tensor([[0.5, -2.0]]))  # three means, three log standard deviations
        tensor([[ 0.0000,  0.5000,  0.0000,     inf, -2.0000,     inf]])
    """

    def __init__(self, network: nn.Module, block: int, blocks: int) -> None:
        super().__init__()
        _check_block(block, blocks)
        self.network, self.block, self.blocks = network, block, blocks

    def forward(self, features: Tensor) -> Tensor:
        """Returns the stacked mean and log standard deviation of all blocks."""
        loc, log_scale = self.network(features).chunk(2, dim=1)
        return torch.cat([self._among(loc, 0.0), self._among(log_scale, torch.inf)], dim=1)

    def _among(self, own: Tensor, other: float) -> Tensor:
        blocks = [torch.full_like(own, other)] * self.blocks
        blocks[self.block] = own
        return torch.cat(blocks, dim=1)


class Concatenate(Recorded, nn.Module):
    """The step down that stacks the sample below the state, along the first event dimension."""

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """Returns the state and the sample, or the sample alone if there is no state."""
        return z if h is None else torch.cat([h, z], dim=1)


class OwnBlock(Recorded, nn.Module):
    r"""Selects the input of one modality: the state above the private blocks, and its own block.

    Arguments:
        size: The number of channels of each block.
        block: The index of the block.
        blocks: The number of blocks, which is that of modalities.

    Raises:
        ValueError: If `block` is not below `blocks`.

    Example:
        >>> state = torch.tensor([[10.0, 20.0, 1.0, 2.0, 3.0]])  # two channels, then three blocks
        >>> OwnBlock(size=1, block=1, blocks=3)(state)
        tensor([[10., 20.,  2.]])
    """

    def __init__(self, size: int, block: int, blocks: int) -> None:
        super().__init__()
        _check_block(block, blocks)
        self.size, self.block, self.blocks = size, block, blocks

    def forward(self, h: Tensor) -> Tensor:
        """Returns the state above, if there is one, and the block, stacked."""
        above = h.shape[1] - self.size * self.blocks
        start = above + self.size * self.block
        return torch.cat([h[:, :above], h[:, start : start + self.size]], dim=1)


def _check_block(block: int, blocks: int) -> None:
    if not 0 <= block < blocks:
        raise ValueError(
            f"'block' should be at least 0 and below 'blocks' ({blocks}), but is {block}."
        )
