"""Synthesis of the slices of a subject: images, and their spread."""

from __future__ import annotations

__all__ = ["draw", "predict", "synthesise", "to_unit", "truths"]

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from examples.medical_mri_us.data import Subject, Volume
from mmpoe.distributions import Draws
from mmpoe.imputation import impute
from mmpoe.models import MMHVAE, UncalibratedWarning

BATCH = 16
"""The number of slices that go through a model at a time."""


def predict(
    model: MMHVAE, subject: Subject, given: Sequence[str], *, temperature: float = 0.0
) -> dict[str, Volume]:
    """Returns every modality of a subject as the model's decoders say it, in [-1, 1].

    Arguments:
        model: The model.
        subject: The subject.
        given: The modalities to condition on.
        temperature: The temperature of the latent sample; 0 is the mean.
    """
    parts: list[dict[str, Tensor]] = []
    for x, _ in _batches(model, subject, given):
        out = model.predict(x, list(given), temperature=temperature, experts="trained")
        parts.append({m: p.mean[:, 0].cpu() for m, p in out.items()})
    return {m: torch.cat([part[m] for part in parts]).numpy() for m in model.modalities}


def synthesise(model: MMHVAE, subject: Subject, given: Sequence[str]) -> dict[str, Volume]:
    """Returns every modality of a subject, at the mean of what the given ones say, in [0, 1]."""
    return {m: to_unit(image, subject) for m, image in predict(model, subject, given).items()}


def draw(
    model: MMHVAE, subject: Subject, given: Sequence[str], samples: int
) -> Iterator[tuple[slice, dict[str, tuple[Tensor, Tensor]]]]:
    """Draws predictions for a few slices at a time.

    Both kinds of draws are clipped to [-1, 1], as the data are.

    Arguments:
        model: The model.
        subject: The subject.
        given: The modalities to condition on.
        samples: The number of latent samples K, at least 2.

    Returns:
        The slices, and for each modality the means of the decoder and whole predictions with the
        noise of its likelihood, each with shape (K, slices, H, W). Whole predictions of modalities
        that are not given come from the model's spread, if it has one.
    """
    for x, place in _batches(model, subject, given):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncalibratedWarning)  # results say it themselves
            out = model.predict(x, list(given), samples=samples)
            hidden = [m for m in model.modalities if m not in given]
            learned = {}
            if model.spread is not None and hidden:
                learned = impute(model, x, list(given), samples, targets=hidden)
        drawn = {}
        for m, draws in out.items():
            assert isinstance(draws, Draws)
            whole = learned[m].draws if m in learned else draws.sample()
            both = draws.components.mean, whole
            means, whole = (values[:, :, 0].clamp(-1, 1).cpu() for values in both)
            drawn[m] = means, whole
        yield place, drawn


def truths(subject: Subject) -> dict[str, Volume]:
    """Returns what a synthesis should be: the subject's targets, or else its own images."""
    return {**subject.images, **subject.targets}


def to_unit(image: Volume, subject: Subject) -> Volume:
    """Maps intensities from [-1, 1] to [0, 1], 0 outside the field of view."""
    return np.where(subject.fov, (image + 1) / 2, 0)


def _batches(
    model: MMHVAE, subject: Subject, given: Sequence[str]
) -> Iterator[tuple[dict[str, Tensor], slice]]:
    device = next(model.parameters()).device
    for start in range(0, len(subject.fov), BATCH):
        place = slice(start, start + BATCH)
        yield (
            {m: torch.from_numpy(subject.images[m][place])[:, None].to(device) for m in given},
            place,
        )
