"""Reads arrays out of an R file, from its parse tree: objects of R's class S4 cannot be built."""

from __future__ import annotations

__all__ = ["read"]

import warnings
from collections.abc import Collection, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd

from mmpoe.extras import needs


def read(content: bytes, names: Collection[str]) -> dict[str, pd.DataFrame]:
    """Returns the first array with names of rows and columns below each of some names.

    Arguments:
        content: The file.
        names: The names of list elements that the arrays lie below.

    Raises:
        ImportError: If rdata is not installed.
    """
    with needs("bench"):
        parser = import_module("rdata").parser
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = parser.parse_data(content).object
    found: dict[str, pd.DataFrame] = {}
    seen: set[int] = set()
    waiting: list[tuple[Any, str | None]] = [(root, None)]
    while waiting:
        node, below = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        attributes = _attributes(node)
        if below is not None and below not in found and {"dim", "dimnames"} <= set(attributes):
            rows, columns = (_strings(part) for part in attributes["dimnames"].value)
            values = np.asarray(node.value).reshape(len(rows), len(columns), order="F")
            found[below] = pd.DataFrame(values, pd.Index(rows), pd.Index(columns))
        children = [
            (child, name if name in names else below)
            for name, child in _children(node, attributes)
        ]
        waiting.extend(reversed(children))
    return found


def _children(node: Any, attributes: dict[str, Any]) -> Iterator[tuple[str | None, Any]]:  # noqa: ANN401
    """The parts of a node, with their names."""
    yield from attributes.items()
    kind = node.info.type
    if kind.name in ("LIST", "LANG"):
        head, tail = node.value
        yield (_tag(node) if node.tag is not None else None), head
        yield None, tail
    elif kind.name in ("VEC", "EXPR"):
        names = _strings(attributes["names"]) if "names" in attributes else []
        yield from zip(names or [None] * len(node.value), node.value, strict=True)
    elif kind.name == "ENV":
        yield None, node.value.frame
        yield None, node.value.hash_table


def _attributes(node: Any) -> dict[str, Any]:  # noqa: ANN401
    """The attributes of a node by name, from a linked list."""
    found, link = {}, node.attributes
    while link is not None and link.info.type.name == "LIST":
        found[_tag(link)] = link.value[0]
        link = link.value[1]
    return found


def _tag(node: Any) -> str:  # noqa: ANN401
    tag = node.tag
    if tag.info.type.name == "REF":
        tag = tag.referenced_object
    return tag.value.value.decode()


def _strings(node: Any) -> list[str]:  # noqa: ANN401
    return [part.value.decode() for part in node.value]
