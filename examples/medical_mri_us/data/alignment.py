"""Alignment of the modalities of a case: whether they share more when one of them is moved."""

from __future__ import annotations

__all__ = ["Doubt", "doubts", "mutual_information"]

import itertools
from dataclasses import dataclass

import numpy as np

from .subjects import Subject
from .volumes import Mask, Volume

DISTANCES = (3.0, 6.0, 12.0)
"""How far one image is moved within its slices, mm."""

BINS = 16
"""The number of intensities that are told apart, alike in frequency."""

VOXELS = 60_000
"""The number of voxels in view from which slices are left out, to save time."""

LEAST = 0.25
"""The share of the view that has to be left when an image is moved."""

GAIN = 1.15
"""How much more two images have to share when one is moved for a doubt."""

SURE = 0.02
"""How much more that has to be at least, nats."""


@dataclass(frozen=True)
class Doubt:
    """Two images that share more information when the second one is moved."""

    first: str
    second: str
    shift: tuple[float, float]
    """How far it is moved along rows and columns, mm."""
    share: tuple[float, float]
    """The mutual information as they lie and after that, nats."""

    def __str__(self) -> str:
        """Says so in words."""
        along, across = (f"{s:.3g}" for s in self.shift)
        return (
            f"{self.first} and {self.second} may not lie on each other: they share "
            f"{self.share[1]:.2f} nats, not {self.share[0]:.2f}, if {self.second} is moved by "
            f"{along} mm along rows and {across} mm along columns"
        )


def doubts(subject: Subject) -> list[Doubt]:
    """Returns the pairs of images of a case that may not lie on each other.

    Mutual information, of images as they lie, is compared with that of the same voxels after one
    image was moved in eight directions. It is the largest where images of one anatomy lie on each
    other, whatever their contrasts, so that a move by which it grows tells of images that do not.

    Arguments:
        subject: The case.

    Returns:
        For each such pair, the move by which it shares most.
    """
    fov = subject.fov
    step = max(1, round(fov.sum() / VOXELS))
    fov = fov[::step]
    levels = {m: _levels(v[::step], fov) for m, v in subject.images.items()}
    found = []
    for first, second in itertools.combinations(levels, 2):
        best: Doubt | None = None
        for shift, mm in _shifts(subject.spacing):
            both = fov & _moved(fov, shift)
            if both.sum() < LEAST * fov.sum():
                continue
            still, moved = levels[second], _moved(levels[second], shift)
            now = mutual_information(levels[first][both], still[both])
            then = mutual_information(levels[first][both], moved[both])
            if then > max(GAIN * now, now + SURE) and (best is None or then > best.share[1]):
                best = Doubt(first, second, mm, (now, then))
        found += [] if best is None else [best]
    return found


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    r"""Returns the mutual information of two lists of levels, nats.

    .. math:: \sum_{ij} p_{ij} \log \frac{p_{ij}}{p_i p_j}

    Arguments:
        a: Levels, integers from 0 to 15.
        b: As many of the other image.
    """
    counts = np.bincount(BINS * a.astype(np.int64) + b, minlength=BINS**2).reshape(BINS, BINS)
    p = counts / counts.sum()
    product = p.sum(axis=1, keepdims=True) * p.sum(axis=0)
    there = p > 0
    return float((p[there] * np.log(p[there] / product[there])).sum())


def _levels(volume: Volume, fov: Mask) -> np.ndarray:
    edges = np.quantile(volume[fov], np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, volume).astype(np.int64)


def _shifts(
    spacing: tuple[float, float, float],
) -> list[tuple[tuple[int, int], tuple[float, float]]]:
    """The moves, in pixels and in mm."""
    found = {}
    for distance in DISTANCES:
        for i, j in itertools.product((-1, 0, 1), repeat=2):
            pixels = tuple(
                round(k * distance / s) for k, s in zip((i, j), spacing[1:], strict=True)
            )
            if any(pixels):
                found[pixels] = tuple(p * s for p, s in zip(pixels, spacing[1:], strict=True))
    return list(found.items())


def _moved(volume: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """A volume whose slices are moved; what comes in is 0."""
    out = np.zeros_like(volume)
    here, there = [], []
    for s, n in zip(shift, volume.shape[1:], strict=True):
        here.append(slice(max(0, s), max(0, min(n, n + s))))
        there.append(slice(max(0, -s), max(0, min(n, n - s))))
    out[:, here[0], here[1]] = volume[:, there[0], there[1]]
    return out
