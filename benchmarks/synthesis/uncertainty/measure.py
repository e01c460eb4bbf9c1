r"""Whether draws spread as the truth does: by voxel, by linear functional, and as a whole.

Two kinds of draws are measured: of the decoder's *mean* over latents, which is what a map of
standard deviations shows, and *predictive*, with the noise of the likelihood. Noise that is drawn
anew for each voxel averages out of the mean over a block or a label: functionals show whether
voxels vary together as they should.
"""

from __future__ import annotations

__all__ = ["FUNCTIONALS", "GIVEN", "KINDS", "LEVELS", "Row", "Spread", "measure"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.evaluation.synthesis import draw
from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.metrics import coverage, energy_score
from mmpoe.models import MMHVAE

GIVEN = (("us",), ("t2",), ("us", "t2"), ("t2", "cet1", "flair"))
"""The inputs of predictions; the modalities that are not given are predicted."""
KINDS = ("mean", "predictive")
LEVELS = (0.5, 0.9)
"""The nominal coverages of the intervals."""
FUNCTIONALS = ("voxels", "blocks", "labels")
"""The quantities that intervals are of: voxels; means over blocks; means over tumour labels and
over the rest."""
BLOCK = 8
"""The side of a block, in pixels. It counts if half of it is in view."""
FEWEST = 20
"""The number of pixels of a slice that a label needs to count there."""
EVERY = 7
"""Of how many voxels one is kept, with its standard deviation and its error."""

Row = dict[str, Any]
"""Measurements of one patient, for some inputs, a target and one kind of draws."""


@dataclass(frozen=True)
class Spread:
    """The measurements of a condition."""

    rows: list[Row]
    """One for each patient, input, target and kind of draws."""
    curves: dict[str, dict[str, list[float]]]
    """For each kind of draws, voxels in ten bins of equal size by the standard deviation that was
    predicted: its root mean square, and that of the error."""


def measure(model: MMHVAE, subjects: Sequence[Subject], draws: int, seed: int = 0) -> Spread:
    """Measures predictions of what patients were not given.

    Arguments:
        model: The model; if it has matched experts, they make the draws.
        subjects: Complete patients.
        draws: The number of draws; 19 or more can tell 90 %.
        seed: What they are drawn from.
    """
    rows: list[Row] = []
    pooled: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for subject in subjects:
        for given in GIVEN:
            torch.manual_seed(seed)
            parts = list(draw(model, subject, given, draws))  # some slices at a time
            for m in [m for m in MODALITIES if m not in given]:
                truth = torch.from_numpy(subject.images[m])
                for index, kind in enumerate(KINDS):
                    drawn = torch.cat([part[m][index] for _, part in parts], dim=1)  # (K, D, H, W)
                    scores, voxels = _scores(drawn, truth, subject)
                    place = {"patient": subject.name, "given": list(given), "target": m}
                    rows.append({**place, "kind": kind, **scores})
                    pooled[kind].append(voxels[:, ::EVERY])
    return Spread(rows, {kind: _curve(np.concatenate(v, axis=1)) for kind, v in pooled.items()})


def _scores(
    drawn: Tensor, truth: Tensor, subject: Subject
) -> tuple[dict[str, float | None], np.ndarray]:
    """All scores of a volume; and of its voxels in view, standard deviations and errors."""
    fov = torch.from_numpy(subject.fov)
    scores: dict[str, float | None] = {}
    of_blocks = [_blocks(v, fov) for v in (drawn, truth[None])]
    regions = _regions(subject)
    pairs = {
        "voxels": (drawn[:, fov], truth[fov]),
        "blocks": (of_blocks[0], of_blocks[1][0]),
        "labels": (_means(drawn, regions), _means(truth[None], regions)[0]),
    }
    for name, (values, true) in pairs.items():
        for level in LEVELS:
            covered = coverage(values, true, level) if true.numel() else None
            key = f"{name}_{round(100 * level)}"
            scores[key] = None if covered is None else float(covered.mean())

    shown = fov.any(dim=2).any(dim=1)
    energy = energy_score(drawn[:, shown], truth[shown], mask=fov[shown])  # grows with the voxels
    scores["energy"] = float((energy / fov[shown].sum(dim=(1, 2)).sqrt()).mean())

    inside = drawn[:, fov]  # (K, N)
    # a new draw is as far from the mean of K as the truth is, if they are exchangeable
    deviation = inside.std(dim=0) * (1 + 1 / len(inside)) ** 0.5
    error = (inside.mean(dim=0) - truth[fov]).abs()
    scores["rmse"] = float(error.square().mean().sqrt())
    scores["deviation"] = float(deviation.square().mean().sqrt())
    scores["spearman"] = float(np.asarray(stats.spearmanr(deviation.numpy(), error.numpy()))[0])
    return scores, torch.stack([deviation, error]).numpy()


def _blocks(volumes: Tensor, fov: Tensor) -> Tensor:
    """Means over blocks, in view, of volumes (K, D, H, W): shape (K, N)."""
    inside = functional.avg_pool2d(fov[:, None].to(volumes), BLOCK)[:, 0]  # share in view
    visible = torch.where(fov, volumes, 0)
    total = functional.avg_pool2d(visible, BLOCK)  # slices are channels
    counted = inside >= 0.5
    return total[:, counted] / inside[counted]


def _regions(subject: Subject) -> list[np.ndarray]:
    """Masks of a slice each, (D, H, W): each label, and what has none, where in view."""
    if subject.label is None:
        return []
    regions = []
    for value in np.unique(subject.label[subject.fov]):
        where = (subject.label == value) & subject.fov
        for k in np.flatnonzero(where.sum(axis=(1, 2)) >= FEWEST):
            mask = np.zeros_like(where)
            mask[k] = where[k]
            regions.append(mask)
    return regions


def _means(volumes: Tensor, regions: Sequence[np.ndarray]) -> Tensor:
    """Means over regions of volumes (K, D, H, W): shape (K, N)."""
    if not regions:
        return volumes.new_zeros(len(volumes), 0)
    return torch.stack([volumes[:, torch.from_numpy(r)].mean(dim=1) for r in regions], dim=1)


def _curve(voxels: np.ndarray) -> dict[str, list[float]]:
    """Root mean squares of standard deviations and errors (2, N), in ten bins of the former."""
    order = voxels[:, np.argsort(voxels[0], kind="stable")]
    parts = np.array_split(order, 10, axis=1)
    rms = np.array([np.sqrt(np.mean(part.astype(np.float64) ** 2, axis=1)) for part in parts])
    return {"deviation": rms[:, 0].tolist(), "error": rms[:, 1].tolist()}
