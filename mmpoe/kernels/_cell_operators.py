r"""The kernels of networks inside PyTorch: gradients of any order, shapes without data.

As in `_operators`, an autograd function launches a kernel by itself; while something traces, the
registered operators ``torch.ops.mmpoe.instance_norm``, ``instance_norm_backward`` and
``depthwise_gradient`` do.
"""

from __future__ import annotations

__all__ = ["depthwise", "norm"]

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from . import _cells, backends
from ._cells import CELLS, EPSILON, SIDE, Activation
from ._operators import is_traced


class _Context(FunctionCtx):
    """The tensors that a forward pass keeps for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    activation: Activation


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


# ---- Instance normalisation -----------------------------------------------------------------


def norm(x: Tensor, added: Tensor | None, activation: Activation) -> Tensor:
    """Normalises, activates and adds."""
    if is_traced(x):
        return torch.ops.mmpoe.instance_norm(x, added, *activation)[0]
    if _needs_gradient(x, added):
        return _Norm.apply(x, added, activation)
    return _cells.norm_forward(x, added, activation)[0]


class _Norm(torch.autograd.Function):
    """The kernel and its gradient, without the dispatcher."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, added: Tensor | None, activation: Activation) -> Tensor:
        out, statistics = _cells.norm_forward(x, added, activation)
        ctx.save_for_backward(x, statistics)
        ctx.activation = activation
        return out

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_norm_gradients(ctx, gradients[0], _cells.norm_backward), None


def _norm_gradients(ctx: _Context, gradient: Tensor, kernel: Any) -> list[Tensor | None]:  # noqa: ANN401
    """The gradients of `x` and of what is added; by a kernel, unless they have gradients too."""
    x, statistics = ctx.saved_tensors
    needs, added = ctx.needs_input_grad[:2]
    into = None
    if needs and torch.is_grad_enabled():
        into = _differentiable_gradient(gradient, x, ctx.activation)
    elif needs:
        into = kernel(gradient, x, statistics, ctx.activation)
    return [into, gradient if added else None]


def _differentiable_gradient(gradient: Tensor, x: Tensor, activation: Activation) -> Tensor:
    y = functional.group_norm(x, num_groups=x.shape[1], eps=EPSILON)
    y = functional.silu(y) if activation.silu else torch.where(y > 0, y, activation.slope * y)
    (into,) = torch.autograd.grad(y, x, gradient, create_graph=True)
    return into


def _setup_norm(ctx: _Context, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, _, silu, slope = inputs
    ctx.save_for_backward(x, output[1])
    ctx.activation = Activation(silu, slope)
    ctx.mark_non_differentiable(output[1])


def _norm_autograd(ctx: _Context, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_norm_gradients(ctx, gradient, _call_norm_backward), None, None


def _call_norm_backward(
    gradient: Tensor, x: Tensor, statistics: Tensor, activation: Activation
) -> Tensor:
    return torch.ops.mmpoe.instance_norm_backward(gradient, x, statistics, *activation)


def _run_norm(x: Tensor, added: Tensor | None, silu: bool, slope: float) -> tuple[Tensor, Tensor]:
    backends.note(x.device.type, CELLS.name)
    return _cells.norm_forward(x, added, Activation(silu, slope))


def _run_norm_backward(
    gradient: Tensor, x: Tensor, statistics: Tensor, silu: bool, slope: float
) -> Tensor:
    return _cells.norm_backward(gradient, x, statistics, Activation(silu, slope))


# ---- Depthwise convolution ------------------------------------------------------------------


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves."""
    return _Depthwise.apply(x, weight, bias)


class _Depthwise(torch.autograd.Function):
    """PyTorch's convolution, with another gradient."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, bias, padding=SIDE // 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        of_x = of_weight = of_bias = None
        if needs_x:
            turned = weight.flip(2, 3)
            of_x = functional.conv2d(gradient, turned, padding=SIDE // 2, groups=x.shape[1])
        if needs_weight or needs_bias:
            of_weight, of_bias = _weight_gradients(gradient, x, weight.dtype)
        return of_x, of_weight if needs_weight else None, of_bias if needs_bias else None


def _weight_gradients(gradient: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradients of weights and biases, by the kernel unless they are differentiated again."""
    if torch.is_grad_enabled():
        channels = x.shape[1]
        weight = x.new_zeros(channels, 1, SIDE, SIDE, dtype=dtype, requires_grad=True)
        bias = x.new_zeros(channels, dtype=dtype, requires_grad=True)
        out = functional.conv2d(x, weight, bias, padding=SIDE // 2, groups=channels)
        weight, bias = torch.autograd.grad(out, (weight, bias), gradient, create_graph=True)
        return weight, bias
    found = torch.ops.mmpoe.depthwise_gradient if is_traced(x) else _cells.depthwise_gradient
    weight, bias = found(gradient, x)
    return weight.to(dtype), bias.to(dtype)


# ---- The operators --------------------------------------------------------------------------


def _empty_norm(
    x: Tensor, added: Tensor | None, silu: bool, slope: float
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x) if _cells.is_channels_last(x) else x.new_empty(x.shape)
    return out, x.new_empty((*x.shape[:2], 2), dtype=torch.float32)


def _empty_norm_backward(
    gradient: Tensor, x: Tensor, statistics: Tensor, silu: bool, slope: float
) -> Tensor:
    return _empty_norm(x, None, silu, slope)[0]


def _empty_depthwise_gradient(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    channels, single = x.shape[1], torch.float32
    weight = x.new_empty((channels, 1, SIDE, SIDE), dtype=single)
    return weight, x.new_empty(channels, dtype=single)


_library = torch.library.Library("mmpoe", "FRAGMENT")
for _schema, _run, _empty in (
    (
        "instance_norm(Tensor x, Tensor? added, bool silu, float slope) -> (Tensor, Tensor)",
        _run_norm,
        _empty_norm,
    ),
    (
        "instance_norm_backward(Tensor gradient, Tensor x, Tensor statistics, bool silu, "
        "float slope) -> Tensor",
        _run_norm_backward,
        _empty_norm_backward,
    ),
    (
        "depthwise_gradient(Tensor gradient, Tensor x) -> (Tensor, Tensor)",
        _cells.depthwise_gradient,
        _empty_depthwise_gradient,
    ),
):
    _library.define(_schema)
    _name = _schema.partition("(")[0]
    for _device in ("CPU", "CUDA") if _name != "depthwise_gradient" else ("CPU",):
        _library.impl(_name, _run, _device)
    torch.library.register_fake(f"mmpoe::{_name}", _empty, lib=_library)
torch.library.register_autograd(
    "mmpoe::instance_norm", _norm_autograd, setup_context=_setup_norm, lib=_library
)
