r"""Operations of convolutional networks that PyTorch is slow at, fused or in a better layout."""

from __future__ import annotations

__all__ = ["depthwise_convolution", "instance_norm"]

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from . import backends
from ._cells import CELLS, EPSILON, SIDE, Activation, is_channels_last

LEAK = 0.2
"""The slope of ``"leaky_relu"`` where it is negative."""

_ACTIVATIONS = {
    "identity": Activation(False, 1.0),
    "silu": Activation(True, 1.0),
    "relu": Activation(False, 0.0),
    "leaky_relu": Activation(False, LEAK),
}

ActivationName = Literal["identity", "silu", "relu", "leaky_relu"]


def instance_norm(
    x: Tensor,
    activation: ActivationName = "identity",
    *,
    added: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Normalises each channel of each image, without parameters, then activates and adds.

    .. math:: y = f \Big( \frac{x - \bar{x}}{\sqrt{s^2 + 10^{-5}}} \Big) + a

    Means :math:`\bar{x}` and variances :math:`s^2` are over the pixels of a channel.

    PyTorch runs in the usual layout, where it is as fast, unless a backend is asked for; the
    kernels in the layout ``channels_last``, where it is many times slower in the backward pass.

    Arguments:
        x: Images, with shape :math:`(N, C, *)`, of more than one pixel.
        activation: The function :math:`f`: ``"identity"``, ``"silu"``, ``"relu"`` or
            ``"leaky_relu"``, which has the slope 0.2 where it is negative.
        added: What is added to the output, :math:`a`, with the shape of `x`; None is nothing.
        backend: The backend to run (``"cuda"``, ``"cpu"``, ``"eager"``); chosen if None.

    Returns:
        The output, with the shape, dtype and layout of `x`.

    Raises:
        ValueError: If `x` is not floating-point or has one pixel, which leaves nothing to
            normalise, if `added` has another shape, or if the activation is unknown.
        RuntimeError: If the backend asked for cannot run here, or cannot run this call.

    References:
        | Instance Normalization: The Missing Ingredient for Fast Stylization (Ulyanov et al.,
          2016)
        | https://arxiv.org/abs/1607.08022

    Example:
        >>> instance_norm(torch.tensor([[[1.0, 3.0]]]), "relu")
        tensor([[[0.0000, 1.0000]]])
    """
    _check_norm(x, activation, added)
    if added is not None and added.dtype != x.dtype:
        return added + instance_norm(x, activation, backend=backend)
    choice = backends.choose(
        backend,
        *(x.device, x.dtype, 1, backends.beyond_kernels(), x.numel() == 0),
        *(CELLS.name, True, not is_channels_last(x)),
    )
    if choice == "eager":
        return eager_norm(x, added, activation)
    from . import _cell_operators  # registers operators: not on import of the library

    return _cell_operators.norm(x, added, _ACTIVATIONS[activation])


def eager_norm(x: Tensor, added: Tensor | None, activation: str) -> Tensor:
    """Computes the same in plain PyTorch."""
    y = functional.group_norm(x, num_groups=x.shape[1], eps=EPSILON)
    if activation == "silu":  # in place: nothing else uses it, and normalisation does not need it
        y = functional.silu(y, inplace=True)
    elif activation == "relu":
        y = functional.relu(y, inplace=True)
    elif activation == "leaky_relu":
        y = functional.leaky_relu(y, LEAK, inplace=True)
    return y if added is None else added + y


def _check_norm(x: Tensor, activation: str, added: Tensor | None) -> None:
    if not x.is_floating_point():
        raise ValueError(f"'x' should be floating-point, but has dtype {x.dtype}.")
    if x.dim() < 3 or x.shape[2:].numel() == 1:
        raise ValueError(
            f"'x' should have more than one pixel a channel, but has shape {tuple(x.shape)}."
        )
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"'activation' should be one of {', '.join(_ACTIVATIONS)}, but is {activation!r}."
        )
    if added is not None and added.shape != x.shape:
        raise ValueError(
            f"'added' should have the shape of 'x', {tuple(x.shape)}, "
            f"but has shape {tuple(added.shape)}."
        )


def depthwise_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    r"""Convolves each channel of images with its own 5 x 5 weights, zeros around the images.

    .. math:: y_{cij} = b_c + \sum_{k, l = 0}^4 w_{ckl} \, x_{c, i + k - 2, j + l - 2}

    The convolution is PyTorch's, as is the gradient of `x`, a convolution with turned weights. The
    kernel computes the gradient of the weights, at which PyTorch is slow.

    Arguments:
        x: Images, with shape :math:`(N, C, H, W)`.
        weight: The weights, with shape :math:`(C, 1, 5, 5)`.
        bias: The biases, with shape :math:`(C)`; None is none.
        backend: The backend to run (``"cpu"``, ``"eager"``); chosen if None.

    Returns:
        Images, with the shape of `x`.

    Raises:
        ValueError: If shapes do not fit together.
        RuntimeError: If the backend asked for cannot run here, or cannot run this call.

    Example:
        >>> x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 5, 5)
        >>> depthwise_convolution(x, weight)[0, 0, 1]
        tensor([9., 9., 9.])
    """
    _check_depthwise(x, weight, bias)
    if backend is None and x.device.type != "cpu":  # no kernel but for CPUs
        return convolve(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type):  # as it casts what any convolution is given
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    choice = backends.choose(
        backend,
        *(x.device, x.dtype, 1, backends.beyond_kernels(), x.numel() == 0),
        *(CELLS.name, False, not torch.is_grad_enabled()),
    )
    if choice == "eager":
        return convolve(x, weight, bias)
    from . import _cell_operators

    return _cell_operators.depthwise(x, weight, bias)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes the convolution in PyTorch."""
    return functional.conv2d(x, weight, bias, padding=SIDE // 2, groups=x.shape[1])


def _check_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4:
        raise ValueError(f"'x' should have shape (N, C, H, W), but has shape {tuple(x.shape)}.")
    channels = x.shape[1]
    if weight.shape != (channels, 1, SIDE, SIDE):
        raise ValueError(
            f"'weight' should have shape {(channels, 1, SIDE, SIDE)}, "
            f"but has shape {tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"'bias' should have shape ({channels},), but is {tuple(bias.shape)}.")
