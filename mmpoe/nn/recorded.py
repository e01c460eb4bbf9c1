"""Modules that know the arguments that they were made with."""

from __future__ import annotations

__all__ = ["Recorded"]

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


class Recorded:
    """Base of modules that know the arguments that they were made with.

    Derive a network of your own from it, before :class:`torch.nn.Module`, so that models that hold
    it can be saved with :meth:`~mmpoe.models.MultimodalVAE.save_pretrained`. An argument that is a
    module, or holds modules, should be kept as an attribute of the same name.

    Example:
        >>> class Smooth(Recorded, nn.Module):
        ...     def __init__(self, width, steps=2):
        ...         super().__init__()
        ...         self.layer = nn.Linear(width, width)
        >>> made_with(Smooth(3))
        {'width': 3, 'steps': 2}
    """

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401
        """Keeps the arguments, but for modules, which may be replaced."""
        self = super().__new__(cls)
        held = tuple(map(_plain, args)), {name: _plain(v) for name, v in kwargs.items()}
        object.__setattr__(self, "_made_with", held)
        return self


def made_with(module: Recorded) -> dict[str, Any]:
    """Returns the arguments of a constructor by name, defaults included, those with modules not.

    Raises:
        TypeError: If the module was not made by its constructor.
    """
    args, kwargs = module._made_with
    bound = inspect.signature(type(module)).bind(*args, **kwargs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if value is not _MODULES}


_MODULES = "holds modules"  # a string, which is one object in copies too


def _plain(value: Any) -> Any:  # noqa: ANN401
    if _holds_modules(value):
        return _MODULES
    return value.detach() if isinstance(value, Tensor) else value


def _holds_modules(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_modules, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_modules, value))
    return isinstance(value, nn.Module)
