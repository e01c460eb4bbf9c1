r"""The arguments of one kernel call, laid out as `Arguments` in ``csrc/gpoe.cuh``."""

from __future__ import annotations

__all__ = [
    "MAX_EXPERTS",
    "MAX_SUBSETS",
    "SIZE",
    "STORAGE",
    "InputGradients",
    "Inputs",
    "Needed",
    "Outputs",
    "Plan",
    "Specialisation",
    "chunks",
    "dense",
    "pack",
]

import struct
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

MAX_EXPERTS = 32
"""The bits of the mask that says which experts are given."""

MAX_SUBSETS = 1024
"""What the shared memory of a GPU has room for."""

STORAGE = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""The names in the source of what a kernel reads and writes; it computes in float32."""


class Inputs(NamedTuple):
    """What goes into the operation, already validated; see :func:`mmpoe.kernels.gaussian_poe`."""

    loc: list[Tensor]
    log_scale: list[Tensor]
    given: Tensor
    prior: tuple[Tensor, Tensor] | None
    noise: Tensor | None
    seed: Tensor | None
    common_noise: Tensor | None
    power: int
    clamp: float
    temperature: float

    @property
    def subsets(self) -> int:
        """The number of subsets, 1 if `given` has no dimension for them."""
        return self.given.shape[0] if self.given.dim() == 3 else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `z`."""
        return (*self.given.shape[:-1], *self.loc[0].shape[1:])


@cache
def _layout(experts: int) -> struct.Struct:
    return struct.Struct(f"=27q4f{6 * experts}q")


SIZE = _layout(1).size
"""Bytes of the arguments for one expert: the source checks it."""


def dense(tensor: Tensor) -> Tensor:
    """Returns the tensor, copied unless the elements of each sample are contiguous."""
    if tensor.is_contiguous() or (tensor.shape[0] > 0 and tensor[0].is_contiguous()):
        return tensor
    return tensor.contiguous()


class Plan(NamedTuple):
    """How a backend splits its work."""

    length: int
    """How many elements of a sample a thread of a CPU, or a block of a GPU, works on."""
    packet: int
    """How many bytes a thread moves at once if all addresses are multiples of it, 0 for any."""


class Specialisation(NamedTuple):
    """What a GPU kernel is compiled for."""

    direction: str
    storage: str
    experts: int
    width: int
    clamp: bool
    common_noise: bool

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return f"gpoe_{self.direction}"

    @property
    def defines(self) -> list[str]:
        """The macros of the source."""
        return [
            f"-DGPOE_ARGUMENTS_SIZE={SIZE}",
            f"-DGPOE_STORAGE={self.storage}",
            f"-DGPOE_EXPERTS={self.experts}",
            f"-DGPOE_WIDTH={self.width}",
            f"-DGPOE_CLAMP={self.clamp:d}",
            f"-DGPOE_COMMON_NOISE={self.common_noise:d}",
            f"-DGPOE_NAME={self.name}",
            f"-DGPOE_KERNEL={self.direction}_kernel",
        ]


class Outputs(NamedTuple):
    """What comes out, and equally its gradients; None where not asked for."""

    z: Tensor | None
    loc: Tensor | None
    log_scale: Tensor | None
    kl: Tensor | None


class Needed(NamedTuple):
    """Which gradients of the inputs are needed."""

    loc: Sequence[bool]
    log_scale: Sequence[bool]
    prior_loc: bool
    prior_log_scale: bool
    common_noise: bool


class InputGradients(NamedTuple):
    """The gradients of the inputs; None where not needed."""

    loc: Sequence[Tensor | None]
    log_scale: Sequence[Tensor | None]
    prior_loc: Tensor | None = None
    prior_log_scale: Tensor | None = None
    common_noise: Tensor | None = None


def chunks(first: Tensor, length: int) -> int:
    """Returns how many pieces of a length the elements of a sample are split into."""
    return -(-first.shape[1:].numel() // length)


def pack(
    inputs: Inputs,
    outputs: Outputs,
    gradients: Outputs,
    into: InputGradients,
    plan: Plan,
) -> bytes:
    """Packs the arguments into bytes; the tensors must live until the kernel has run.

    Arguments:
        inputs: The inputs, all dense; only those of experts and prior may have gaps between rows.
        outputs: Where the outputs go, `kl` with shape (S, B, chunks).
        gradients: The gradients of the outputs, for a backward pass.
        into: Where the gradients of the inputs go, empty for a forward pass.
        plan: How the work is split.
    """
    (length, packet), first, experts = plan, inputs.loc[0], len(inputs.loc)
    samples, event = first.shape[0], first.shape[1:]
    size = event.numel()
    channel_size = size // event[0] if event else 1

    prior = (0, 0, 0, 0)
    if inputs.prior is not None:
        a, b = inputs.prior
        prior = (a.data_ptr(), b.data_ptr(), a.stride(0), b.stride(0))
    each: list[int] = []
    to_loc, to_log_scale = into.loc, into.log_scale
    for m, (a, b) in enumerate(zip(inputs.loc, inputs.log_scale, strict=True)):
        each += (a.data_ptr(), b.data_ptr(), a.stride(0), b.stride(0))
        each += (_at(to_loc[m]), _at(to_log_scale[m])) if to_loc else (0, 0)
    noise, into_prior = _at(inputs.noise), (_at(into.prior_loc), _at(into.prior_log_scale))
    dense = [_at(t) for t in (*outputs[:3], *gradients[:3])]

    aligned = False
    if packet:
        strides = (size, *prior[2:], *each[2::6], *each[3::6])
        addresses = (noise, *into_prior, *dense, *prior[:2], _at(into.common_noise))
        addresses += (*each[0::6], *each[1::6], *each[4::6], *each[5::6])
        aligned = not any(s * first.element_size() % packet for s in strides) and not any(
            p % packet for p in addresses
        )
    return _layout(experts).pack(
        *prior,
        *into_prior,
        _at(inputs.common_noise),
        _at(into.common_noise),
        inputs.given.data_ptr(),
        noise,
        _at(inputs.seed),
        *dense[:3],
        _at(outputs.kl),
        *dense[3:],
        _at(gradients.kl),
        experts,
        inputs.subsets,
        samples,
        size,
        channel_size,
        chunks(first, length),
        length,
        aligned,
        inputs.power,
        1 / inputs.power,
        inputs.clamp,
        inputs.temperature,
        *each,
    )


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
