"""Synthesis of the slices of a subject: images, and their spread."""

from __future__ import annotations

__all__ = ["draw", "predict", "synthesise", "to_unit", "truths"]

import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from examples.medical_mri_us.covariates import carrying
from examples.medical_mri_us.data import CaseError, Subject, Volume, neighbours
from examples.medical_mri_us.synthesis.slices import learned_targets
from examples.medical_mri_us.windows import Tiles
from mmpoe.distributions import Draws
from mmpoe.imputation import impute
from mmpoe.models import MMHVAE, UncalibratedWarning

from .tiled import predict_tiles, tiles_over

BATCH = 16
"""The number of slices that go through a model at a time."""


def predict(
    model: MMHVAE,
    subject: Subject,
    given: Sequence[str],
    *,
    temperature: float = 0.0,
    size: int | None = None,
) -> dict[str, Volume]:
    """Returns every modality of a subject as the model's decoders say it, in [-1, 1].

    Slices that are larger than the model's go through it in tiles, as in synthesis; -1 is where
    there is no tile, since nothing is in view.

    Arguments:
        model: The model.
        subject: The subject.
        given: The modalities to condition on.
        temperature: The temperature of the latent sample; 0 is the mean.
        size: The height and width of the model's slices, in pixels; None for the subject's.
    """
    tiles = tiles_over(model, subject, size)
    parts: list[dict[str, Tensor]] = []
    for x, _ in _batches(model, subject, given, tiles):
        if tiles is None:
            out = model.predict(
                _on_device(model, x, subject),
                list(given),
                temperature=temperature,
                experts="trained",
            )
            parts.append({m: p.mean[:, 0].cpu() for m, p in out.items()})
            continue
        found = predict_tiles(
            model,
            x,
            tiles,
            temperature=temperature,
            samples=1,
            experts="trained",
            further=subject.further,
        )
        parts.append({m: torch.from_numpy(mean[0]) for m, (mean, _) in found.items()})
    return {m: torch.cat([part[m] for part in parts]).numpy() for m in model.modalities}


def synthesise(
    model: MMHVAE, subject: Subject, given: Sequence[str], *, size: int | None = None
) -> dict[str, Volume]:
    """Returns every modality of a subject, at the mean of what the given ones say, in [0, 1].

    Arguments are those of `predict`.
    """
    found = predict(model, subject, given, size=size)
    return {m: to_unit(image, subject) for m, image in found.items()}


def draw(
    model: MMHVAE,
    subject: Subject,
    given: Sequence[str],
    samples: int,
    *,
    size: int | None = None,
) -> Iterator[tuple[slice, dict[str, tuple[Tensor, Tensor]]]]:
    """Draws predictions for a few slices at a time.

    Both kinds of draws are clipped to [-1, 1], as the data are.

    Arguments:
        model: The model.
        subject: The subject.
        given: The modalities to condition on.
        samples: The number of latent samples K, at least 2.
        size: See `predict`.

    Returns:
        The slices, and for each modality the means of the decoder and whole predictions with the
        noise of its likelihood, each with shape (K, slices, H, W). Whole predictions of modalities
        that are not given come from the model's spread, if it has one.
    """
    tiles = tiles_over(model, subject, size)
    for x, place in _batches(model, subject, given, tiles):
        if tiles is not None:
            found = predict_tiles(
                model,
                x,
                tiles,
                temperature=1.0,
                samples=samples,
                experts=model.best_experts,
                further=subject.further,
            )
            yield place, {m: _clamped(*map(torch.from_numpy, v)) for m, v in found.items()}
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncalibratedWarning)  # results say it themselves
            images = _on_device(model, x, subject)
            out = model.predict(images, list(given), samples=samples)
            hidden = learned_targets(model, given, model.modalities)
            learned = impute(model, images, list(given), samples, targets=hidden) if hidden else {}
        drawn = {}
        for m, draws in out.items():
            assert isinstance(draws, Draws)
            whole = learned[m].draws if m in learned else draws.sample()
            drawn[m] = _clamped(*(v[:, :, 0].cpu() for v in (draws.components.mean, whole)))
        yield place, drawn


def _clamped(means: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    return means.clamp(-1, 1), whole.clamp(-1, 1)


def truths(subject: Subject) -> dict[str, Volume]:
    """Returns what a synthesis should be: the subject's targets, or else its own images."""
    return {**subject.images, **subject.targets}


def to_unit(image: Volume, subject: Subject) -> Volume:
    """Maps intensities from [-1, 1] to [0, 1], 0 outside the field of view."""
    return np.where(subject.fov, (image + 1) / 2, 0)


def _batches(
    model: MMHVAE, subject: Subject, given: Sequence[str], tiles: Tiles | None
) -> Iterator[tuple[dict[str, Volume], slice]]:
    """Slices of what is given, and their place; fewer at a time where they are larger."""
    number, slices = BATCH, getattr(model, "slices", 1)
    if tiles is not None:
        number = max(1, BATCH * tiles.size**2 // (tiles.shape[0] * tiles.shape[1]))
    for start in range(0, len(subject.fov), number):
        place = slice(start, start + number)
        places = range(len(subject.fov))[place]
        yield {m: neighbours(subject.images[m], places, slices) for m in given}, place


def _on_device(model: MMHVAE, x: Mapping[str, Volume], subject: Subject) -> Mapping[str, Tensor]:
    """The images, with the covariates of their subject, if the model has any."""
    device = next(model.parameters()).device
    images = {m: torch.from_numpy(v).to(device) for m, v in x.items()}
    try:
        return carrying(model, images, subject.further)
    except ValueError as error:
        raise CaseError(f"case {subject.name}: {error}") from error
