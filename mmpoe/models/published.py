r"""The published MMHVAE, and the variants of it that were published."""

from __future__ import annotations

__all__ = ["published_mmhvae"]

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Laplace
from mmpoe.missing import check_modalities
from mmpoe.nn import (
    BottomUp,
    InvertedResidualCell,
    MarkovStep,
    ProjectionCell,
    Recorded,
    ResidualCell,
    ResNetHead,
    UpsampleConv,
)
from mmpoe.nn.pyramid import channels_last, convolution, keep_channels_last
from mmpoe.posteriors import PoE

from .hierarchical import MMHVAE

CELLS = {"residual": ResidualCell, "inverted": InvertedResidualCell}
CLAMP = 10.0
"""The limit of the soft clamp on the parameters of experts and priors."""
DEEPEST = 7
"""The number of resolutions of the published model."""


def published_mmhvae(
    modalities: Sequence[str] = ("us", "t2", "cet1", "flair"),
    size: int | Sequence[int] = 192,
    *,
    levels: int | None = None,
    depth: int | None = None,
    width: int = 16,
    max_width: int = 128,
    blocks: int = 6,
    head_width: int = 8,
    cell: Literal["residual", "inverted"] = "residual",
    power: int = 2,
    scale: float = 2e-3,
) -> MMHVAE:
    r"""Builds the network of the published MMHVAE, for images :math:`(N, 1, H, W)` in [-1, 1].

    .. math::
        p(z) = p(z_L) \prod_{l < L} p(z_l \mid z_{l+1}), \qquad
        q(z_l \mid z_{l+1}, x_s) \propto
        p(z_l \mid z_{l+1}) \prod_{m \in s} e(z_l; x_m, z_{l+1})

    Each modality has its own encoder and image head; experts, priors and the path down are shared.
    The coarsest latent group is a vector of the whole image, the finest has the size of the
    image. Parameters of experts and priors are softly clamped to 10. The default is the network of
    the published code, and its variants are:

    ==============================================  ===============================================
    Published                                       Here
    ==============================================  ===============================================
    The code: 7 groups, 4 modalities, 192 x 192     ``published_mmhvae()``; samples of temperature
                                                    0.7
    The paper: 5 blocks a head, inverted-residual   ``blocks=5, cell="inverted"``; samples of
    cells in encoders too                           temperature 0.5
    MHVAE (2023)                                    two modalities
    The ablation without a hierarchy                ``levels=1``
    The fusion that the weights were trained with   ``power=1``
    ==============================================  ===============================================

    The temperature is an argument of the model's call and of its ``predict``. Images of another
    size than `size` are an error: the coarsest group has a weight for each of its pixels.

    Arguments:
        modalities: The names of the modalities.
        size: The height and width of the images in pixels, one number for squares. With one or
            three sides, images are sequences or volumes.
        levels: The number of latent groups L, the coarsest of as many as there are resolutions;
            below them, the path down goes on without latents. None is one for each resolution.
        depth: The number of resolutions, each half of the one before. None is 7, or fewer if the
            sides of the images cannot be halved as often.
        width: The number of channels of the finest features, which doubles with each resolution. A
            group of C channels of features has C / 2 latent channels.
        max_width: The largest number of channels of features. The coarsest group has twice as many
            latents.
        blocks: The number of residual blocks of an image head.
        head_width: The number of channels of an image head.
        cell: The cells of the encoders, residual ones or inverted-residual ones. Those of the path
            down are inverted.
        power: The power of the inverse scale that adds up: 2 is the product of Gaussians, 1 the
            rule of the published code and weights.
        scale: The scale of the Laplace likelihood, which is fixed. The default, with four
            modalities observed, weighs divergences as the published loss does.

    Raises:
        ValueError: If a number is not positive, names are not distinct, `width` or `max_width` is
            odd, or there are more `levels` or `depth` than the images have resolutions.

    References:
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632
        | Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations
          (Dorent et al., 2023)
        | https://arxiv.org/abs/2309.08747

    Example:
        >>> vae = published_mmhvae(["us", "t2"], (16, 24), width=4, max_width=8)
        >>> vae({"us": torch.zeros(5, 1, 16, 24)}).likelihoods["t2"].mean.shape
        torch.Size([5, 1, 16, 24])
        >>> [group.shape for group in vae.groups]
        [(16,), (4, 4, 6), (4, 8, 12), (2, 16, 24)]
    """
    check_modalities(modalities)
    sides = [size, size] if isinstance(size, int) else list(size)
    depth = _check_depth(sides, depth)
    levels = depth if levels is None else levels
    if not 1 <= levels <= depth:
        raise ValueError(
            f"'levels' should be from 1 to {depth}, the number of resolutions of images of "
            f"{_pixels(sides)}, but is {levels}."
        )
    _check_numbers({"width": width, "max_width": max_width}, even=True)
    _check_numbers({"blocks": blocks, "head_width": head_width}, even=False)
    if cell not in CELLS:
        raise ValueError(f"'cell' should be one of {', '.join(CELLS)}, but is {cell!r}.")

    dims = len(sides)
    widths = [min(width * 2**d, max_width) for d in range(depth)][::-1]  # coarse to fine
    shapes = [[side // 2**d for side in sides] for d in range(depth)][::-1]
    latents = 2 * max_width
    coarse = math.prod(shapes[0])  # pixels of the coarsest features

    vector = nn.Linear(widths[0] * coarse, 2 * latents)
    image = nn.Linear(latents, max_width * coarse)
    unflatten = nn.Unflatten(1, (max_width, *shapes[0]))

    steps = _path_down([weight_norm(image), unflatten], [max_width, *widths[1:]], levels, dims)
    channels = widths[-1] // 2

    groups = [
        LatentGroup(
            (latents,),
            expert=nn.Sequential(nn.Flatten(), weight_norm(vector)),
            merge=MarkovStep(steps[0]),
            posterior=PoE(power, clamp=CLAMP),
        )
    ]
    for here, shape, step in zip(widths[1:levels], shapes[1:levels], steps[1:], strict=True):
        groups.append(
            LatentGroup(
                (here // 2, *shape),
                expert=ProjectionCell(2 * here, here, here, dims),
                merge=MarkovStep(step),
                prior=weight_norm(convolution(dims)(here, here, 1, bias=False)),
                posterior=PoE(power, clamp=CLAMP),
            )
        )

    def encoder() -> nn.Module:
        stem = convolution(dims)(1, width, 3, padding=1)
        return _Encoder(sides, stem, BottomUp(widths, dims, cell=CELLS[cell], levels=levels))

    def head() -> nn.Module:
        return ResNetHead(channels, head_width, 1, blocks, dims)

    return MMHVAE(
        encoders={m: encoder() for m in modalities},
        groups=groups,
        decoders={m: Laplace(head(), scale=scale) for m in modalities},
    )


def _path_down(
    start: list[nn.Module], widths: Sequence[int], levels: int, dims: int
) -> list[nn.Sequential]:
    """Builds the steps of the path down: each ends at the next group or at the image heads.

    Arguments:
        start: The layers from the coarsest latents to features.
        widths: The number of channels of those, and of the features of each resolution below.
        levels: The number of groups.
        dims: The number of sides of images.
    """
    steps = [nn.Sequential() for _ in range(levels)]
    steps[0].extend(start)
    channels = widths[0]
    for level, here in enumerate(widths[1:], start=1):
        step = steps[min(level, levels) - 1]
        step.extend([UpsampleConv(channels, here, dims), InvertedResidualCell(here, dims)])
        channels = here // 2
        if level >= levels:  # no group is here
            step.append(ProjectionCell(here, here, channels, dims))
    return steps


class _Encoder(Recorded, nn.Sequential):
    """The encoder of one modality, for images of one size alone."""

    def __init__(self, sides: Sequence[int], *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.sides = tuple(sides)
        keep_channels_last(self, len(sides))

    def forward(self, input: Tensor) -> list[Tensor]:
        """Returns the features of each level, or says of what size images should be."""
        if tuple(input.shape[2:]) != self.sides:
            raise ValueError(
                f"'x' should hold images of {_pixels(self.sides)}, the 'size' that the model was "
                f"built for, but holds entries of shape {tuple(input.shape[1:])}."
            )
        stem, pyramid = self
        return pyramid(channels_last(stem(input)))


def _check_depth(sides: list[int], depth: int | None) -> int:
    """Returns the number of resolutions, or says how many there can be."""
    if len(sides) not in (1, 2, 3) or any(side < 4 or side % 2 for side in sides):
        raise ValueError(
            "'size' should have 1, 2 or 3 sides, even and of at least 4 pixels, "
            f"but is {_pixels(sides)}."
        )
    limit = 1  # the coarsest features are normalised, and need more than one pixel
    while all(s % 2**limit == 0 for s in sides) and math.prod(s // 2**limit for s in sides) > 1:
        limit += 1
    if depth is None:
        return min(limit, DEEPEST)
    if not 2 <= depth <= limit:
        raise ValueError(
            f"'depth' should be from 2 to {limit} for images of {_pixels(sides)}, "
            f"which have to be halved evenly, but is {depth}."
        )
    return depth


def _check_numbers(numbers: dict[str, int], *, even: bool) -> None:
    for argument, number in numbers.items():
        if number < 1 or (even and number % 2):
            wanted = "positive and even" if even else "at least 1"
            raise ValueError(f"'{argument}' should be {wanted}, but is {number}.")


def _pixels(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides)) + " pixels"
