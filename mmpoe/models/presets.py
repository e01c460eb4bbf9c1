r"""Whole models from a few numbers: an MMHVAE for vectors, sequences, images or volumes.

Each is an ordinary :class:`~mmpoe.models.MMHVAE`, made of the blocks in :mod:`mmpoe.nn`.
"""

from __future__ import annotations

__all__ = ["image_mmhvae", "sequence_mmhvae", "vector_mmhvae", "volume_mmhvae"]

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Laplace, Likelihood, MakeLikelihood, Normal
from mmpoe.missing import check_modalities, check_names
from mmpoe.nn import (
    MLP,
    BottomUp,
    Concatenate,
    GaussianHead,
    ImageHead,
    MLPBottomUp,
    MLPTopDown,
    OwnBlock,
    Patchify,
    PrivateExpert,
    TopDown,
)
from mmpoe.posteriors import PoE

from .hierarchical import MMHVAE


def vector_mmhvae(
    modalities: Mapping[str, int],
    *,
    likelihoods: Mapping[str, MakeLikelihood] | None = None,
    hidden: int = 64,
    latents: Sequence[int] = (8, 16),
    private: int = 0,
    scale: float = 0.3,
    markov: bool = False,
) -> MMHVAE:
    r"""Builds an MMHVAE for vectors :math:`(N, C)`: tables, views, counts, labels.

    Encoders and decoders are perceptrons, one for each modality. Experts see their own modality
    alone, not the state, and are computed once for all subsets. The likelihood is normal with a
    learned scale per modality; standardise what it scores.

    Private latents are a last group :math:`w = (w_1, \dots, w_M)`, for what modalities do not
    share:

    .. math::
        p(x, z, w) = p(z) \prod_m p(w_m) \, p(x_m \mid z, w_m), \qquad
        q(z, w \mid x_s) = q(z \mid x_s) \prod_{m \in s} q(w_m \mid x_m) \prod_{m \notin s} p(w_m)

    where each :math:`p(w_m)` is standard normal.

    Arguments:
        modalities: The number of features C of each modality, by name.
        likelihoods: For some modalities, what makes another likelihood of a network: a class in
            :mod:`mmpoe.likelihoods`, or a :func:`~functools.partial` of one. The network returns
            what the likelihood takes. If it is not made of the network itself, but of one around
            it, the network returns one number for each feature.
        hidden: The number of features of hidden layers and of the state.
        latents: The number of latents of each group, coarse to fine.
        private: The number of private latents of each modality.
        scale: The standard deviation of the likelihood that training starts from, in the units of
            the data.
        markov: Whether each group depends on the one above it alone,
            :math:`p(z_l \mid z_{l+1})`, and decoders on the last; if not, on all above.

    Raises:
        ValueError: If there is no modality or no group, a number is not positive, or `likelihoods`
            names an unknown modality.

    References:
        | MMVAE+: Enhancing the Generative Quality of Multimodal VAEs without Compromises
          (Palumbo et al., 2023)
        | https://openreview.net/forum?id=sdQGxouELX

    Example:
        >>> from mmpoe.likelihoods import Bernoulli
        >>> vae = vector_mmhvae({"rna": 30, "label": 3}, likelihoods={"label": Bernoulli})
        >>> vae({"rna": torch.zeros(5, 30)}).likelihoods["label"].mean.shape
        torch.Size([5, 3])
        >>> from mmpoe.likelihoods import Categorical, Columns, NegativeBinomial
        >>> columns = [Normal, NegativeBinomial, partial(Categorical, classes=4)]
        >>> make = partial(Columns, columns=columns)
        >>> vae = vector_mmhvae({"exam": 3}, likelihoods={"exam": make})
        >>> vae({"exam": torch.zeros(5, 3)}).likelihoods["exam"].sample().shape
        torch.Size([5, 3])
    """
    if not isinstance(modalities, Mapping):
        raise ValueError(
            f"'modalities' should map names to numbers of features, but is {modalities!r}."
        )
    names = list(modalities)
    check_modalities(names)
    _check_positive("modalities", *modalities.values())
    _check_positive("hidden", hidden)
    _check_list("latents", latents)
    _check_positive("latents", *latents)
    if not latents:
        raise ValueError("'latents' should have an entry for each group, but is empty.")
    if private < 0:
        raise ValueError(f"'private' should be at least 0, but is {private}.")
    likelihoods = likelihoods or {}
    check_names(list(likelihoods), names, argument="likelihoods")

    groups = [
        LatentGroup(
            (latent,),
            expert={m: _precise(nn.Linear(hidden, 2 * latent)) for m in names},
            merge=MLPTopDown(latent, hidden, markov=markov),
            prior=None if level == 0 else _near_standard(nn.Linear(hidden, 2 * latent)),
            expert_sees_state=False,
            posterior=PoE(clamp=5.0),
        )
        for level, latent in enumerate(latents)
    ]
    blocks = len(names)

    def network(block: int, outputs: int) -> nn.Module:
        perceptron = MLP(hidden + private, outputs, hidden=[hidden])
        return (
            nn.Sequential(OwnBlock(private, block, blocks), perceptron) if private else perceptron
        )

    networks = [network(block, size) for block, size in enumerate(modalities.values())]
    if private:
        experts = {
            m: PrivateExpert(_precise(nn.Linear(hidden, 2 * private)), block, blocks)
            for block, m in enumerate(names)
        }
        groups.append(
            LatentGroup((blocks * private,), experts, Concatenate(), expert_sees_state=False)
        )

    normal = partial(Normal, scale=scale, learn_scale=True)
    encoders = {m: MLPBottomUp(size, hidden, len(groups)) for m, size in modalities.items()}
    decoders = {
        m: _decoder(likelihoods.get(m, normal), networks[block], partial(network, block), (size,))
        for block, (m, size) in enumerate(modalities.items())
    }
    return MMHVAE(encoders, groups, decoders)


