r"""An MMHVAE for aligned images, built from a few numbers."""

from __future__ import annotations

__all__ = ["image_mmhvae"]

from collections.abc import Sequence

import torch
from torch import nn

from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Laplace
from mmpoe.missing import check_modalities
from mmpoe.nn import BottomUp, GaussianHead, ImageHead, Patchify, TopDown
from mmpoe.posteriors import PoE

from .mmhvae import MMHVAE


def image_mmhvae(
    modalities: Sequence[str],
    size: int,
    *,
    channels: int = 1,
    patch: int = 2,
    widths: Sequence[int] = (96, 64, 32),
    latents: Sequence[int] = (16, 16, 8),
    scale: float = 0.12,
    clamp: float = 5.0,
) -> MMHVAE:
    r"""Builds an MMHVAE for square images that are aligned across modalities, in [-1, 1].

    Each modality has its own stem, experts and image head; the pyramid between stem and experts is
    shared by all, so that a modality that is rarely observed profits from the others. Latent group
    l has the resolution of pyramid level l; the finest has one latent per patch. Experts see their
    own modality alone, not the state, and are computed once for all subsets. The likelihood is
    Laplace with a learned scale per modality.

    Arguments:
        modalities: The names of the modalities.
        size: The height and width of the images in pixels.
        channels: The number of channels of the images.
        patch: The side of the patches that the stems fold into channels, in pixels.
        widths: The number of channels of each level, coarse to fine; their number is the number of
            latent groups.
        latents: The number of latent channels of each group, coarse to fine.
        scale: The Laplace scale that training starts from, in the units of the images.
        clamp: The limit of the soft clamp on the parameters of experts and priors.

    Raises:
        ValueError: If `widths` and `latents` differ in length, `size` cannot be halved as often as
            there are levels, or names are not distinct.

    Example:
        >>> vae = image_mmhvae(["us", "t2"], 16, widths=[8, 4], latents=[3, 2])
        >>> vae({"us": torch.zeros(5, 1, 16, 16)}).likelihoods["t2"].mean.shape
        torch.Size([5, 1, 16, 16])
    """
    check_modalities(modalities)
    if len(widths) != len(latents) or not widths:
        raise ValueError(
            "'widths' and 'latents' should have one entry per latent group, "
            f"but are {list(widths)} and {list(latents)}."
        )
    if patch < 1:
        raise ValueError(f"'patch' should be at least 1, but is {patch}.")
    levels = len(widths)
    unit = patch * 2 ** (levels - 1)
    if size < 2 * unit or size % unit:
        raise ValueError(
            f"'size' should be a multiple of {unit}, and at least {2 * unit}, for {levels} levels "
            f"of patches of {patch} pixels, but is {size}."
        )

    groups = []
    for level, (width, latent) in enumerate(zip(widths, latents, strict=True)):
        side = size // unit * 2**level
        last = level == levels - 1
        groups.append(
            LatentGroup(
                (latent, side, side),
                expert={m: GaussianHead(width, latent) for m in modalities},
                merge=TopDown(
                    latent,
                    width,
                    None if last else widths[level + 1],
                    size=side if level == 0 else None,
                ),
                prior=None if level == 0 else _prior(width, latent),
                expert_sees_state=False,
                posterior=PoE(clamp=clamp),
            )
        )

    return MMHVAE(
        encoders={m: Patchify(channels, widths[-1], patch) for m in modalities},
        groups=groups,
        decoders={
            m: Laplace(ImageHead(widths[-1], channels, patch), scale=scale, learn_scale=True)
            for m in modalities
        },
        trunk=BottomUp(widths),
    )


def _prior(width: int, latent: int) -> nn.Conv2d:
    """A 1 x 1 convolution that starts near the standard normal."""
    prior = nn.Conv2d(width, 2 * latent, 1)
    with torch.no_grad():
        prior.weight.mul_(0.3)
        nn.init.zeros_(prior.bias)  # pyright: ignore[reportArgumentType]
    return prior
