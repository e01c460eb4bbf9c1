"""Square windows of a model's size, cut out of slices, and put back, alone or as tiles."""

from __future__ import annotations

__all__ = ["Tile", "Tiles", "Window", "pad_subject", "pad_subjects", "tile_subject"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from .counts import counted
from .data import Mask, StoredSubject, Subject
from .data.stored import pad

S = TypeVar("S", bound=Subject | StoredSubject)


@dataclass(frozen=True)
class Window:
    """A square in slices; it may reach beyond them."""

    shape: tuple[int, int]
    """The height and width of the slices, in pixels."""
    size: int
    """The side of the square, in pixels."""
    start: tuple[int, int]
    """Its first row and column; negative where slices are padded."""

    @classmethod
    def around(cls, fov: Mask, size: int) -> Window:
        """Returns the window around the middle: of a small slice, or of what is in view.

        Arguments:
            fov: The field of view of all slices, (slices, height, width).
            size: The side of the square, in pixels.
        """
        start = []
        for axis, side in ((1, fov.shape[1]), (2, fov.shape[2])):
            if side <= size:
                start.append(-((size - side) // 2))
                continue
            seen = np.flatnonzero(fov.any(axis=tuple({0, 1, 2} - {axis})))
            middle = (seen[0] + seen[-1] + 1) // 2 if len(seen) else side // 2
            start.append(int(np.clip(middle - size // 2, 0, side - size)))
        return cls((fov.shape[1], fov.shape[2]), size, (start[0], start[1]))

    def cut(self, volume: np.ndarray, fill: float) -> np.ndarray:
        """Returns what the window shows, and a value where there is nothing to show.

        Arguments:
            volume: Slices, (*, height, width).
            fill: The value.
        """
        out = np.full((*volume.shape[:-2], self.size, self.size), fill, volume.dtype)
        outer, inner = self._places()
        out[(..., *inner)] = volume[(..., *outer)]
        return out

    def add(self, window: np.ndarray, slices: np.ndarray) -> None:
        """Adds what a window shows to slices, in its place."""
        outer, inner = self._places()
        slices[(..., *outer)] += window[(..., *inner)]

    def _places(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The overlap of the slices and the window, in the pixels of either."""
        low = [max(0, start) for start in self.start]
        high = [
            min(side, start + self.size)
            for side, start in zip(self.shape, self.start, strict=True)
        ]
        outer = [slice(a, b) for a, b in zip(low, high, strict=True)]
        inner = [slice(a - s, b - s) for a, b, s in zip(low, high, self.start, strict=True)]
        return (outer[0], outer[1]), (inner[0], inner[1])


@dataclass(frozen=True)
class Tile:
    """One of several windows over slices."""

    window: Window
    place: tuple[int, int]
    """Its row and column among the tiles."""
    weight: np.ndarray
    """The weight of its pixels, (size, size), where tiles overlap."""


@dataclass(frozen=True)
class Tiles:
    """Windows that cover what is in view, and overlap where one does not suffice.

    A quarter of the overlap at the edge of a tile has no weight, so that a network that sees no
    further than that makes of the tiles what it makes of the whole. Weights rise linearly in
    between, and those of two neighbours sum to 1.
    """

    shape: tuple[int, int]
    """The height and width of the slices, in pixels."""
    size: int
    """The side of the windows, in pixels."""
    stride: int
    """The distance between neighbours, in pixels."""
    starts: tuple[tuple[int, ...], tuple[int, ...]]
    """The first rows and the first columns of the windows."""

    @classmethod
    def over(cls, fov: Mask, size: int, stride: int) -> Tiles:
        """Returns the tiles over a field of view: one alone if it fits, see `Window.around`.

        Arguments:
            fov: The field of view of all slices, (slices, height, width).
            size: The side of the windows, in pixels.
            stride: The distance between neighbours, in pixels.
        """
        alone = Window.around(fov, size).start
        starts: list[tuple[int, ...]] = []
        for axis in (1, 2):
            seen = np.flatnonzero(fov.any(axis=tuple({0, 1, 2} - {axis})))
            extent = int(seen[-1] - seen[0] + 1) if len(seen) else 0
            if extent <= size:
                starts.append((alone[axis - 1],))
                continue
            steps = -(-(extent - size) // stride)
            first = int(seen[0]) - (size + steps * stride - extent) // 2
            starts.append(tuple(first + k * stride for k in range(steps + 1)))
        return cls((fov.shape[1], fov.shape[2]), size, stride, (starts[0], starts[1]))

    @property
    def number(self) -> tuple[int, int]:
        """The number of rows and of columns of tiles."""
        return len(self.starts[0]), len(self.starts[1])

    def __iter__(self) -> Iterator[Tile]:
        rows, columns = (self._weights(n) for n in self.number)
        for i, top in enumerate(self.starts[0]):
            for j, left in enumerate(self.starts[1]):
                window = Window(self.shape, self.size, (top, left))
                yield Tile(window, (i, j), np.outer(rows[i], columns[j]).astype(np.float32))

    def _weights(self, number: int) -> list[np.ndarray]:
        """The weights along one axis, of each of some tiles."""
        overlap = self.size - self.stride
        margin = overlap // 4
        places = np.arange(self.size) + 1 - margin
        rise = np.clip(places / (overlap - 2 * margin + 1), 0, 1)
        level = np.ones(self.size)
        return [
            (rise if k > 0 else level) * (rise[::-1] if k < number - 1 else level)
            for k in range(number)
        ]


def tile_subject(subject: Subject, size: int, stride: int) -> list[Subject]:
    """Cuts the slices of a subject into tiles, each as a subject; itself if it fits.

    Arguments:
        subject: The subject.
        size: The height and width of the model's slices, in pixels.
        stride: The distance between neighbours, in pixels.
    """
    if subject.fov.shape[1:] == (size, size):
        return [subject]
    return [_cut(subject, tile.window) for tile in Tiles.over(subject.fov, size, stride)]


def _cut(subject: Subject, window: Window) -> Subject:
    return replace(
        subject,
        images={m: window.cut(v, -1) for m, v in subject.images.items()},
        targets={m: window.cut(v, -1) for m, v in subject.targets.items()},
        fov=window.cut(subject.fov, False),
        label=None if subject.label is None else window.cut(subject.label, 0),
    )


def pad_subjects(subjects: Sequence[S], size: int) -> list[S]:
    """Pads slices that are smaller than a model's size, and says how many are larger."""
    large = sum(max(s.shape[1:]) > size for s in subjects)
    if large:
        print(
            f"{counted(large, 'case is', 'cases are')} larger than {size} x {size} pixels: "
            "training takes windows, at random places."
        )
    return [pad_subject(s, size) for s in subjects]


def pad_subject(subject: S, size: int) -> S:
    """Pads slices that are smaller than a model's size, alike at both sides."""
    return subject if min(subject.shape[1:]) >= size else _padded(subject, size)


def _padded(subject: S, size: int) -> S:
    if isinstance(subject, StoredSubject):
        return replace(subject, least=size)
    return replace(
        subject,
        images={m: pad(v, size, -1) for m, v in subject.images.items()},
        targets={m: pad(v, size, -1) for m, v in subject.targets.items()},
        fov=pad(subject.fov, size, False),
        label=None if subject.label is None else pad(subject.label, size, 0),
    )
