r"""Launches the kernels of networks: instance normalisation, the gradient of depthwise weights."""

from __future__ import annotations

__all__ = [
    "CELLS",
    "EPSILON",
    "SIDE",
    "Activation",
    "depthwise_gradient",
    "is_channels_last",
    "norm_backward",
    "norm_forward",
]

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from . import _cpu, jit

EPSILON = 1e-5
"""The number that normalisation adds to a variance, as in PyTorch."""

SIDE = 5
"""The height and width of depthwise weights."""

_NORM = struct.Struct("=10q2f")
_DEPTHWISE = struct.Struct("=7q")

CELLS = jit.Program(
    "cells",
    ("lanes.cuh", "norm.cuh", "depthwise.cuh", "cells.cpp"),
    ("norm_forward", "norm_backward", "depthwise_gradient"),
    {"NORM_ARGUMENTS_SIZE": _NORM.size, "DEPTHWISE_ARGUMENTS_SIZE": _DEPTHWISE.size},
)

_SEGMENT = 65536
"""Elements of an image that one thread works on: a number of its own, so that the order of sums,
and with it every bit, does not depend on the number of threads."""

_SMALL = 32768
"""Elements below which one thread is faster than several."""


class Activation(NamedTuple):
    """A function of one number: h sigmoid(h), or h where it is positive and else `slope` h."""

    silu: bool
    slope: float


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of each pixel are side by side in memory, and the pixels too."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=_format(x))


def norm_forward(x: Tensor, added: Tensor | None, activation: Activation) -> tuple[Tensor, Tensor]:
    """Normalises, activates and adds.

    Returns:
        The output, in the layout of `x`, and for each channel of each image its mean and 1 / its
        standard deviation, float32, with shape (N, C, 2).
    """
    x = _dense(x)
    out, statistics = torch.empty_like(x), x.new_empty((*x.shape[:2], 2), dtype=torch.float32)
    other = None if added is None else _like(added, x)
    _launch("norm_forward", x, other, out, statistics, activation)
    return out, statistics


def norm_backward(
    gradient: Tensor, x: Tensor, statistics: Tensor, activation: Activation
) -> Tensor:
    """Returns the gradient of `x` from that of the output."""
    x = _dense(x)
    out = torch.empty_like(x)
    _launch("norm_backward", x, _like(gradient, x), out, statistics, activation)
    return out


def _launch(
    function: str,
    x: Tensor,
    other: Tensor | None,
    out: Tensor,
    statistics: Tensor,
    activation: Activation,
) -> None:
    images, channels, pixels = x.shape[0], x.shape[1], x.shape[2:].numel()
    if x.is_contiguous():  # every channel is an image of its own
        images, channels = images * channels, 1
    length = max(1, _SEGMENT // channels)
    addresses = (0 if t is None else t.data_ptr() for t in (x, other, out, statistics))
    sizes = images, channels, pixels, -(-pixels // length), length
    packed = _NORM.pack(*addresses, *sizes, *activation, EPSILON)
    getattr(_cpu.library(x.dtype, CELLS), function)(packed, _threads(x))


def depthwise_gradient(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of weights and biases of a depthwise convolution from its output's.

    Returns:
        In float32, with shapes (C, 1, 5, 5) and (C).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    gradient = _like(gradient, x)
    images, channels, height, width = x.shape
    out = x.new_empty((SIDE**2 + 1, channels), dtype=torch.float32)
    addresses = (t.data_ptr() for t in (x, gradient, out))
    packed = _DEPTHWISE.pack(*addresses, images, height, width, channels)
    _cpu.library(x.dtype, CELLS).depthwise_gradient(packed, _threads(x))
    return out[:-1].t().contiguous().view(channels, 1, SIDE, SIDE), out[-1].clone()


def _threads(x: Tensor) -> int:
    return 1 if x.numel() < _SMALL else torch.get_num_threads()


def _dense(x: Tensor) -> Tensor:
    return x if is_channels_last(x) else x.contiguous()


def _like(tensor: Tensor, x: Tensor) -> Tensor:
    """Returns a tensor of the same shape in the dtype and layout of `x`, copied if need be."""
    if x.is_contiguous():
        return tensor.to(x.dtype).contiguous()
    return tensor.to(x.dtype).contiguous(memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d
