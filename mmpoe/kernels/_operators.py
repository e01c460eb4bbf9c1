r"""The kernels as PyTorch operators: shapes without data, gradients of any order, compilation.

`run` is the fast way in: an autograd function that launches a kernel by itself. While something
traces (``torch.compile``, fake tensors, any dispatch mode) it calls the registered operators
``torch.ops.mmpoe.gaussian_poe`` and ``torch.ops.mmpoe.gaussian_poe_backward`` instead, which cost
more to call and do the same.
"""

from __future__ import annotations

__all__ = ["run"]

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import Parameter

from . import _launch, _reference, backends
from ._arguments import InputGradients, Inputs, Needed, Outputs

Want = Sequence[bool]
"""For each output, whether it is wanted."""


def run(inputs: Inputs, want: Want) -> Outputs:
    """Computes the outputs that are wanted on the fused backend of the device of the inputs."""
    if _is_traced(inputs.loc[0]):
        outputs = torch.ops.mmpoe.gaussian_poe(*_flatten(inputs), want)
    else:
        tensors = (*_others(inputs), *inputs.loc, *inputs.log_scale)
        if not torch.is_grad_enabled() or not any(
            t is not None and t.requires_grad for t in tensors
        ):
            return _launch.forward(inputs, want)
        outputs = _Fused.apply(want, inputs[-3:], *tensors)
    return Outputs(*(t if wanted else None for t, wanted in zip(outputs, want, strict=True)))


