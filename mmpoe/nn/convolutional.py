r"""Small convolutional networks between images and vectors."""

from __future__ import annotations

__all__ = ["ConvDecoder", "ConvEncoder"]

from torch import nn

from .recorded import Recorded


class ConvEncoder(Recorded, nn.Sequential):
    r"""Maps a square image to a vector, through two strided convolutions.

    Arguments:
        channels: The number of channels of the image.
        out_features: The number of output features.
        width: The number of channels inside.
        size: The height and width of the image in pixels, a multiple of 4.

    Example:
        >>> ConvEncoder(1, 32)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 32])
    """

    def __init__(self, channels: int, out_features: int, width: int = 16, size: int = 28) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(width * _quarter(size) ** 2, out_features),
        )


class ConvDecoder(Recorded, nn.Sequential):
    r"""Maps a vector to a square image: the mirror of :class:`ConvEncoder`.

    Arguments:
        features: The number of input features.
        channels: The number of channels of the image.
        width: The number of channels inside.
        size: The height and width of the image in pixels, a multiple of 4.

    Example:
        >>> ConvDecoder(16, 1)(torch.zeros(5, 16)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(self, features: int, channels: int, width: int = 16, size: int = 28) -> None:
        side = _quarter(size)
        super().__init__(
            nn.Linear(features, width * side**2),
            nn.Unflatten(-1, (width, side, side)),
            nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        )


def _quarter(size: int) -> int:
    if size < 4 or size % 4:
        raise ValueError(f"'size' should be a positive multiple of 4, but is {size}.")
    return size // 4
