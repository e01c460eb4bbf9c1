"""Networks from a state to what deviates from the mean that is decoded from it."""

from __future__ import annotations

__all__ = ["GridHead", "VectorHead", "make_head"]

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmpoe.nn import MLP, BottomUp, Recorded
from mmpoe.nn.pyramid import Unfold, convolution

WIDTH = 48
"""The number of channels, or of hidden units, of a head."""
LEVELS = 3
"""The largest number of resolutions of a head over a grid."""
START = 0.1
"""The amplitude that a factor starts with, in units of the usual deviation."""

Parts = dict[str, tuple[Tensor, Tensor]]
r"""For each modality, R factors, (N, R, \*event), and log deviations, (N, \*event), in units."""


class GridHead(Recorded, nn.Module):
    r"""A head over grids: factors are smooth, and come from the coarse levels of a pyramid.

    The factors of a level are orthogonal to each other, and each has an amplitude of its own. If
    they were free, they would become alike, and so large that small differences between them
    explain what is seen: the likelihood hardly sees that all of them together are then absurd.

    Arguments:
        state: The shape of a state, channels first.
        events: The shape of an entry of each modality, channels first.
        modalities: The number of modalities, of which the head is told what was given.
        rank: The number of factors R.
    """

    def __init__(
        self,
        state: Sequence[int],
        events: Mapping[str, Sequence[int]],
        modalities: int,
        rank: int,
    ) -> None:
        super().__init__()
        sides = state[1:]
        dims, levels = len(sides), 1
        while levels < LEVELS and all(s % 2**levels == 0 and s >> levels > 1 for s in sides):
            levels += 1
        coarse = min(max(1, levels - 1), rank)
        pixels = [math.prod(s >> (levels - 1 - level) for s in sides) for level in range(coarse)]
        self.events = {m: tuple(event) for m, event in events.items()}
        self.patch = next(iter(self.events.values()))[1] // sides[0]
        # no more factors than a level has pixels, or they could not be orthogonal
        self.ranks = [min(rank // coarse + (k < rank % coarse), n) for k, n in enumerate(pixels)]
        conv = convolution(dims)
        self.stem = conv(state[0] + modalities, WIDTH, 3, padding=1)
        self.pyramid = BottomUp([WIDTH] * levels, dims)
        channels = sum(event[0] for event in self.events.values())
        self.factors = nn.ModuleList(conv(WIDTH, channels * r, 3, padding=1) for r in self.ranks)
        self.amplitude = nn.Linear(WIDTH + modalities, len(events) * sum(self.ranks))
        self.noise = conv(WIDTH, channels * self.patch**dims, 3, padding=1)
        self.unfold = Unfold(self.patch)
        _zero(self.amplitude, self.noise)

    def forward(self, h: Tensor, given: Tensor) -> Parts:
        """Returns the factors and log deviations of each modality.

        Arguments:
            h: The states, with shape (N, C, *sides).
            given: What was given, boolean, with shape (N, M).
        """
        told = given.to(h.dtype)
        planes = told.reshape(*told.shape, *(1,) * (h.dim() - 2)).expand(-1, -1, *h.shape[2:])
        features = self.pyramid(self.stem(torch.cat([h, planes], dim=1)))
        pooled = torch.cat([features[0].flatten(2).mean(dim=2), told], dim=1)
        amplitude = START * self.amplitude(pooled).exp().unflatten(1, (len(self.events), -1))
        sides = [self.patch * side for side in h.shape[2:]]
        mode = ("linear", "bilinear", "trilinear")[len(sides) - 1]
        channels = [event[0] for event in self.events.values()]
        factors: list[list[Tensor]] = [[] for _ in channels]
        levels = zip(self.factors, features, amplitude.split(self.ranks, dim=2), strict=False)
        for conv, feature, sizes in levels:
            raw = conv(feature).unflatten(1, (sizes.shape[2], -1))  # (N, r, C, *)
            for k, part in enumerate(raw.split(channels, dim=2)):
                scaled = _orthogonal(part, sizes[:, k])
                whole = functional.interpolate(scaled.flatten(1, 2), size=sides, mode=mode)
                factors[k].append(whole.unflatten(1, part.shape[1:3]))
        noise = self.unfold(self.noise(functional.silu(features[-1]))).split(channels, dim=1)
        pieces = zip(self.events, factors, noise, strict=True)
        return {m: (torch.cat(f, dim=1), s) for m, f, s in pieces}


class VectorHead(Recorded, nn.Module):
    r"""A head over vectors, or over entries that are no grid as the state is one.

    Arguments:
        state: The shape of a state.
        events: The shape of an entry of each modality.
        modalities: The number of modalities, of which the head is told what was given.
        rank: The number of factors R; fewer if an entry has fewer elements.
    """

    def __init__(
        self,
        state: Sequence[int],
        events: Mapping[str, Sequence[int]],
        modalities: int,
        rank: int,
    ) -> None:
        super().__init__()
        self.events = {m: tuple(event) for m, event in events.items()}
        self.sizes = [math.prod(event) for event in self.events.values()]
        self.rank = min(rank, sum(self.sizes))
        features = math.prod(state) + modalities
        self.body = nn.Sequential(MLP(features, WIDTH, hidden=[WIDTH]), nn.SiLU())
        self.factors = nn.Linear(WIDTH, self.rank * sum(self.sizes))
        self.amplitude = nn.Linear(WIDTH + modalities, self.rank)
        self.noise = nn.Linear(WIDTH, sum(self.sizes))
        _zero(self.amplitude, self.noise)

    def forward(self, h: Tensor, given: Tensor) -> Parts:
        """Returns the factors and log deviations of each modality.

        Arguments:
            h: The states, with shape (N, *).
            given: What was given, boolean, with shape (N, M).
        """
        told = given.to(h.dtype)
        features = self.body(torch.cat([h.flatten(1), told], dim=1))
        amplitude = START * self.amplitude(torch.cat([features, told], dim=1)).exp()
        raw = self.factors(features).unflatten(1, (self.rank, -1))  # (N, R, n)
        factors = _orthogonal(raw, amplitude).split(self.sizes, dim=2)
        pieces = zip(
            self.events.items(), factors, self.noise(features).split(self.sizes, 1), strict=True
        )
        return {
            m: (f.reshape(len(f), self.rank, *event), s.reshape(len(s), *event))
            for (m, event), f, s in pieces
        }


def make_head(
    state: Sequence[int], events: Mapping[str, Sequence[int]], modalities: int, rank: int
) -> GridHead | VectorHead:
    """Makes the head that fits: over a grid if all entries are a whole number of times the state.

    Arguments:
        state: The shape of a state.
        events: The shape of an entry of each modality.
        modalities: The number of modalities.
        rank: The number of factors.
    """
    sides = state[1:]
    grid = 1 <= len(sides) <= 3 and math.prod(sides) > 1
    grid = grid and all(len(event) == len(state) for event in events.values())
    pairs = [p for event in events.values() for p in zip(event[1:], sides, strict=False)]
    grid = grid and all(e % s == 0 for e, s in pairs) and len({e // s for e, s in pairs}) == 1
    return (GridHead if grid else VectorHead)(state, events, modalities, rank)


def _orthogonal(factors: Tensor, amplitude: Tensor) -> Tensor:
    r"""Factors that are orthogonal, with root mean squares that are given.

    Arguments:
        factors: The factors, with shape (N, R, \*).
        amplitude: The root mean squares, with shape (N, R).
    """
    flat = factors.flatten(2)
    q = cast("Tensor", torch.linalg.qr(flat.mT)[0]).mT  # (N, R, n)
    return (q * (math.sqrt(flat.shape[2]) * amplitude[:, :, None])).reshape(factors.shape)


def _zero(*layers: nn.Module) -> None:
    """Makes layers start at zero: amplitudes and deviations at their units."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
