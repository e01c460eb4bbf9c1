r"""Compares every backend present with the float64 reference, and prints a table.

python -m mmpoe.kernels.selftest
"""

from __future__ import annotations

__all__ = ["Row", "compare", "main"]

import argparse
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _launch, _reference, backends, jit
from ._arguments import STORAGE, InputGradients, Inputs, Needed, Outputs


class Row(NamedTuple):
    """The largest error of one case, relative to the largest number it is compared with."""

    case: str
    dtype: torch.dtype
    error: float
    tolerance: float


_CASES: dict[str, dict] = {
    "4 experts, prior, noise": {"prior": True, "noise": True},
    "4 experts, standard prior": {"noise": True},
    "seed": {"prior": True},
    "15 subsets": {"prior": True, "subsets": 15, "noise": True},
    "8 experts, clamp, power 1": {"experts": 8, "prior": True, "clamp": 3.0, "power": 1},
    "common noise": {"prior": True, "common": True, "subsets": 3, "noise": True},
    "odd size": {"prior": True, "event": (3, 5, 7), "noise": True},
    "sharp experts": {"prior": True, "subsets": 3, "sharpen": 40.0, "noise": True},
    "12 experts": {"experts": 12, "noise": True},
}


_TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def compare(device: torch.device | str, on: _launch.Launcher | None = None) -> Iterator[Row]:
    """Compares kernels with the float64 reference, outputs and gradients.

    Arguments:
        device: Where the tensors are.
        on: What launches the kernels; that of the device if None.
    """
    for case, options in _CASES.items():
        for dtype in STORAGE:
            inputs = _inputs(torch.device(device), dtype, **options)
            error = _error(inputs, on)
            yield Row(
                case, dtype, error, {torch.float32: 3e-5, torch.float16: 3e-3}.get(dtype, 2e-2)
            )


def _inputs(
    device: torch.device,
    dtype: torch.dtype,
    experts: int = 4,
    subsets: int = 1,
    event: tuple[int, ...] = (4, 8, 8),
    prior: bool = False,
    noise: bool = False,
    clamp: float = 0.0,
    power: int = 2,
    common: bool = False,
    sharpen: float = 0.0,
) -> Inputs:
    generator = torch.Generator().manual_seed(20)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device, dtype)

    rows = 5
    given = torch.rand(subsets, rows, experts, generator=generator) < 0.6
    given[0, 0] = False
    log_scale = [draw(rows, *event) for _ in range(experts)]
    log_scale[0] = log_scale[0] - sharpen
    missing = ~given.any(dim=0).to(device)
    loc = [draw(rows, *event) for _ in range(experts)]
    for m in range(experts):
        loc[m][missing[:, m]] = torch.nan
    return Inputs(
        loc,
        log_scale,
        given.to(device),
        (draw(rows, *event), draw(rows, *event, scale=0.5)) if prior else None,
        draw(subsets, rows, *event) if noise else None,
        None if noise else torch.tensor(1234567890123, device=device),
        torch.linspace(0, 2, event[0], device=device) if common else None,
        power,
        clamp,
        0.7,
    )


def _error(inputs: Inputs, on: _launch.Launcher | None) -> float:
    outputs = _launch.forward(inputs, (True, True, True, True), on)
    weights = Outputs(*map(_weights, outputs))
    experts = [True] * len(inputs.loc)
    prior, common_noise = inputs.prior is not None, inputs.common_noise is not None
    needed = Needed(experts, experts, prior, prior, common_noise)
    gradients = _launch.backward(inputs, weights, needed, on)

    exact = _double(inputs)
    expected = _reference.run(exact)
    expected_gradients = _reference.gradients(exact, Outputs(*map(_wide, weights)), needed)
    return max(
        _relative(a, b)
        for a, b in zip(
            (*outputs, *_listed(gradients)), (*expected, *_listed(expected_gradients)), strict=True
        )
        if a is not None and b is not None
    )


def _weights(output: Tensor | None) -> Tensor | None:
    """Returns a gradient for an output: numbers without a pattern."""
    if output is None:
        return None
    numbers = torch.arange(output.numel(), device=output.device)
    return torch.cos(numbers).view_as(output).to(output.dtype)


def _relative(value: Tensor, exact: Tensor) -> float:
    if not bool(value.isfinite().all()):
        return float("inf")
    scale = exact.abs().max().clamp(min=1)
    return ((value.double() - exact).abs().max() / scale).item()


def _listed(gradients: InputGradients) -> list[Tensor | None]:
    return [*gradients.loc, *gradients.log_scale, *gradients[2:]]


def _double(inputs: Inputs) -> Inputs:
    prior = inputs.prior
    exact = inputs._replace(
        loc=[t.double() for t in inputs.loc],
        log_scale=[t.double() for t in inputs.log_scale],
        prior=None if prior is None else (prior[0].double(), prior[1].double()),
        noise=_wide(inputs.noise),
        common_noise=_wide(inputs.common_noise),
    )
    for leaf in (*exact.loc, *exact.log_scale, *(exact.prior or ()), exact.common_noise):
        if leaf is not None:
            leaf.requires_grad_()
    return exact


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def main() -> int:
    """Prints the status of every backend and how far it is from the reference; 1 if too far."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    wrong = 0
    for name, state in backends.status().items():
        print(f"{name}: {state}")
        if state != "available" or name == "eager":
            continue
        try:
            rows = list(compare(name))
        except (RuntimeError, jit.BuildError) as error:
            print(f"  failed: {error}")
            wrong += 1
            continue
        for row in rows:
            right = row.error <= row.tolerance
            wrong += not right
            dtype = str(row.dtype).removeprefix("torch.")
            print(f"  {row.case:28} {dtype:9} {row.error:8.1e}  {'ok' if right else 'WRONG'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
