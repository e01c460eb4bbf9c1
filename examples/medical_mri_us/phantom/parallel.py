"""Many independent pieces of work, shared among processes."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

import torch

__all__ = ["run_all"]

Item = TypeVar("Item")


def run_all(
    work: Callable[[Item], object],
    items: Sequence[Item],
    workers: int,
    on_done: Callable[[], object],
) -> None:
    """Calls `work` on every item, in any order.

    An exception, Ctrl-C among them, lets the pieces in progress end, drops the others and is
    raised here.

    Arguments:
        work: The work; with several workers it travels to each of them once, pickled.
        items: What to call it on.
        workers: The number of processes, one thread each; 1 works in this process.
        on_done: Called in this process after each item.
    """
    if workers == 1:
        for item in items:
            work(item)
            on_done()
        return
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work, stop))
    try:
        with _interrupts_held_back():  # the new processes inherit this and never see a Ctrl-C
            futures = [pool.submit(_work_on, item) for item in items]
        for future in as_completed(futures):
            future.result()
            on_done()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Delays Ctrl-C until the end of the block, where the system can."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: dict[str, Any] = {}
"""The arguments that a worker process started with; empty in the parent."""


def _start_worker(work: Callable[[Any], object], stop: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker.update(work=work, stop=stop)


def _exit_with_parent() -> None:
    """Ends this process when the one that started it is gone, however that happened."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_on(item: object) -> None:
    if not _worker["stop"].is_set():
        _worker["work"](item)
