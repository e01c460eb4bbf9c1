"""Slices through a model, in tiles that are blended, and batches that memory has room for."""

from __future__ import annotations

__all__ = ["Noise", "Prediction", "predict", "predict_tiles", "tile_stride"]

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from examples.medical_mri_us.data import Mask, Volume
from examples.medical_mri_us.windows import Tiles
from mmpoe.missing import as_mask
from mmpoe.models import MMHVAE, in_chunks
from mmpoe.nn import evaluation


class Prediction(NamedTuple):
    """The predictions of a model for some slices, by target, on its own scale from -1 to 1."""

    mean: dict[str, Volume]
    """The images at the mean of the latents, (slices, size, size)."""
    std: dict[str, Volume]
    """The standard deviation of the model's spread, or else of draws at temperature 1, the noise
    of the likelihood included."""
    samples: dict[str, Volume]
    """Samples, without that noise, (samples, slices, size, size)."""


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
def predict(
    model: MMHVAE,
    x: Mapping[str, Volume],
    fov: Mask,
    targets: Sequence[str],
    *,
    noise: Sequence[Tensor],
    temperature: float,
    batch: int = 8,
    done: Callable[[int], object] | None = None,
) -> Prediction:
    """Synthesises slices, those that show something.

    The result does not depend on the size of the batches.

    Arguments:
        model: The model.
        x: The slices of the inputs, between -1 and 1, (slices, size, size).
        fov: Their field of view.
        targets: What to synthesise.
        noise: The noise of the samples, see `Noise.at`; with fewer than 2 samples, there are no
            standard deviations.
        temperature: The temperature of the samples; at 0, there are none but the mean.
        batch: The number of slices to begin with; halved whenever the GPU runs out of memory.
        done: Is called with the number of slices of each batch.

    Raises:
        torch.OutOfMemoryError: If there is no room for a single slice.
    """
    shown = np.flatnonzero(fov.any(axis=(1, 2)))
    like = next(model.parameters())
    samples = len(noise[0])
    drawn = samples if temperature > 0 else 0
    mean = {m: np.zeros(fov.shape, np.float32) for m in targets}
    std = {m: np.zeros(fov.shape, np.float32) for m in targets if samples > 1}
    several = {m: np.zeros((drawn, *fov.shape), np.float32) for m in targets if drawn}

    def work(rows: slice) -> None:
        places = shown[rows]
        images = {m: torch.from_numpy(v[places])[:, None].to(like) for m, v in x.items()}
        for m, (value, spread) in _decode(model, images, targets, [], 0.0).items():
            mean[m][places] = value[0]
            if std and model.spread is not None:
                std[m][places] = spread[0]
        from_draws = bool(std) and model.spread is None
        if from_draws:
            for m, (values, spread) in _decode(model, images, targets, noise, 1.0).items():
                variance = values.var(axis=0, ddof=1) + (spread**2).mean(axis=0)
                std[m][places] = np.sqrt(variance)
                if temperature == 1:
                    several[m][:, places] = values
        if several and (temperature != 1 or not from_draws):
            for m, (values, _) in _decode(model, images, targets, noise, temperature).items():
                several[m][:, places] = values
        if done is not None:
            done(len(places))

    with evaluation(model.modules()):
        in_chunks(work, len(shown), size=batch)
    return Prediction(mean, std, several)


def predict_tiles(
    model: MMHVAE,
    x: Mapping[str, Volume],
    fov: Mask,
    targets: Sequence[str],
    tiles: Tiles,
    *,
    samples: int,
    temperature: float,
    seed: int,
    batch: int = 8,
    progress: bool = True,
) -> tuple[Prediction, Mask]:
    """Synthesises slices of any size, tile by tile, and blends.

    Arguments:
        model: The model.
        x: The slices of the inputs, between -1 and 1, (slices, height, width).
        fov: Their field of view.
        targets: What to synthesise.
        tiles: The tiles, of the model's size.
        samples: The number of samples.
        temperature: See `predict`.
        seed: What the noise is drawn from.
        batch: See `predict`.
        progress: Whether to show a progress bar.

    Returns:
        The prediction, and where there is one, (height, width).

    Raises:
        torch.OutOfMemoryError: If there is no room for a single slice.
    """
    noise = Noise(model, samples, seed, tiles)
    views = [(tile, tile.window.cut(fov, False)) for tile in tiles]
    shown = sum(int(view.any(axis=(1, 2)).sum()) for _, view in views)
    total = np.zeros(tiles.shape, np.float32)
    sums: list[dict[str, Volume]] = [{}, {}, {}]
    with tqdm(total=shown, desc="Synthesising", unit="slice", disable=not progress) as bar:
        for tile, view in views:
            found = predict(
                model,
                {m: tile.window.cut(v, -1) for m, v in x.items()},
                view,
                targets,
                noise=noise.at(tile.place),
                temperature=temperature,
                batch=batch,
                done=bar.update,
            )
            tile.window.add(tile.weight, total)
            for sums_of, values_of in zip(sums, found, strict=True):
                for m, values in values_of.items():
                    shape = (*values.shape[:-2], *tiles.shape)
                    whole = sums_of.setdefault(m, np.zeros(shape, np.float32))
                    values *= tile.weight
                    tile.window.add(values, whole)
    for sums_of in sums:
        for whole in sums_of.values():
            whole /= np.where(total > 0, total, 1)
    return Prediction(*sums), total > 0


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
    found = {m: (numbers(p.mean), numbers(p.stddev)) for m, p in decoded.items()}
    if model.spread is not None and not noise:  # of what is not given
        point = {m: p.mean[0] for m, p in decoded.items()}
        for m, p in model.spread(q.state.h, given[0], point).items():
            found[m] = found[m][0], numbers(p.stddev[None])
    return found
