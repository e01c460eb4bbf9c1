r"""A U-Net that takes zeros for what is missing: the plain opponent that comparisons leave out.

No latent variables, no adversary: all images and all masks go in as channels, all modalities come
out, and what was hidden of a patient is regressed,

.. math:: \ell(x) = \frac{1}{|r \setminus s|} \sum_{m \in r \setminus s} |f_m(x_s, s) - x_m|

averaged over the field of view, with a random proper subset :math:`s` of what was observed
:math:`r`. A patient with a single modality reconstructs that.

Source:
    The shape of U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et
    al., 2015), https://arxiv.org/abs/1505.04597. As a regressor of missing modalities it has no
    published settings: all of them are chosen here.

Slim:
    Residual blocks of 48, 96 and 128 channels, on patches of 2 x 2 pixels as in the slim MMHVAE.

Full:
    Five levels, of 36, 72, 144, 288 and 512 channels: about the parameters and multiplications of
    the published MMHVAE, 13 M and 12 G with four modalities at 192 x 192.
"""

from __future__ import annotations

__all__ = ["UNet", "UNetSystem", "full", "slim"]

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmpoe.missing import random_subsets
from mmpoe.nn import BottomUp, ImageHead, Patchify, ResidualBlock
from mmpoe.training import Adversary

from .common import Batch, mean_error, planes, predict_channels, stack


def slim(modalities: Sequence[str], size: int) -> UNetSystem:
    """Builds the system for minutes on two cores, for images of any multiple of 8 pixels."""
    return UNetSystem(modalities, size, [48, 96, 128], patch=2)


def full(modalities: Sequence[str], size: int) -> UNetSystem:
    """Builds the system of about the size of the published MMHVAE, for multiples of 16 pixels."""
    return UNetSystem(modalities, size, [36, 72, 144, 288, 512], patch=1)


class UNet(nn.Module):
    """A pyramid of residual blocks and the way back, with skips between them.

    Arguments:
        channels: The number of channels of the input.
        out_channels: The number of channels of the output, which is in (-1, 1).
        widths: The number of channels of each level, fine to coarse.
        patch: The side of the patches that are folded into channels, in pixels.
    """

    def __init__(
        self, channels: int, out_channels: int, widths: Sequence[int], patch: int
    ) -> None:
        super().__init__()
        self.stem = Patchify(channels, widths[0], patch)
        self.down = BottomUp(widths[::-1])
        steps = list(pairwise(widths))[::-1]  # coarse to fine
        self.up = nn.ModuleList(nn.Conv2d(c, f, 3, padding=1) for f, c in steps)
        self.skip = nn.ModuleList(nn.Conv2d(2 * f, f, 1) for f, _ in steps)
        self.blocks = nn.ModuleList(ResidualBlock(f) for f, _ in steps)
        self.head = ImageHead(widths[0], out_channels, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Returns images of the size of the input."""
        h, *skipped = self.down(self.stem(x))
        levels = zip(skipped, self.up, self.skip, self.blocks, strict=True)
        for features, up, skip, block in levels:
            h = up(functional.interpolate(h, scale_factor=2, mode="nearest"))
            h = block(skip(torch.cat([h, features], dim=1)))
        return self.head(h)


class UNetSystem:
    """The regressor, as a system to compare.

    Arguments:
        modalities: The names of the modalities.
        size: The height and width of the images, in pixels.
        widths: The number of channels of each level, fine to coarse.
        patch: The side of the patches that are folded into channels, in pixels.

    Raises:
        ValueError: If the size cannot be halved between all levels.
    """

    adversary: Adversary | None = None
    lr = 2e-3

    def __init__(
        self, modalities: Sequence[str], size: int, widths: Sequence[int], patch: int
    ) -> None:
        unit = patch * 2 ** (len(widths) - 1)
        if size % unit or size < 2 * unit:
            raise ValueError(
                f"'size' should be a multiple of {unit}, and at least {2 * unit}, but is {size}."
            )
        self.modalities = self.handled = list(modalities)
        self.network: nn.Module = UNet(2 * len(modalities), len(modalities), widths, patch)

    def loss(self, batch: Batch, done: float) -> Tensor:
        """Returns the error of what was hidden of each row."""
        x, observed, fov = batch
        given = random_subsets(observed, proper=True)[0]
        hidden = observed & ~given
        scored = torch.where(hidden.any(dim=1, keepdim=True), hidden, observed)
        truth = stack(x, observed, self.modalities)
        return mean_error(self.network(self._input(x, given)), truth, scored, fov)

    def synthesise(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        targets: Sequence[str],
        temperature: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the targets."""
        return predict_channels(self.network, self._input(x, given), self.modalities, targets)

    def _input(self, x: Mapping[str, Tensor], given: Tensor) -> Tensor:
        images = stack(x, given, self.modalities, fill=0.0)
        return torch.cat([images, planes(given, images)], dim=1)
