r"""Cells of the published MMHVAE: squeeze-and-excite, inverted residuals, weight-normalised ends.

They work on images, :math:`(N, C, H, W)`, and with `dims` 1 or 3 on sequences and volumes.
Activations work in place, on outputs that nothing else uses.
"""

from __future__ import annotations

__all__ = [
    "InvertedResidualCell",
    "ProjectionCell",
    "SqueezeExcite",
    "UpsampleConv",
]

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from mmpoe.kernels import depthwise_convolution

from .pyramid import (
    Convolution,
    InstanceNorm,
    channels_last,
    convolution,
    keep_channels_last,
    normalised,
)
from .recorded import Recorded, made_with

LANES = 16
"""The output channels that a CPU computes at once."""
TAIL = 5
"""The layers of an image head after its blocks."""
SMALLEST = 4
"""The sides of the smallest images of which an image head can reflect the border."""
LARGE = 7
"""The side from which on a kernel is large."""
MOST_PIXELS = 8
"""The neighbouring pixels to put into their places; with more, the backward pass is slower."""


class SqueezeExcite(Recorded, nn.Module):
    r"""Scales each channel by a number in (0, 1), computed from the means of all channels.

    .. math:: y_c = x_c \, s_c, \qquad s = \mathrm{sigmoid}(W_2 \, \mathrm{relu}(W_1 \bar{x}))

    Arguments:
        channels: The number of channels C; the hidden layer has C / 16, but at least 4.

    References:
        | Squeeze-and-Excitation Networks (Hu et al., 2018)
        | https://arxiv.org/abs/1709.01507

    Example:
        >>> SqueezeExcite(32)(torch.zeros(1, 32, 4, 4)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns an image of the same shape."""
        return x * self._scale(x)

    def add(self, x: Tensor, skipped: Tensor) -> Tensor:
        """Returns an image plus the scaled `x`, in one pass."""
        return torch.addcmul(skipped, x, self._scale(x))

    def project(self, x: Tensor, projection: Convolution) -> Tensor:
        r"""Returns the 1 x 1 convolution `projection` of the scaled `x`.

        It is the weight that is scaled, :math:`W (s x) = (W \, \mathrm{diag}(s)) x`, if there are
        fewer of its elements than of `x`.
        """
        if x.shape[2:].numel() < projection.out_channels:
            return projection(self(x))
        weight = projection.weight.flatten(1) * self._scale(x).flatten(1)[:, None]  # (N, C', C)
        pixels = x.flatten(2).transpose(1, 2)  # (N, HW, C)
        if projection.bias is None:
            out = torch.bmm(pixels, weight.transpose(1, 2))
        else:
            out = torch.baddbmm(projection.bias, pixels, weight.transpose(1, 2))
        return out.transpose(1, 2).unflatten(2, x.shape[2:])

    def _scale(self, x: Tensor) -> Tensor:
        scale = self.layers(x.flatten(2).mean(dim=2))
        return scale.reshape(*scale.shape, *(1,) * (x.dim() - 2))  # (N, C, 1...)


class ResidualCell(Recorded, nn.Module):
    """Two 3 x 3 convolutions with pre-activation and squeeze-and-excite, added to their input.

    Arguments:
        channels: The number of channels.
        dims: The number of spatial dimensions: 1, 2 or 3.

    Example:
        >>> ResidualCell(8)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_two_convolutions(channels, channels, dims))
        keep_channels_last(self, dims)

    def forward(self, x: Tensor) -> Tensor:
        """Returns an image of the same shape."""
        *convolutions, excite = self.layers
        assert isinstance(excite, SqueezeExcite)
        return excite.add(_apply(convolutions, x), x)


class Depthwise(nn.Conv2d):
    """A depthwise 5 x 5 convolution, see :func:`mmpoe.kernels.depthwise_convolution`.

    Arguments:
        channels: The number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 5, padding=2, groups=channels)

    def forward(self, input: Tensor) -> Tensor:
        """Returns images of the same shape."""
        return depthwise_convolution(input, self.weight, self.bias)


