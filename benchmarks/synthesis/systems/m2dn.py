r"""M2DN-like: diffusion of all modalities at once, those that are given kept clean.

Source:
    Multi-modal Modality-masked Diffusion Network for Brain MRI Synthesis with Random Modality
    Missing (Meng et al., 2024). No code was published, so this follows its description and is
    called "like" it. Missing modalities start as noise, those that are given stay clean at every
    step, and all are predicted together,

    .. math:: \ell = \big\| M - f(M_t, t, v) \big\|^2

    with a mask :math:`v` (1 for missing) that joins the features at the bottleneck, 16 x 16 pixels
    of 128 channels for 256 x 256 images. One encoder and one decoder for each modality; between
    them a U of residual blocks with squeeze-and-excite. A linear schedule of variances.

Chosen here, since it is not known: 1000 steps of noise with variances of 1e-4 to 0.02; eight
groups of normalisation; ten deterministic steps at test. A modality that a patient does not have
is noise at every step, and is not scored. The initial noise is drawn from a fixed seed, so that
synthesis is a function of its input.

Slim:
    16 channels for each modality; a U of 48, 64, 96 and 96.

Full:
    32 channels for each modality; a U of 128. Only the channels of the bottleneck are known.
"""

from __future__ import annotations

__all__ = ["Denoiser", "M2DNSystem", "full", "slim"]

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mmpoe.missing import random_subsets
from mmpoe.nn import SqueezeExcite, evaluation
from mmpoe.training import Adversary

from .common import Batch, planes, stack

TIMES = 1000
GROUPS = 8


def slim(modalities: Sequence[str], size: int) -> M2DNSystem:
    """Builds the system for minutes on two cores, for images of a multiple of 16 pixels."""
    return M2DNSystem(modalities, size, 16, [48, 64, 96, 96], lr=2e-3)


def full(modalities: Sequence[str], size: int) -> M2DNSystem:
    """Builds the system with the published bottleneck, for images of a multiple of 16 pixels."""
    return M2DNSystem(modalities, size, 32, [128, 128, 128, 128], lr=1e-4)


