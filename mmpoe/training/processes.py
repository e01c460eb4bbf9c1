"""The processes of a run: one, or those of ``torchrun``; their signals, and their failures."""

from __future__ import annotations

__all__ = ["DeviceMemoryError", "ProcessesWarning", "WorkerError"]

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mmpoe.extras import needs
from mmpoe.models import is_out_of_memory

from .batches import Stream
from .run import History

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
log = logging.getLogger("mmpoe.training")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DeviceMemoryError(MemoryError):
    """The device has too little memory for a training step."""


class ProcessesWarning(UserWarning):
    """A run resumes on another number of processes than it was on."""


class WorkerError(RuntimeError):
    """A process that loads batches has died."""


def make_fabric(precision: Precision, accelerator: str) -> Fabric:
    """Returns what runs the training: one device, or one for each process of ``torchrun``.

    Arguments:
        precision: ``"32-true"``, ``"bf16-mixed"``, or, on a GPU, ``"16-mixed"``. On a CPU without
            units for bfloat16, where that is slower, the second one is the first, and a warning
            in the log says so.
        accelerator: ``"cpu"``, ``"cuda"``, or ``"auto"``, a GPU if there is one.

    Raises:
        ValueError: If `precision` is unknown, or it or `accelerator` needs a GPU and there is
            none.
    """
    with needs("train"):
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

    if precision not in PRECISIONS:
        raise ValueError(
            f"'precision' should be one of {', '.join(PRECISIONS)}, but is {precision!r}."
        )
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("'accelerator' should be 'cpu' or 'auto' without a GPU, but is 'cuda'.")
    if precision == "16-mixed" and (accelerator == "cpu" or not torch.cuda.is_available()):
        raise ValueError(
            "'precision' should be '32-true' or 'bf16-mixed' on a CPU, but is '16-mixed'."
        )
    on_cpu = accelerator == "cpu" or not torch.cuda.is_available()
    if precision == "bf16-mixed" and on_cpu and not computes_bfloat16():
        log.warning(
            "This CPU has no units for bfloat16: 'precision' is '32-true', which is faster."
        )
        precision = "32-true"
    world = local = 1
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    # a process whose batches lack a modality has no gradient for its networks
    strategy = DDPStrategy(find_unused_parameters=True) if world > 1 else "auto"
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy=strategy,
        precision=precision,
    )
    fabric.launch()
    return fabric


def computes_bfloat16() -> bool:
    """Whether this CPU has units for products in bfloat16: AMX, AVX-512 BF16, or those of ARM."""
    found = getattr(torch.cpu, "get_capabilities", dict)()  # which older ones lack
    return any(value is True and "bf16" in name for name, value in found.items())


def mean(fabric: Fabric, values: list[float]) -> list[float]:
    """Returns the means of some numbers over all processes."""
    if fabric.world_size == 1:
        return values
    mine = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    everyone = fabric.all_reduce(mine, reduce_op="mean")
    assert isinstance(everyone, Tensor)
    return everyone.tolist()


def gather(fabric: Fabric, state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Returns the states of all processes; their tensors have the same names and shapes."""
    if fabric.world_size == 1:
        return [dict(state)]
    everyone: list[dict[str, Tensor]] = [{} for _ in range(fabric.world_size)]
    for name, value in state.items():
        mine = value.to(fabric.device)
        found = [torch.empty_like(mine) for _ in everyone]
        torch.distributed.all_gather(found, mine)
        for process, theirs in zip(everyone, found, strict=True):
            process[name] = theirs.cpu()
    return everyone


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Notes the first SIGINT (Ctrl-C) or SIGTERM of a ``with`` block in a list.

    That restores the handlers from before, so that a second signal acts at once. Only the main
    thread may handle signals; in any other, nothing is noted.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        heard.append(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield heard
    finally:
        restore()


@contextmanager
def explained(stream: Stream, history: History) -> Iterator[None]:
    """Adds the likely cause and a remedy to some errors of a ``with`` block.

    Arguments:
        stream: The batches.
        history: The history of the run so far.

    Raises:
        DeviceMemoryError: If the device has run out of memory.
        WorkerError: If a process that loads batches has died.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ConnectionError, EOFError) as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"The device ran out of memory in step {len(history.bounds) + 1}: "
                f"{_cause(error)}. "
                "A batch of half the size with twice the 'accumulate' takes the same steps; "
                "'bf16-mixed' as 'precision', or fewer subsets of a row, need less memory too."
                f"{_how_to_resume(history)}"
            ) from error
        if not (stream.has_workers and _is_of_worker(error)):
            raise
        cause = str(error).rstrip(". ")
        raise WorkerError(
            f"A process that loads batches has died: {cause}. Batch {stream.position + 1} of pass "
            f"{stream.passes + 1} was to come next. {_loading(stream)}Too little memory is the "
            "usual reason: fewer 'num_workers', or smaller batches, need less."
            f"{_how_to_resume(history)}"
        ) from error


def _cause(error: BaseException) -> str:
    """The first sentence of an error, or its name if it says nothing."""
    return str(error).partition("\n")[0].split(". ")[0].rstrip(". ") or type(error).__name__


def _is_of_worker(error: Exception) -> bool:
    """Whether an error is one that a DataLoader raises when a worker has died."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return not str(error).startswith("Caught ")  # a live worker passes on an error of the data set


def _loading(stream: Stream) -> str:
    rows = stream.loading()
    if not rows:
        return ""
    shown = "; ".join(", ".join(map(str, batch)) for batch in rows)
    shown = shown if len(shown) <= 500 else f"{shown[:500]}..."
    return f"These samples of the data set were loading, by batch: {shown}. "


def _how_to_resume(history: History) -> str:
    if history.checkpoint is None:
        return ""
    return f" With resume=True, the run resumes from {history.checkpoint}."