class InvertedResidualCell(Recorded, nn.Module):
    """Expands channels, mixes pixels channel by channel, contracts, and adds the input.

    A 3 x 3 convolution expands, a depthwise 5 x 5 one mixes, a 1 x 1 one contracts.

    Arguments:
        channels: The number of channels.
        dims: The number of spatial dimensions: 1, 2 or 3.
        expansion: How many times more channels there are inside.

    References:
        | MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., 2018)
        | https://arxiv.org/abs/1801.04381
        | NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
        | https://arxiv.org/abs/2007.03898

    Example:
        >>> InvertedResidualCell(8)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels: int, dims: int = 2, expansion: int = 6) -> None:
        super().__init__()
        conv, inside = convolution(dims), expansion * channels
        self.layers = nn.Sequential(
            InstanceNorm(),
            conv(channels, inside, 3, padding=1),
            *normalised("silu"),
            Depthwise(inside) if dims == 2 else conv(inside, inside, 5, padding=2, groups=inside),
            *normalised("silu"),
            SqueezeExcite(inside),
            conv(inside, channels, 1),
        )
        keep_channels_last(self, dims)

    def forward(self, x: Tensor) -> Tensor:
        """Returns an image of the same shape."""
        return x + _project_last(self.layers, x)


class ProjectionCell(Recorded, nn.Sequential):
    """Two 3 x 3 convolutions and squeeze-and-excite, then a weight-normalised 1 x 1 convolution.

    Its input is not added, since the number of channels changes. As an expert, it takes the state
    and the features of one modality, stacked, and returns a mean and a log standard deviation,
    stacked.

    Arguments:
        channels: The number of input channels.
        width: The number of channels inside.
        out_channels: The number of output channels.
        dims: The number of spatial dimensions: 1, 2 or 3.

    Example:
        >>> ProjectionCell(16, 8, 6)(torch.zeros(1, 16, 4, 4)).shape
        torch.Size([1, 6, 4, 4])
    """

    def __init__(self, channels: int, width: int, out_channels: int, dims: int = 2) -> None:
        last = convolution(dims)(width, out_channels, 1, bias=False)
        super().__init__(*_two_convolutions(channels, width, dims), weight_norm(last))
        keep_channels_last(self, dims)

    def forward(self, input: Tensor) -> Tensor:
        """Returns an image of another number of channels."""
        return _project_last(self, input)

    def begin(self, x: Tensor, after: int = 0) -> Tensor:
        r"""Returns what some channels of the input add to the first convolution.

        What comes before it does not mix channels, so that for inputs stacked from two parts,
        :math:`f([a, b]) =` ``end(begin(a) + begin(b, after=C_a))``. A part that many inputs have
        in common is then computed once.

        Arguments:
            x: Channels of the input, with shape :math:`(N, C', *)`.
            after: How many channels come before them. The part with none before has the bias.
        """
        normalise, activate, first, *_ = self
        assert isinstance(first, Convolution)
        weight = first.weight[:, after : after + x.shape[1]]
        bias = None if after else first.bias
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[x.dim() - 3]
        return convolve(activate(normalise(x)), weight, bias, padding=1)

    def end(self, x: Tensor) -> Tensor:
        """Returns the output from that of the first convolution."""
        return _project_last(list(self)[3:], x)


class UpsampleConv(Recorded, nn.Sequential):
    """Doubles each side by linear interpolation, then a 3 x 3 convolution without bias.

    Arguments:
        channels: The number of input channels.
        out_channels: The number of output channels.
        dims: The number of spatial dimensions: 1, 2 or 3.

    Example:
        >>> UpsampleConv(4, 8)(torch.zeros(1, 4, 3, 3)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(self, channels: int, out_channels: int, dims: int = 2) -> None:
        conv = convolution(dims)(channels, out_channels, 3, padding=1, bias=False)
        mode = ("linear", "bilinear", "trilinear")[dims - 1]
        super().__init__(nn.Upsample(scale_factor=2, mode=mode), conv)
        keep_channels_last(self, dims)


class MarkovStep(Recorded, nn.Module):
    r"""The step down that forgets the state above: :math:`h' = f(z)`.

    Arguments:
        network: Maps a sample to the next state.

    Example:
        >>> MarkovStep(nn.Linear(2, 3))(None, torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """Returns the next state."""
        return self.network(channels_last(z))


class ResNetHead(Recorded, nn.Sequential):
    """Maps a state to an image of the same size in (-1, 1), through residual blocks.

    Convolutions reflect the image at its border, and the last two are 7 x 7: sides have at least 4
    pixels.

    Arguments:
        channels: The number of channels of the state; if it is not `width`, a 1 x 1 convolution
            comes first.
        width: The number of channels inside.
        out_channels: The number of channels of the image.
        blocks: The number of residual blocks.
        dims: The number of spatial dimensions: 1, 2 or 3.

    Example:
        >>> ResNetHead(4, 8, 1, blocks=2)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 1, 8, 8])
    """

    def __init__(
        self, channels: int, width: int, out_channels: int, blocks: int, dims: int = 2
    ) -> None:
        first = [] if channels == width else [convolution(dims)(channels, width, 1)]
        super().__init__(
            *first,
            *(ReflectingBlock(width, dims) for _ in range(blocks)),
            _reflecting(width, width, 7, dims),
            *normalised("leaky_relu"),
            _reflecting(width, out_channels, 7, dims),
            nn.Tanh(),
        )
        keep_channels_last(self, dims)

    def forward(self, input: Tensor) -> Tensor:
        """Returns an image."""
        return super().forward(channels_last(input))


def can_run_together(heads: Sequence[ResNetHead], x: Tensor) -> bool:
    """Whether heads are of one kind, and whether it is faster to run them together."""
    if x.dim() != 4 or x.is_cuda or min(x.shape[2:]) < SMALLEST:
        return False
    return all(made_with(head) == made_with(heads[0]) for head in heads)


def run_heads(heads: Sequence[ResNetHead], x: Tensor) -> list[Tensor]:
    """Runs image heads of one kind on the same state.

    The residual blocks of as many heads as fill the lanes of a CPU are one network, with a group
    of channels for each head: a grouped convolution takes three quarters of the time of its parts.

    Arguments:
        heads: The heads, see :func:`can_run_together`.
        x: The state, with shape :math:`(N, C, H, W)`.
    """
    size = max(1, LANES // made_with(heads[0])["width"])
    x, outputs = channels_last(x), []
    for start in range(0, len(heads), size):
        some = heads[start : start + size]
        if len(some) == 1:
            outputs.append(some[0](x))
            continue
        before, blocks, after = zip(*map(_parts, some), strict=True)
        state = channels_last(torch.cat([_apply(layers, x) for layers in before], dim=1))
        for alike in zip(*blocks, strict=True):
            state = _run_blocks(alike, state)
        parts = map(channels_last, state.chunk(len(some), dim=1))
        outputs += [_apply(layers, part) for layers, part in zip(after, parts, strict=True)]
    return outputs


def _parts(head: ResNetHead) -> tuple[list[nn.Module], list[ReflectingBlock], list[nn.Module]]:
    """Splits a head into its residual blocks and the layers before and after them."""
    layers = list(head)
    blocks = [layer for layer in layers if isinstance(layer, ReflectingBlock)]
    first = len(layers) - TAIL - len(blocks)
    return layers[:first], blocks, layers[-TAIL:]


def _run_blocks(blocks: Sequence[ReflectingBlock], x: Tensor) -> Tensor:
    """Runs blocks on as many groups of channels."""
    state = x
    *layers, last = zip(*(block.layers for block in blocks), strict=True)
    for alike in layers:
        if not isinstance(alike[0], Reflecting):  # without weights
            state = alike[0](state)
            continue
        weight = channels_last(torch.cat([layer.weight for layer in alike]))
        bias = torch.cat([layer.bias for layer in alike])
        padded = reflect(state, alike[0].kernel_size[0] // 2)
        state = functional.conv2d(padded, weight, bias, groups=len(blocks))
    return last[0](state, added=x)


class ReflectingBlock(Recorded, nn.Module):
    """Two normalised 3 x 3 convolutions that reflect at the border, added to their input.

    Arguments:
        channels: The number of channels.
        dims: The number of spatial dimensions: 1, 2 or 3.
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _reflecting(channels, channels, 3, dims),
            *normalised("relu"),
            _reflecting(channels, channels, 3, dims),
            InstanceNorm(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns an image of the same shape."""
        *layers, last = self.layers
        assert isinstance(last, InstanceNorm)
        return last(_apply(layers, x), added=x)


def _two_convolutions(channels: int, width: int, dims: int) -> list[nn.Module]:
    conv = convolution(dims)
    return [
        *normalised("silu"),
        conv(channels, width, 3, padding=1),
        *normalised("silu"),
        conv(width, width, 3, padding=1),
        SqueezeExcite(width),
    ]


def _apply(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _project_last(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Applies layers that end in squeeze-and-excite and a 1 x 1 convolution."""
    *first, excite, last = layers
    assert isinstance(excite, SqueezeExcite)
    assert isinstance(last, Convolution)
    return excite.project(_apply(first, x), last)


def _reflecting(channels: int, out_channels: int, side: int, dims: int) -> Convolution:
    conv = Reflecting if dims == 2 else partial(convolution(dims), padding_mode="reflect")
    return conv(channels, out_channels, side, padding=side // 2)


class Reflecting(nn.Conv2d):
    r"""A convolution that reflects the image at its border.

    A CPU computes 16 output channels at once. Where there are fewer and the kernel is large,
    :math:`p` neighbouring pixels of a row take their places: a convolution with :math:`p` times
    as many output channels, the kernel shifted by one pixel for each, that moves :math:`p` pixels
    at a time. In the layout channels_last its output has the memory of the image, and the numbers
    are the same.

    Arguments:
        channels: The number of input channels.
        out_channels: The number of output channels.
        side: The height and width of the kernel.
        padding: The pixels to reflect at each border.
    """

    def __init__(self, channels: int, out_channels: int, side: int, padding: int) -> None:
        super().__init__(channels, out_channels, side, padding=padding, padding_mode="reflect")

    def forward(self, input: Tensor) -> Tensor:
        """Returns images of the same size."""
        padded = reflect(input, self.kernel_size[0] // 2)
        pixels = self._pixels(input)
        if pixels == 1:
            return functional.conv2d(padded, self.weight, self.bias)
        shifted = [functional.pad(self.weight, (k, pixels - 1 - k)) for k in range(pixels)]
        weight = channels_last(torch.cat(shifted))
        bias = None if self.bias is None else self.bias.repeat(pixels)
        out = functional.conv2d(padded, weight, bias, stride=(1, pixels))  # (N, p C, H, W / p)
        out = out.permute(0, 2, 3, 1).unflatten(3, (pixels, self.out_channels))
        return out.flatten(2, 3).permute(0, 3, 1, 2)

    def _pixels(self, input: Tensor) -> int:
        """The number of neighbouring pixels to compute at once."""
        if self.kernel_size[0] < LARGE or input.is_cuda:
            return 1
        pixels = min(LANES // self.out_channels, MOST_PIXELS)
        return pixels if pixels > 1 and input.shape[3] % pixels == 0 else 1


def reflect(x: Tensor, pixels: int) -> Tensor:
    """Reflects images at their borders.

    Where no gradient is needed, by copies of rows and columns: in the layout channels_last,
    PyTorch takes twice as long.
    """
    height, width = x.shape[2:]
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or pixels >= min(height, width):
        with torch.autocast(x.device.type, enabled=False):  # which would compute it in float32
            return functional.pad(x, (pixels,) * 4, mode="reflect")
    out = x.new_empty(x.shape[0], height + 2 * pixels, width + 2 * pixels, x.shape[1])
    out = out.permute(0, 3, 1, 2)
    inner = slice(pixels, -pixels)
    out[:, :, inner, inner] = x
    for k in range(pixels):
        out[:, :, inner, k] = x[:, :, :, pixels - k]
        out[:, :, inner, width + pixels + k] = x[:, :, :, width - 2 - k]
    for k in range(pixels):
        out[:, :, k] = out[:, :, 2 * pixels - k]
        out[:, :, height + pixels + k] = out[:, :, height + pixels - 2 - k]
    return out
