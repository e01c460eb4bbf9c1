"""Counts how often the host waits for the device: such work cannot be captured in a CUDA graph."""

from __future__ import annotations

__all__ = ["count_waits"]

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SIZED_BY_DATA = {
    "_local_scalar_dense",  # `.item()`, and the truth of a tensor
    "equal",
    "masked_select",
    "nonzero",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
}
INDEXED = {"index", "index_put", "index_put_"}
COPIES = {"_to_copy", "copy_"}


class _Waits(TorchDispatchMode):
    """Counts operators whose result or shape the host must know."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.number = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        """Runs the operator."""
        out = func(*args, **(kwargs or {}))
        name, devices = (
            func.overloadpacket.__name__,
            {t.device.type for t in _tensors((args, out))},
        )
        self.number += self.device in devices and (
            name in SIZED_BY_DATA
            or (name in INDEXED and any(t.dtype == torch.bool for t in _tensors(args[1])))
            or (name in COPIES and len(devices) > 1)
        )
        return out


def _tensors(tree: Any) -> Iterable[Tensor]:  # noqa: ANN401
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def count_waits(function: Callable[[], object], device: str) -> int:
    """Returns how often the host waits for a device, ``"cuda"`` or ``"cpu"``, in a call."""
    with _Waits(device) as waits:
        function()
    return waits.number