class Block(nn.Module):
    """Two convolutions with squeeze-and-excite, shifted by the time, added to their input."""

    def __init__(self, channels: int, width: int, time: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.shift = nn.Linear(time, width)
        self.second = nn.Sequential(
            nn.GroupNorm(GROUPS, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            SqueezeExcite(width),
        )
        self.skip = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Returns features (B, width, H, W)."""
        h = torch.relu(self.first(x)) + self.shift(time)[:, :, None, None]
        return self.skip(x) + self.second(h)


class Denoiser(nn.Module):
    """Predicts clean images; the finest level of its U has half the resolution of the images."""

    def __init__(self, modalities: int, width: int, widths: Sequence[int], time: int = 64) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(time, time), nn.ReLU(), nn.Linear(time, time))
        self.encoders = nn.ModuleList(
            nn.Sequential(*_convolution(1, width, stride=2)) for _ in range(modalities)
        )
        before = [modalities * width, *widths[:-1]]
        self.down = nn.ModuleList(Block(b, w, time) for b, w in zip(before, widths, strict=True))
        self.bottom = Block(widths[-1] + modalities, widths[-1], time)
        steps = list(pairwise(widths))[::-1]  # coarse to fine
        self.up = nn.ModuleList(Block(c + f, f, time) for f, c in steps)
        self.decoders = nn.ModuleList(
            nn.Sequential(
                *_convolution(widths[0] + width, width, stride=1),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.Conv2d(width, 1, 3, padding=1),
                nn.Tanh(),
            )
            for _ in range(modalities)
        )

    def forward(self, x: Tensor, time: Tensor, missing: Tensor) -> Tensor:
        """Returns images (B, M, H, W), given the time of each row (B) and what is missing."""
        t = self.time(_waves(time, self.time[0].in_features))  # pyright: ignore
        own = [e(c) for e, c in zip(self.encoders, x.split(1, dim=1), strict=True)]
        h, skipped = torch.cat(own, dim=1), []
        for level, block in enumerate(self.down):
            if level:
                h = interpolate(h, scale_factor=0.5, mode="bilinear")
            h = block(h, t)
            skipped.append(h)
        h = self.bottom(torch.cat([skipped.pop(), planes(missing, h)], dim=1), t)
        for block in self.up:
            h = interpolate(h, scale_factor=2, mode="bilinear")
            h = block(torch.cat([h, skipped.pop()], dim=1), t)
        parts = zip(self.decoders, own, strict=True)
        return torch.cat([decode(torch.cat([h, part], dim=1)) for decode, part in parts], dim=1)


class M2DNSystem:
    """The diffusion network, as a system to compare, with its learning rate.

    Raises:
        ValueError: If the size cannot be halved between all levels.
    """

    adversary: Adversary | None = None
    steps = 10

    def __init__(
        self, modalities: Sequence[str], size: int, width: int, widths: Sequence[int], lr: float
    ) -> None:
        unit = 2 ** len(widths)
        if size < unit or size % unit:
            raise ValueError(f"'size' should be a positive multiple of {unit}, but is {size}.")
        self.modalities = self.handled = list(modalities)
        self.lr = lr
        self.network: nn.Module = Denoiser(len(modalities), width, widths)
        variances = torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64)
        self.kept = (1 - variances).cumprod(dim=0).float()  # of the signal, its variance

    def loss(self, batch: Batch, done: float) -> Tensor:
        """Returns the squared error of all that was observed of each row, given or not."""
        x, observed, fov = batch
        given = random_subsets(observed, proper=True)[0]
        truth = stack(x, observed, self.modalities)
        time = torch.randint(TIMES, (len(observed),)).to(truth.device)
        kept = torch.where(observed, self.kept.to(time.device)[time][:, None], 0)  # (B, M)
        noisy = _mix(truth, torch.randn_like(truth), kept)
        noisy = torch.where(given[:, :, None, None], truth, noisy)
        where = observed[:, :, None, None] & fov
        error = torch.where(where, (self.network(noisy, time, ~given) - truth).square(), 0)
        return error.flatten(1).sum(dim=1) / where.flatten(1).sum(dim=1).clamp(min=1)

    @torch.no_grad()
    def synthesise(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        targets: Sequence[str],
        temperature: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the targets, after some deterministic steps from noise."""
        clean = stack(x, given, self.modalities)
        known = given[:, :, None, None]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(clean.shape[1:], generator=generator).to(clean).expand_as(clean)
        times = torch.linspace(TIMES - 1, 0, self.steps).round().long().tolist()
        state, images = noise, clean
        with evaluation(self.network.modules()):
            for step, time in enumerate(times):
                rows = torch.full((len(clean),), time, device=clean.device)
                images = self.network(torch.where(known, clean, state), rows, ~given)
                if step + 1 < self.steps:
                    state = _step(state, images, self.kept[time], self.kept[times[step + 1]])
        return {m: images[:, [self.modalities.index(m)]] for m in targets}


def _convolution(before: int, after: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, stride, padding=1)
    return [convolution, nn.GroupNorm(GROUPS, after), nn.ReLU()]


def _mix(images: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    kept = kept[:, :, None, None]
    return kept.sqrt() * images + (1 - kept).sqrt() * noise


def _step(state: Tensor, images: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """The deterministic step from one variance of the signal to another."""
    noise = (state - now.sqrt() * images) / (1 - now).sqrt()
    return then.sqrt() * images + (1 - then).sqrt() * noise


def _waves(time: Tensor, features: int) -> Tensor:
    """Sines and cosines of the time (B), with shape (B, features)."""
    octave = torch.arange(features // 2, device=time.device) * 2 / features
    angle = time[:, None] * torch.exp(-math.log(1e4) * octave)
    return torch.cat([angle.sin(), angle.cos()], dim=1)
