r"""Parts of a convolutional hierarchy: bottom-up pyramids, experts, steps down, image heads.

They work on images, :math:`(N, C, H, W)`, and with `dims` 1 or 3 on sequences, :math:`(N, C, T)`,
and volumes, :math:`(N, C, D, H, W)`. A pixel is then an element, and a square an interval or cube.
"""

from __future__ import annotations

__all__ = ["BottomUp", "GaussianHead", "ImageHead", "Patchify", "ResidualBlock", "TopDown"]

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmpoe.kernels import instance_norm
from mmpoe.kernels.cells import ActivationName

from .recorded import Recorded

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class InstanceNorm(nn.Module):
    """Instance normalisation without parameters, and an activation, see :func:`instance_norm`.

    The same numbers as :class:`torch.nn.InstanceNorm2d` and an activation after it. One pixel a
    channel is an error, since normalising it leaves nothing.

    Arguments:
        activation: The activation.
    """

    def __init__(self, activation: ActivationName = "identity") -> None:
        super().__init__()
        self.activation: ActivationName = activation

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Returns the activation of each channel with mean 0 and variance 1, and adds to it."""
        return instance_norm(x, self.activation, added=added)

    def extra_repr(self) -> str:
        """Names the activation."""
        return self.activation


def normalised(activation: ActivationName) -> list[nn.Module]:
    """Returns a normalisation with its activation, and nothing in the place of the latter.

    The names of weights count layers, and both were layers once.
    """
    return [InstanceNorm(activation), nn.Identity()]


def keep_channels_last(module: nn.Module, dims: int) -> None:
    """Keeps weights of images in the layout in which convolutions are faster on CPUs."""
    if dims == 2:
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def channels_last(x: Tensor) -> Tensor:
    """Returns images in that layout, and anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


class ResidualBlock(Recorded, nn.Module):
    """Two 3 x 3 convolutions with pre-activation, added to their input.

    Arguments:
        channels: The number of channels.
        dims: The number of spatial dimensions: 1, 2 or 3.

    Example:
        >>> ResidualBlock(8)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *normalised("silu"),
            _conv3(channels, channels, dims),
            *normalised("silu"),
            _conv3(channels, channels, dims),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns an image of the same shape."""
        return x + self.layers(x)


class Fold(Recorded, nn.Module):
    """Folds patches of an image into channels: :class:`torch.nn.PixelUnshuffle` in any dimension.

    Arguments:
        patch: The side of a patch in pixels.
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """Returns an image that is `patch` times smaller, and has a channel for each pixel."""
        dims = x.dim() - 2
        for axis in range(dims):
            at = 2 + 2 * axis
            x = x.unflatten(at, (x.shape[at] // self.patch, self.patch))  # (N, C, H, p, W, p)
        coarse, inside = range(2, 2 + 2 * dims, 2), range(3, 2 + 2 * dims, 2)
        return x.permute(0, 1, *inside, *coarse).flatten(1, 1 + dims)


class Unfold(Recorded, nn.Module):
    """Unfolds channels into patches: :class:`torch.nn.PixelShuffle` in any dimension.

    Arguments:
        patch: The side of a patch in pixels.
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """Returns an image that is `patch` times larger: the inverse of :class:`Fold`."""
        dims = x.dim() - 2
        channels = x.shape[1] // self.patch**dims
        x = x.unflatten(1, (channels, *[self.patch] * dims))  # (N, C, p, p, H, W)
        order = [2 + axis + part for axis in range(dims) for part in (dims, 0)]
        x = x.permute(0, 1, *order)  # (N, C, H, p, W, p)
        for axis in range(dims):
            x = x.flatten(2 + axis, 3 + axis)
        return x


class Patchify(Recorded, nn.Sequential):
    """Folds patches of an image into channels, then mixes them by a 3 x 3 convolution.

    Arguments:
        channels: The number of channels of the image.
        width: The number of channels to return.
        patch: The height and width of a patch in pixels; the image shrinks by that factor.
        dims: The number of spatial dimensions: 1, 2 or 3.

    Example:
        >>> Patchify(1, 16, patch=2)(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 16, 4, 4])
        >>> Patchify(1, 16, patch=2, dims=3)(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 16, 4, 4, 4])
    """

    def __init__(self, channels: int, width: int, patch: int, dims: int = 2) -> None:
        super().__init__(Fold(patch), _conv3(channels * patch**dims, width, dims))


