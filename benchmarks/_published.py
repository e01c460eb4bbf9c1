"""The network of the published MMHVAE, computed the way that its code does: slow, and plain.

Each pass is about one subset of the modalities, and starts from the images. Modules have the
published names and layers, so that published weights fit. What is faithful here on purpose:
instance normalisation as such, padding by layers of its own, distributions that check what they
are given, every modality's own posterior and all log-densities even if nobody asks for them, and
images of all modalities.
"""

from __future__ import annotations

__all__ = ["PublishedWay", "load", "with_noise"]

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

CLAMP = 10.0


class Excite(nn.Module):
    """Squeeze-and-excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.se = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled channels."""
        return x * self.se(x.mean(dim=(2, 3)))[:, :, None, None]


class EncoderCell(nn.Module):
    """Two normalised convolutions; added to their input if there is no last one."""

    def __init__(self, channels: int, width: int, *, last: bool = False) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = nn.InstanceNorm2d(channels), nn.InstanceNorm2d(width)
        self.conv_0 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.se = Excite(width)
        if last:
            self.last_conv = weight_norm(nn.Conv2d(width, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns features."""
        out = self.conv_0(functional.silu(self.norm_0(x)))
        out = self.se(self.conv_1(functional.silu(self.norm_1(out))))
        return self.last_conv(out) if hasattr(self, "last_conv") else out + x


class DecoderCell(nn.Module):
    """An inverted residual cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = 6 * channels
        self.norm_0 = nn.InstanceNorm2d(channels)
        self.conv_0 = nn.Conv2d(channels, inside, 3, padding=1)
        self.norm_1 = nn.InstanceNorm2d(inside)
        self.dw_conv_1 = nn.Conv2d(inside, inside, 5, padding=2, groups=inside)
        self.norm_2 = nn.InstanceNorm2d(inside)
        self.se_2 = Excite(inside)
        self.conv_2 = nn.Conv2d(inside, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features."""
        out = self.conv_0(self.norm_0(x))
        out = self.dw_conv_1(functional.silu(self.norm_1(out)))
        return self.conv_2(self.se_2(functional.silu(self.norm_2(out)))) + x


class HeadBlock(nn.Module):
    """A residual block of an image head."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def half() -> list[nn.Module]:
            return [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]

        self.conv_block = nn.Sequential(*half(), nn.ReLU(inplace=True), *half())

    def forward(self, x: Tensor) -> Tensor:
        """Returns features."""
        return x + self.conv_block(x)


class Head(nn.Module):
    """An image head."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        first = [] if channels == width else [nn.Conv2d(channels, width, 1)]
        self.res = nn.Sequential(*first, *(HeadBlock(width) for _ in range(blocks)))
        self.convt2 = nn.Conv2d(width, width, 7, padding=3, padding_mode="reflect")
        self.norm2 = nn.InstanceNorm2d(width)
        self.convt3 = nn.Conv2d(width, 1, 7, padding=3, padding_mode="reflect")

    def forward(self, z: Tensor) -> Tensor:
        """Returns an image."""
        out = functional.leaky_relu(self.norm2(self.convt2(self.res(z))), 0.2, inplace=True)
        return self.convt3(out).tanh()


class PublishedWay(nn.Module):
    """The network, for images of one channel.

    Arguments:
        modalities: The names of the modalities.
        size: The height and width of the images.
        depth: The number of resolutions, and of groups of latents.
        width: The number of channels of the finest features.
        max_width: The largest number of channels.
        blocks: The number of residual blocks of an image head.
        head_width: The number of channels of an image head.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        size: int,
        depth: int,
        width: int,
        max_width: int,
        blocks: int,
        head_width: int,
    ) -> None:
        super().__init__()
        widths = [min(width * 2**d, max_width) for d in range(depth)]  # fine to coarse
        side = size // 2 ** (depth - 1)
        self.coarsest = (max_width, side, side)

        def each(make: Callable[[], nn.Module]) -> nn.ModuleDict:
            return nn.ModuleDict({m: make() for m in modalities})

        self.first_conv = each(lambda: nn.Conv2d(1, width, 3, padding=1))
        self.conv_blocks_context = each(lambda: nn.ModuleList(EncoderCell(c, c) for c in widths))
        self.td = each(
            lambda: nn.ModuleList(
                nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
                for fine, coarse in pairwise(widths)
            )
        )
        down = nn.Linear(widths[-1] * side**2, 4 * max_width)
        up = nn.Linear(2 * max_width, max_width * side**2)
        self.bottleneck_down = nn.ModuleDict({"linear": weight_norm(down)})
        self.bottleneck_up = nn.ModuleDict({"linear": weight_norm(up)})
        downwards = widths[-2::-1]
        latents = [max_width, *(c // 2 for c in downwards)]
        self.tu = nn.ModuleList(
            nn.ModuleDict({"conv_1": nn.Conv2d(z, c, 3, padding=1, bias=False)})
            for z, c in zip(latents, downwards, strict=False)
        )
        self.conv_blocks_localization = nn.ModuleList(DecoderCell(c) for c in downwards)
        self.qz = nn.ModuleList(EncoderCell(2 * c, c, last=True) for c in downwards)
        self.pz = nn.ModuleList(weight_norm(nn.Conv2d(c, c, 1, bias=False)) for c in downwards)
        self.final_blocks = each(lambda: Head(latents[-1], head_width, blocks))

    def forward(
        self, x: Mapping[str, Tensor], temp: float = 1.0
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """Conditions on the images of `x`, all of them.

        Returns:
            The images of all modalities, -1 where the first of `x` is, and log-ratios at the
            samples: of the posterior to that of each modality of `x`, and to ``"prior"``, one for
            each group, coarse to fine, summed over the batch.
        """
        inside = (x[next(iter(x))] > -1).float()
        skips = {m: self._encode(m, image) for m, image in x.items()}
        ratios = {m: [] for m in (*x, "prior")}

        experts = {m: _split(self._down(skips[m].pop())) for m in x}
        zeros = torch.zeros_like(next(iter(experts.values()))[0])
        z = _sample(experts, (zeros, torch.zeros_like(zeros)), temp, ratios)
        z = self.bottleneck_up["linear"](z).reshape(-1, *self.coarsest)

        for i, (up, cell) in enumerate(zip(self.tu, self.conv_blocks_localization, strict=True)):
            state = functional.interpolate(z, scale_factor=2, mode="bilinear")
            state = cell(up["conv_1"](state))  # pyright: ignore[reportIndexIssue]
            prior = _split(self.pz[i](state))
            experts = {
                m: _split(self.qz[i](torch.cat([state, skip.pop()], dim=1)))
                for m, skip in skips.items()
            }
            z = _sample(experts, prior, temp, ratios)

        images = {m: head(z) for m, head in self.final_blocks.items()}
        return {m: 2 * ((v + 1) / 2 * inside) - 1 for m, v in images.items()}, ratios

    def _encode(self, m: str, x: Tensor) -> list[Tensor]:
        """Features, fine to coarse."""
        cells: Any = self.conv_blocks_context[m]
        strides: Any = self.td[m]
        features = [cells[0](self.first_conv[m](x))]
        for cell, stride in zip(cells[1:], strides, strict=True):
            features.append(cell(stride(features[-1])))
        return features

    def _down(self, features: Tensor) -> Tensor:
        return self.bottleneck_down["linear"](features.flatten(1))


def _split(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log-scales, softly clamped."""
    loc, log_scale = parameters.chunk(2, dim=1)
    return loc.div(CLAMP).tanh_().mul(CLAMP), log_scale.div(CLAMP).tanh_().mul(CLAMP)


def _sample(
    experts: Mapping[str, tuple[Tensor, Tensor]],
    prior: tuple[Tensor, Tensor],
    temp: float,
    ratios: Mapping[str, list[Tensor]],
) -> Tensor:
    """Draws from the product of all experts, and measures it against the product of each."""
    p = Normal(prior[0], prior[1].exp())
    known, prior_precision = {"prior": p}, torch.exp(-prior[1])
    for m, (loc, log_scale) in experts.items():
        own = torch.exp(-log_scale)
        scale = 1 / (own + prior_precision + 1e-3)  # the published code adds this here alone
        mean = scale * (own * loc + prior_precision * prior[0])
        assert not torch.any(torch.isnan(mean))
        known[m] = Normal(mean, temp * scale)

    weighted, precision = p.loc / p.scale, 1 / p.scale
    for loc, log_scale in experts.values():
        weighted += loc * torch.exp(-log_scale)
        precision += torch.exp(-log_scale)
    full = Normal(weighted / precision, temp * (1 / precision))
    z = full.rsample()
    for name, sums in ratios.items():
        sums.append((full.log_prob(z) - known[name].log_prob(z)).sum())
    return z


def load(
    state: Mapping[str, Tensor], architecture: Mapping[str, Any], checkout: Path | None = None
) -> nn.Module:
    """Returns the network with some weights, of this file or of the published code.

    Arguments:
        state: The weights by their published names.
        architecture: The arguments of :class:`PublishedWay`.
        checkout: A folder with the published code, whose class is used if it is not None. Its code
            is run.

    Raises:
        ValueError: If there is no such class in the folder, or its weights have other names.
    """
    if checkout is None:
        network = PublishedWay(**architecture)
    else:
        network = _published_class(checkout)(
            modalities=list(architecture["modalities"]),
            base_num_features=architecture["width"],
            num_pool=architecture["depth"] - 1,
            original_shape=(architecture["size"],) * 2,
            max_features=architecture["max_width"],
            with_residual=True,
            with_se=True,
            nfeat_finalblock=architecture["head_width"],
            nb_finalblocks=architecture["blocks"],
        )
    wanted = network.state_dict()
    renamed = {name if name in wanted else _older(name): v for name, v in state.items()}
    try:
        network.load_state_dict({name: v.clone() for name, v in renamed.items()})
    except RuntimeError as error:
        raise ValueError(
            f"'checkout' should hold the published network, but its weights differ: {error}"
        ) from error
    return network


def published_name(name: str) -> str:
    """Returns the name of a parameter as newer versions of PyTorch have it."""
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        name = name.replace(f".{old}", f".parametrizations.weight.{new}")
    return name


def _older(name: str) -> str:
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        name = name.replace(f".parametrizations.weight.{new}", f".{old}")
    return name


def _published_class(checkout: Path) -> Callable[..., nn.Module]:
    """The class of the network, from a folder that holds the published code."""
    file = checkout / "network" / "mhvae.py"
    if not file.is_file():
        raise ValueError(
            f"'checkout' should be a folder of the published code, which holds {file.name} in a "
            f"folder called network, but is {checkout}."
        )
    sys.path.insert(0, str(checkout.resolve()))
    try:
        module = importlib.import_module("network.mhvae")
    except ImportError as error:
        raise ValueError(f"'checkout' should hold code that runs, but {file}: {error}") from error
    finally:
        sys.path.pop(0)
    found = getattr(module, "MHVAE2D", None)
    if found is None:
        raise ValueError(f"'checkout' should hold MHVAE2D in {file}, but there is no such class.")
    return found


@contextmanager
def with_noise(noise: Sequence[Tensor]) -> Iterator[None]:
    """Makes normal distributions use some noise, one tensor after the other."""
    left = list(noise)

    def draw(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        value = left.pop(0)
        assert (value.shape, value.dtype, value.device) == (shape, dtype, device)
        return value

    with patch("torch.distributions.normal._standard_normal", draw):
        yield
