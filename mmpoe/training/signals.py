"""Signals that ask a training to stop: heard at once, heeded after the step."""

from __future__ import annotations

__all__ = ["deferred_signals"]

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Notes the first SIGINT (Ctrl-C) or SIGTERM in a list; a second one acts as it would have.

    Handlers are as before at the end, and from the first signal on. In any thread but the main
    one, which alone may handle signals, nothing happens.
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
