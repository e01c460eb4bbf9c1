"""PyTorch compiled by `torch.compile`, on the cases of `kernels`."""

from __future__ import annotations

__all__ = ["rows"]

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.bench_poe import fuse_with

from . import rivals
from .ceilings import copy_rate
from .device import Device, Row, attempted
from .kernels import describe, measure
from .rivals import CASES


def rows(device: Device) -> Iterator[Row]:
    """Yields a row for each way and case, those that take long to compile last."""
    rate = copy_rate(device)
    compile = partial(torch.compile, backend=device.pick("inductor", "aot_eager"), dynamic=False)
    for way in ("minimal", "eager"):
        for i in device.pick([0, 1, 7, 3], [0]):
            torch.compiler.reset()
            inputs = rivals.make(CASES[i], device)
            fuse = rivals.minimal(inputs.subsets)
            if way == "eager":
                fuse = partial(fuse_with("eager"), given=inputs.given)
            expected, name = rivals.exact(inputs), f"{way} compiled"
            found = partial(measure, device, inputs, expected, compile(fuse), rate, name)
            yield attempted(describe(CASES[i], name), found)
