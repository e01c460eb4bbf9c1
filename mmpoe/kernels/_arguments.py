r"""The arguments of the operation, in one form from the public call to the kernel."""

from __future__ import annotations

__all__ = [
    "MAX_EXPERTS",
    "NOTHING",
    "PRIOR_IN",
    "SIZE",
    "STORAGE",
    "Inputs",
    "Outputs",
    "Plan",
    "Want",
    "gather",
    "pack",
]

import struct
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_EXPERTS = 32
"""The bits of the mask that says which experts are given."""

PRIOR_IN = ("always", "full", "never")
"""The products that the prior may be a factor of; the source counts them from 0."""

STORAGE = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""The names in the source of what a kernel reads and writes; it computes in float32."""

Want = tuple[bool, bool, bool, bool]
"""For each output, whether it is wanted."""

Numbers = tuple[int, float, float, str]
"""The power, the limit of the clamp, the temperature, and where the prior is a factor."""


class Inputs(NamedTuple):
    """The arguments of :func:`mmpoe.kernels.gaussian_poe`, checked, and a seed in place of noise.

    The operator ``torch.ops.mmpoe.gaussian_poe`` takes the same ones in the same order.
    """

    loc: Sequence[Tensor]
    log_scale: Sequence[Tensor]
    given: Tensor
    rows: Tensor | None
    prior_loc: Tensor | None
    """None, as the scale, for a standard normal."""
    prior_log_scale: Tensor | None
    noise: Tensor | None
    """Standard normal noise, with the shape of `z`, or else"""
    seed: Tensor | None
    """the seed that a kernel draws noise from, one int64 number; without either, `z` is `loc`."""
    common_noise: Tensor | None
    power: int
    clamp: float
    """The limit of the soft clamp; 0 is none."""
    temperature: float
    prior_in: str

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors in a row: M of `loc`, M of `log_scale`, and the seven others.

        Gradients, and flags that say which of them are needed, come in the same order.
        """
        return (*self.loc, *self.log_scale, *self[2:9])

    @property
    def numbers(self) -> Numbers:
        """The rest, which are no tensors."""
        return self[9:]

    @property
    def pairs(self) -> int:
        """The number of pairs of a sample and a subset."""
        return self.given.shape[:-1].numel()

    @property
    def size(self) -> int:
        """The number N of elements of a sample."""
        return self.loc[0].shape[1:].numel()

    @property
    def shape(self) -> tuple[int, ...]:
        r"""The shape of `z`, ([S,] B, \*) or (R, \*)."""
        return (*self.given.shape[:-1], *self.loc[0].shape[1:])


def gather(row: Sequence[Any], numbers: tuple[Any, ...]) -> Inputs:
    """Undoes `Inputs.tensors` and `Inputs.numbers`, or puts gradients in the place of tensors."""
    experts = (len(row) - 7) // 2
    return Inputs._make(([*row[:experts]], [*row[experts:-7]], *row[-7:], *numbers))


class Outputs(NamedTuple):
    """The outputs, and equally their gradients; None where not asked for."""

    z: Tensor | None
    loc: Tensor | None
    log_scale: Tensor | None
    kl: Tensor | None


NOTHING = Outputs(None, None, None, None)


class Plan(NamedTuple):
    """How a backend runs a kernel: each sample is split into chunks of equal length."""

    chunks: int
    """Of each sample."""
    length: int
    """Elements of a chunk; the last one of a sample may have fewer."""
    packet: int
    """Bytes that a thread moves at once if all addresses are multiples of it, 0 for any."""
    launch: Callable[[bytes], None]
    """Launches the kernel with its packed arguments."""
    slots: int = 1
    """Pairs that the shared memory of a GPU has room for at once."""


# ---- The bytes a kernel gets ----------------------------------------------------------------


@cache
def _layout(experts: int) -> struct.Struct:
    """Returns the layout of `Arguments` in ``csrc/gpoe.cuh``: 31 words, 4 floats, the experts."""
    return struct.Struct(f"=31q4f{6 * experts}q")


SIZE = _layout(1).size
"""Bytes of the arguments for one expert: the source checks it."""


def pack(
    inputs: Inputs,
    order: tuple[Tensor | None, Tensor | None],
    plan: Plan,
    outputs: Outputs = NOTHING,
    gradients: Outputs = NOTHING,
    into: Sequence[Tensor | None] = (),
) -> bytes:
    """Packs addresses, strides and sizes; the tensors must live until the kernel has run.

    Prior and experts are alike: six words each, `Expert` of the source. Their rows may have gaps
    between them, for which the strides are; all else is dense.

    Arguments:
        inputs: The inputs.
        order: Where the pairs of each sample begin, int64, with shape (B + 1), and the pairs,
            int64, with shape (R), those of one sample after those of the other; None if every
            sample has one for each subset, and if they are in that order.
        plan: How the kernel runs.
        outputs: Where the outputs go, `kl` with shape ([S,] B, chunks) or (R, chunks).
        gradients: The gradients of the outputs, for a backward pass.
        into: Where the gradients of `inputs.tensors` go; empty for a forward pass.
    """
    first, experts = inputs.loc[0], len(inputs.loc)
    into = into or (None,) * (2 * experts + 7)
    prior = _factor(inputs.prior_loc, inputs.prior_log_scale, into[-5], into[-4])
    factors = [*map(_factor, inputs.loc, inputs.log_scale, into, into[experts:])]
    noise, common = _at(inputs.noise), _at(into[-1])
    out, back = [*map(_at, outputs)], [*map(_at, gradients)]
    size, event = inputs.size, first.shape[1:]

    aligned = False
    if plan.packet:
        addresses = [noise, common, *out[:3], *back[:3]]
        strides = [size]
        for loc, log_scale, loc_stride, log_scale_stride, *grads in (prior, *factors):
            addresses += (loc, log_scale, *grads)
            strides += (loc_stride, log_scale_stride)
        offsets = [*addresses, *(s * first.element_size() for s in strides)]
        aligned = not any(offset % plan.packet for offset in offsets)

    return _layout(experts).pack(
        *prior,
        _at(inputs.common_noise),
        common,
        inputs.given.data_ptr(),
        *map(_at, order),
        noise,
        _at(inputs.seed),
        *out,
        *back,
        experts,
        inputs.pairs // first.shape[0],  # subsets of each sample, without offsets
        first.shape[0],
        size,
        size // event[0] if event else 1,  # of a channel
        plan.chunks,
        plan.length,
        plan.slots,
        PRIOR_IN.index(inputs.prior_in),
        aligned,
        inputs.power,
        1 / inputs.power,
        inputs.clamp,
        inputs.temperature,
        *chain.from_iterable(factors),
    )


def _factor(
    loc: Tensor | None,
    log_scale: Tensor | None,
    grad_loc: Tensor | None,
    grad_log_scale: Tensor | None,
) -> tuple[int, ...]:
    """Returns addresses, strides from row to row, and where gradients go; 0 for what is not."""
    if loc is None or log_scale is None:
        return (0,) * 6
    strides = loc.stride(0), log_scale.stride(0)
    return (loc.data_ptr(), log_scale.data_ptr(), *strides, _at(grad_loc), _at(grad_log_scale))


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
