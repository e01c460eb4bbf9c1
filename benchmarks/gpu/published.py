"""The published MMHVAE and images, on a device."""

from __future__ import annotations

__all__ = ["SIZE", "TINY", "Example", "make"]

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import bench_mmhvae
from benchmarks.bench_mmhvae import NAMES, subset_masks
from mmpoe.models import MMHVAE, published_mmhvae
from mmpoe.objectives import elbo, mixture_elbo

from .device import Device

SIZE = 192
TINY: dict[str, Any] = bench_mmhvae.TINY._replace(size=16, depth=3)._asdict()
"""The arguments of a small network of the same kind, and its batch."""

TINY_BATCH: int = TINY.pop("batch")


class Example(NamedTuple):
    """A model, and images of four modalities."""

    model: MMHVAE
    x: dict[str, Tensor]
    observed: Tensor
    """All of them, with shape (B, M)."""

    def bound(self) -> Tensor:
        """Returns the bound over three subsets, as the published code takes them."""
        subsets = subset_masks(len(self.observed)).to(self.observed.device)
        even = torch.full(subsets.shape[:2], 1 / len(subsets), device=subsets.device)
        return mixture_elbo(self.model, self.x, self.observed, family=(subsets, even)).mean()

    def plain_bound(self) -> Tensor:
        """Returns the bound given all modalities."""
        output = self.model(self.x, self.observed)
        return elbo(output, self.x, self.observed, validate=False).mean()


def make(device: Device, batch: int) -> Example:
    """Returns the model in full size, tiny in a dry run, with weights that are always the same."""
    torch.manual_seed(0)
    architecture: dict[str, Any] = device.pick({"size": SIZE}, TINY)
    model = published_mmhvae(NAMES, **architecture).to(device.type)
    size, batch = architecture["size"], device.pick(batch, TINY_BATCH)
    x = {m: 2 * torch.rand(batch, 1, size, size, device=device.type) - 1 for m in NAMES}
    return Example(model, x, torch.ones(batch, len(NAMES), dtype=torch.bool, device=device.type))
