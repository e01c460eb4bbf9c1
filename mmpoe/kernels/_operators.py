r"""The kernels inside PyTorch: gradients of any order, shapes without data, compilation.

`run` is the fast way in: an autograd function that launches a kernel by itself. While something
traces (``torch.compile``, fake tensors, any dispatch mode) it calls the registered operators
``torch.ops.mmpoe.gaussian_poe`` and ``torch.ops.mmpoe.gaussian_poe_backward`` instead, which cost
more to call and do the same.
"""

from __future__ import annotations

__all__ = ["is_traced", "run"]

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import Parameter

from . import _launch, _reference, backends
from ._arguments import Inputs, Numbers, Outputs, Want, gather


def run(inputs: Inputs, want: Want) -> Outputs:
    """Computes the outputs that are wanted on the fused backend of the device of the inputs."""
    noise, common_noise = inputs.noise, inputs.common_noise
    if noise is not None and noise.dtype != inputs.loc[0].dtype:
        inputs = inputs._replace(noise=noise.to(inputs.loc[0].dtype))
    if common_noise is not None and common_noise.dtype != torch.float32:
        inputs = inputs._replace(common_noise=common_noise.float())
    if is_traced(inputs.loc[0]):
        return Outputs(*_only(torch.ops.mmpoe.gaussian_poe(*inputs, want), want))
    tensors = inputs.tensors
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return Outputs(*_Fused.apply(want, inputs.numbers, *tensors))
    return _launch.forward(inputs, want)


def is_traced(first: Tensor) -> bool:
    """Whether something traces what a tensor goes through."""
    return (
        torch.compiler.is_compiling()
        or type(first) not in (Tensor, Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
    )


class _Context(FunctionCtx):
    """The tensors that a forward pass keeps for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    numbers: Numbers
    want: Want


def _differentiate(
    ctx: _Context,
    gradients: Sequence[Tensor | None],
    needed: Sequence[bool],
    kernel: Callable[..., Sequence[Tensor | None]],
) -> Sequence[Tensor | None]:
    """Computes the gradients needed, in the order of `Inputs.tensors`."""
    if all(g is None for g in gradients):
        return [None] * len(needed)
    if torch.is_grad_enabled():  # they will be differentiated again, which PyTorch can do
        kernel = _reference.gradients
    return kernel(gather(ctx.saved_tensors, ctx.numbers), Outputs(*gradients), needed)


def _save(ctx: _Context, tensors: Sequence[Any], numbers: Numbers) -> None:
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)
    ctx.numbers = numbers


class _Fused(torch.autograd.Function):
    """A kernel and its gradient, without the dispatcher."""

    @staticmethod
    def forward(ctx: _Context, want: Want, numbers: Numbers, *tensors: Tensor) -> Outputs:
        _save(ctx, tensors, numbers)
        return _launch.forward(gather(tensors, numbers), want)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor | None) -> tuple:
        needed = ctx.needs_input_grad[2:]
        return (None, None, *_differentiate(ctx, gradients, needed, _launch.backward))


# ---- The operators --------------------------------------------------------------------------
#
# Their arguments are the fields of `Inputs`, then what is wanted; or the four gradients of the
# outputs, then which gradients of `Inputs.tensors` are needed. An operator returns tensors: an
# empty one stands for what is not wanted.

_ARGUMENTS = (
    "Tensor[] loc, Tensor[] log_scale, Tensor given, Tensor? rows, Tensor? prior_loc, "
    "Tensor? prior_log_scale, Tensor? noise, Tensor? seed, Tensor? common_noise, int power, "
    "float clamp, float temperature, str prior_in"
)
_GRADIENTS = "Tensor? grad_z, Tensor? grad_loc, Tensor? grad_log_scale, Tensor? grad_kl"
_COUNT = len(Inputs._fields)


def _operator(compute: Callable[..., Sequence[Tensor | None]]) -> Callable[..., list[Tensor]]:
    """Makes an operator of a function of `Inputs`, gradients as `Outputs` if any, and flags."""

    def run(*arguments: Any) -> list[Tensor]:  # noqa: ANN401
        inputs, (*gradients, flags) = Inputs(*arguments[:_COUNT]), arguments[_COUNT:]
        found = compute(inputs, *([Outputs(*gradients)] if gradients else []), flags)
        return [inputs.loc[0].new_empty(0) if t is None else t for t in found]

    return run


def _forward(inputs: Inputs, want: Want) -> Outputs:
    backends.note(inputs.loc[0].device.type)
    return _launch.forward(inputs, want)


def _only(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    return [t if want else None for t, want in zip(tensors, wanted, strict=True)]


def _setup_context(ctx: _Context, inputs: tuple, output: tuple) -> None:
    arguments = Inputs(*inputs[:_COUNT])
    _save(ctx, arguments.tensors, arguments.numbers)
    ctx.want = inputs[_COUNT]


def _autograd(ctx: _Context, *gradients: Tensor | None) -> tuple:
    loc, log_scale, *others = cast("Any", ctx.needs_input_grad[:9])  # lists of the experts
    needed = (*loc, *log_scale, *others)
    into = _differentiate(ctx, _only(gradients, ctx.want), needed, _call_backward)
    return (*gather(into, (None,) * 4), None)  # none of numbers, nor of what is wanted


def _call_backward(
    inputs: Inputs, gradients: Outputs, needed: Sequence[bool]
) -> list[Tensor | None]:
    return _only(torch.ops.mmpoe.gaussian_poe_backward(*inputs, *gradients, needed), needed)


_library = torch.library.Library("mmpoe", "DEF")
_library.define(f"gaussian_poe({_ARGUMENTS}, bool[4] want) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define(f"gaussian_poe_backward({_ARGUMENTS}, {_GRADIENTS}, bool[] need) -> Tensor[]")
for _device in ("CPU", "CUDA"):
    _library.impl("gaussian_poe", _operator(_forward), _device)
    _library.impl("gaussian_poe_backward", _operator(_launch.backward), _device)
for _name, _shapes in (
    ("gaussian_poe", _launch.allocate_outputs),
    ("gaussian_poe_backward", lambda inputs, _, need: _launch.allocate_gradients(inputs, need)),
):
    torch.library.register_fake(f"mmpoe::{_name}", _operator(_shapes), lib=_library)
torch.library.register_autograd(
    "mmpoe::gaussian_poe", _autograd, setup_context=_setup_context, lib=_library
)
