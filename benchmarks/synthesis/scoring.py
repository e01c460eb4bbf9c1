"""Scores of what a system synthesises for held-out patients, from every subset of modalities."""

from __future__ import annotations

__all__ = ["SUBSETS", "Cell", "baseline", "score", "score_system"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.evaluation import SUBSETS, strict
from examples.medical_mri_us.evaluation.baseline import mean_images
from examples.medical_mri_us.modalities import MODALITIES

from .systems import System

METRICS = ("psnr", "ssim")
OTHERS = {"ms_ssim", "mae", "gmsd", "st_lpips", "lpips"}
"""What the protocol can also say, and is not asked."""

Cell = dict[str, Any]
"""``given``, ``target``, and the ``psnr`` and ``ssim`` of each patient, in lists."""


def score(image: Volume, truth: Volume, fov: np.ndarray) -> dict[str, float]:
    """Scores one volume of one patient inside the field of view, by the protocol ``strict``.

    PSNR has range 1 and counts the whole volume; SSIM is the mean over slices of the similarity
    map in view.

    Arguments:
        image: What was synthesised, in [-1, 1], with axes (slice, depth, lateral).
        truth: What is true, likewise.
        fov: The field of view, boolean.
    """
    found = strict.score(image, truth, truth, fov, OTHERS)
    return {metric: float(found[metric][0]) for metric in METRICS}


def score_system(system: System, subjects: Sequence[Subject]) -> list[Cell]:
    """Scores all targets of all subsets that a system handles, on complete patients.

    Arguments:
        system: The system, trained.
        subjects: The patients.
    """
    cells = []
    for subset in SUBSETS:
        if not set(subset) <= set(system.handled):
            continue
        images = [_synthesise(system, subject, subset) for subject in subjects]
        cells += [_cell(subset, m, [i[m] for i in images], subjects) for m in system.handled]
    return cells


def baseline(train: Sequence[Subject], test: Sequence[Subject]) -> list[Cell]:
    """Scores the mean image of the training patients, the same whatever is given, as a system.

    Arguments:
        train: The training patients.
        test: The patients to score.
    """
    means = mean_images(train)
    cells = []
    for m in MODALITIES:
        images = [np.broadcast_to(2 * means[m] - 1, s.fov.shape) for s in test]
        cell = _cell((), m, images, test)
        cells += [{**cell, "given": list(subset)} for subset in SUBSETS if m not in subset]
    return cells


def _synthesise(system: System, subject: Subject, given: Sequence[str]) -> dict[str, Volume]:
    device = next(system.network.parameters()).device
    x = {m: torch.from_numpy(subject.images[m])[:, None].to(device) for m in given}
    mask = torch.tensor([[m in given for m in MODALITIES]]).expand(len(subject.fov), -1)
    images = system.synthesise(x, mask.to(device), system.handled)
    return {m: image[:, 0].cpu().numpy() for m, image in images.items()}


def _cell(
    given: Sequence[str], target: str, images: Sequence[Volume], subjects: Sequence[Subject]
) -> Cell:
    found = [score(i, s.images[target], s.fov) for i, s in zip(images, subjects, strict=True)]
    scores = {metric: [f[metric] for f in found] for metric in METRICS}
    return {"given": list(given), "target": target, **scores}
