"""Training and evaluation mode."""

from __future__ import annotations

__all__ = ["evaluation"]

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation(modules: Iterable[nn.Module], besides: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Puts modules in evaluation mode, and each back in the mode that it was in.

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
    training = [module for module in modules if module.training and module not in kept]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
