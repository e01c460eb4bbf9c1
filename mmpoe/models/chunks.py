"""Work on many rows, in chunks that fit into the memory of a device."""

from __future__ import annotations

__all__ = ["in_chunks", "is_out_of_memory"]

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

SIGNS = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "Cannot allocate memory",
    "can't allocate memory",
    "can't start new thread",
)
"""Parts of the messages of a RuntimeError for want of memory on a CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error is one for want of memory, of a GPU or of the machine.

    PyTorch has a class for the first, and raises a RuntimeError with a message of the allocator
    for the second; Python and NumPy raise a MemoryError.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("a shape"))
        (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def in_chunks(function: Callable[[slice], T], rows: int, size: int | None = None) -> list[T]:
    """Calls a function with some rows at a time, with half as many whenever memory runs out.

    Rows that did not fit are done again. What a function draws for them is drawn again too, so
    that where it matters, as in a test, noise should be given.

    Arguments:
        function: Called with a slice of the rows.
        rows: The number of rows.
        size: The number of rows to begin with, all of them if None.

    Returns:
        What `function` returned for each slice, in the order of the rows.

    Raises:
        ValueError: If `rows` is negative or `size` is not positive.
        torch.OutOfMemoryError: If a GPU has no room for a single row; a CPU raises a MemoryError
            or a RuntimeError, see :func:`is_out_of_memory`.

    Example:
        >>> x = torch.arange(5.0)
        >>> torch.cat(in_chunks(lambda rows: 2 * x[rows], 5, size=2))
        tensor([0., 2., 4., 6., 8.])
    """
    if rows < 0:
        raise ValueError(f"'rows' should be at least 0, but is {rows}.")
    if size is not None and size < 1:
        raise ValueError(f"'size' should be at least 1 or None, but is {size}.")
    size = max(1, rows) if size is None else size
    results: list[T] = []
    start = 0
    while start < rows:
        stop = min(start + size, rows)
        try:
            results.append(function(slice(start, stop)))
        except (MemoryError, RuntimeError) as error:
            if stop - start == 1 or not is_out_of_memory(error):
                raise
            size = (stop - start + 1) // 2
        else:
            start = stop
            continue
        if torch.cuda.is_initialized():  # here, where the error no longer holds what it names
            torch.cuda.empty_cache()
    return results
