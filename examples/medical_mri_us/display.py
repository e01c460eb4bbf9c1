"""Slices as radiologists look at them: the patient's right on the left, the front on top."""

from __future__ import annotations

__all__ = ["OPPOSITE", "Turn", "mark_sides", "sides"]

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
"""The letters of directions, and those of the other way."""

WANTED = {"S": "PL", "I": "PL", "A": "IL", "P": "IL", "R": "IP", "L": "IP"}
"""The directions that rows and columns should have, by that of slices."""


@dataclass(frozen=True)
class Turn:
    """A turn of slices within their plane."""

    swapped: bool
    """Whether rows and columns change places."""
    flipped: tuple[bool, bool]
    """Whether rows and columns are mirrored after that."""
    axes: str
    """The directions of rows, columns and slices in the end, as of `data.axis_codes`."""

    @classmethod
    def of(cls, axes: str, *, probe: bool) -> Turn:
        """Returns the turn to radiological convention.

        Arguments:
            axes: Where rows, columns and slices point to, nearly.
            probe: Whether slices lie as the probe of an ultrasound saw them, and stay so.

        Example:
            >>> Turn.of("RAS", probe=False)
            Turn(swapped=True, flipped=(True, True), axes='PLS')
        """
        if probe:
            return cls(False, (False, False), axes)
        rows, columns = WANTED[axes[2]]
        swapped = axes[0] not in (rows, OPPOSITE[rows])
        own = axes[1] + axes[0] if swapped else axes[:2]
        return cls(swapped, (own[0] != rows, own[1] != columns), rows + columns + axes[2])

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Turns slices, (*, rows, columns)."""
        image = image.swapaxes(-1, -2) if self.swapped else image
        image = image[..., ::-1, :] if self.flipped[0] else image
        return np.ascontiguousarray(image[..., ::-1] if self.flipped[1] else image)


def sides(axes: str) -> list[str]:
    """Returns the letters at the left, right, top and bottom of a slice.

    Arguments:
        axes: Where rows, columns and slices point to.

    Example:
        >>> sides("PLS")
        ['R', 'L', 'A', 'P']
    """
    return [OPPOSITE[axes[1]], axes[1], OPPOSITE[axes[0]], axes[0]]


def mark_sides(ax: Axes, axes: str) -> None:
    """Writes the letters of the four sides into a picture of a slice.

    Arguments:
        ax: The axes of the picture.
        axes: Where rows, columns and slices point to.
    """
    places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03))
    for letter, (x, y) in zip(sides(axes), places, strict=True):
        style = {"color": "#ffd479", "fontsize": 8, "ha": "center", "va": "center"}
        ax.text(x, y, letter, transform=ax.transAxes, **style)
