"""The demo's scores: every target from every subset, against the truth and against a baseline."""

from __future__ import annotations

__all__ = ["Cell", "cross_modal_gain", "evaluate"]

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.metrics import psnr, ssim
from mmpoe.models import MMHVAE

from .baseline import mean_images
from .subsets import SUBSETS
from .synthesis import synthesise, to_unit

Cell = dict[str, Any]


def evaluate(
    model: MMHVAE, train: Sequence[Subject], test: Sequence[Subject], *, progress: bool = True
) -> list[Cell]:
    """Scores all targets from all 15 subsets on complete subjects.

    PSNR has range 1 and counts the whole volume of a subject inside its field of view; SSIM is the
    mean over slices of the similarity map inside the field of view. Both are averaged over
    subjects. The baseline predicts, for everybody, the mean image of the training subjects.

    Arguments:
        model: The trained model.
        train: The training subjects, for the baseline.
        test: The subjects to score, all of them complete.
        progress: Whether to show a progress bar.

    Returns:
        One cell per subset and target: ``given``, ``target``, ``kind`` ("cross" if the target was
        not given, else "self"), ``psnr`` (dB), ``ssim``, ``n`` (subjects), ``baseline_psnr`` (dB).

    Raises:
        ValueError: If there is no subject to score, or one is not complete.
    """
    if not test:
        raise ValueError("'test' should hold at least one subject, but is empty.")
    for subject in test:
        if absent := [m for m in MODALITIES if m not in subject.images]:
            raise ValueError(
                f"'test' should hold complete subjects, but {subject.name} lacks {absent}."
            )

    truth = [{m: to_unit(s.images[m], s) for m in MODALITIES} for s in test]
    means = mean_images(train)
    everywhere = [{m: np.broadcast_to(means[m], s.fov.shape) for m in MODALITIES} for s in test]
    baseline = {m: _average(_volume_psnr, m, everywhere, truth, test) for m in MODALITIES}

    cells = []
    for given in tqdm(SUBSETS, desc="Synthesising", unit="subset", disable=not progress):
        images = [synthesise(model, subject, given) for subject in test]
        for m in MODALITIES:
            cells.append(
                {
                    "given": list(given),
                    "target": m,
                    "kind": "self" if m in given else "cross",
                    "psnr": _average(_volume_psnr, m, images, truth, test),
                    "ssim": _average(_mean_ssim, m, images, truth, test),
                    "n": len(test),
                    "baseline_psnr": baseline[m],
                }
            )
    return cells


def cross_modal_gain(cells: Sequence[Cell], given: set[str], targets: set[str]) -> float:
    """Returns the mean gain of cross-modal cells over the baseline, dB.

    Arguments:
        cells: The cells of `evaluate`.
        given: Cells count if all that they are given is among these.
        targets: Cells count if their target is among these.
    """
    gains = [
        cell["psnr"] - cell["baseline_psnr"]
        for cell in cells
        if cell["kind"] == "cross" and set(cell["given"]) <= given and cell["target"] in targets
    ]
    return float(np.mean(gains))


def _volume_psnr(image: Volume, truth: Volume, subject: Subject) -> float:
    whole = (-1, truth.shape[-1])  # all slices as one image
    mask = subject.fov.reshape(whole)
    return float(psnr(image.reshape(whole), truth.reshape(whole), mask=mask))


def _mean_ssim(image: Volume, truth: Volume, subject: Subject) -> float:
    return float(np.nanmean(ssim(image, truth, mask=subject.fov)))


def _average(
    score: Callable[[Volume, Volume, Subject], float],
    modality: str,
    images: Sequence[dict[str, Volume]],
    truth: Sequence[dict[str, Volume]],
    subjects: Sequence[Subject],
) -> float:
    scores = [
        score(image[modality], true[modality], subject)
        for image, true, subject in zip(images, truth, subjects, strict=True)
    ]
    return float(np.mean(scores))
