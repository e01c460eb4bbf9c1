"""The fused kernels, alone and as calls, beside PyTorch and Triton."""

from __future__ import annotations

__all__ = ["describe", "measure", "rows"]

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.audit_poe import audit
from benchmarks.bench_poe import EXPERTS, Case, fuse_with
from mmpoe.kernels import Product, Specialisation

from . import rivals
from .build import architecture
from .ceilings import copy_rate
from .device import Device, Row, attempted
from .facts import issue_rate
from .rivals import CASES, Fuse, Problem

ERRORS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""How much results may differ from float64, relative to the largest number; not a precise test,
which is that of the stages `selftest` and `tests`, but enough to tell another computation."""

NOISE = 6.0
"""The standard errors that moments of drawn noise may be off."""

Outputs = tuple[Tensor, Tensor]


def rows(device: Device) -> Iterator[Row]:
    """Yields a row for each case and way."""
    rate = copy_rate(device)
    for case in device.pick(CASES, [CASES[0], CASES[4]]):
        inputs = rivals.make(case, device)
        expected = rivals.exact(inputs)
        for way, fuse in ways(device, inputs).items():
            found = partial(measure, device, inputs, expected, fuse, rate, way)
            yield attempted(describe(case, way), found)


def describe(case: Case, way: str) -> Row:
    """Returns the first columns of a row."""
    dtype = str(case.dtype).removeprefix("torch.")
    noise = "drawn" if case.draws else "given"
    return {"case": case.name, "dtype": dtype, "noise": noise, "way": way}


def ways(device: Device, inputs: Problem) -> Mapping[str, Fuse]:
    """Returns what is compared: functions of the inputs and of noise, None to draw it."""
    from . import triton_rival

    return {
        "fused": partial(fuse_with(device.fused), given=inputs.given),
        "eager": partial(fuse_with("eager"), given=inputs.given),
        "minimal": rivals.minimal(inputs.subsets),
        "triton": partial(triton_rival.fused, bits=triton_rival.pack(inputs.given)),
    }


def measure(
    device: Device, inputs: Problem, expected: Product, fuse: Fuse, rate: float, way: str
) -> Row:
    """Returns times, shares of what is possible, and how far results are from float64.

    Raises:
        ArithmeticError: If it computes something else.
    """
    drawn = inputs.case.draws and "minimal" not in way
    noise = None if drawn else inputs.noise

    def forward() -> Outputs:
        return fuse(*inputs.tensors, noise=noise)

    def both() -> None:
        torch.autograd.grad(forward(), inputs.tensors, inputs.gradients)

    row: Row = {"error": f"{verify(inputs, expected, fuse, drawn=drawn):.0e}"}
    moved = rivals.bytes_moved(inputs.case)
    row |= timed(device, "forward", forward, moved[0], rate)
    if way != "triton":
        outputs = forward()
        backward = partial(
            torch.autograd.grad, outputs, inputs.tensors, inputs.gradients, retain_graph=True
        )
        row |= timed(device, "backward", backward, moved[1], rate)
        row["call us"] = device.seconds(both).us
    if way == "fused" and inputs.case.subsets == 1 and drawn:  # as instructions are counted
        row |= issue_bound(device, inputs)
    return row


def verify(inputs: Problem, expected: Product, fuse: Fuse, *, drawn: bool) -> float:
    """Returns the error for noise that is given, relative to the largest number.

    Raises:
        ArithmeticError: If it is another computation, or noise that it draws is not normal.
    """
    with torch.no_grad():
        found = fuse(*inputs.tensors, noise=inputs.noise)
        error = rivals.worst_error(found, (expected.z, expected.kl))
        if not error <= ERRORS[inputs.case.dtype]:
            raise ArithmeticError(f"results differ from float64 by {error:.1e}")
        if drawn and inputs.case.dtype == torch.float32:
            z, _ = fuse(*inputs.tensors, noise=None)
            off = rivals.noise_error(z, expected)
            if not off < NOISE:
                raise ArithmeticError(f"noise is {off:.1f} standard errors off")
    return error


def timed(
    device: Device, name: str, function: Callable[[], object], moved: int, rate: float
) -> Row:
    """Returns the time on the device, its spread, and the share of the bandwidth of a copy."""
    time = device.seconds(function, queued=True)
    return {
        f"{name} us": time.us,
        f"{name} spread": time.spread,
        f"{name} of copy": round(moved / time.median / rate, 3),
    }


def issue_bound(device: Device, inputs: Problem) -> Row:
    """Returns the times that the instructions of both kernels take to issue."""
    rate, found = issue_rate(device), {}
    if rate is None:
        return found
    for direction in ("forward", "backward"):
        special = Specialisation(direction, inputs.case.dtype, EXPERTS)
        try:
            report = audit(special, architecture(device))
        except FileNotFoundError:  # no disassembler
            break
        issued = inputs.elements / special.width * report.instructions
        found[f"{direction} issue us"] = round(issued / rate * 1e6, 1)
    return found
