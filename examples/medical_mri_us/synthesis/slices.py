"""Slices through a model, in batches that become smaller where memory ends."""

from __future__ import annotations

__all__ = ["Prediction", "predict"]

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from examples.medical_mri_us.data import Mask, Volume
from mmpoe.hierarchy import latent_groups
from mmpoe.missing import as_mask
from mmpoe.models import MMHVAE, in_chunks
from mmpoe.nn import evaluation


class Prediction(NamedTuple):
    """The predictions of a model for some slices, by target, on its own scale from -1 to 1."""

    mean: dict[str, Volume]
    """The images at the mean of the latents, (slices, size, size)."""
    std: dict[str, Volume]
    """The standard deviation of draws at temperature 1, the noise of the likelihood included."""
    samples: dict[str, Volume]
    """Samples, without that noise, (samples, slices, size, size)."""


@torch.no_grad()
def predict(
    model: MMHVAE,
    x: Mapping[str, Volume],
    fov: Mask,
    targets: Sequence[str],
    *,
    samples: int,
    temperature: float,
    seed: int,
    batch: int = 8,
    progress: bool = True,
) -> Prediction:
    """Synthesises slices, those that show something.

    A sample has the same noise in all slices, so that it does not flicker from one to the next;
    the noise does not depend on the size of the batches.

    Arguments:
        model: The model.
        x: The slices of the inputs, between -1 and 1, (slices, size, size).
        fov: Their field of view.
        targets: What to synthesise.
        samples: The number of samples; with fewer than 2, there are no standard deviations.
        temperature: The temperature of the samples; at 0, there are none but the mean.
        seed: What the noise is drawn from.
        batch: The number of slices to begin with; halved whenever the GPU runs out of memory.
        progress: Whether to show a progress bar.

    Raises:
        torch.OutOfMemoryError: If there is no room for a single slice.
    """
    shown = np.flatnonzero(fov.any(axis=(1, 2)))
    generator = torch.Generator().manual_seed(seed)
    like = next(model.parameters())
    noise = [
        torch.randn((samples, *(group.shape or ())), generator=generator).to(like)
        for group in latent_groups(model.groups)
    ]
    drawn = samples if temperature > 0 else 0
    mean = {m: np.zeros(fov.shape, np.float32) for m in targets}
    std = {m: np.zeros(fov.shape, np.float32) for m in targets if samples > 1}
    several = {m: np.zeros((drawn, *fov.shape), np.float32) for m in targets if drawn}

    def work(rows: slice) -> None:
        places = shown[rows]
        images = {m: torch.from_numpy(v[places])[:, None].to(like) for m, v in x.items()}
        for m, (value, _) in _decode(model, images, targets, [], 0.0).items():
            mean[m][places] = value[0]
        if std:
            for m, (values, spread) in _decode(model, images, targets, noise, 1.0).items():
                variance = values.var(axis=0, ddof=1) + (spread**2).mean(axis=0)
                std[m][places] = np.sqrt(variance)
                if temperature == 1:
                    several[m][:, places] = values
        if several and (temperature != 1 or not std):
            for m, (values, _) in _decode(model, images, targets, noise, temperature).items():
                several[m][:, places] = values
        bar.update(len(places))

    with (
        evaluation(model.modules()),
        tqdm(total=len(shown), desc="Synthesising", unit="slice", disable=not progress) as bar,
    ):
        in_chunks(work, len(shown), size=batch)
    return Prediction(mean, std, several)


def _decode(
    model: MMHVAE,
    x: Mapping[str, Tensor],
    targets: Sequence[str],
    noise: Sequence[Tensor],
    temperature: float,
) -> dict[str, tuple[Volume, Volume]]:
    """Means and standard deviations of the likelihoods, (K, B, H, W), for K draws of noise."""
    size = len(next(iter(x.values())))
    draws = len(noise[0]) if noise else 1
    given = as_mask(list(x), model.modalities, size).expand(draws, size, -1)
    q = model.infer(
        model.encode(x, given[0]),
        given,
        noise=[n[:, None].expand(-1, size, *n.shape[1:]) for n in noise] if noise else None,
        temperature=temperature,
        experts=model.best_experts if noise else "trained",
    )

    def numbers(values: Tensor) -> Volume:
        return values[:, :, 0].float().cpu().numpy()

    decoded = model.decode(q.state, targets)
    return {m: (numbers(p.mean), numbers(p.stddev)) for m, p in decoded.items()}
