r"""Allocates what a kernel writes, packs its arguments and launches it."""

from __future__ import annotations

__all__ = ["allocate_gradients", "allocate_outputs", "backward", "forward"]

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from . import _cpu
from ._arguments import InputGradients, Inputs, Needed, Outputs, Plan, chunks, dense, pack

_NOTHING = Outputs(None, None, None, None)
_NOWHERE = InputGradients([], [])


class Launcher(Protocol):
    """What runs kernels: the module `_cpu`, or a `_cuda.Launcher`."""

    def plan(self, direction: str, inputs: Inputs) -> Plan:
        """Returns how the work is split."""
        ...

    def launch(self, direction: str, inputs: Inputs, packed: bytes) -> None:
        """Runs or queues a kernel."""
        ...


def forward(inputs: Inputs, want: Sequence[bool], on: Launcher | None = None) -> Outputs:
    """Computes what is wanted of `z`, `loc`, `log_scale` and `kl`.

    Arguments:
        inputs: The inputs.
        want: For each output, whether it is wanted.
        on: What launches the kernel; that of the device of the inputs if None.
    """
    on = on or _launcher(inputs)
    inputs = _dense(inputs)
    outputs, plan = allocate_outputs(inputs, want), on.plan("forward", inputs)
    pieces, kl = chunks(inputs.loc[0], plan.length), outputs.kl
    if kl is not None and pieces > 1:
        kl = kl.new_empty((*kl.shape, pieces))
    partial = Outputs(*outputs[:3], kl)
    on.launch("forward", inputs, pack(inputs, partial, _NOTHING, _NOWHERE, plan))
    if kl is not None and pieces > 1:
        torch.sum(kl, dim=-1, out=outputs.kl)
    return outputs


def backward(
    inputs: Inputs, gradients: Outputs, needed: Needed, on: Launcher | None = None
) -> InputGradients:
    """Computes the gradients of the inputs that are needed.

    Arguments:
        inputs: Those of the forward pass.
        gradients: The gradients of the outputs, None for zero.
        needed: Which gradients to compute.
        on: What launches the kernel; that of the device of the inputs if None.
    """
    on = on or _launcher(inputs)
    inputs = _dense(inputs)
    gradients = Outputs(*(None if g is None else g.contiguous() for g in gradients))
    into = allocate_gradients(inputs, needed)
    packed = pack(inputs, _NOTHING, gradients, into, on.plan("backward", inputs))
    on.launch("backward", inputs, packed)
    if into.common_noise is not None:
        into = into._replace(common_noise=_sum_per_channel(into.common_noise))
    return into


def allocate_outputs(inputs: Inputs, want: Sequence[bool]) -> Outputs:
    """Returns empty tensors for the outputs that are wanted."""
    first, shape = inputs.loc[0], inputs.shape
    z, loc, log_scale = (first.new_empty(shape) if wanted else None for wanted in want[:3])
    rows = inputs.given.shape[:-1]
    kl = first.new_empty(rows, dtype=torch.float32) if want[3] else None
    return Outputs(z, loc, log_scale, kl)


def allocate_gradients(inputs: Inputs, needed: Needed) -> InputGradients:
    """Returns empty tensors for the gradients needed; that of the common noise per element."""
    first = inputs.loc[0]
    if not first.is_contiguous():
        first = first.new_empty(first.shape)

    def one(wanted: bool) -> Tensor | None:
        return torch.empty_like(first) if wanted else None  # half the time of new_empty

    return InputGradients(
        [one(wanted) for wanted in needed.loc],
        [one(wanted) for wanted in needed.log_scale],
        one(needed.prior_loc),
        one(needed.prior_log_scale),
        torch.empty_like(first, dtype=torch.float32) if needed.common_noise else None,
    )


def _launcher(inputs: Inputs) -> Launcher:
    if inputs.loc[0].device.type == "cpu":
        return _cpu
    from . import _cuda

    return _cuda.launcher()


def _sum_per_channel(rows: Tensor) -> Tensor:
    """Sums over samples and what follows the channels."""
    others = [d for d in range(rows.dim()) if d != 1]
    return rows.sum(dim=others) if rows.dim() > 1 else rows.sum().reshape(1)


def _dense(inputs: Inputs) -> Inputs:
    loc, log_scale, given, prior, noise, *_ = inputs
    tensors = (*loc, *log_scale, given, *(prior or ()))
    if (noise is None or noise.is_contiguous()) and all(t.is_contiguous() for t in tensors):
        return inputs
    return inputs._replace(
        loc=[dense(t) for t in loc],
        log_scale=[dense(t) for t in log_scale],
        given=given.contiguous(),
        prior=None if prior is None else (dense(prior[0]), dense(prior[1])),
        noise=None if noise is None else noise.contiguous(),
    )
