"""Slices through a model, in tiles that are blended, and batches that memory has room for."""

from __future__ import annotations

__all__ = ["Made", "Noise", "learned_targets", "predict", "predict_tiles", "tile_stride"]

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from examples.medical_mri_us.covariates import carrying
from examples.medical_mri_us.data import Mask, Volume, neighbours
from examples.medical_mri_us.windows import Tiles
from mmpoe.hierarchy import Encodings
from mmpoe.imputation import Spread
from mmpoe.missing import as_mask
from mmpoe.models import MMHVAE, in_chunks
from mmpoe.nn import evaluation

from .shelf import Shelved

ROWS = {"cpu": 4, "cuda": 64}
"""The number of rows, draws of slices, that go through a model at a time, by device."""


class Made(NamedTuple):
    """An image that was made, by its meaning."""

    what: str
    """``mean``, the image at the mean of the latents; ``std``, the standard deviation of the
    model's spread, or else of draws at temperature 1, the noise of the likelihood included; or
    ``sample``, without that noise."""
    target: str
    """The modality."""
    number: int = 0
    """The number of the sample, from 0."""


class Noise:
    """Noise of samples, alike in all slices, so that a sample does not flicker between them.

    Tiles see a part of one field of noise each, so that they agree where they overlap.

    Arguments:
        model: The model.
        samples: The number of samples.
        seed: What the noise is drawn from.
        tiles: The tiles; None for one alone.
    """

    def __init__(self, model: MMHVAE, samples: int, seed: int, tiles: Tiles | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        like = next(model.parameters())
        self.samples = samples
        self._fields: list[tuple[Tensor, tuple[int, ...], tuple[int, int]]] = []
        number = (1, 1) if tiles is None else tiles.number
        for group in model.groups:
            shape = tuple(group.shape or ())
            steps = (0, 0) if tiles is None else _steps(shape, tiles)
            wide = (
                *shape[:-2],
                *(
                    n + step * (k - 1)
                    for n, step, k in zip(shape[-2:], steps, number, strict=False)
                ),
            )
            field = torch.randn((samples, *wide), generator=generator).to(like)
            self._fields.append((field, shape, steps))

    def at(self, place: tuple[int, int]) -> list[Tensor]:
        """Returns the noise of a tile, one tensor (samples, *shape) for each latent group."""
        found = []
        for field, shape, steps in self._fields:
            for axis, (step, k) in enumerate(zip(steps, place, strict=True), start=-2):
                if step:
                    field = field.narrow(axis, step * k, shape[axis])
            found.append(field)
        return found


def tile_stride(model: MMHVAE, size: int) -> int:
    """Returns the distance between tiles: half a window, in steps of the coarsest latents.

    Arguments:
        model: The model.
        size: The height and width of its slices, in pixels.
    """
    shapes = [tuple(group.shape or ()) for group in model.groups]
    sides = [shape[-1] for shape in shapes if len(shape) == 3]
    coarse = size // min(sides, default=size)
    return coarse * max(1, size // coarse // 2) if 2 * coarse <= size else max(1, size // 2)


def _steps(shape: Sequence[int], tiles: Tiles) -> tuple[int, int]:
    """How far the latents of neighbours are apart; 0 where all tiles share them."""
    if len(shape) != 3 or any(tiles.stride * side % tiles.size for side in shape[-2:]):
        return 0, 0
    rows, columns = (tiles.stride * side // tiles.size for side in shape[-2:])
    return rows, columns


@torch.no_grad()
def predict_tiles(
    model: MMHVAE,
    x: Mapping[str, Volume | Shelved],
    fov: Mask,
    targets: Sequence[str],
    tiles: Tiles,
    keep: Callable[[Made, int, Volume], object],
    *,
    samples: int,
    temperature: float,
    seed: int,
    batch: int = 8,
    further: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Mask:
    """Synthesises slices of any size, those that show something, tile by tile, and blends.

    The result does not depend on the size of the batches.

    Arguments:
        model: The model.
        x: The slices of the inputs, between -1 and 1, (slices, height, width).
        fov: Their field of view.
        targets: What to synthesise.
        tiles: The tiles, of the model's size.
        keep: Is called with each image that was made: what it is, its slice, and the image itself,
            on the scale of the model from -1 to 1, (height, width).
        samples: The number of samples; with fewer than 2, there are no standard deviations.
        temperature: The temperature of the samples; at 0, there are none but the mean.
        seed: What the noise is drawn from.
        batch: The number of slices to begin with; halved whenever memory runs out.
        further: What else is known of the case, for the covariates of the model.
        progress: Whether to show a progress bar.

    Returns:
        Where there is a prediction, (height, width).

    Raises:
        torch.OutOfMemoryError: If there is no room for a single slice.
    """
    noise = Noise(model, samples, seed, tiles)
    total = np.zeros(tiles.shape, np.float32)
    for tile in tiles:
        tile.window.add(tile.weight, total)
    shown = np.flatnonzero(fov.any(axis=(1, 2)))
    slices: int = getattr(model, "slices", 1)

    def work(rows: slice) -> None:
        places, sums = shown[rows], dict[Made, Volume]()
        for tile in tiles:
            seen = tile.window.cut(fov[places], False).any(axis=(1, 2))
            if not seen.any():
                continue
            images = {
                m: tile.window.cut(neighbours(v, places[seen], slices), -1) for m, v in x.items()
            }
            part = noise.at(tile.place)
            found = predict(model, images, targets, part, temperature, further)
            for made, values in found.items():
                whole = sums.setdefault(made, np.zeros((len(places), *tiles.shape), np.float32))
                part = np.zeros((len(places), tiles.size, tiles.size), np.float32)
                part[seen] = values * tile.weight
                tile.window.add(part, whole)
        for made, whole in sums.items():
            whole /= np.where(total > 0, total, 1)
            for k, image in zip(places.tolist(), whole, strict=True):
                keep(made, k, image)
        bar.update(len(places))

    with (
        evaluation(model.modules()),
        tqdm(total=len(shown), desc="Synthesising", unit="slice", disable=not progress) as bar,
    ):
        in_chunks(work, len(shown), size=batch)
    return total > 0


@torch.no_grad()
def predict(
    model: MMHVAE,
    x: Mapping[str, Volume],
    targets: Sequence[str],
    noise: Sequence[Tensor],
    temperature: float,
    further: Mapping[str, str] | None = None,
) -> dict[Made, Volume]:
    """Synthesises slices: at the mean, samples, and the standard deviation.

    The standard deviation of what is not given is that of the model's spread, if it has one; any
    other is that of draws at temperature 1. Inputs are encoded once for all of these. Draws go
    through the model in chunks of `ROWS`.

    Arguments:
        model: The model, in evaluation mode.
        x: The slices of the inputs, between -1 and 1, (slices, channels, size, size), see
            `neighbours`.
        targets: What to synthesise.
        noise: The noise of the samples, see `Noise.at`.
        temperature: Their temperature.
        further: What else is known of the case, for the covariates of the model.

    Returns:
        The images, on the scale of the model from -1 to 1, (slices, size, size).
    """
    like = next(model.parameters())
    images = {m: torch.from_numpy(v).to(like) for m, v in x.items()}
    size, samples = len(next(iter(images.values()))), len(noise[0])
    given = as_mask(list(images), model.modalities, size)
    encodings = model.encode(carrying(model, images, further or {}), given)
    found: dict[Made, Volume] = {}
    learned = learned_targets(model, x, targets) if samples > 1 else []
    made = _decode(model, encodings, given, targets, [], 0.0, learned)
    for m, (values, spread) in made.items():
        found[Made("mean", m)] = values[0]
        if m in learned:
            found[Made("std", m)] = spread[0]
    step = max(1, ROWS[like.device.type] // size)
    chunks = [slice(k, k + step) for k in range(0, samples, step)]

    def note(chunk: slice, m: str, values: Volume) -> None:
        for k, image in enumerate(values, start=chunk.start):
            found[Made("sample", m, k)] = image

    others = [m for m in targets if m not in learned] if samples > 1 else []
    moments = {m: Moments(found[Made("mean", m)]) for m in others}
    for chunk in chunks if moments else []:
        part = [n[chunk] for n in noise]
        decoded = targets if temperature == 1 else others
        for m, (values, spread) in _decode(model, encodings, given, decoded, part, 1.0).items():
            if m in moments:
                moments[m].add(values, spread)
            if temperature == 1:
                note(chunk, m, values)
    for m, moment in moments.items():
        found[Made("std", m)] = moment.deviation()
    if temperature > 0 and (temperature != 1 or not moments):
        for chunk in chunks:
            part = [n[chunk] for n in noise]
            made = _decode(model, encodings, given, targets, part, temperature)
            for m, (values, _) in made.items():
                note(chunk, m, values)
    return found


def learned_targets(model: MMHVAE, given: Collection[str], targets: Sequence[str]) -> list[str]:
    """Returns the targets whose deviation the model's spread says: those that are not given."""
    events = model.spread.events if isinstance(model.spread, Spread) else {}
    return [m for m in targets if m in events and m not in given]


class Moments:
    r"""The variance of draws with the noise of the likelihood, from a few draws at a time.

    .. math:: \frac{1}{K - 1} \Big( \sum_k d_k^2 - \tfrac{1}{K} \big(\sum_k d_k\big)^2 \Big)
        + \frac{1}{K} \sum_k \sigma_k^2, \quad d_k = x_k - c

    Arguments:
        near: Images :math:`c` that the draws :math:`x_k` are near to.
    """

    def __init__(self, near: Volume) -> None:
        self.near, self.number = near, 0
        self.sum, self.squares, self.noise = (np.zeros(near.shape) for _ in range(3))

    def add(self, values: Volume, spread: Volume) -> None:
        """Adds draws, and the standard deviations of their likelihoods, (K, slices, H, W)."""
        far = values.astype(np.float64) - self.near
        self.number += len(far)
        self.sum += far.sum(axis=0)
        self.squares += (far**2).sum(axis=0)
        self.noise += (spread.astype(np.float64) ** 2).sum(axis=0)

    def deviation(self) -> Volume:
        """Returns the square root of the variance."""
        spread = (self.squares - self.sum**2 / self.number).clip(0) / (self.number - 1)
        return np.sqrt(spread + self.noise / self.number).astype(np.float32)


def _decode(
    model: MMHVAE,
    encodings: Encodings,
    given: Tensor,
    targets: Sequence[str],
    noise: Sequence[Tensor],
    temperature: float,
    learned: Sequence[str] = (),
) -> dict[str, tuple[Volume, Volume]]:
    """Means and standard deviations of the likelihoods, (K, B, H, W), for K draws of noise.

    Those of the targets in `learned`, at the mean, are of the model's spread.
    """
    draws, size = len(noise[0]) if noise else 1, len(given)
    q = model.infer(
        encodings,
        given.expand(draws, size, -1),
        noise=[n[:, None].expand(-1, size, *n.shape[1:]) for n in noise] if noise else None,
        temperature=temperature,
        experts=model.best_experts if noise else "trained",
    )

    def numbers(values: Tensor) -> Volume:
        return values[:, :, 0].float().cpu().numpy()

    decoded = model.decode(q.state, targets)
    found = {m: (numbers(p.mean), numbers(p.stddev)) for m, p in decoded.items()}
    if learned and isinstance(model.spread, Spread):
        point = {m: decoded[m].mean[0] for m in learned}
        for m, p in model.spread(q.state.h, given, point).items():
            found[m] = found[m][0], numbers(p.stddev[None])
    return found
