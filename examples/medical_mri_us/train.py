"""Trains a small MMHVAE on patients that each lack some modalities."""

from __future__ import annotations

__all__ = ["ARCHITECTURE", "Settings", "bound", "build_model", "load_model", "save_model", "train"]

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, WeightedRandomSampler

import mmpoe
from mmpoe.missing import random_subsets
from mmpoe.models import MMHVAE, image_mmhvae, published_mmhvae
from mmpoe.training import (
    CheckpointError,
    History,
    Run,
    fit,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)

from .checks import check_integer, check_number, check_positive
from .data import Slices, Subject, batch_slices
from .modalities import MODALITIES

ARCHITECTURE: dict[str, Any] = {
    "channels": 1,
    "patch": 2,
    "widths": [96, 64, 32],
    "latents": [16, 16, 8],
    "scale": 0.12,
    "clamp": 5.0,
}
"""What `image_mmhvae` builds here, at any size; saved with every model."""

BUILDERS = {"image_mmhvae": image_mmhvae, "published_mmhvae": published_mmhvae}
"""What builds the models that are saved, by name."""

Batch = tuple[dict[str, Tensor], Tensor, Tensor]


@dataclass(frozen=True)
class Settings:
    """How to train. The defaults suit 64 x 64 slices and a few minutes on two CPU cores."""

    steps: int = 2800
    """The number of optimiser steps."""
    minutes: float | None = 6.0
    """The longest time that training may take; None for no limit."""
    batch: int = 8
    """The number of slices in a batch, from as many patients."""
    lr: float = 2e-3
    """The highest learning rate."""
    beta: float = 0.01
    """The weight of the divergence, reached after a tenth of the training."""
    rare: float = 0.3
    """The share of draws from patients who have the rarest modality."""
    seed: int = 0
    """What initial weights, batches, subsets and noise are drawn from."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """The precision of training; the last one needs a GPU."""
    save_every: int = 200
    """The number of steps from one checkpoint to the next, if a training is kept."""

    def check(self) -> None:
        """Raises a ValueError that names the setting, if there is one that cannot be used."""
        check_integer("steps", self.steps, 1)
        if self.minutes is not None:
            check_positive("minutes", self.minutes)
        check_integer("batch", self.batch, 1)
        check_positive("lr", self.lr)
        check_number("beta", self.beta, 0)
        check_number("rare", self.rare, 0, 1)
        check_integer("seed", self.seed, 0)
        check_integer("save_every", self.save_every, 1)


def build_model(size: int) -> MMHVAE:
    """Builds the model, untrained, for slices of `size` times `size` pixels.

    Raises:
        ValueError: If the size cannot be halved as often as the architecture asks for.
    """
    return image_mmhvae(MODALITIES, size, **ARCHITECTURE)


def bound(model: MMHVAE, batch: Batch, beta: float) -> Tensor:
    """Returns the bound of each slice, conditioned on a random subset of what was observed.

    It is in nats per pixel in view, so that small and large fields of view count alike.

    Arguments:
        model: The model.
        batch: A batch, as of `batch_slices`.
        beta: The weight of the divergence.
    """
    x, observed, fov = batch
    output = model(x, random_subsets(observed)[0])
    valid = dict.fromkeys(x, fov)
    return mmpoe.elbo(output, x, observed, beta, valid=valid) / fov.flatten(1).sum(dim=1)


def train(
    subjects: Sequence[Subject],
    settings: Settings,
    *,
    keep: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> tuple[MMHVAE, History]:
    """Trains on mixed batches: every slice has its own modalities and its own random subset.

    Each slice is conditioned on one random non-empty subset of what its patient has, and
    reconstructs all that the patient has, inside the field of view.

    Arguments:
        subjects: The patients, incomplete ones included.
        settings: How to train.
        keep: Where to keep checkpoints and a log, if anywhere.
        resume: Whether to go on from the last checkpoint that is there, if there is one.
        progress: Whether to show a progress bar.

    Returns:
        The model, in evaluation mode, and the history of the training.

    Raises:
        ValueError: If a setting cannot be used, there is no subject, images are not square and of
            one size, no subject has some modality, or the folder holds checkpoints and is not to
            be resumed.
        CheckpointError: If the last checkpoint is damaged, or of another model or other settings.
    """
    settings.check()
    size = _common_size(subjects)
    torch.manual_seed(settings.seed)
    model = build_model(size)

    slices = Slices(subjects, flip=True)
    weights = slices.weights(settings.rare)
    draws = WeightedRandomSampler(weights, settings.steps * settings.batch, replacement=True)
    loader = DataLoader(slices, settings.batch, sampler=draws, collate_fn=batch_slices)

    def objective(model: MMHVAE, batch: Batch, done: float) -> Tensor:
        return bound(model, batch, settings.beta * min(1.0, 10 * done))

    run = None
    if keep is not None:
        description = {**describe(model, size), "settings": asdict(settings)}
        save_every = settings.save_every
        run = Run(keep, resume=resume, save_every=save_every, description=description)
    history = fit(
        model,
        loader,
        objective,
        steps=settings.steps,
        minutes=settings.minutes,
        lr=settings.lr,
        precision=settings.precision,
        run=run,
        progress=progress,
    )
    return model, history


def describe(model: MMHVAE, size: int) -> dict[str, Any]:
    """Returns what is needed to build a model again."""
    return {
        "model": "image_mmhvae",
        "modalities": model.modalities,
        "architecture": {"size": size, **ARCHITECTURE},
    }


def save_model(
    folder: Path, model: MMHVAE, size: int, settings: Settings, history: History
) -> None:
    """Writes a model with what is needed to build it again and to tell how it came about."""
    description: dict[str, Any] = {
        **describe(model, size),
        "mmpoe": mmpoe.__version__,
        "torch": torch.__version__,
        "settings": asdict(settings),
        "steps": len(history.bounds),
        "seconds": round(history.seconds, 1),
        "interrupted": history.interrupted,
        "skipped": history.skipped,
    }
    save_checkpoint(folder, model.state_dict(), description)


def load_model(folder: Path) -> tuple[MMHVAE, dict[str, Any]]:
    """Reads what `save_model` wrote, or `official.convert`.

    Raises:
        CheckpointError: If the files are damaged, or hold another model.
    """
    state, description = load_checkpoint(folder)
    if description.get("modalities") != list(MODALITIES):
        raise CheckpointError(
            f"{folder} should hold a model of {', '.join(MODALITIES)}, "
            f"but holds one of {description.get('modalities')}."
        )
    builder = description.get("model", "image_mmhvae")
    if builder not in tuple(BUILDERS):
        raise CheckpointError(
            f"{folder} should hold a model of {' or '.join(BUILDERS)}, but holds one of {builder}."
        )
    try:
        model = BUILDERS[builder](MODALITIES, **description.get("architecture", {}))
        load_weights(model, state, folder)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} holds no model that can be built: {error}") from error
    return model.eval(), description


def _common_size(subjects: Sequence[Subject]) -> int:
    if not subjects:
        raise ValueError("'subjects' should hold at least one subject, but is empty.")
    shapes = sorted({subject.fov.shape[1:] for subject in subjects})
    if len(shapes) > 1 or shapes[0][0] != shapes[0][1]:
        raise ValueError(f"'subjects' should have square slices of one size, but have {shapes}.")
    absent = [m for m in MODALITIES if not any(m in s.images for s in subjects)]
    if absent:
        raise ValueError(
            "'subjects' should show each modality at least once, "
            f"but none has {', '.join(absent)}."
        )
    return shapes[0][0]
