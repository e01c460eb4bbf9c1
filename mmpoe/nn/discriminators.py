r"""Discriminators of images: many scores for as many patches, or one for all."""

from __future__ import annotations

__all__ = ["GlobalDiscriminator", "PatchDiscriminator"]

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .pyramid import Convolution, InstanceNorm, convolution


def receptive_field(network: nn.Module) -> int:
    r"""Returns how many pixels along a side one output of a chain of convolutions can see.

    .. math:: f_i = 1, \qquad f_{i - 1} = (f_i - 1) \, s_i + k_i

    from the last convolution to the first, with kernels of side :math:`k_i` and strides
    :math:`s_i`. Other layers are taken to act on single pixels.

    Arguments:
        network: A chain of convolutions, each of one stride and kernel size for all sides.

    Example:
        >>> receptive_field(nn.Sequential(nn.Conv2d(1, 1, 4, stride=2), nn.Conv2d(1, 1, 3)))
        8
    """
    field = 1
    for layer in reversed(list(network.modules())):
        if isinstance(layer, Convolution):
            field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
    return field


class PatchDiscriminator(nn.Module):
    r"""Scores patches of an image, each on its own: a PatchGAN.

    Some convolutions of stride 2, then two of stride 1, with kernels of side 4. With a depth of 3,
    patches have 70 pixels a side, as in the reference. A score says whether texture and contours
    are real there. As long as patches are smaller than the image, its content is left to the
    reconstruction term.

    Arguments:
        channels: The number of channels of the image.
        size: The height and width of the image in pixels, or the size along each dimension.
        width: The number of channels after the first convolution; it doubles twice.
        depth: The number of convolutions of stride 2. Each about doubles the side of a patch:
            7, 16, 34, 70, 142 pixels. None for the deepest whose patches cover at most half the
            shortest side of the image; 0 if there is none.
        dims: The number of spatial dimensions: 1, 2 or 3.
        spectral_norm: Whether to divide weights by their largest singular value.
        instance_norm: Whether to normalise each channel over the image after the inner
            convolutions. Scores then depend on the mean and variance of features beyond their
            patch.

    Attributes:
        receptive_field: The side of a patch, in pixels.

    Raises:
        ValueError: If a patch is not smaller than the image, or `depth` is negative.

    References:
        | Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017)
        | https://arxiv.org/abs/1611.07004
        | Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018)
        | https://arxiv.org/abs/1802.05957

    Example:
        >>> discriminator = PatchDiscriminator(1, 192)
        >>> discriminator.receptive_field
        70
        >>> discriminator(torch.zeros(5, 1, 192, 192)).shape
        torch.Size([5, 1, 22, 22])
    """

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        width: int = 64,
        depth: int | None = None,
        dims: int = 2,
        *,
        spectral_norm: bool = True,
        instance_norm: bool = False,
    ) -> None:
        super().__init__()
        sides = (size,) * dims if isinstance(size, int) else tuple(size)
        if len(sides) != dims:
            raise ValueError(
                f"'size' should hold one number per dimension ({dims}), but is {size}."
            )
        if depth is None:
            depth = 0
            while _field(depth + 1) <= min(sides) / 2:
                depth += 1
        if depth < 0:
            raise ValueError(f"'depth' should be at least 0, but is {depth}.")
        _check_larger(
            sides, _field(depth), f"'size' should be larger than a patch of depth {depth}"
        )
        self.model = _layers(channels, width, depth, dims, spectral_norm, instance_norm)
        self.receptive_field = receptive_field(self.model)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scores of all patches, with shape (N, 1, H', W').

        Arguments:
            x: Images, with shape (N, C, H, W).

        Raises:
            ValueError: If they are not larger than a patch.
        """
        _check_larger(x.shape[2:], self.receptive_field, "'x' should be larger than a patch")
        return self.model(x)


class GlobalDiscriminator(nn.Module):
    r"""Scores an image as a whole: the discriminator of the published MMHVAE.

    Six convolutions of stride 2 and two of stride 1, with instance normalisation. Each score sees
    574 pixels a side, and an image of 192 pixels a side has a single score: it is no patch
    discriminator, unlike :class:`PatchDiscriminator`. Its state dict has the names of the
    published code.

    Arguments:
        channels: The number of channels of the image.
        width: The number of channels after the first convolution; it doubles twice.

    References:
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632

    Example:
        >>> discriminator = GlobalDiscriminator()
        >>> sum(p.numel() for p in discriminator.parameters())
        4856257
        >>> discriminator(torch.zeros(5, 1, 192, 192)).shape
        torch.Size([5, 1, 1, 1])
    """

    def __init__(self, channels: int = 1, width: int = 64) -> None:
        super().__init__()
        self.model = _layers(channels, width, depth=6, dims=2, spectral=False, normalise=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scores, with shape (N, 1, H', W').

        Arguments:
            x: Images, with shape (N, C, H, W).

        Raises:
            ValueError: If a side has fewer than 192 pixels, which leaves no score.
        """
        _check_larger(x.shape[2:], 191, "'x' should have at least 192 pixels a side")
        return self.model(x)


def _layers(
    channels: int, width: int, depth: int, dims: int, spectral: bool, normalise: bool
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for level in range(depth + 1):
        after = width * min(2**level, 4)
        stride = 2 if level < depth else 1
        layers.append(_conv4(channels, after, dims, stride, spectral))
        if normalise and level > 0:
            layers.append(InstanceNorm())
        layers.append(nn.LeakyReLU(0.2))
        channels = after
    return nn.Sequential(*layers, _conv4(channels, 1, dims, 1, spectral))


def _conv4(before: int, after: int, dims: int, stride: int, spectral: bool) -> nn.Module:
    layer = convolution(dims)(before, after, 4, stride=stride, padding=1)
    return parametrizations.spectral_norm(layer) if spectral else layer


def _field(depth: int) -> int:
    """The receptive field of that many convolutions of stride 2, and two of stride 1."""
    return 9 * 2**depth - 2


def _check_larger(sides: Sequence[int], field: int, should: str) -> None:
    if min(sides) <= field:
        shown = " x ".join(map(str, sides))
        raise ValueError(f"{should}, {field} pixels a side, but is {shown}.")