def image_mmhvae(
    modalities: Sequence[str],
    size: int | Sequence[int],
    *,
    channels: int | Mapping[str, int] = 1,
    likelihoods: Mapping[str, MakeLikelihood] | None = None,
    patch: int = 2,
    widths: Sequence[int] = (96, 64, 32),
    latents: Sequence[int] = (16, 16, 8),
    scale: float = 0.12,
    clamp: float = 5.0,
    markov: bool = False,
) -> MMHVAE:
    r"""Builds an MMHVAE for images :math:`(N, C, H, W)` in [-1, 1], aligned across modalities.

    Each modality has its own stem, experts and image head; the pyramid between stem and experts is
    shared by all, so that a modality that is rarely observed profits from the others. Latent group
    l has the resolution of pyramid level l; the finest has one latent per patch. Experts see their
    own modality alone, not the state, and are computed once for all subsets. The likelihood is
    Laplace with a learned scale per modality.

    Arguments:
        modalities: The names of the modalities.
        size: The height and width of the images in pixels, one number for squares. With one or
            three sides, images are sequences or volumes.
        channels: The number of channels of the images, one number or one for each modality.
        likelihoods: For some modalities, what makes another likelihood of a network, as for
            :func:`vector_mmhvae`; the values of the images that it returns may be any.
        patch: The side of the patches that the stems fold into channels, in pixels.
        widths: The number of channels of each level, coarse to fine; their number is the number of
            latent groups.
        latents: The number of latent channels of each group, coarse to fine.
        scale: The Laplace scale that training starts from, in the units of the images.
        clamp: The limit of the soft clamp on the parameters of experts and priors.
        markov: Whether each group depends on the one above it alone,
            :math:`p(z_l \mid z_{l+1})`, and images on the last; if not, on all above.

    Raises:
        ValueError: If `widths` and `latents` differ in length, `size` cannot be halved as often as
            there are levels, a number is not positive, names are not distinct, or `channels` or
            `likelihoods` name other modalities.

    Example:
        >>> vae = image_mmhvae(["us", "t2"], 16, widths=[8, 4], latents=[3, 2])
        >>> vae({"us": torch.zeros(5, 1, 16, 16)}).likelihoods["t2"].mean.shape
        torch.Size([5, 1, 16, 16])
    """
    check_modalities(modalities)
    sides, unit = _check_grid(size, patch, widths, latents)
    dims, levels = len(sides), len(widths)
    channels = dict.fromkeys(modalities, channels) if isinstance(channels, int) else channels
    if set(channels) != set(modalities):
        raise ValueError(
            f"'channels' should have the names of the modalities, {', '.join(modalities)}, "
            f"but has {', '.join(channels)}."
        )
    _check_positive("channels", *channels.values())
    likelihoods = likelihoods or {}
    check_names(list(likelihoods), modalities, argument="likelihoods")

    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    groups = []
    for level, (width, latent) in enumerate(zip(widths, latents, strict=True)):
        shape = [side // unit * 2**level for side in sides]
        first, last = level == 0, level == levels - 1
        groups.append(
            LatentGroup(
                (latent, *shape),
                expert={m: GaussianHead(width, latent, dims=dims) for m in modalities},
                merge=TopDown(
                    latent,
                    width,
                    None if last else widths[level + 1],
                    size=shape if first else None,
                    dims=dims,
                    markov=markov,
                ),
                prior=None if first else _near_standard(conv(width, 2 * latent, 1)),
                expert_sees_state=False,
                posterior=PoE(clamp=clamp),
            )
        )

    encoders = {m: Patchify(channels[m], widths[-1], patch, dims) for m in modalities}
    decoders = {}
    for m in modalities:
        head = partial(ImageHead, widths[-1], patch=patch, dims=dims, bounded=m not in likelihoods)
        make = likelihoods.get(m, partial(Laplace, scale=scale, learn_scale=True))
        decoders[m] = _decoder(make, head(channels[m]), head, (channels[m], *sides))
    return MMHVAE(encoders, groups, decoders, trunk=BottomUp(widths, dims))


def sequence_mmhvae(
    modalities: Sequence[str],
    size: int,
    *,
    channels: int | Mapping[str, int] = 1,
    likelihoods: Mapping[str, MakeLikelihood] | None = None,
    patch: int = 2,
    widths: Sequence[int] = (96, 64, 32),
    latents: Sequence[int] = (16, 16, 8),
    scale: float = 0.3,
    markov: bool = False,
) -> MMHVAE:
    r"""Builds an MMHVAE for sequences :math:`(N, C, T)` that are aligned across modalities.

    It is :func:`image_mmhvae` in one dimension, with the same arguments. The likelihood is normal
    with a learned scale per modality, for values that are standardised.

    Arguments:
        modalities: The names of the modalities.
        size: The number of time steps T.
        channels: The number of channels C, one number or one for each modality.
        likelihoods: For some modalities, what makes another likelihood.
        patch: The number of time steps that the stems fold into channels.
        widths: The number of channels of each level, coarse to fine.
        latents: The number of latent channels of each group, coarse to fine.
        scale: The standard deviation of the likelihood that training starts from.
        markov: Whether each group depends on the one above it alone.

    Raises:
        ValueError: As :func:`image_mmhvae`.

    Example:
        >>> vae = sequence_mmhvae(["ecg", "motion"], 48, channels={"ecg": 12, "motion": 3})
        >>> vae({"ecg": torch.zeros(5, 12, 48)}).likelihoods["motion"].mean.shape
        torch.Size([5, 3, 48])
    """
    normal = partial(Normal, scale=scale, learn_scale=True)
    return image_mmhvae(
        modalities,
        (size,),
        channels=channels,
        likelihoods={**dict.fromkeys(modalities, normal), **(likelihoods or {})},
        patch=patch,
        widths=widths,
        latents=latents,
        markov=markov,
    )


def volume_mmhvae(
    modalities: Sequence[str],
    size: int | Sequence[int],
    *,
    channels: int | Mapping[str, int] = 1,
    likelihoods: Mapping[str, MakeLikelihood] | None = None,
    patch: int = 2,
    widths: Sequence[int] = (64, 32, 16),
    latents: Sequence[int] = (16, 8, 4),
    scale: float = 0.12,
    markov: bool = False,
) -> MMHVAE:
    r"""Builds an MMHVAE for volumes :math:`(N, C, D, H, W)` in [-1, 1], aligned across modalities.

    It is :func:`image_mmhvae` in three dimensions, with the same arguments and likelihoods.

    Arguments:
        modalities: The names of the modalities.
        size: The depth, height and width of the volumes in voxels, one number for cubes.
        channels: The number of channels C, one number or one for each modality.
        likelihoods: For some modalities, what makes another likelihood.
        patch: The side of the cubes that the stems fold into channels, in voxels.
        widths: The number of channels of each level, coarse to fine.
        latents: The number of latent channels of each group, coarse to fine.
        scale: The Laplace scale that training starts from.
        markov: Whether each group depends on the one above it alone.

    Raises:
        ValueError: As :func:`image_mmhvae`.

    Example:
        >>> vae = volume_mmhvae(["t1", "t2"], (8, 8, 16), widths=[8, 4], latents=[3, 2])
        >>> vae({"t1": torch.zeros(5, 1, 8, 8, 16)}).likelihoods["t2"].mean.shape
        torch.Size([5, 1, 8, 8, 16])
    """
    sides = (size, size, size) if isinstance(size, int) else size
    if len(sides) != 3:
        raise ValueError(f"'size' should be one number or three, but is {size}.")
    return image_mmhvae(
        modalities,
        sides,
        channels=channels,
        likelihoods=likelihoods,
        patch=patch,
        widths=widths,
        latents=latents,
        scale=scale,
        markov=markov,
    )


def _decoder(
    make: MakeLikelihood,
    network: nn.Module,
    wider: Callable[[int], nn.Module],
    event: tuple[int, ...],
) -> nn.Module:
    """Makes a likelihood, whose network is replaced if it takes more numbers than elements.

    Arguments:
        make: Makes the likelihood of a network.
        network: The network, which returns entries.
        wider: Makes a network that returns another number of channels.
        event: The shape of an entry, channels first.
    """
    likelihood = make(network)
    if not isinstance(likelihood, Likelihood) or likelihood.network is not network:
        return likelihood  # what is around the network makes its output fit
    shape = likelihood.network_shape(event)
    if shape != event:
        channels = shape[: len(shape) - len(event) + 1]
        fold = [nn.Unflatten(1, channels)] if len(channels) > 1 else []
        likelihood.network = nn.Sequential(wider(math.prod(channels)), *fold)
    return likelihood


def _check_grid(
    size: int | Sequence[int], patch: int, widths: Sequence[int], latents: Sequence[int]
) -> tuple[list[int], int]:
    """Returns the sides of images, and how many pixels one of the coarsest level spans."""
    _check_list("widths", widths)
    _check_list("latents", latents)
    if len(widths) != len(latents) or not widths:
        raise ValueError(
            "'widths' and 'latents' should have one entry per latent group, "
            f"but are {list(widths)} and {list(latents)}."
        )
    _check_positive("patch", patch)
    _check_positive("widths", *widths)
    _check_positive("latents", *latents)
    sides = [size, size] if isinstance(size, int) else list(size)
    unit = patch * 2 ** (len(widths) - 1)
    if len(sides) not in (1, 2, 3):
        raise ValueError(f"'size' should have 1, 2 or 3 sides, but is {size}.")
    if any(side < 2 * unit or side % unit for side in sides):
        raise ValueError(
            f"'size' should be a multiple of {unit}, and at least {2 * unit}, for {len(widths)} "
            f"levels of patches of {patch} pixels, but is {size}."
        )
    return sides, unit


def _near_standard(prior: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> nn.Module:
    """Makes the prior that a layer returns start near the standard normal."""
    with torch.no_grad():
        prior.weight.mul_(0.3)
        nn.init.zeros_(prior.bias)  # pyright: ignore[reportArgumentType]
    return prior


def _precise(expert: nn.Linear) -> nn.Linear:
    """Makes the expert that a layer returns start precise, which keeps latents from collapsing."""
    with torch.no_grad():
        expert.bias[expert.out_features // 2 :] = -2.0
    return expert


def _check_list(argument: str, numbers: object) -> None:
    if not isinstance(numbers, Sequence) or isinstance(numbers, str):
        raise ValueError(
            f"'{argument}' should be a list with a number for each latent group, coarse to fine, "
            f"but is {numbers!r}."
        )


def _check_positive(argument: str, *numbers: int) -> None:
    for number in numbers:
        if number < 1:
            raise ValueError(f"'{argument}' should be at least 1, but is {number}.")
