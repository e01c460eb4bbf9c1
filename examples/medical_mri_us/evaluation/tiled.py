"""Predictions for slices that are larger than a model's, in tiles that are blended."""

from __future__ import annotations

__all__ = ["predict_tiles", "tiles_over"]

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from examples.medical_mri_us.covariates import carrying
from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.synthesis.slices import Noise, learned_targets, tile_stride
from examples.medical_mri_us.windows import Tiles
from mmpoe.distributions import LowRankNormal
from mmpoe.hierarchy import Encodings
from mmpoe.imputation import Spread
from mmpoe.missing import as_mask
from mmpoe.models import MMHVAE
from mmpoe.nn import evaluation


def tiles_over(model: MMHVAE, subject: Subject, size: int | None) -> Tiles | None:
    """Returns the tiles of a subject, those of synthesis; None if its slices are the model's.

    Arguments:
        model: The model.
        subject: The subject.
        size: The height and width of the model's slices, in pixels; None for the subject's.
    """
    if size is None or subject.fov.shape[1:] == (size, size):
        return None
    return Tiles.over(subject.fov, size, tile_stride(model, size))


@torch.no_grad()
def predict_tiles(
    model: MMHVAE,
    x: Mapping[str, Volume],
    tiles: Tiles,
    *,
    temperature: float,
    samples: int,
    experts: Literal["trained", "matched"],
    further: Mapping[str, str] | None = None,
) -> dict[str, tuple[Volume, Volume]]:
    """Draws predictions of every modality from all that is given.

    Means of the likelihood are blended. Its noise, which differs from pixel to pixel, is that of
    the tile with the largest weight. Tiles see parts of one field of latent noise. If the model
    has a spread, whole predictions of what is not given come from it, and tiles share the noise of
    its factors.

    Arguments:
        model: The model.
        x: The slices of what is given, in [-1, 1], (slices, channels, height, width).
        tiles: The tiles.
        temperature: The temperature of the latent samples; 0 is the mean.
        samples: The number of latent samples K.
        experts: The experts to infer with.
        further: What else is known of the case, for the covariates of the model.

    Returns:
        For each modality the means and whole predictions with noise, (K, slices, height, width);
        -1 where there is no tile.
    """
    rows = len(next(iter(x.values())))
    like = next(model.parameters())
    fields = None
    if temperature > 0:
        fields = Noise(model, samples * rows, int(torch.randint(2**31, ())), tiles)
    given = as_mask(list(x), model.modalities, rows).expand(samples, rows, -1)
    shape = samples, rows, *tiles.shape
    sums = {m: np.zeros(shape, np.float32) for m in model.modalities}
    noises = {m: np.zeros(shape, np.float32) for m in model.modalities}
    learned = learned_targets(model, x, model.modalities) if temperature > 0 else []
    smooth = {m: np.zeros(shape, np.float32) for m in learned}
    common: Tensor | None = None  # noise of the factors of the spread
    total, owners = np.zeros(tiles.shape, np.float32), _owners(tiles)
    for k, tile in enumerate(tiles):
        cut = {m: _tensor(tile.window.cut(v, -1), like) for m, v in x.items()}
        own = tile.window.cut(owners == k, False)
        noise = None
        if fields is not None:
            noise = [n.unflatten(0, (samples, rows)) for n in fields.at(tile.place)]
        with evaluation(model.modules()):
            encodings = model.encode(carrying(model, cut, further or {}), given[0])
            q = model.infer(
                encodings, given, noise=noise, temperature=temperature, experts=experts
            )
            decoded = model.decode(q.state, model.modalities)
            parts = _spread(model, encodings, given[0], learned)
        tile.window.add(tile.weight, total)
        for m, p in decoded.items():
            mean, whole = (v[:, :, 0].float().cpu().numpy() for v in (p.mean, p.sample()))
            tile.window.add(tile.weight * mean, sums[m])
            if m not in parts:
                tile.window.add(np.where(own, whole - mean, 0), noises[m])
        for m, p in parts.items():
            if common is None:
                common = p.loc.new_empty(samples, rows, p.factors.shape[1]).normal_()
            drawn = p.loc + torch.einsum("kbr,br...->kb...", common, p.factors)
            rest = torch.randn_like(drawn) * p.log_scale.exp()
            drawn, rest = (v[:, :, 0].float().cpu().numpy() for v in (drawn, rest))
            tile.window.add(tile.weight * drawn, smooth[m])
            tile.window.add(np.where(own, rest, 0), noises[m])
    weight = np.where(total > 0, total, 1)
    found = {}
    for m, values in sums.items():
        mean = np.where(total > 0, values / weight, np.float32(-1))
        middle = mean
        if m in smooth:
            middle = np.where(total > 0, smooth[m] / weight, np.float32(-1))
        found[m] = mean, middle + noises[m]
    return found


def _spread(
    model: MMHVAE, encodings: Encodings, given: Tensor, learned: Sequence[str]
) -> dict[str, LowRankNormal]:
    """The model's spread over a tile, by modality."""
    if not learned or not isinstance(model.spread, Spread):
        return {}
    state = model.infer(encodings, given, temperature=0.0).state
    point = {m: p.mean for m, p in model.decode(state, learned).items()}
    return model.spread(state.h, given, point)


def _tensor(slices: Volume, like: Tensor) -> Tensor:
    return torch.from_numpy(slices).to(like)


def _owners(tiles: Tiles) -> np.ndarray:
    """The number of the tile with the largest weight at each pixel; -1 where there is none."""
    best = np.zeros(tiles.shape, np.float32)
    owners = np.full(tiles.shape, -1)
    for k, tile in enumerate(tiles):
        weight = np.zeros(tiles.shape, np.float32)
        tile.window.add(tile.weight, weight)
        owners[weight > best] = k
        best = np.maximum(best, weight)
    return owners
