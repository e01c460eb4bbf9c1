"""A baseline that needs no model: the mean image of each modality."""

from __future__ import annotations

__all__ = ["laid_on", "mean_images"]

from collections.abc import Iterable, Sequence

import numpy as np

from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.windows import Window

from .synthesis import to_unit, truths


def mean_images(
    subjects: Iterable[Subject],
    modalities: Sequence[str] = MODALITIES,
    size: int | None = None,
) -> dict[str, Volume]:
    """Returns the mean image of each modality over all slices that show a pixel, in [0, 1].

    A pixel that no slice shows gets the mean of the others. Subjects are looked at one by one, so
    that a generator need not keep them. A modality that nobody has is left out.

    Arguments:
        subjects: The subjects.
        modalities: The modalities.
        size: The height and width of the model's slices, in pixels; None for the subjects'. Slices
            of differing sizes are laid on each other in the middle, see `Window.around`, and a
            mean image is as large as the largest.
    """
    total: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for subject in subjects:
        window = _window(subject, size)
        shown = window.cut(subject.fov.sum(axis=0), 0)
        for m, image in truths(subject).items():
            shades = window.cut(to_unit(image, subject).sum(axis=0), 0)
            total[m] = _sum(total[m], shades) if m in total else shades
            seen[m] = _sum(seen[m], shown) if m in seen else shown
    means = {}
    for m in modalities:
        if m in total:
            anywhere = total[m].sum() / seen[m].sum()
            mean = np.where(seen[m] > 0, total[m] / np.maximum(seen[m], 1), anywhere)
            means[m] = mean.astype(np.float32)
    return means


def laid_on(mean: Volume, subject: Subject, size: int | None) -> Volume:
    """Returns a mean image in the place of the slices of a subject, (height, width).

    Arguments:
        mean: The mean image; beyond it lies the mean of its pixels.
        subject: The subject.
        size: See `mean_images`.
    """
    window = _window(subject, size)
    image = _widened(mean, window.size, float(mean.mean()))
    beside = (len(image) - window.size) // 2
    found = np.zeros(subject.fov.shape[1:], np.float32)
    window.add(image[beside : beside + window.size, beside : beside + window.size], found)
    return found


def _window(subject: Subject, size: int | None) -> Window:
    """The square that holds all of a subject's slices, with the model's window in its middle."""
    height, width = subject.fov.shape[1:]
    side = height if size is None else size
    top, left = Window.around(subject.fov, side).start
    wider = max(0, top, left, height - top - side, width - left - side)
    return Window((height, width), side + 2 * wider, (top - wider, left - wider))


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two squares, the smaller in the middle of the larger."""
    side = max(len(a), len(b))
    return _widened(a, side, 0) + _widened(b, side, 0)


def _widened(square: np.ndarray, side: int, fill: float) -> np.ndarray:
    return np.pad(square, max(0, side - len(square)) // 2, constant_values=fill)
