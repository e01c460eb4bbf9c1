"""Trains an MMHVAE on patients that each lack some modalities."""

from __future__ import annotations

__all__ = ["Settings", "bound", "build_model", "infer", "load_model", "save_model", "train"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import mmpoe
from mmpoe.missing import random_subsets
from mmpoe.models import MMHVAE, Output
from mmpoe.training import Cosine, History, Optimizer, Run, fit, save_checkpoint

from .covariates import NAME, fit_covariates
from .critics import Critics, Judge
from .data import StoredSubject, Subject, TargetSlices, WeightedBatches, batch_targets
from .initial import Start
from .modalities import MODALITIES
from .models import DEFAULT, Network, build_model, describe, load_model
from .settings import OPTIMIZERS, Settings

Batch = tuple[Mapping[str, Tensor], Mapping[str, Tensor], Tensor, Tensor]
"""Images, what to make of them, what was observed, and fields of view."""


def infer(model: MMHVAE, batch: Batch, *, proper: bool = True) -> tuple[Output, Tensor]:
    """Conditions each slice on a random subset of what was observed, and returns that too.

    Arguments:
        model: The model.
        batch: The batch, as of `batch_targets`.
        proper: Whether the subset is a proper one, where two modalities or more were observed.
    """
    x, _, observed, _ = batch
    given = random_subsets(observed, proper=proper)[0]
    return model(x, given), given


def bound(
    output: Output, batch: Batch, given: Tensor, beta: float, reconstruction: float = 1.0
) -> Tensor:
    r"""Returns the bound of each slice: the score of all that was observed.

    .. math:: \frac{1}{|\mathrm{fov}|} \Big( \sum_{m \in r \setminus s} \log p(x_m \mid z)
        + \lambda \sum_{m \in s} \log p(x_m \mid z) - \beta \, \mathrm{KL} \Big)

    It is in nats per pixel in view, so that small and large fields of view count alike.

    Arguments:
        output: The output of the model.
        batch: The batch, as of `batch_targets`; the targets are scored.
        given: What the model was given, :math:`s`, with shape (B, M).
        beta: The weight of the divergence.
        reconstruction: The weight :math:`\lambda` of what was given, which is easy to show again:
            less of it leaves more of the model to what was hidden.
    """
    _, targets, observed, fov = batch
    valid = dict.fromkeys(targets, fov)
    weight = torch.where(given, reconstruction, 1.0)
    value = mmpoe.elbo(output, targets, observed, beta, weight=weight, valid=valid)
    return value / fov.flatten(1).sum(dim=1)


def train(
    subjects: Sequence[Subject | StoredSubject],
    settings: Settings,
    *,
    modalities: Sequence[str] = MODALITIES,
    network: Network = DEFAULT,
    slices: int = 1,
    covariates: Sequence[str] = (),
    size: int | None = None,
    critics: Critics | None = None,
    start: Start | None = None,
    keep: Path | None = None,
    resume: bool = False,
    workers: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> tuple[MMHVAE, History]:
    """Trains on mixed batches: every slice has its own modalities and its own random subset.

    Each slice is conditioned on one random proper subset of what its patient has, and scored
    on all that the patient has, inside the field of view: what was hidden counts 1, what was given
    `Settings.reconstruction`. What is scored is the harmonised target of a modality, where the
    index lists one, else the image itself.

    Arguments:
        subjects: The patients, incomplete ones included, in memory or stored.
        settings: How to train.
        modalities: The names of the modalities.
        network: The model to build.
        slices: The number of slices that its encoders see at once, odd.
        covariates: Further columns of the index that it depends on.
        size: The height and width of its slices, in pixels: windows of larger ones, each time at
            another place. By default, that of the slices, which have to be alike.
        critics: Discriminators to train against it, if their weight is positive.
        start: A model to start from; by default, weights are drawn at random.
        keep: Where to keep checkpoints and a log, if anywhere.
        resume: Whether to resume from the last checkpoint, if there is one.
        workers: The number of processes that load batches ahead of training, which sees the same
            batches with any number.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``, a GPU if there is one.
        progress: Whether to show a progress bar.

    Returns:
        The model, in evaluation mode, and the history of training.

    Raises:
        ValueError: If a setting cannot be used, there is no subject, images are not square and of
            one size, no subject has some modality, a covariate is not known of all, or the folder
            holds checkpoints and is not to be resumed.
        CheckpointError: If the last checkpoint is damaged, or of another model or other settings.
    """
    settings.check()
    size = _common_size(subjects, modalities, size)
    torch.manual_seed(settings.seed)
    known = fit_covariates(covariates, {s.name: s.further for s in subjects})
    model = build_model(size, modalities, network, known, slices)
    if start is not None:
        start.copy_to(model)
    judge = None
    if critics is not None and critics.weight > 0:
        critics.check()
        judge = Judge(critics, modalities, size)

    context = None
    if known:
        context = [{NAME: torch.tensor(known.numbers(s.further))} for s in subjects]
    samples = TargetSlices(subjects, flip=True, size=size, context=context, slices=slices)
    number = settings.steps * settings.accumulate
    loader = DataLoader(
        samples,
        batch_sampler=WeightedBatches(samples.weights(settings.rare), settings.batch, number),
        num_workers=workers,
        collate_fn=partial(batch_targets, modalities=modalities),
    )

    def objective(model: MMHVAE, batch: Batch, done: float) -> Tensor:
        output, given = infer(model, batch, proper=settings.proper)
        rise = 1.0 if settings.warmup == 0 else min(1.0, done / settings.warmup)
        value = bound(output, batch, given, settings.beta * rise, settings.reconstruction)
        if judge is not None and done >= judge.critics.start:
            _, _, observed, fov = batch
            value = value - judge.loss(output, given, observed, fov, done)
        return value

    run = None
    if keep is not None:
        description = {**describe(model, size, network), "settings": asdict(settings)}
        also = {}
        if judge is not None:
            description["critics"] = asdict(judge.critics)
            also = {} if judge.bank is None else {"bank": judge.bank}
        save_every = settings.save_every
        run = Run(keep, resume, save_every=save_every, description=description, also=also)
    history = fit(
        model,
        loader,
        objective,
        steps=settings.steps,
        minutes=settings.minutes,
        optimizer=Optimizer(
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            clip=math.inf if settings.clip is None else settings.clip,
            accumulate=settings.accumulate,
            average=settings.average,
            restart=settings.restart,
            make=OPTIMIZERS[settings.optimizer],
        ),
        schedule=Cosine(floor=settings.floor),
        adversary=None if judge is None else judge.adversary,
        precision=settings.precision,
        accelerator=device,
        run=run,
        progress=progress,
    )
    return model, history


def save_model(
    folder: Path,
    model: MMHVAE,
    size: int,
    settings: Settings,
    history: History,
    *,
    network: Network = DEFAULT,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model with what is needed to build it again and to tell how it came about.

    Arguments:
        folder: Where to write it.
        model: The model.
        size: The height and width of its slices, in pixels.
        settings: How it was trained.
        history: The history of that.
        network: What it was built from.
        facts: What else to say about it, in ``model.json``.
    """
    description: dict[str, Any] = {
        **describe(model, size, network),
        "mmpoe": mmpoe.__version__,
        "torch": torch.__version__,
        "settings": asdict(settings),
        "steps": len(history.bounds),
        "seconds": round(history.seconds, 1),
        "interrupted": history.interrupted,
        "skipped": history.skipped,
        **(facts or {}),
    }
    save_checkpoint(folder, model.state_dict(), description)


def _common_size(
    subjects: Sequence[Subject | StoredSubject], modalities: Sequence[str], size: int | None
) -> int:
    if not subjects:
        raise ValueError("'subjects' should hold at least one subject, but is empty.")
    shapes = sorted({subject.shape[1:] for subject in subjects})
    if size is None and (len(shapes) > 1 or shapes[0][0] != shapes[0][1]):
        raise ValueError(f"'subjects' should have square slices of one size, but have {shapes}.")
    if size is not None and min(min(shape) for shape in shapes) < size:
        raise ValueError(
            f"'subjects' should have slices of at least {size} x {size}, but have {shapes}."
        )
    absent = [m for m in modalities if not any(m in s.images for s in subjects)]
    if absent:
        raise ValueError(
            "'subjects' should show each modality at least once, "
            f"but none has {', '.join(absent)}."
        )
    return shapes[0][0] if size is None else size
