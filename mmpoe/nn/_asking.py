"""Optional inputs of networks: a network asks for one by a parameter of that name."""

from __future__ import annotations

__all__ = ["asks_for", "call"]

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def asks_for(module: Callable[..., Any], name: str) -> bool:
    """Returns whether the `forward` of a module, or a function, has a parameter of some name.

    A compiled module asks for what its original asks for. ``**kwargs`` do not ask, nor does a
    signature that cannot be read.

    Arguments:
        module: The module, or any callable.
        name: The name of the parameter.

    Example:
        >>> asks_for(lambda x, context: x, "context"), asks_for(nn.Linear(2, 2), "context")
        (True, False)
    """
    if isinstance(module, nn.Module):
        while (original := getattr(module, "_orig_mod", None)) is not None:
            module = original
        forward = getattr(type(module), "forward", None)  # scripted modules have none
        return _has_keyword(module.__dict__.get("forward", forward), name)
    return _has_keyword(module, name)


def call(
    module: Callable[..., T],
    *inputs: object,
    context: Mapping[str, Tensor] | None = None,
    valid: Tensor | None = None,
) -> T:
    """Calls a module with its inputs, and with the optional ones that it asks for.

    Arguments:
        module: The module, or any callable.
        inputs: The inputs, by position.
        context: The covariates by name; empty if None.
        valid: The mask of elements.
    """
    options: dict[str, object] = {}
    if asks_for(module, "context"):
        options["context"] = {} if context is None else context
    if asks_for(module, "valid"):
        options["valid"] = valid
    return module(*inputs, **options)


def _has_keyword(function: object, name: str) -> bool:
    """Whether a function takes a keyword, a constant for the compiler."""
    # only plain functions are kept, so that no module is
    keywords = _kept if isinstance(function, FunctionType) else _keywords
    return name in keywords(function)


# what torch.compiler.assume_constant_result sets, which would import the compiler
_has_keyword._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _keywords(function: object) -> frozenset[str]:
    if not callable(function):
        return frozenset()
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C, say
        return frozenset()
    return frozenset(p.name for p in parameters if p.kind in _BY_NAME)


_kept = lru_cache(maxsize=1024)(_keywords)
