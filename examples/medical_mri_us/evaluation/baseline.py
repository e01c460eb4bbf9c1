"""A baseline that needs no model: the mean image of each modality."""

from __future__ import annotations

__all__ = ["mean_images"]

from collections.abc import Iterable, Sequence

import numpy as np

from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.modalities import MODALITIES

from .synthesis import to_unit, truths


def mean_images(
    subjects: Iterable[Subject], modalities: Sequence[str] = MODALITIES
) -> dict[str, Volume]:
    """Returns the mean image of each modality over all slices that show a pixel, in [0, 1].

    A pixel that no slice shows gets the mean of the others. Subjects are looked at one by one, so
    that a generator need not keep them. A modality that nobody has is left out.
    """
    total: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for subject in subjects:
        for m, image in truths(subject).items():
            total[m] = total.get(m, 0.0) + to_unit(image, subject).sum(axis=0)
            seen[m] = seen.get(m, 0) + subject.fov.sum(axis=0)
    means = {}
    for m in modalities:
        if m in total:
            anywhere = total[m].sum() / seen[m].sum()
            mean = np.where(seen[m] > 0, total[m] / np.maximum(seen[m], 1), anywhere)
            means[m] = mean.astype(np.float32)
    return means
