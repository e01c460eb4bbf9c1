r"""Variants of the slim MMHVAE, each of which differs from it in one thing.

The base is the MMHVAE of the comparison, `benchmarks.synthesis.systems.mmhvae`: exact product of
experts, three latent groups, divergences weighed by 0.01, the score of what was given by 0.3, one
random proper subset for each row, no adversary. Beside it stand the U-Net of the comparison, and
the MMHVAE as it was when that U-Net was ahead of it.
"""

from __future__ import annotations

__all__ = ["BASE", "COARSE", "FUSIONS", "MeanFusion", "Variant", "build", "most_groups"]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.synthesis.systems import Batch, System
from benchmarks.synthesis.systems import build as build_system
from benchmarks.synthesis.systems.common import predict_means, stack
from benchmarks.synthesis.systems.mmhvae import BETA, RECONSTRUCTION, MMHVAESystem
from examples.medical_mri_us.critics import Critics, Judge
from examples.medical_mri_us.models import DEFAULT, ImageModel, build_model
from examples.medical_mri_us.train import bound
from mmpoe import kernels
from mmpoe.hierarchy import LatentGroup, latent_groups
from mmpoe.missing import random_subsets
from mmpoe.models import MMHVAE, Output
from mmpoe.nn import BottomUp
from mmpoe.posteriors import CommonNoisePoE, Draw, Factors, GPoE, MoE, PoE, Posterior
from mmpoe.training import Adversary

CRITICS = Critics(weight=0.025 * 2 * 4 / DEFAULT.scale, width=32)
"""The published weight, 0.025 beside half the mean absolute error: twice that, times the number of
modalities over the scale of the likelihood, in nats per pixel. From 79 % and 80 % of the training
on, as published."""

COARSE = ImageModel(patch=4, widths=(64, 64, 64), latents=(16, 16, 16))
"""A network whose finest latents are half as fine as those of the base."""

ZEROS = "zero imputation"


@dataclass(frozen=True)
class Variant:
    """A variant: its differences from the base."""

    name: str
    """How its files are called."""
    factor: str
    """The factor that is varied."""
    label: str
    """How it is called in tables."""
    groups: int | None = None
    """The number of latent groups, the coarsest of as many as the size allows; None is the base's
    three finest."""
    fusion: str = "exact PoE"
    """One of `FUSIONS`."""
    adversary: bool = False
    """Whether it is trained against patch discriminators."""
    beta: float = BETA
    """The weight of the divergence, after a tenth of training."""
    reconstruction: float = RECONSTRUCTION
    """The weight of the log-likelihood of what was given."""
    proper: bool = True
    """Whether something is hidden from every row that has two modalities or more."""
    network: ImageModel = DEFAULT
    """The sizes of the network."""
    system: str | None = None
    """Another system of the comparison, in place of the MMHVAE."""
    subsets: int = 1
    """The number of subsets that each row is conditioned on in a step."""
    missing: float | None = None
    """The share of all images that is dropped from complete patients; None trains on the
    incomplete patients of the comparison."""
    discard: bool = False
    """Whether to train on the patients that are still complete alone."""


BASE = Variant("base", "base", "base")


class MeanFusion(Posterior):
    r"""The mean of the parameters of given experts, as one expert, times the prior.

    .. math:: q(z \mid x_s) \propto p(z) \, \mathcal{N}\Big(z; \tfrac{1}{|s|} \sum_{m \in s} \mu_m,
        \exp\big(\tfrac{2}{|s|} \sum_{m \in s} \log \sigma_m\big)\Big)

    Experts end with a convolution, so this is the mean of features but for what that does.

    Arguments:
        clamp: The limit of the soft clamp, see :class:`mmpoe.posteriors.Posterior`.
    """

    def fuse(self, factors: Factors, draw: Draw) -> kernels.Product:
        """Fuses factors, see :meth:`mmpoe.posteriors.Posterior.fuse`."""
        loc, log_scale, given, prior, _ = factors.filled()  # those that are not given are 0
        number = given.sum(dim=1).clamp(min=1).reshape(-1, *(1,) * (loc[0].dim() - 1))  # (R, 1...)
        mean = Factors(
            [torch.stack(loc).sum(dim=0) / number],
            [torch.stack(log_scale).sum(dim=0) / number],
            given.any(dim=1, keepdim=True),
            prior,
            rows=None,
        )
        return draw.product(mean, clamp=self.clamp)


Rule = Callable[[LatentGroup, int], Posterior]
"""Makes the rule of a latent group, given the number of modalities."""

FUSIONS: dict[str, Rule] = {
    "exact PoE": lambda group, experts: PoE(clamp=group.posterior.clamp),
    "published rule": lambda group, experts: PoE(power=1, clamp=group.posterior.clamp),
    "common-noise PoE": lambda group, experts: CommonNoisePoE(
        _channels(group), clamp=group.posterior.clamp
    ),
    "GPoE": lambda group, experts: GPoE(experts, clamp=group.posterior.clamp),
    "MoE": lambda group, experts: MoE(clamp=group.posterior.clamp, prior_in="always"),
    "mean fusion": lambda group, experts: MeanFusion(group.posterior.clamp),
    ZEROS: lambda group, experts: PoE(clamp=group.posterior.clamp),
}
"""How experts are fused with the prior. Of zero imputation, all experts always take part, those of
missing modalities with images of zeros."""


