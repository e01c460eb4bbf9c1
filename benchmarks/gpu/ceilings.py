"""The rate at which memory is read and written: the 100 % of every share."""

from __future__ import annotations

__all__ = ["copy_rate", "rows"]

from collections.abc import Iterator

import torch

from .device import Device, Row

GIB = 1 << 30


def rows(device: Device) -> Iterator[Row]:
    """Yields the rate of each way to use memory."""
    n = device.pick(GIB, 1 << 12)
    a = torch.rand(n, device=device.type)
    b = torch.rand_like(a)
    ways = {
        "copy": (2, lambda: b.copy_(a)),
        "triad": (3, lambda: torch.add(a, b, alpha=3.0, out=b)),
        "read": (1, lambda: a.sum()),
        "write": (1, lambda: b.fill_(2.0)),
    }
    for name, (tensors, run) in ways.items():
        time = device.seconds(run, queued=True)
        rate = tensors * 4 * n / time.median
        yield {"way": name, "TB/s": round(rate / 1e12, 3), "spread": time.spread}


def copy_rate(device: Device) -> float:
    """Returns the bytes per second that a copy reads and writes."""
    a = torch.rand(device.pick(GIB // 2, 1 << 12), device=device.type)
    b = torch.empty_like(a)
    return 8 * a.numel() / device.seconds(lambda: b.copy_(a), queued=True).median
