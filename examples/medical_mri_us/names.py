"""Names of cases, patients, splits and modalities: the one place that says what they may be."""

from __future__ import annotations

__all__ = ["check_modalities", "check_name", "made_name"]

import re
from collections.abc import Sequence

LONGEST = 64
"""The largest size of a name, in bytes: results are files that begin with it."""

OTHERS = "-_. "
"""The characters of a name beside letters and digits."""

COLUMNS = frozenset({"case", "split", "patient", "fov", "label", "landmarks"})
"""The columns of an index that are no modalities."""


def check_name(what: str, name: str) -> str:
    """Returns a name, or says why it cannot be one.

    A name becomes part of file names, cells of tables, pages and command lines. It holds letters
    and digits of any language, and ``-_.`` and spaces between them.

    Arguments:
        what: Whose name it is, as in ``"case"``.
        name: The name.

    Raises:
        ValueError: If it is refused; the message shows it in ASCII, without what moves a cursor.

    Example:
        >>> check_name("case", "Case 7.b")
        'Case 7.b'
        >>> check_name("case", "../a")
        Traceback (most recent call last):
            ...
        ValueError: the name of a case cannot be '../a': it should begin with a letter or a digit.
    """
    problem = _problem(name)
    if problem is not None:
        shown = ascii(name)
        shown = shown if len(shown) <= 2 * LONGEST else shown[: 2 * LONGEST] + "..."
        raise ValueError(f"the name of a {what} cannot be {shown}: it {problem}.")
    return name


def check_modalities(names: Sequence[str]) -> list[str]:
    """Returns the names of modalities, or says which of them cannot be one.

    Raises:
        ValueError: If there is none, one stands twice, or one is refused.
    """
    if not names:
        raise ValueError("'modalities' should be one name or more, but is empty.")
    for k, name in enumerate(names):
        check_name("modality", name)
        if name in COLUMNS or name.startswith("target_"):
            raise ValueError(f"the name of a modality cannot be {name!r}: an index uses it.")
        if name in names[:k]:
            raise ValueError(f"'modalities' should be different names, but {name!r} stands twice.")
    return list(names)


def made_name(text: str) -> str:
    """Returns a name that is like some text, such as the name of a file.

    Example:
        >>> made_name("scan (2)"), made_name("=1+1"), made_name("...")
        ('scan _2_', '1_1', 'unnamed')
    """
    kept = "".join(c if _plain(c) or c in OTHERS else "\0" for c in text)
    name = re.sub("\0+", "_", re.sub(r"\.{2,}", ".", kept)).lstrip("_-. ")
    whole = name.encode()[:LONGEST].decode(errors="ignore")
    return whole.rstrip(". ") or "unnamed"


def _problem(name: str) -> str | None:
    if not name:
        return "is empty"
    if not _plain(name[0]):
        return "should begin with a letter or a digit"
    other = next((c for c in name if not _plain(c) and c not in OTHERS), None)
    if other is not None:
        return f"should hold letters, digits, '-', '_', '.' and spaces alone, but holds {other!a}"
    if ".." in name:
        return "should not hold '..', which in paths is the folder above"
    if name[-1] in ". ":
        return f"should not end with {name[-1]!r}, which some systems drop from names of files"
    if len(name.encode()) > LONGEST:
        return f"should have at most {LONGEST} bytes, but has {len(name.encode())}"
    return None


def _plain(character: str) -> bool:
    return character.isalpha() or character.isdecimal()
