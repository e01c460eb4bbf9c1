"""The device to measure: a GPU, or in a dry run a CPU, where all is tiny and times say nothing."""

from __future__ import annotations

__all__ = ["Device", "Row", "Timing", "attempted", "check"]

import math
import statistics
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")
Row = dict[str, Any]
"""A row of a table: numbers, strings and truth values by the name of their column."""

LONGEST_QUEUE = 100


class Timing(NamedTuple):
    """The median of some times and their quartiles, in seconds."""

    median: float
    low: float
    high: float

    @property
    def us(self) -> float:
        """The median in microseconds."""
        return round(1e6 * self.median, 1)

    @property
    def spread(self) -> float:
        """The distance of the quartiles, relative to the median."""
        return round((self.high - self.low) / self.median, 2)


class HostEvent:
    """Stands in for an event of CUDA where there is no GPU."""

    def __init__(self) -> None:
        self.at = math.nan

    def record(self) -> None:
        """Notes the time."""
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Does nothing: the host waits for itself."""

    def elapsed_time(self, end: HostEvent) -> float:
        """Returns the milliseconds until another event."""
        return 1e3 * (end.at - self.at)


class Device:
    """The device.

    Arguments:
        dry: Whether it is the CPU.
    """

    def __init__(self, *, dry: bool) -> None:
        self.dry = dry
        self.type = self.fused = "cpu" if dry else "cuda"

    def pick(self, full: T, tiny: T) -> T:
        """Returns one of two sizes: that of a GPU, or that of a dry run."""
        return tiny if self.dry else full

    def synchronize(self) -> None:
        """Waits until the device has nothing left to do."""
        if not self.dry:
            torch.cuda.synchronize()

    def event(self) -> Any:  # noqa: ANN401
        """Returns an event that notes when the device reaches it."""
        return HostEvent() if self.dry else torch.cuda.Event(enable_timing=True)

    @cached_property
    def _scratch(self) -> torch.Tensor:
        """Memory larger than the L2 cache of any GPU."""
        return torch.zeros(self.pick(1 << 29, 1 << 12), dtype=torch.uint8, device=self.type)

    @cached_property
    def _fill_seconds(self) -> float:
        """The time that the device needs to write the scratch memory once."""
        self._scratch.fill_(1)
        start, end = self.event(), self.event()
        start.record()
        self._scratch.fill_(1)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def host_seconds(self, function: Callable[[], object], repeats: int = 1) -> float:
        """Returns the mean time until a call returns; the device may not have run it by then."""
        self.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            function()
        taken = time.perf_counter() - started
        self.synchronize()
        return taken / repeats

    def seconds(
        self, function: Callable[[], object], rounds: int = 20, *, queued: bool = False
    ) -> Timing:
        """Returns the time between two events around a call, its inputs not in the L2 cache.

        Arguments:
            function: The function.
            rounds: The number of calls that are timed.
            queued: Whether the device is busy until the host has launched everything, so that the
                time is the device's alone; else it is idle, and the time is that of a call.
        """
        function()
        rounds = self.pick(rounds, 1)
        fills = 1
        if queued:
            ahead = 2 * self.host_seconds(function) / self._fill_seconds
            fills = min(1 + math.ceil(ahead), LONGEST_QUEUE)
        times = sorted(self._one(function, fills, queued=queued) for _ in range(rounds))
        return Timing(statistics.median(times), times[len(times) // 4], times[3 * len(times) // 4])

    def _one(self, function: Callable[[], object], fills: int, *, queued: bool) -> float:
        for _ in range(fills):
            self._scratch.fill_(1)
        if not queued:
            self.synchronize()
        start, end = self.event(), self.event()
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def captured(self, function: Callable[[], object]) -> Callable[[], object]:
        """Returns the replay of a CUDA graph of a function; the function itself on a CPU."""
        if self.dry:
            return function
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what happens on first use must not be captured
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay

    def peak_gib(self, function: Callable[[], object]) -> float | None:
        """Returns the most memory that tensors take during a call, in GiB; None on a CPU."""
        if self.dry:
            function()
            return None
        own = self._scratch.numel()
        torch.cuda.reset_peak_memory_stats()
        function()
        self.synchronize()
        return round((torch.cuda.max_memory_allocated() - own) / 2**30, 2)


def check(what: str, holds: bool, **more: Any) -> Row:  # noqa: ANN401
    """Returns a row about something that should hold."""
    return {"check": what, "holds": bool(holds), **more}


def attempted(row: Row, measure: Callable[[], Row]) -> Row:
    """Adds what is measured to a row, or why it cannot be: the rows after it should still come."""
    try:
        return row | measure()
    except Exception as error:
        traceback.print_exc()
        return row | {"failed": f"{type(error).__name__}: {error}".split("\n")[0][:200]}
