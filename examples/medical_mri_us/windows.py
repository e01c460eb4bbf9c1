"""Square windows of a model's size, cut out of slices, and put back."""

from __future__ import annotations

__all__ = ["Window", "fit_subject", "fit_subjects"]

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .data import Mask, Subject


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

    def paste(self, window: np.ndarray) -> np.ndarray:
        """Returns slices with what a window shows in its place, and 0 elsewhere."""
        out = np.zeros((*window.shape[:-2], *self.shape), window.dtype)
        outer, inner = self._places()
        out[(..., *outer)] = window[(..., *inner)]
        return out

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


def fit_subject(subject: Subject, size: int) -> tuple[Subject, float]:
    """Cuts or pads the slices of a subject to a model's size.

    Arguments:
        subject: The subject.
        size: The height and width of the model's slices, in pixels.

    Returns:
        The subject, and the share of its field of view that was cut off.
    """
    if subject.fov.shape[1:] == (size, size):
        return subject, 0.0
    window = Window.around(subject.fov, size)
    fov = window.cut(subject.fov, False)
    label = None if subject.label is None else window.cut(subject.label, 0)
    images = {m: window.cut(v, -1) for m, v in subject.images.items()}
    targets = {m: window.cut(v, -1) for m, v in subject.targets.items()}
    lost = 1 - fov.sum() / max(1, subject.fov.sum())
    return replace(subject, images=images, fov=fov, label=label, targets=targets), float(lost)


def fit_subjects(subjects: Sequence[Subject], size: int) -> list[Subject]:
    """Brings all to the model's size, and says what was cut off."""
    fitted = [fit_subject(subject, size) for subject in subjects]
    cut = [share for _, share in fitted if share > 0]
    if cut:
        print(
            f"{len(cut)} cases are larger than {size} x {size} pixels: up to {max(cut):.0%} of "
            "their field of view is left out."
        )
    return [subject for subject, _ in fitted]
