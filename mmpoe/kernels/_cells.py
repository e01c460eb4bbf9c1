r"""Launches the kernels of networks: instance normalisation, the gradient of depthwise weights."""

from __future__ import annotations

__all__ = [
    "CELLS",
    "EPSILON",
    "SIDE",
    "Activation",
    "NormKernel",
    "depthwise_gradient",
    "is_channels_last",
    "norm_backward",
    "norm_forward",
]

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from . import _cpu, _cuda, jit
from ._arguments import STORAGE

EPSILON = 1e-5
"""The number that normalisation adds to a variance, as in PyTorch."""

SIDE = 5
"""The height and width of depthwise weights."""

_NORM = struct.Struct("=11q2f")
_DEPTHWISE = struct.Struct("=7q")

CELLS = jit.Program(
    "cells",
    ("lanes.cuh", "depthwise.cuh", "norm.cuh", "cells.cpp"),
    ("norm_forward", "norm_backward", "depthwise_gradient"),
    {"NORM_ARGUMENTS_SIZE": _NORM.size, "DEPTHWISE_ARGUMENTS_SIZE": _DEPTHWISE.size},
)

_SEGMENT = 65536
"""Elements of an image that one thread works on: a number of its own, so that the order of sums,
and with it every bit, does not depend on the number of threads."""

_SMALL = 32768
"""Elements below which one thread is faster than several."""

_BLOCK = 8192
"""Elements of an image that one block of a GPU works on."""

_THREADS = 128
"""Threads of a block; the kernels are compiled for no more."""


class Activation(NamedTuple):
    """A function of one number: h sigmoid(h), or h where it is positive and else `slope` h."""

    silu: bool
    slope: float


class NormKernel(NamedTuple):
    """A kernel of normalisation on a GPU."""

    label: str
    """``"forward_sums"``, ``"forward_map"``, ``"backward_sums"`` or ``"backward_map"``."""
    dtype: torch.dtype
    silu: bool

    @property
    def program(self) -> jit.Program:
        """The program that it is of."""
        return CELLS

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return f"norm_{self.label}"

    @property
    def defines(self) -> list[str]:
        """The macros of the source."""
        return [
            *(f"-D{name}={size}" for name, size in CELLS.sizes.items()),
            f"-DGPOE_STORAGE={STORAGE[self.dtype]}",
            f"-DNORM_SILU={self.silu:d}",
            f"-DNORM_NAME={self.name}",
            f"-DNORM_KERNEL={self.label}",
        ]


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of each pixel are side by side in memory, and the pixels too."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=_format(x))


def norm_forward(
    x: Tensor,
    added: Tensor | None,
    activation: Activation,
    on: _cuda.Launcher | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalises, activates and adds, with the launcher of the device if `on` is None.

    Returns:
        The output, in the layout of `x`, and for each channel of each image its mean and 1 / its
        standard deviation, float32, with shape (N, C, 2).
    """
    x = _dense(x)
    out, statistics = torch.empty_like(x), x.new_empty((*x.shape[:2], 2), dtype=torch.float32)
    other = None if added is None else _like(added, x)
    _launch("forward", (x, other, out, statistics), activation, on)
    return out, statistics


def norm_backward(
    gradient: Tensor,
    x: Tensor,
    statistics: Tensor,
    activation: Activation,
    on: _cuda.Launcher | None = None,
) -> Tensor:
    """Returns the gradient of `x` from that of the output."""
    x = _dense(x)
    out = torch.empty_like(x)
    _launch("backward", (x, _like(gradient, x), out, statistics), activation, on)
    return out


def _launch(
    direction: str,
    tensors: tuple[Tensor, Tensor | None, Tensor, Tensor],
    activation: Activation,
    on: _cuda.Launcher | None,
) -> None:
    """Launches kernels on `x`, another tensor if any, the output and the statistics."""
    x = tensors[0]
    if x.is_cuda and on is None:
        on = _cuda.launcher()
    images, channels, pixels = x.shape[0], x.shape[1], x.shape[2:].numel()
    if x.is_contiguous():  # every channel is an image of its own
        images, channels = images * channels, 1
    length = max(1, (_SEGMENT if on is None else _BLOCK) // channels)
    segments = -(-pixels // length)
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    numbers = images, channels, pixels, segments, length, *activation, EPSILON
    if on is None:
        kernel = getattr(_cpu.library(x.dtype, CELLS), f"norm_{direction}")
        kernel(_NORM.pack(*addresses, 0, *numbers), _threads(x))
        return
    blocks = images * segments
    partial = x.new_empty((blocks, 2, channels), dtype=torch.float32)
    packed = _NORM.pack(*addresses, partial.data_ptr(), *numbers)
    for stage, floats in (("sums", _THREADS), ("map", 2 * channels)):
        kernel = NormKernel(f"{direction}_{stage}", x.dtype, activation.silu)
        function = on.function(kernel, x.device)
        on.driver.launch(function, blocks, _THREADS, 4 * floats, packed, x.device)


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
