"""Whether the spread of predictions is as large as their error: coverage of intervals."""

from __future__ import annotations

__all__ = ["INTERVALS", "LEVELS", "cover_subject", "coverage_means", "resolved"]

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from examples.medical_mri_us.data import Subject
from mmpoe.metrics import coverage
from mmpoe.models import MMHVAE

from .subsets import all_subsets
from .synthesis import draw, truths

LEVELS = (0.5, 0.9)
"""The nominal coverages of the intervals."""

INTERVALS = {
    "mean": "of the decoder's mean over latent samples: what the map of standard deviations shows",
    "predictive": "of whole predictions, with the noise of the decoder's likelihood",
}
"""The two kinds of draws that intervals are made of."""

Row = dict[str, Any]


def resolved(samples: int) -> list[float]:
    """Returns the levels that so many draws can tell: 19 for 90 %, 3 for 50 %.

    An interval leaves out a share (1 - c) / 2 of the K + 1 ranks at either end. If that is less
    than one rank, a truth outside of all draws counts as covered in part, and draws without any
    spread would seem to cover much: more than half, for 8 draws at 90 %.
    """
    return [level for level in LEVELS if (1 - level) / 2 * (samples + 1) > 1 - 1e-9]


def cover_subject(
    name: str,
    model: MMHVAE,
    subject: Subject,
    samples: int,
    seed: int = 0,
    *,
    size: int | None = None,
) -> Iterator[Row]:
    """Returns how much of a case the central intervals of its predictions cover.

    By `mmpoe.metrics.coverage`, whose expected value is the level for any number of draws, over
    the voxels in view.

    Arguments:
        name: The name of the model.
        model: The model.
        subject: The case, complete or not.
        samples: The number of latent samples, at least 2.
        seed: What they are drawn from.
        size: The height and width of the model's slices, in pixels; None for the subject's.
    """
    true = {m: torch.from_numpy(v) for m, v in truths(subject).items() if m in model.modalities}
    fov = torch.from_numpy(subject.fov)
    held = [m for m in model.modalities if m in subject.images]
    for given in all_subsets(held):
        torch.manual_seed(seed)
        covered: dict[tuple[str, str, float], float] = {}
        for place, drawn in draw(model, subject, given, samples, size=size):
            for m, image in true.items():
                for interval, draws in zip(INTERVALS, drawn[m], strict=True):
                    for level in resolved(samples):
                        found = coverage(draws, image[place], level, mask=fov[place]).nansum()
                        key = m, interval, level
                        covered[key] = covered.get(key, 0.0) + float(found)
        for (m, interval, level), total in covered.items():
            yield {
                "model": name,
                "case": subject.name,
                "given": given,
                "target": m,
                "kind": "self" if m in given else "cross",
                "intervals": interval,
                "level": level,
                "coverage": total / int(subject.fov.sum()),
            }


def coverage_means(rows: Sequence[Row]) -> list[Row]:
    """Averages coverage over cases, for each model, inputs, target, kind of interval and level."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        names = ("model", "kind", "given", "target", "intervals", "level")
        groups.setdefault(tuple(row[n] for n in names), []).append(row["coverage"])
    return [
        {
            "model": model,
            "kind": kind,
            "given": list(given),
            "target": target,
            "intervals": interval,
            "level": level,
            "coverage": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "n": len(values),
            "unit": "case",
        }
        for (model, kind, given, target, interval, level), values in groups.items()
    ]
