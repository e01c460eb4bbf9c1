r"""Allocates what a kernel writes, packs its arguments and launches it."""

from __future__ import annotations

__all__ = ["Launcher", "allocate_gradients", "allocate_outputs", "backward", "dense", "forward"]

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from . import _cpu, _cuda
from ._arguments import NOTHING, Inputs, Outputs, Plan, Want, pack


class Launcher(Protocol):
    """The interface of `_cpu` and of `_cuda.Launcher`, which run kernels."""

    def plan(self, direction: str, inputs: Inputs) -> Plan:
        """Returns how ``"forward"`` or ``"backward"`` runs."""
        ...


def forward(inputs: Inputs, want: Want, on: Launcher | None = None) -> Outputs:
    """Computes the outputs that are wanted, with the launcher of the device if `on` is None."""
    inputs = _dense(inputs)
    plan, order = (on or _launcher(inputs)).plan("forward", inputs), _order(inputs)
    outputs = allocate_outputs(inputs, want)
    if outputs.kl is None or plan.chunks == 1:
        plan.launch(pack(inputs, order, plan, outputs))
        return outputs
    parts = outputs.kl.new_empty((*outputs.kl.shape, plan.chunks))
    plan.launch(pack(inputs, order, plan, outputs._replace(kl=parts)))
    torch.sum(parts, dim=-1, out=outputs.kl)
    return outputs


def backward(
    inputs: Inputs, gradients: Outputs, needed: Sequence[bool], on: Launcher | None = None
) -> list[Tensor | None]:
    """Computes the gradients of `inputs.tensors` that are needed, from those of the outputs.

    The gradient of an output may be None, for zero; one that is not needed is None.
    """
    inputs = _dense(inputs)
    plan, order = (on or _launcher(inputs)).plan("backward", inputs), _order(inputs)
    gradients = Outputs(*(None if g is None else g.contiguous() for g in gradients))
    into = allocate_gradients(inputs, needed)
    common, parts = into[-1], None
    if common is not None:
        parts = torch.empty(inputs.loc[0].shape, dtype=torch.float32, device=common.device)
    plan.launch(pack(inputs, order, plan, NOTHING, gradients, [*into[:-1], parts]))
    if common is not None and parts is not None:
        torch.sum(parts.view(len(parts), len(common), -1), dim=(0, 2), out=common)
    return into


def allocate_outputs(inputs: Inputs, want: Want) -> Outputs:
    """Returns empty tensors for the outputs that are wanted."""
    first, rows = inputs.loc[0], inputs.given.shape[:-1]
    alike = inputs.shape == first.shape and first.is_contiguous()  # faster
    empty = partial(torch.empty_like, first) if alike else partial(first.new_empty, inputs.shape)
    z, loc, log_scale = (empty() if wanted else None for wanted in want[:3])
    kl = first.new_empty(rows, dtype=torch.float32) if want[3] else None
    return Outputs(z, loc, log_scale, kl)


def allocate_gradients(inputs: Inputs, needed: Sequence[bool]) -> list[Tensor | None]:
    """Returns empty tensors for the gradients needed."""
    first, common = inputs.loc[0], inputs.common_noise
    if not first.is_contiguous():
        first = first.new_empty(first.shape)
    into = [torch.empty_like(first) if need else None for need in needed[:-1]]
    return [*into, torch.empty_like(common) if needed[-1] and common is not None else None]


def _order(inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
    """Returns the order of the pairs, as in a sparse matrix of compressed rows, see `pack`.

    Raises:
        ValueError: If a pair is about a sample that is not there; on a GPU, where to look is to
            wait, PyTorch's assertion of a kernel fails instead.
    """
    rows, samples = inputs.rows, inputs.loc[0].shape[0]
    if rows is None:
        return None, None
    pairs = None
    if rows.is_cuda or bool((rows[1:] < rows[:-1]).any()):
        rows, pairs = rows.sort(stable=True)
    offsets = torch.searchsorted(rows, torch.arange(samples + 1, device=rows.device))
    if rows.is_cuda:
        there = (offsets[0] == 0) & (offsets[-1] == len(rows))
        torch.ops.aten._assert_async.msg(there, "'rows' should hold samples of the batch")
    elif int(offsets[0]) or int(offsets[-1]) < len(rows):
        raise ValueError(
            f"'rows' should hold samples, 0 to {samples - 1}, but holds {int(rows[0])} to "
            f"{int(rows[-1])}."
        )
    return offsets, pairs


def _launcher(inputs: Inputs) -> Launcher:
    return _cpu if inputs.loc[0].device.type == "cpu" else _cuda.launcher()


def _dense(inputs: Inputs) -> Inputs:
    """Copies what a kernel could not address; in a model, that is nothing."""
    if all(t is None or t.is_contiguous() for t in inputs.tensors):
        return inputs

    def each(copy: Callable[[Tensor], Tensor], tensors: Sequence[Any]) -> list[Any]:
        return [None if t is None else copy(t) for t in tensors]

    whole = Tensor.contiguous
    experts = each(dense, inputs.loc), each(dense, inputs.log_scale)
    others = *each(whole, inputs[2:4]), *each(dense, inputs[4:6]), *each(whole, inputs[6:9])
    return Inputs._make((*experts, *others, *inputs.numbers))


def dense(tensor: Tensor) -> Tensor:
    """Returns the tensor, copied unless the elements of each sample are contiguous."""
    if tensor.is_contiguous() or (tensor.shape[0] > 0 and tensor[0].is_contiguous()):
        return tensor
    return tensor.contiguous()