class BottomUp(Recorded, nn.Module):
    """A pyramid of residual blocks, each level half as large as the one before.

    Arguments:
        widths: The number of channels of each level, coarse to fine.
        dims: The number of spatial dimensions: 1, 2 or 3.
        cell: What makes the block of a level, of its number of channels and `dims`.
        levels: How many levels to return, the coarsest; all if None.

    Example:
        >>> [f.shape[1:] for f in BottomUp([8, 4])(torch.zeros(1, 4, 8, 8))]
        [torch.Size([8, 4, 4]), torch.Size([4, 8, 8])]
    """

    def __init__(
        self,
        widths: Sequence[int],
        dims: int = 2,
        *,
        cell: Callable[[int, int], nn.Module] = ResidualBlock,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.levels = levels
        upwards = list(reversed(widths))  # fine to coarse
        self.blocks = nn.ModuleList(cell(width, dims) for width in upwards)
        self.strides = nn.ModuleList(
            _conv3(fine, coarse, dims, stride=2) for fine, coarse in pairwise(upwards)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the features of each level, coarse to fine."""
        features = [self.blocks[0](x)]
        for stride, block in zip(self.strides, self.blocks[1:], strict=True):
            features.append(block(stride(features[-1])))
        return features[::-1][: self.levels]


class GaussianHead(Recorded, nn.Sequential):
    r"""Maps features to the mean and log standard deviation of an expert, stacked.

    Arguments:
        width: The number of channels of the features.
        latent: The number of channels C of the latent variable; 2C are returned.
        log_scale: The log standard deviation that the expert starts from. Precise experts keep the
            latents from collapsing at the start.
        dims: The number of spatial dimensions: 1, 2 or 3.

    Example:
        >>> GaussianHead(8, 3)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 6, 4, 4])
    """

    def __init__(self, width: int, latent: int, log_scale: float = -2.0, dims: int = 2) -> None:
        convolution = _conv3(width, 2 * latent, dims)
        with torch.no_grad():
            _bias(convolution)[latent:] = log_scale
        super().__init__(*normalised("silu"), convolution)


class TopDown(Recorded, nn.Module):
    r"""The step down from one latent group to the next: :math:`h' = \mathrm{up}(f(h + W z))`.

    The state :math:`h` carries all latents above. A Markov step forgets it,
    :math:`h' = \mathrm{up}(f(W z))`: what is below then depends on this group alone.

    Arguments:
        latent: The number of channels of the latent variable :math:`z`.
        width: The number of channels of the state :math:`h`.
        next_width: The number of channels of the next state, which is twice as large; None ends
            the hierarchy, at the same size and width.
        size: The height and width of the learned state that stands above the first group, one
            number for a square; None for any other group.
        dims: The number of spatial dimensions: 1, 2 or 3.
        markov: Whether to forget the state.

    Example:
        >>> TopDown(3, 8, 4, size=2)(None, torch.zeros(1, 3, 2, 2)).shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(
        self,
        latent: int,
        width: int,
        next_width: int | None,
        size: int | Sequence[int] | None = None,
        dims: int = 2,
        *,
        markov: bool = False,
    ) -> None:
        super().__init__()
        self.markov = markov
        self.inject = _conv3(latent, width, dims)
        self.block = ResidualBlock(width, dims)
        sides = (size,) * dims if isinstance(size, int) else size
        self.start = None if sides is None else nn.Parameter(torch.zeros(width, *sides))
        self.expand = None if next_width is None else _conv1(width, next_width, dims)

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """Returns the next state."""
        state = self.inject(z)
        above = self.start if h is None or self.markov else h
        if above is not None:
            state = state + above
        state = self.block(state)
        if self.expand is None:
            return state
        return functional.interpolate(self.expand(state), scale_factor=2, mode="nearest")


class ImageHead(Recorded, nn.Sequential):
    """Maps the last state to an image.

    Arguments:
        width: The number of channels of the state.
        channels: The number of channels of the image.
        patch: How many times larger the image is than the state.
        dims: The number of spatial dimensions: 1, 2 or 3.
        bounded: Whether values are between -1 and 1, through a hyperbolic tangent; if not, they
            may be any.

    Example:
        >>> ImageHead(8, 1, patch=2)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 1, 8, 8])
    """

    def __init__(
        self, width: int, channels: int, patch: int, dims: int = 2, *, bounded: bool = True
    ) -> None:
        layers = [nn.SiLU(), _conv3(width, channels * patch**dims, dims), Unfold(patch)]
        super().__init__(*layers, *([nn.Tanh()] if bounded else []))


def _conv3(before: int, after: int, dims: int, stride: int = 1) -> Convolution:
    return _zero_bias(convolution(dims)(before, after, 3, stride=stride, padding=1))


def _conv1(before: int, after: int, dims: int) -> Convolution:
    return _zero_bias(convolution(dims)(before, after, 1))


def convolution(dims: int) -> type[Convolution]:
    """Returns the class of convolutions in 1, 2 or 3 dimensions."""
    if dims not in (1, 2, 3):
        raise ValueError(f"'dims' should be 1, 2 or 3, but is {dims!r}.")
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]


def _zero_bias(convolution: Convolution) -> Convolution:
    nn.init.zeros_(_bias(convolution))
    return convolution


def _bias(convolution: Convolution) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias
