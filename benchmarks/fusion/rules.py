"""The rules that are compared, each with the objective that trains it."""

from __future__ import annotations

__all__ = ["LEARNED", "RULES", "Rule", "Views"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpoe.missing import random_subsets
from mmpoe.models import MultimodalVAE
from mmpoe.nn import MLP
from mmpoe.objectives import SubsetWeights, mixture_elbo, mmvae, mmvm, mopoe
from mmpoe.posteriors import (
    CommonNoisePoE,
    GPoE,
    MoE,
    MoPoE,
    PoE,
    Posterior,
    SumPooling,
    WassersteinBarycenter,
)

Views = Mapping[str, Tensor]
LEARNED = "Learned weights"
"""The name of the rule that is a mixture with learned weights."""


@dataclass(frozen=True)
class Rule:
    """A rule and how it is trained on digits."""

    build: Callable[[int, int], Posterior]
    """Makes the rule, from the numbers of modalities and of latents."""
    objective: Callable[[MultimodalVAE, Views, Tensor, float, SubsetWeights], Tensor]
    """The objective, of a model, a batch, what was observed, a setting and weights of subsets."""
    settings: tuple[float, ...] = (1.0, 0.5)
    """The settings to choose from on validation data: what divergences cost."""


def one_part(
    model: MultimodalVAE, x: Views, observed: Tensor, beta: float, weights: SubsetWeights
) -> Tensor:
    """The bound of all that was observed, given one random part of it."""
    given = random_subsets(observed)
    family = given, torch.ones(given.shape[:2])
    return mixture_elbo(model, x, observed, beta, family=family)


def learned(
    model: MultimodalVAE, x: Views, observed: Tensor, tau: float, weights: SubsetWeights
) -> Tensor:
    """The average with learned weights and their entropy, from one part that is drawn evenly."""
    given, weight = weights(observed)  # (S, B, M), (S, B)
    inside = given.any(dim=-1)
    drawn = torch.where(inside, torch.rand(inside.shape), -1).argmax(dim=0, keepdim=True)
    part = given.gather(0, drawn[..., None].expand(-1, -1, given.shape[-1]))
    family = part, weight.gather(0, drawn) * inside.sum(dim=0)
    return mixture_elbo(model, x, observed, family=family) + tau * torch.special.entr(weight).sum(
        0
    )


RULES = {
    "PoE": Rule(lambda m, d: PoE(), one_part),
    "GPoE": Rule(lambda m, d: GPoE(m), one_part),
    "CommonNoisePoE": Rule(lambda m, d: CommonNoisePoE(d), one_part),
    "WassersteinBarycenter": Rule(lambda m, d: WassersteinBarycenter(), one_part),
    "SumPooling": Rule(lambda m, d: SumPooling(MLP(2 * d, 2 * d, hidden=[64])), one_part),
    "MoE": Rule(lambda m, d: MoE(), lambda model, x, o, beta, _: mmvae(model, x, o, beta)),
    "MoPoE": Rule(lambda m, d: MoPoE(), lambda model, x, o, beta, _: mopoe(model, x, o, beta)),
    "MMVM": Rule(lambda m, d: MoE(), lambda model, x, o, beta, _: mmvm(model, x, o, beta)),
    LEARNED: Rule(lambda m, d: PoE(), learned, settings=(10.0, 100.0)),
}
