"""The format of the state of a run, and what brings older states up to it."""

from __future__ import annotations

__all__ = ["FORMAT", "migrate"]

from collections.abc import Callable
from typing import Any

from .checkpoint import CheckpointError

State = dict[str, Any]


def _from_first(state: State) -> State:
    """Adds what runs before format 2 did not write, or not from the beginning.

    They could not reset an optimiser, or resume on another number of processes.
    """
    return {"restarted": False, "deal": None, **state}


MIGRATIONS: list[Callable[[State], State]] = [_from_first]
"""Bring a state from each format to the next; a key that is added needs one."""

FORMAT = 1 + len(MIGRATIONS)
"""The format of the states that are written."""


def migrate(state: object, source: object) -> State:
    """Returns the state of a run in the present format.

    Arguments:
        state: The state; without the entry ``format``, of format 1.
        source: Its source, which an error names.

    Raises:
        CheckpointError: If it is no state of a run, or of a later format.
    """
    found = state.get("format", 1) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise CheckpointError(
            f"{source} should hold the state of a run in a format up to {FORMAT}, which this "
            f"version of mmpoe reads, but its format is {found}."
        )
    for step in MIGRATIONS[found - 1 :]:
        state = step(state)
    return state
