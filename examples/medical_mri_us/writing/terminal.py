"""Output on a terminal that may be ASCII, full or closed: the work goes on without it."""

from __future__ import annotations

__all__ = ["patient_output"]

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def patient_output() -> Iterator[None]:
    """Keeps what is printed in a ``with`` block from ending it.

    A character that the encoding of a stream does not have is written as its code. A stream that
    cannot be written to, as its disk is full or its reader has gone, is given up: on the error
    stream, that is said once.
    """
    before = sys.stdout, sys.stderr
    sys.stderr = _Patient(before[1], None)
    sys.stdout = _Patient(before[0], sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class _Patient(io.TextIOBase):
    """A stream that writes to another one for as long as that is possible.

    Arguments:
        stream: The other one; None if the program has none.
        complaints: Where to say that it is given up.
    """

    def __init__(self, stream: TextIO | None, complaints: io.TextIOBase | None) -> None:
        self._stream, self._complaints = stream, complaints
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Writes text, if that is possible, and returns its length."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Writes what was kept back, if that is possible."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Returns the number of the file."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def _give_up(self, error: Exception) -> None:
        self._stream = None
        if self._complaints is not None:
            print(f"Output cannot be shown any more: {error}.", file=self._complaints)
