"""Nested states as tensors and JSON, and back, without a pickle."""

from __future__ import annotations

__all__ = ["flatten", "unflatten"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def flatten(state: object, name: str = "state") -> tuple[dict[str, Tensor], Any]:
    """Splits a nested state into its tensors and the rest.

    Arguments:
        state: Dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.
            Keys are strings, numbers or booleans.
        name: The name of the state; tensors are named after it and their place in it.

    Returns:
        The tensors by name, and the rest, which JSON can hold, for :func:`unflatten`.

    Raises:
        TypeError: If the state holds anything else; the message says where.

    Example:
        >>> tensors, rest = flatten({"rate": 0.1, "mean": torch.zeros(2)})
        >>> tensors
        {'state/mean': tensor([0., 0.])}
        >>> unflatten(tensors, rest)
        {'rate': 0.1, 'mean': tensor([0., 0.])}
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(state, name, tensors)


def unflatten(tensors: Mapping[str, Tensor], rest: Any) -> Any:  # noqa: ANN401
    """Joins the tensors and the rest of a nested state.

    Arguments:
        tensors: The tensors by name.
        rest: The rest, as :func:`flatten` returned it.

    Raises:
        ValueError: If the two do not belong together.
    """
    if not isinstance(rest, dict):
        return rest
    match list(rest.items()):
        case [("tensor", str(name))] if name in tensors:
            return tensors[name]
        case [("dict", list(entries))]:
            return {key: unflatten(tensors, value) for key, value in entries}
        case [("list", list(entries))]:
            return [unflatten(tensors, value) for value in entries]
        case [("tuple", list(entries))]:
            return tuple(unflatten(tensors, value) for value in entries)
    raise ValueError(f"a part of a state should name what it holds, but is {rest!r:.200}")


def _flatten(state: object, name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    if isinstance(state, Tensor):
        while name in tensors:  # {"a/b": ..., "a": {"b": ...}}
            name += "'"
        tensors[name] = state
        return {"tensor": name}
    if isinstance(state, Mapping):
        for key in state:
            if not isinstance(key, str | int | float):
                raise TypeError(
                    f"'{name}' should have strings and numbers as keys, but has {key!r}."
                )
        entries = [[key, _flatten(v, f"{name}/{key}", tensors)] for key, v in state.items()]
        return {"dict": entries}
    if isinstance(state, list | tuple):
        kind = "list" if isinstance(state, list) else "tuple"
        return {kind: [_flatten(v, f"{name}/{i}", tensors) for i, v in enumerate(state)]}
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(
        f"'{name}' should be a tensor, number, string, boolean, None, or dictionaries, lists and "
        f"tuples of these, but is a {type(state).__name__}."
    )
