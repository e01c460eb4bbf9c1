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
        modules: The modules.
        besides: Those of them to leave alone.
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
