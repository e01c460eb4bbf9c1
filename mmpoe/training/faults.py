"""What ends a training from outside its mathematics, and what to do about it."""

from __future__ import annotations

__all__ = ["DeviceMemoryError", "WorkerError", "explained"]

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .batches import Stream
from .run import History


class DeviceMemoryError(MemoryError):
    """The device has too little memory for a step of training."""


class WorkerError(RuntimeError):
    """A process that loads batches has died."""


@contextmanager
def explained(stream: Stream, history: History) -> Iterator[None]:
    """Says what can be done about some errors of a ``with`` block.

    Arguments:
        stream: Where batches come from.
        history: What has happened before.

    Raises:
        DeviceMemoryError: If the device has run out of memory.
        WorkerError: If a process that loads batches has died.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        cause = str(error).split(". ")[0]
        raise DeviceMemoryError(
            f"The device ran out of memory in step {len(history.bounds) + 1}: {cause}. "
            "A batch of half the size with twice the 'accumulate' takes the same steps; "
            "'bf16-mixed' as 'precision', or fewer subsets of a row, need less memory too."
            f"{_advice(history)}"
        ) from error
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not (stream.has_workers and _is_of_worker(error)):
            raise
        cause = str(error).rstrip(". ")
        raise WorkerError(
            f"A process that loads batches has died: {cause}. Batch {stream.position + 1} of pass "
            f"{stream.passes + 1} was to come next. {_under_way(stream)}Too little memory is the "
            "usual reason: fewer 'num_workers', or smaller batches, need less."
            f"{_advice(history)}"
        ) from error


def _is_of_worker(error: Exception) -> bool:
    """Whether an error is what a DataLoader raises when a process of it has died."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return not str(error).startswith("Caught ")  # by a process that lives, and told as it was


def _under_way(stream: Stream) -> str:
    rows = stream.under_way()
    if not rows:
        return ""
    shown = "; ".join(", ".join(map(str, batch)) for batch in rows)
    shown = shown if len(shown) <= 500 else f"{shown[:500]}..."
    return f"Under way were these samples of the data set, by batch: {shown}. "


def _advice(history: History) -> str:
    if history.checkpoint is None:
        return ""
    return f" With resume=True, training goes on from {history.checkpoint}."
