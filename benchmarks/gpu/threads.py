"""Calls from threads that no call of CUDA was made in before: a launch needs a context there."""

from __future__ import annotations

__all__ = ["rows"]

import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mmpoe.kernels import gaussian_poe, last_backend

from .device import Device, Row, check


def rows(device: Device) -> Iterator[Row]:
    """Yields a check for each kind of thread."""
    tensors = [torch.randn(2, 64, device=device.type, requires_grad=True) for _ in range(8)]
    given = torch.ones(2, 4, dtype=torch.bool, device=device.type)
    noise, ones = torch.randn(2, 64, device=device.type), torch.ones(2, 64, device=device.type)
    gradients = [ones, ones[:, 0].contiguous()]

    # all there is to do on the device is the kernel: PyTorch's own work would make a context
    def forward() -> list[Tensor]:
        q = gaussian_poe(tensors[:4], tensors[4:], given, noise=noise, backend=device.fused)
        return [q.z, q.kl]

    def in_a_thread() -> None:
        with torch.no_grad():
            forward()
        device.synchronize()

    def in_autograds_thread() -> None:
        torch.autograd.grad(forward(), tensors, gradients)
        device.synchronize()

    keep_memory(device)
    in_a_thread()  # in this one, in which PyTorch has made a context
    yield check("the fused backend runs", last_backend() == device.fused)
    yield said("a thread of Python's own", lambda: in_new_thread(in_a_thread))
    yield said("autograd's thread", in_autograds_thread)
    yield said("both", lambda: in_new_thread(in_autograds_thread))


def keep_memory(device: Device) -> None:
    """Leaves free blocks with PyTorch: to allocate one would make a context in a thread."""
    held: list[Tensor] = [torch.empty(1 << 16, device=device.type) for _ in range(64)]
    held.clear()


def said(what: str, function: Callable[[], None]) -> Row:
    """Returns a check that a function raises nothing."""
    try:
        function()
    except Exception as error:
        return check(what, False, said=repr(error)[:300])
    return check(what, True)


def in_new_thread(function: Callable[[], None]) -> None:
    """Runs a function in a thread, and raises here what it raises there."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            function()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
