"""Training and evaluation mode."""

from __future__ import annotations

__all__ = ["evaluation"]

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
_users: dict[nn.Module, int] = {}
"""How many blocks hold a module in evaluation mode that was in training mode before them."""


@contextmanager
def evaluation(modules: Iterable[nn.Module], besides: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Puts modules in evaluation mode, and each back in the mode that it was in.

    Blocks may overlap, one inside another or in several threads: a module goes back when the last
    of them ends. So threads can share a model that is in training mode to predict, but not to
    train it meanwhile.

    Arguments:
        modules: The modules, as ``network.modules()``.
        besides: Those of them to leave alone.

    Example:
        >>> network = nn.Sequential(nn.Dropout())
        >>> with evaluation(network.modules()):
        ...     network[0].training
        False
        >>> network[0].training
        True
    """
    kept = set(besides)
    with _lock:
        training = [m for m in modules if m not in kept and (m.training or m in _users)]
        for module in training:
            _users[module] = _users.get(module, 0) + 1
            vars(module)["training"] = False  # the usual way checks much that is known here
    try:
        yield
    finally:
        with _lock:
            for module in training:
                _users[module] -= 1
                if not _users[module]:
                    del _users[module]
                    vars(module)["training"] = True
