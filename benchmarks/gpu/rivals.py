"""Ways to compute the product of four experts and a prior, its sample and its divergence.

Each takes the ten inputs, and gives `z` and `kl` of all subsets.
"""

from __future__ import annotations

__all__ = [
    "CASES",
    "Fuse",
    "Problem",
    "bytes_moved",
    "exact",
    "make",
    "minimal",
    "noise_error",
    "worst_error",
]

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.bench_poe import COARSEST, EXPERTS, FINEST, SUBSETS, Case, problem
from mmpoe.kernels import Product, gaussian_poe

from .device import Device

MIDDLE = (16, 64, 24, 24)
TINY = (2, 8, 8, 8)
CASES = [
    Case("finest level", 1, FINEST, torch.float32, draws=True),
    Case("finest level", 1, FINEST, torch.bfloat16, draws=True),
    Case("finest level", 1, FINEST, torch.float32, draws=False),
    Case("15 subsets", 15, SUBSETS, torch.float32, draws=True),
    Case("15 subsets", 15, SUBSETS, torch.bfloat16, draws=True),
    Case("15 subsets", 15, SUBSETS, torch.float32, draws=False),
    Case("middle level", 1, MIDDLE, torch.float32, draws=True),
    Case("coarsest level", 1, COARSEST, torch.float32, draws=True),
    Case("coarsest level, 15 subsets", 15, COARSEST, torch.float32, draws=True),
]

Fuse = Callable[..., tuple[Tensor, Tensor]]


class Problem(NamedTuple):
    """Inputs on a device."""

    case: Case
    tensors: list[Tensor]
    """Four means, four log standard deviations, and both of the prior."""
    given: Tensor
    """The subsets, with shape (S, B, M); the same for all rows."""
    subsets: tuple[tuple[int, ...], ...]
    """The experts of each subset."""
    noise: Tensor
    """Noise for those who do not draw it."""
    gradients: list[Tensor]
    """The gradients of `z` and `kl`."""

    @property
    def elements(self) -> int:
        """The number of elements of one tensor."""
        return self.tensors[0].numel()


def make(case: Case, device: Device) -> Problem:
    """Returns the inputs of a case."""
    case = device.pick(case, case._replace(shape=TINY))
    tensors, given, gradients, _ = problem(case)
    subsets = [tuple(row.nonzero().flatten().tolist()) for row in given[:, 0]]
    leaves = [t.detach().to(device.type).requires_grad_() for t in tensors]
    shape = (case.subsets, *case.shape)
    noise = torch.randn(shape, dtype=case.dtype, device=device.type)
    moved = [g.to(device.type) for g in gradients]
    return Problem(case, leaves, given.to(device.type), tuple(subsets), noise, moved)


def minimal(subsets: Sequence[Sequence[int]]) -> Fuse:
    """Returns the least PyTorch that does it: subsets are known, noise is drawn beforehand."""

    def fuse(*inputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = inputs[:EXPERTS], inputs[EXPERTS : 2 * EXPERTS]
        prior_loc, prior_log_scale = (t.float() for t in inputs[-2:])
        precision = [torch.exp(-2 * s.float()) for s in log_scale]
        moment = [p * m.float() for p, m in zip(precision, loc, strict=True)]
        prior_precision = torch.exp(-2 * prior_log_scale)
        prior_moment = prior_precision * prior_loc
        samples, divergences = [], []
        for subset, eps in zip(subsets, noise, strict=True):
            total = sum((precision[m] for m in subset), start=prior_precision)
            mean = sum((moment[m] for m in subset), start=prior_moment) / total
            samples.append(torch.addcmul(mean, torch.rsqrt(total), eps.float()).to(loc[0].dtype))
            ratio = prior_precision / total
            kl = torch.addcmul(ratio - ratio.log(), (mean - prior_loc).square(), prior_precision)
            divergences.append((kl - 1).flatten(1).sum(dim=1) / 2)
        return torch.stack(samples), torch.stack(divergences)

    return fuse


def exact(inputs: Problem) -> Product:
    """Returns the product by PyTorch in float64, with the noise of the problem."""
    wide = [t.detach().double() for t in inputs.tensors]
    return gaussian_poe(
        wide[:EXPERTS],
        wide[EXPERTS : 2 * EXPERTS],
        inputs.given,
        (wide[-2], wide[-1]),
        noise=inputs.noise.double(),
        backend="eager",
    )


def worst_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Returns the largest error, relative to the largest number of each tensor."""
    errors = [
        ((a.double() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(found, expected, strict=True)
    ]
    return max(errors) if all(e == e for e in errors) else float("inf")


def noise_error(z: Tensor, expected: Product) -> float:
    """Returns how far drawn noise is from independent standard normals, in standard errors.

    Moments up to the second are looked at, and products of the first subset's noise with that of
    the last one, if there are several, and with itself, moved by one element.
    """
    eps = ((z.double() - expected.loc) / expected.log_scale.exp()).flatten(1)  # (S, n)
    first, last, n = eps[0], eps[-1], eps[0].numel()
    moments = [eps.mean(dim=1), (eps.square() - 1).mean(dim=1) / 2**0.5]
    moments.append((first[1:] * first[:-1]).mean()[None])
    if len(eps) > 1:
        moments.append((first * last).mean()[None])
    return (torch.cat(moments).abs().max() * n**0.5).item()


def bytes_moved(case: Case) -> tuple[int, int]:
    """Returns the bytes that forward and backward must move: each input and output once."""
    factors = EXPERTS + 1
    out = case.subsets * (1 if case.draws else 2)  # `z` or its gradient, and noise that is given
    size = torch.Size(case.shape).numel() * case.dtype.itemsize
    return size * (2 * factors + out), size * (4 * factors + out)
