"""Scores of the images that a system synthesises for held-out patients, from every subset.

Two protocols of the example's evaluation stand side by side: ``strict``, of images at the mean
of the latents, and ``mmhvae-2026``, the published one, of a sample at temperature 0.7. Systems
without latents give the same images for both.
"""

from __future__ import annotations

__all__ = [
    "BASELINE",
    "PROTOCOLS",
    "SUBSETS",
    "Cell",
    "absent",
    "baseline",
    "images_of",
    "score",
    "score_published",
    "score_system",
]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.evaluation import PROTOCOLS as DEFINITIONS
from examples.medical_mri_us.evaluation import SUBSETS, unavailable
from examples.medical_mri_us.evaluation.baseline import mean_images
from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.models import MultimodalVAE

from .systems import System

BASELINE = "mean image"
"""The name of what :func:`baseline` scores."""
STRICT, PUBLISHED = (DEFINITIONS[name] for name in ("strict", "mmhvae-2026"))
PROTOCOLS = {
    STRICT.name: ("psnr", "ssim", "st_lpips", "lpips"),
    PUBLISHED.name: ("psnr", "ssim", "lpips"),
}
"""The metrics of each protocol that are scored."""
PERCEPTUAL = ("st_lpips", "lpips")
EVERY = 4
"""One slice of so many is scored by the metrics that cost most: those that are networks, and the
published protocol."""
SMALLEST = 32
"""The side of the smallest images that those can see, in pixels."""

Cell = dict[str, Any]
"""``given``, ``target``, and in lists a number for each patient: ``psnr``, ``ssim``, ``st_lpips``
and ``lpips`` by the protocol ``strict``, and in a dictionary ``mmhvae-2026`` those of that one.
NaN where there is none."""


def score(image: Volume, truth: Volume, fov: np.ndarray) -> dict[str, float]:
    """Scores one volume of one patient inside the field of view, by the protocol ``strict``.

    PSNR has range 1 and counts the whole volume; SSIM is the mean over slices of the similarity
    map in view; ST-LPIPS and LPIPS are means over every fourth slice.

    Arguments:
        image: What was synthesised, in [-1, 1], with axes (slice, depth, lateral).
        truth: What is true, likewise.
        fov: The field of view, boolean.
    """
    others = {metric.name for metric in STRICT.metrics} - {"psnr", "ssim"}
    found = STRICT.score(image, truth, truth, fov, others)
    few = [volume[_seen(fov)] for volume in (image, truth, truth, fov)]
    names = {metric.name for metric in STRICT.metrics} - set(PERCEPTUAL)
    seen = STRICT.score(few[0], few[1], few[2], few[3], names | set(absent()))
    found = {**found, **{metric: seen[metric] for metric in PERCEPTUAL}}
    return {metric: float(found[metric][0]) for metric in PROTOCOLS[STRICT.name]}


def score_published(
    image: Volume, truth: Volume, first: Volume, fov: np.ndarray
) -> dict[str, float]:
    """Scores one volume by the protocol ``mmhvae-2026``, averaged over every fourth slice.

    Arguments:
        image: What was synthesised, in [-1, 1], with axes (slice, depth, lateral).
        truth: What is true, likewise.
        first: The first modality that was given: where it is background, the image is.
        fov: The field of view, boolean, which this protocol does not use.
    """
    few = [volume[_seen(fov)] for volume in (image, truth, first, fov)]
    found = PUBLISHED.score(few[0], few[1], few[2], few[3], set(absent()))
    finite = {metric: found[metric][np.isfinite(found[metric])] for metric in found}
    return {
        metric: float(finite[metric].mean()) if finite[metric].size else float("nan")
        for metric in PROTOCOLS[PUBLISHED.name]
    }


@lru_cache(maxsize=1)
def absent() -> dict[str, str]:
    """Returns which metrics cannot be computed on this machine, and why, without its paths."""
    perceptual = [metric for metric in STRICT.metrics if metric.name in PERCEPTUAL]
    reasons = unavailable(replace(STRICT, metrics=tuple(perceptual)), SMALLEST)
    return {metric: reason.split(":")[0] for metric, reason in reasons.items()}


def score_system(system: System, subjects: Sequence[Subject]) -> list[Cell]:
    """Scores all targets of all subsets that a system handles, on complete patients.

    Arguments:
        system: The system, trained.
        subjects: The patients.
    """
    latent = isinstance(system.network, MultimodalVAE)
    cells = []
    for subset in SUBSETS:
        if not set(subset) <= set(system.handled):
            continue
        images = [images_of(system, subject, subset) for subject in subjects]
        samples = images
        if latent:
            t = PUBLISHED.temperature
            samples = [images_of(system, s, subset, t, seed) for seed, s in enumerate(subjects)]
        cells += [_cell(subset, m, images, samples, subjects) for m in system.handled]
    return cells


def baseline(train: Sequence[Subject], test: Sequence[Subject]) -> list[Cell]:
    """Scores the mean image of the training patients, the same whatever is given, as a system.

    Arguments:
        train: The training patients.
        test: The patients to score.
    """
    means = mean_images(train)
    inside = [np.where(s.fov, 1, -1).astype(np.float32) for s in test]
    cells = []
    for m in MODALITIES:
        images = [{m: np.broadcast_to(2 * means[m] - 1, s.fov.shape)} for s in test]
        cell = _cell((), m, images, images, test, inside)
        cells += [{**cell, "given": list(subset)} for subset in SUBSETS if m not in subset]
    return cells


def images_of(
    system: System,
    subject: Subject,
    given: Sequence[str],
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, Volume]:
    """Returns the images that a system synthesises of a patient, in [-1, 1], all that it handles.

    Arguments:
        system: The system, trained.
        subject: The patient.
        given: The modalities to condition on.
        temperature: The temperature of the sample, for systems with latents; 0 is the mean.
        seed: What the sample is drawn from.
    """
    device = next(system.network.parameters()).device
    x = {m: torch.from_numpy(subject.images[m])[:, None].to(device) for m in given}
    mask = torch.tensor([[m in given for m in MODALITIES]]).expand(len(subject.fov), -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        images = system.synthesise(x, mask.to(device), system.handled, temperature)
    return {m: image[:, 0].cpu().numpy() for m, image in images.items()}


def _cell(
    given: Sequence[str],
    target: str,
    images: Sequence[Mapping[str, Volume]],
    samples: Sequence[Mapping[str, Volume]],
    subjects: Sequence[Subject],
    firsts: Sequence[Volume] | None = None,
) -> Cell:
    firsts = [s.images[given[0]] for s in subjects] if firsts is None else firsts
    strict, published = [], []
    for i, drawn, s, first in zip(images, samples, subjects, firsts, strict=True):
        truth = s.images[target]
        strict.append(score(i[target], truth, s.fov))
        published.append(score_published(drawn[target], truth, first, s.fov))
    lists = _lists(strict)
    return {"given": list(given), "target": target, **lists, PUBLISHED.name: _lists(published)}


def _lists(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {metric: [row[metric] for row in rows] for metric in rows[0]}


def _seen(fov: np.ndarray) -> slice:
    """Every fourth slice, from the third on, or all of a thin volume."""
    return slice(EVERY // 2, None, EVERY) if len(fov) > EVERY // 2 else slice(None)
