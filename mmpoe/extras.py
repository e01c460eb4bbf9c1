r"""Optional packages: imported where they are used, with a word on how to get them."""

from __future__ import annotations

__all__ = ["needs"]

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Names the extra that brings what is imported inside a ``with`` block.

    Arguments:
        extra: The name of the extra, as in ``mmpoe[train]``.

    Raises:
        ModuleNotFoundError: If a package inside is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"This needs the package {error.name}, which is not installed: "
            f"pip install 'mmpoe[{extra}]', or '.[{extra}]' in a clone.",
            name=error.name,
        ) from error