def _is_traced(first: Tensor) -> bool:
    return (
        torch.compiler.is_compiling()
        or type(first) not in (Tensor, Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _others(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Returns the six tensors that are not experts."""
    prior = inputs.prior or (None, None)
    return (inputs.given, *prior, inputs.noise, inputs.seed, inputs.common_noise)


def _gather(numbers: tuple, others: Sequence[Tensor], experts: Sequence[Tensor]) -> Inputs:
    given, prior_loc, prior_log_scale, noise, seed, common_noise = others
    half = len(experts) // 2
    loc, log_scale = [*experts[:half]], [*experts[half:]]
    prior = None if prior_loc is None else (prior_loc, prior_log_scale)
    return Inputs(loc, log_scale, given, prior, noise, seed, common_noise, *numbers)


def _gradients(
    inputs: Inputs,
    gradients: Sequence[Tensor | None],
    needed: Needed,
    kernel: Callable[[Inputs, Outputs, Needed], InputGradients],
) -> InputGradients:
    if all(g is None for g in gradients):
        return InputGradients([None] * len(inputs.loc), [None] * len(inputs.loc))
    if torch.is_grad_enabled():  # they will be differentiated again, which PyTorch can do
        return _reference.gradients(inputs, Outputs(*gradients), needed)
    return kernel(inputs, Outputs(*gradients), needed)


class _Context(FunctionCtx):
    """What a forward pass keeps for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    numbers: tuple[int, float, float]
    want: Want


class _Fused(torch.autograd.Function):
    """A kernel and its gradient, without the dispatcher."""

    @staticmethod
    def forward(ctx: _Context, want: Want, numbers: tuple, *tensors: Tensor) -> tuple:
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.numbers = numbers
        return tuple(_launch.forward(_gather(numbers, tensors[:6], tensors[6:]), want))

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor | None) -> tuple:
        tensors = ctx.saved_tensors
        inputs = _gather(ctx.numbers, tensors[:6], tensors[6:])
        _, _, _, prior_loc, prior_log_scale, _, _, common, *experts = ctx.needs_input_grad
        half = len(inputs.loc)
        needed = Needed(experts[:half], experts[half:], prior_loc, prior_log_scale, common)
        into = _gradients(inputs, gradients, needed, _launch.backward)
        prior = (into.prior_loc, into.prior_log_scale)
        experts = (*into.loc, *into.log_scale)
        return (None, None, None, *prior, None, None, into.common_noise, *experts)


# ---- The operators --------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor[] loc, Tensor[] log_scale, Tensor given, Tensor? prior_loc, Tensor? prior_log_scale, "
    "Tensor? noise, Tensor? seed, Tensor? common_noise, int power, float clamp, float temperature"
)
_GRADIENTS = "Tensor? grad_z, Tensor? grad_loc, Tensor? grad_log_scale, Tensor? grad_kl"


def _flatten(inputs: Inputs) -> tuple:
    return (inputs.loc, inputs.log_scale, *_others(inputs), *inputs[-3:])


def _parse(arguments: Sequence[object]) -> Inputs:
    loc, log_scale, *others = cast("Sequence[Any]", arguments[:8])
    return _gather((*arguments[8:11],), others, [*loc, *log_scale])


def _parse_backward(arguments: Sequence[object]) -> tuple[Inputs, Outputs, Needed]:
    inputs = _parse(arguments)
    gradients, need = cast("Sequence[Any]", arguments[11:15]), cast("list[bool]", arguments[15])
    loc, log_scale, *others = need
    count = len(inputs.loc)
    return inputs, Outputs(*gradients), Needed([loc] * count, [log_scale] * count, *others)


def _fill(inputs: Inputs, tensor: Tensor | None) -> Tensor:
    """Stands in for what is not wanted: an operator returns tensors."""
    return inputs.loc[0].new_empty(0) if tensor is None else tensor


def _forward(*arguments: object) -> tuple[Tensor, ...]:
    inputs = _parse(arguments)
    backends.note(inputs.loc[0].device.type)
    outputs = _launch.forward(inputs, cast("Want", arguments[11]))
    return tuple(_fill(inputs, t) for t in outputs)


def _backward(*arguments: object) -> tuple:
    inputs, gradients, needed = _parse_backward(arguments)
    return _lists(inputs, _launch.backward(inputs, gradients, needed))


def _lists(inputs: Inputs, into: InputGradients) -> tuple:
    loc, log_scale, *others = into
    experts = ([_fill(inputs, t) for t in part] for part in (loc, log_scale))
    return (*experts, *(_fill(inputs, t) for t in others))


def _forward_shapes(*arguments: object) -> tuple[Tensor, ...]:
    inputs = _parse(arguments)
    outputs = _launch.allocate_outputs(inputs, cast("Want", arguments[11]))
    return tuple(_fill(inputs, t) for t in outputs)


def _backward_shapes(*arguments: object) -> tuple:
    inputs, _, needed = _parse_backward(arguments)
    into = _launch.allocate_gradients(inputs, needed)
    if into.common_noise is not None and inputs.common_noise is not None:
        into = into._replace(common_noise=torch.empty_like(inputs.common_noise))
    return _lists(inputs, into)


def _setup_context(ctx: _Context, inputs: tuple, output: tuple) -> None:
    loc, log_scale, *others = inputs[:8]
    ctx.save_for_backward(*others, *loc, *log_scale)
    ctx.set_materialize_grads(False)
    ctx.numbers, ctx.want = inputs[8:11], inputs[11]


def _differentiate(ctx: _Context, *gradients: Tensor | None) -> tuple:
    inputs = _gather(ctx.numbers, ctx.saved_tensors[:6], ctx.saved_tensors[6:])
    gradients = tuple(g if want else None for g, want in zip(gradients, ctx.want, strict=True))
    needs, everyone = ctx.needs_input_grad, [True] * len(inputs.loc)
    needed = Needed(everyone, everyone, needs[3], needs[4], needs[7])
    into = _gradients(inputs, gradients, needed, _backward_operator)
    prior = (into.prior_loc, into.prior_log_scale)
    return (into.loc, into.log_scale, None, *prior, None, None, into.common_noise, *[None] * 4)


def _backward_operator(inputs: Inputs, gradients: Outputs, needed: Needed) -> InputGradients:
    need = [True, True, needed.prior_loc, needed.prior_log_scale, needed.common_noise]
    into = torch.ops.mmpoe.gaussian_poe_backward(*_flatten(inputs), *gradients, need)
    others = (g if want else None for g, want in zip(into[2:], need[2:], strict=True))
    return InputGradients(into[0], into[1], *others)


_library = torch.library.Library("mmpoe", "DEF")
_library.define(f"gaussian_poe({_ARGUMENTS}, bool[4] want) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define(
    f"gaussian_poe_backward({_ARGUMENTS}, {_GRADIENTS}, bool[5] need) "
    "-> (Tensor[], Tensor[], Tensor, Tensor, Tensor)"
)
for _device in ("CPU", "CUDA"):
    _library.impl("gaussian_poe", _forward, _device)
    _library.impl("gaussian_poe_backward", _backward, _device)
torch.library.register_fake("mmpoe::gaussian_poe", _forward_shapes, lib=_library)
torch.library.register_fake("mmpoe::gaussian_poe_backward", _backward_shapes, lib=_library)
torch.library.register_autograd(
    "mmpoe::gaussian_poe", _differentiate, setup_context=_setup_context, lib=_library
)
