r"""Products of experts that are independent given the latent variable."""

from __future__ import annotations

__all__ = ["GPoE", "PoE"]

import torch
from torch import nn

from mmpoe import gaussian, kernels

from .base import Draw, Factors, Posterior, spread


class PoE(Posterior):
    r"""Product of experts, with the prior as one of them.

    .. math:: q(z \mid x_s) \propto p(z) \prod_{m \in s} \mathcal{N}(z; \mu_m, \sigma_m^2)

    It is fused by :func:`mmpoe.kernels.gaussian_poe`.

    Arguments:
        power: The power of the inverse scale that adds up: 2 is the product of Gaussians, 1 the
            rule of the published MMHVAE weights.
        clamp: The limit of the soft clamp, see :class:`Posterior`.
        prior_in: Which products the prior is a factor of: ``"always"``; ``"full"``, those of all
            modalities only, as in the code published with MoPoE; or ``"never"``, where each expert
            is a posterior by itself. Divergences are from the prior in any case.

    Raises:
        ValueError: If an argument is none of its choices.

    References:
        | Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018)
        | https://arxiv.org/abs/1802.05335
    """

    def __init__(
        self, power: int = 2, clamp: float | None = None, *, prior_in: str = "always"
    ) -> None:
        super().__init__(clamp)
        gaussian.check_power(power)
        if prior_in not in ("always", "full", "never"):
            raise ValueError(
                f"'prior_in' should be one of always, full, never, but is {prior_in!r}."
            )
        self.power, self.prior_in = power, prior_in

    def fuse(self, factors: Factors, draw: Draw) -> kernels.Product:
        """Fuses factors, see :meth:`Posterior.fuse`."""
        return draw.product(factors, power=self.power, clamp=self.clamp, prior_in=self.prior_in)


class GPoE(Posterior):
    r"""Generalised product of experts: each expert has a power, and powers sum to one.

    .. math::
        q(z \mid x_s) \propto p(z) \prod_{m \in s}
        \mathcal{N}(z; \mu_m, \sigma_m^2)^{\alpha_{m \mid s}}, \qquad
        \alpha_{m \mid s} = \frac{a_m}{\sum_{k \in s} a_k}

    The powers :math:`a_m` are learned, and equal at first. They are renormalised over the experts
    that take part, so that :math:`n` equal experts count as one, whatever is missing.

    Arguments:
        experts: The number of experts :math:`M`.
        clamp: The limit of the soft clamp, see :class:`Posterior`.

    Raises:
        ValueError: If `experts` is not positive.

    References:
        | Generalized Product of Experts for Automatic and Principled Fusion of Gaussian Process
          Predictions (Cao & Fleet, 2014)
        | https://arxiv.org/abs/1410.7827

    Example:
        >>> rule = GPoE(2)
        >>> q = rule([torch.ones(1, 1)] * 2, [torch.zeros(1, 1)] * 2, torch.tensor([[True, True]]))
        >>> q.loc.item()  # as with one expert
        0.5
    """

    def __init__(self, experts: int, clamp: float | None = None) -> None:
        super().__init__(clamp)
        if experts < 1:
            raise ValueError(f"'experts' should be at least 1, but is {experts}.")
        self.log_powers = nn.Parameter(torch.zeros(experts))

    def fuse(self, factors: Factors, draw: Draw) -> kernels.Product:
        """Fuses factors, see :meth:`Posterior.fuse`."""
        factors = self.squashed(factors.filled())
        if len(factors.loc) != len(self.log_powers):
            raise ValueError(
                f"'loc' should hold one tensor per expert of this rule ({len(self.log_powers)}), "
                f"but holds {len(factors.loc)}."
            )
        # a Gaussian to the power of alpha has a variance that is 1 / alpha times as large
        given, like = factors.given, factors.loc[0]
        log_powers = self.log_powers.to(torch.promote_types(self.log_powers.dtype, like.dtype))
        present = torch.where(given, log_powers, -torch.inf)  # (R, M)
        total = torch.logsumexp(torch.where(given.any(dim=1, keepdim=True), present, 0), dim=1)
        log_alpha = torch.where(given, log_powers - total[:, None], 0)
        widening = [-spread(log_alpha[:, m], like) / 2 for m in range(len(factors.loc))]
        wide = [(v + w).to(v.dtype) for v, w in zip(factors.log_scale, widening, strict=True)]
        return draw.product(factors._replace(log_scale=wide))
