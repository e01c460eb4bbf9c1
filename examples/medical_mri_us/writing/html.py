"""HTML as a tree of elements, so that no text can become markup."""

from __future__ import annotations

__all__ = ["Content", "Tag", "page", "script_data", "tag"]

import html
import json
import re
from collections.abc import Iterable
from typing import Any, TypeAlias, Union

VOID = {"img", "input", "meta"}
"""The elements without content."""

RAW = {"script", "style"}
"""The elements whose content browsers do not unescape."""

Content: TypeAlias = Union["Tag", str, float, Iterable["Content"], None]
"""The content of an element: text, numbers, elements, sequences of these, or nothing."""


class Tag:
    """An element with its content; :func:`tag` makes it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        """Returns the element as HTML."""
        return self._text


def tag(name: str, /, *content: Content, **attributes: object) -> Tag:
    """Makes an element. Text is escaped, in content and in attributes, whatever it says.

    Arguments:
        name: The name of the element.
        content: The content.
        attributes: The attributes. An underscore in a name is a hyphen, one at its end is left
            out. True is an attribute without a value; None and False are no attribute.

    Raises:
        ValueError: If content of a script or a style sheet would end it.

    Example:
        >>> print(tag("p", "a < b, ", tag("b", 7), class_="small"))
        <p class=small>a &lt; b, <b>7</b></p>
        >>> print(tag("img", alt="'", src="#", hidden=True))
        <img alt='&#x27;' src='#' hidden>
    """
    start = f"<{name}{''.join(_attribute(*item) for item in attributes.items())}>"
    if name in VOID:
        return Tag(start)
    inside = "".join(map(str, content)) if name in RAW else _render(content)
    if name in RAW and "</" in inside:
        raise ValueError(f"'content' of {name} should not hold '</', which may end it.")
    return Tag(f"{start}{inside}</{name}>")


def script_data(value: Any, id: str) -> Tag:  # noqa: ANN401
    """Returns an element that holds a value as JSON, for scripts to read."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return tag("script", text, type="application/json", id=id)


def page(head: Content, body: Content) -> str:
    """Returns a document in English with this head and body."""
    charset = tag("meta", charset="utf-8")
    viewport = tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    parts = tag("head", charset, head, viewport), tag("body", body)
    return f"<!doctype html>{tag('html', *parts, lang='en')}\n"


def _render(content: Content) -> str:
    if content is None:
        return ""
    if isinstance(content, Tag):
        return str(content)
    if isinstance(content, (str, float, int)):
        return html.escape(str(content), quote=False)
    return "".join(map(_render, content))


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = html.escape(str(value), quote=True)
    return f" {name}={text}" if re.fullmatch(r"[\w.-]+", text, re.ASCII) else f" {name}='{text}'"
