"""How fast the operations of convolutional cells are beside PyTorch's, in each layout.

Normalisation of instances with silu, and depthwise 5 x 5 convolution, forward and backward, on
the shapes of the published MMHVAE: one slice of 192 x 192, and the twelve rows (three subsets of
four) of a training step of 64 x 64. *Usual* and *channels_last* are PyTorch in these layouts;
*kernel* is :func:`mmpoe.kernels.instance_norm` or :func:`mmpoe.kernels.depthwise_convolution` in
the second one. All run in turns; times are medians.

    python -m benchmarks.bench_cells
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from mmpoe.kernels import depthwise_convolution, instance_norm

from ._results import processor
from .bench_poe import seconds

SHAPES = (
    (1, 16, 192, 192),
    (1, 96, 192, 192),
    (12, 96, 64, 64),
    (12, 192, 32, 32),
    (12, 768, 8, 8),
)
SMALL = ((2, 16, 6, 6),)
Operation = Callable[[Tensor, list[Tensor]], Tensor]


def plain_norm(x: Tensor, parameters: list[Tensor]) -> Tensor:
    """Normalises and activates in PyTorch."""
    return functional.silu(functional.group_norm(x, x.shape[1]), inplace=True)


def fused_norm(x: Tensor, parameters: list[Tensor]) -> Tensor:
    """Normalises and activates by the kernel."""
    return instance_norm(x, "silu", backend="cpu")


def plain_depthwise(x: Tensor, parameters: list[Tensor]) -> Tensor:
    """Convolves in PyTorch."""
    weight, bias = parameters
    return functional.conv2d(x, weight, bias, padding=2, groups=x.shape[1])


def fused_depthwise(x: Tensor, parameters: list[Tensor]) -> Tensor:
    """Convolves in PyTorch, with another gradient."""
    weight, bias = parameters
    return depthwise_convolution(x, weight, bias, backend="cpu")


def forward(operation: Operation, x: Tensor, parameters: list[Tensor]) -> None:
    """Computes the output alone."""
    with torch.no_grad():
        operation(x, parameters)


def both(operation: Operation, x: Tensor, parameters: list[Tensor]) -> None:
    """Computes the output and all gradients."""
    leaves = [t.detach().requires_grad_() for t in (x, *parameters)]
    y = operation(leaves[0], leaves[1:])
    torch.autograd.grad(y, leaves, torch.ones_like(y))


def measure(
    name: str, plain: Operation, fused: Operation, x: Tensor, parameters: list[Tensor], rounds: int
) -> None:
    """Prints a row for each direction."""
    last = x.contiguous(memory_format=torch.channels_last)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for direction, run in (("forward", forward), ("both", both)):
        ways = [
            partial(run, operation, images, parameters)
            for operation, images in ((plain, x), (plain, last), (fused, last))
        ]
        times = [[seconds(way, clock=clock) for way in ways] for _ in range(rounds + 1)][1:]
        middle = [1e3 * statistics.median(column) for column in zip(*times, strict=True)]
        shape, dtype = " x ".join(map(str, x.shape)), str(x.dtype).removeprefix("torch.")
        cells = "".join(f"{value:15.2f}" for value in middle)
        print(f"{name:12}{shape:20}{dtype:10}{direction:8}{cells}", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = "time of the processor" if options.threads == 1 else "time"
    print(f"{processor()}, PyTorch {torch.__version__}, Python {platform.python_version()}")
    print(f"{options.threads} threads, {clock} in ms, medians in turns\n")
    print(f"{'':50}{'usual':>15}{'channels_last':>15}{'kernel':>15}")
    for shape in SMALL if options.smoke else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape).to(dtype)
            weights = [torch.randn(shape[1], 1, 5, 5).to(dtype), torch.randn(shape[1]).to(dtype)]
            rounds = 1 if options.smoke else 5
            measure("norm, silu", plain_norm, fused_norm, x, [], rounds)
            measure("depthwise", plain_depthwise, fused_depthwise, x, weights, rounds)


if __name__ == "__main__":
    main()
