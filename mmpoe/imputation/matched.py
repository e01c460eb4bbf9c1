"""Matched experts: a second set, which learns the posterior of complete data."""

from __future__ import annotations

__all__ = ["add_matched_experts"]

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mmpoe.gaussian import kl_divergence
from mmpoe.hierarchy import MatchedExperts
from mmpoe.kernels import Product
from mmpoe.models import MultimodalVAE
from mmpoe.nn import MLP, ModalityDict, Recorded
from mmpoe.posteriors import Draw, Factors, Posterior


class ResidualHead(Recorded, nn.Module):
    """Adds to some features a function of them, which is zero at the start.

    Arguments:
        features: The number of features, or channels.
        hidden: The number of features of the hidden layer.
    """

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.network = MLP(features, features, hidden=[hidden])
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the same shape, (N, C, *)."""
        return x + self.network(x.movedim(1, -1)).movedim(-1, 1)


class WidePrior(Posterior):
    r"""Another rule, with the prior :math:`\mathcal{N}(\mu_p, (w \, \sigma_p)^2)`, w learned.

    A product is never wider than its prior, but what complete data say on average may be. There is
    one width :math:`w` for each channel, 1 at the start. Divergences are from the prior itself.

    Arguments:
        rule: The rule.
        channels: The number of channels: the size of the first event dimension of z.
    """

    def __init__(self, rule: Posterior, channels: int) -> None:
        super().__init__(rule.clamp)
        self.rule, self.family = rule, rule.family
        self.log_width = nn.Parameter(torch.zeros(channels))

    def fuse(self, factors: Factors, draw: Draw) -> Product:
        """Fuses factors, see :meth:`mmpoe.posteriors.Posterior.fuse`."""
        like = factors.loc[0]
        blank = like.new_zeros((len(factors.given), *like.shape[1:]))
        loc, log_scale = (blank, blank) if factors.prior is None else factors.prior
        width = self.log_width.reshape(-1, *(1,) * (like.dim() - 2))  # (C, 1...)
        wide = factors._replace(prior=(loc, log_scale + width.to(log_scale.dtype)))
        q = self.rule.fuse(wide, draw)
        kl = kl_divergence(q.loc, q.log_scale, self.squash(loc), self.squash(log_scale))
        return q._replace(kl=kl.flatten(1).sum(dim=1))


def add_matched_experts(model: MultimodalVAE) -> None:
    r"""Gives a model a second set of experts, equal to the first at the start.

    They share the features of the encoders. An expert that is a network is copied; one that hands
    on what its encoder says gets a small residual network. The rule that fuses them is copied too,
    and its prior gets a learned width. Groups that have matched experts already keep them.

    :func:`calibrate` does this by itself. It is needed before loading the ``state_dict`` of a
    calibrated model into a new one, and before matching is trained along with the model.

    Arguments:
        model: The model.

    Raises:
        ValueError: If the shape of the latents is not known yet.

    Example:
        >>> from mmpoe.models import MVAE
        >>> from mmpoe.likelihoods import Normal
        >>> vae = MVAE({"a": nn.Linear(3, 4)}, {"a": Normal(nn.Linear(2, 3))}, latent_dim=2)
        >>> add_matched_experts(vae)
        >>> vae.is_matched
        True
    """
    like = next(model.parameters(), torch.zeros(()))
    made: list[MatchedExperts] = []
    groups = model.groups
    for level, group in enumerate(groups):
        if group.shape is None:
            raise ValueError(
                f"The shape of 'groups[{level}]' should be known before it gets matched experts: "
                "give 'latent_dim' to the model, or call its 'fix_shapes' with a batch."
            )
        expert = group.expert
        parts = dict(expert.items()) if isinstance(expert, ModalityDict) else {"": expert}
        if all(isinstance(part, nn.Identity) for part in parts.values()):
            size = 2 * group.shape[0]
            copied: Any = {m: ResidualHead(size).to(like) for m in model.modalities}
        else:
            copied = copy.deepcopy(expert)
        rule = WidePrior(copy.deepcopy(group.posterior), group.shape[0]).to(like)
        made.append(MatchedExperts(copied, rule).train(group.training).requires_grad_())
    for group, matched in zip(groups, made, strict=True):
        if group.matched is None:
            group.matched = matched
