"""The modality of each series of ReMIND, by the words of its name."""

from __future__ import annotations

__all__ = ["RULES", "Rule", "best", "plain"]

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Rule:
    """The words that a name must hold, in any case of letters, and those that it must not."""

    words: tuple[str, ...]
    without: tuple[str, ...] = ()

    def fits(self, name: str) -> bool:
        """Whether a name obeys the rule.

        Example:
            >>> Rule(("t2", "space"), without=("flair",)).fits("3D_AX_T2_SPACE-r")
            True
        """
        letters = plain(name)
        return all(w in letters for w in self.words) and not any(
            w in letters for w in self.without
        )


RULES = {
    "us": Rule(("predura",)),
    "t2": Rule(("t2", "space"), without=("flair",)),
    "cet1": Rule(("3d", "postcontrast")),
    "flair": Rule(("3d", "flair")),
}
"""The rules of the published MMHVAE: of several series that fit, the finest is taken."""


def plain(name: str) -> str:
    """Returns the letters and digits of a name alone, small: tools differ in all others."""
    return "".join(c for c in name.lower() if c.isalnum())


def best(candidates: Iterable[tuple[float, str, Item]]) -> Item | None:
    """Returns the candidate with the smallest mean spacing, the first in the alphabet of equals.

    Arguments:
        candidates: The mean spacing, the name, and what is chosen.
    """
    ordered = sorted(candidates, key=lambda c: (c[0], c[1]))
    return ordered[0][2] if ordered else None
