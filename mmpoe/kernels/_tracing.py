r"""The choice of a backend while ``torch.compile`` traces.

A module of its own, since importing it imports the compiler.
"""

from __future__ import annotations

__all__ = ["choose"]

from typing import Any

import torch

from . import backends


def choose(backend: str | None, call: backends.Call) -> str:
    """Does what `backends.choose` does; the answer is a constant of what is compiled."""
    return _choose(backend, *call)


@torch.compiler.assume_constant_result
def _choose(backend: str | None, *call: Any) -> str:  # noqa: ANN401
    return backends.choose(backend, backends.Call(*call))  # the compiler knows no named tuples
