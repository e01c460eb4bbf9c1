"""Work on many rows, in chunks that fit into the memory of a device."""

from __future__ import annotations

__all__ = ["in_chunks"]

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


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
        torch.OutOfMemoryError: If the device has no room for a single row.

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
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
            size = (stop - start + 1) // 2
        else:
            start = stop
            continue
        if torch.cuda.is_initialized():  # here, where the error no longer holds what it names
            torch.cuda.empty_cache()
    return results