def most_groups(size: int) -> int:
    """Returns how many latent groups images of a size allow: the coarsest has 2 x 2 pixels."""
    return int(math.log2(size // DEFAULT.patch))


def build(variant: Variant, modalities: Sequence[str], size: int) -> System:
    """Builds a variant.

    Arguments:
        variant: The variant.
        modalities: The names of the modalities.
        size: The height and width of the images, in pixels.
    """
    if variant.system is not None:
        return build_system(variant.system, modalities, size)
    model = _model(variant, modalities, size)
    judge = Judge(CRITICS, modalities, size) if variant.adversary else None

    def loss(batch: Batch, done: float) -> Tensor:
        x, observed, fov = batch
        number = variant.subsets
        given = random_subsets(observed, samples=number, proper=variant.proper)
        given = given.flatten(0, 1)  # (S B, M)
        if variant.fusion == ZEROS:
            output = model(*_imputed(x, given, modalities))
        elif number == 1:
            output = model(x, given)
        else:  # encoded once
            rows = torch.arange(len(observed)).repeat(number)
            q = model.infer(model.encode(x, observed), given, rows=rows)
            output = Output(model.decode(q.state), q.kl, q.z, q.posteriors, q.priors)
            x, observed, fov = {m: v[rows] for m, v in x.items()}, observed[rows], fov[rows]
        beta = variant.beta * min(1.0, 10 * done)
        total = -bound(output, (x, x, observed, fov), given, beta, variant.reconstruction)
        if judge is not None and done >= judge.critics.start:
            total = total + judge.loss(output, given, observed, fov, done)
        return total.unflatten(0, (number, -1)).mean(dim=0)

    kind = {"MoE": MixtureSystem, ZEROS: ZeroSystem}.get(variant.fusion, MMHVAESystem)
    system = kind(model, loss)
    if judge is not None:
        system.adversary = _with_targets(judge.adversary)
    return system


class MixtureSystem(MMHVAESystem):
    """A mixture of experts: it synthesises the mean of what each given modality says."""

    def synthesise(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        targets: Sequence[str],
        temperature: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the targets, at the means of the components of the posterior or at samples."""
        share = given / given.sum(dim=1, keepdim=True).clamp(min=1)  # (B, M)
        total = {m: torch.zeros_like(next(iter(x.values()))) for m in targets}
        for column in given.any(dim=0).nonzero()[:, 0].tolist():
            alone = given & (torch.arange(given.shape[1], device=given.device) == column)
            images = predict_means(self.network, x, alone, targets, temperature)
            weight = share[:, column, None, None, None].to(total[targets[0]])
            total = {m: total[m] + weight * images[m] for m in targets}
        return total


class ZeroSystem(MMHVAESystem):
    """Zero imputation: what is missing is an image of zeros, and its expert takes part."""

    def synthesise(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        targets: Sequence[str],
        temperature: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the targets, at the mean of the product of all experts or at a sample."""
        images, everything = _imputed(x, given, self.modalities)
        return predict_means(self.network, images, everything, targets, temperature)


class Descent(nn.Module):
    """A step down through resolutions of which none has latents.

    Arguments:
        steps: The steps down of a group and of those below it, coarse to fine.
        shapes: The shapes of the latents that the latter would have.
    """

    def __init__(self, steps: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.steps, self.shapes = nn.ModuleList(steps), shapes

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """Returns the finest state."""
        first, *others = self.steps
        state: Tensor = first(h, z)
        for step, shape in zip(others, self.shapes, strict=True):
            state = step(state, z.new_zeros(len(z), *shape))
        return state


def _model(variant: Variant, modalities: Sequence[str], size: int) -> MMHVAE:
    """The network of the base, with other groups and other rules."""
    network = variant.network
    if variant.groups is not None:
        coarser = most_groups(size) - len(network.widths)
        network = replace(
            network,
            widths=network.widths[:1] * coarser + network.widths[max(0, -coarser) :],
            latents=network.latents[:1] * coarser + network.latents[max(0, -coarser) :],
        )
    model = build_model(size, modalities, network)
    groups = latent_groups(model.groups)
    if variant.groups is not None:
        groups, below = groups[: variant.groups], groups[variant.groups :]
        last = groups[-1]
        shapes = [group.shape for group in below if group.shape is not None]
        last.merge = Descent([last.merge, *(group.merge for group in below)], shapes)
        assert isinstance(model.trunk, BottomUp)
        model.trunk.levels = variant.groups
    for group in groups:
        group.posterior = FUSIONS[variant.fusion](group, len(modalities))
    encoders, decoders = (
        {m: part[m] for m in modalities} for part in (model.encoders, model.decoders)
    )
    return MMHVAE(encoders, groups, decoders, model.trunk)


def _channels(group: LatentGroup) -> int:
    assert group.shape is not None
    return group.shape[0]


def _imputed(
    x: Mapping[str, Tensor], given: Tensor, modalities: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Images with zeros in place of what is not given, of which everything is then given."""
    images = stack(x, given, modalities, fill=0.0)
    return {m: images[:, [k]] for k, m in enumerate(modalities)}, torch.ones_like(given)


def _with_targets(adversary: Adversary) -> Adversary:
    """The adversary of the example, for batches without targets of their own."""

    def loss(networks: nn.Module, batch: Batch, done: float) -> Tensor:
        x, observed, fov = batch
        return adversary.loss(networks, (x, x, observed, fov), done)

    return replace(adversary, loss=loss)
