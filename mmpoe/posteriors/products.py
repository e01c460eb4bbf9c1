r"""Products of experts that are independent given the latent variable."""

from __future__ import annotations

__all__ = ["GPoE", "PoE"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmpoe import gaussian, kernels

from .base import Posterior, as_rows


class PoE(Posterior):
    r"""Product of experts, with the prior as one of them.

    .. math:: q(z \mid x_s) \propto p(z) \prod_{m \in s} \mathcal{N}(z; \mu_m, \sigma_m^2)

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

    def forward(
        self,
        loc: Sequence[Tensor],
        log_scale: Sequence[Tensor],
        given: Tensor,
        prior: tuple[Tensor, Tensor] | None = None,
        *,
        noise: Tensor | None = None,
        sample: bool = True,
        temperature: float = 1.0,
        squashed: bool = False,
    ) -> kernels.PoE:
        """Fuses, samples and measures, see :meth:`Posterior.forward`."""
        if self.prior_in == "always":
            return kernels.gaussian_poe(
                loc,
                log_scale,
                given,
                prior,
                noise=noise,
                sample=sample,
                temperature=temperature,
                power=self.power,
                clamp=None if squashed else self.clamp,
            )

        shape = given.shape[:-1]
        loc, log_scale, given, prior, noise = as_rows(loc, log_scale, given, prior, noise)
        if prior is None:
            blank = torch.zeros_like(loc[0])
            prior = (blank, blank)
        if not squashed:
            loc, log_scale = [self.squash(v) for v in loc], [self.squash(v) for v in log_scale]
            prior = (self.squash(prior[0]), self.squash(prior[1]))

        takes_part = ~given.any(dim=1)  # of the prior: an empty product is the prior
        if self.prior_in == "full":
            takes_part = takes_part | given.all(dim=1)
        mask = torch.cat([takes_part[None], given.T])
        mean, deviation = gaussian.product_of_experts(
            torch.stack([prior[0], *loc]),
            torch.stack([prior[1], *log_scale]),
            mask.reshape(*mask.shape, *(1,) * (loc[0].dim() - 1)),  # (M + 1, R, 1...)
            power=self.power,
        )
        z = mean
        if sample:
            noise = torch.randn_like(mean) if noise is None else noise
            z = gaussian.sample(mean, deviation, noise, temperature)
        kl = gaussian.kl_divergence(mean, deviation, *prior).flatten(1).sum(dim=1)
        return kernels.PoE(*(v.unflatten(0, shape) for v in (z, mean, deviation, kl)))


class GPoE(Posterior):
    r"""Generalised product of experts: each expert has a power, and powers sum to one.

    .. math::
        q(z \mid x_s) \propto p(z) \prod_{m \in s}
        \mathcal{N}(z; \mu_m, \sigma_m^2)^{\alpha_{m \mid s}}, \qquad
        \alpha_{m \mid s} = \frac{a_m}{\sum_{k \in s} a_k}

    Powers are renormalised over the experts that take part, so that :math:`n` equal experts count
    as one, whatever is missing.

    Arguments:
        experts: The number of experts :math:`M`.
        powers: The powers :math:`a_m` before normalisation: ``"learned"``, one parameter for each
            expert, equal at first; ``"even"``, which gives :math:`1 / |s|`; or :math:`M` positive
            numbers.
        clamp: The limit of the soft clamp, see :class:`Posterior`.

    Raises:
        ValueError: If `experts` is not positive, or `powers` is none of its choices.

    References:
        | Generalized Product of Experts for Automatic and Principled Fusion of Gaussian Process
          Predictions (Cao & Fleet, 2014)
        | https://arxiv.org/abs/1410.7827

    Example:
        >>> rule = GPoE(2, powers="even")
        >>> q = rule([torch.ones(1, 1)] * 2, [torch.zeros(1, 1)] * 2, torch.tensor([[True, True]]))
        >>> q.loc  # as with one expert
        tensor([[0.5000]])
    """

    log_powers: Tensor

    def __init__(
        self, experts: int, powers: str | Sequence[float] = "learned", clamp: float | None = None
    ) -> None:
        super().__init__(clamp)
        if experts < 1:
            raise ValueError(f"'experts' should be at least 1, but is {experts}.")
        if isinstance(powers, str):
            if powers not in ("learned", "even"):
                raise ValueError(
                    '\'powers\' should be "learned", "even" or a sequence of numbers, '
                    f"but is {powers!r}."
                )
            values = [1.0] * experts
        else:
            values = list(powers)
        if len(values) != experts or not all(math.isfinite(a) and a > 0 for a in values):
            raise ValueError(
                f"'powers' should hold one positive number per expert ({experts}), "
                f"but is {powers!r}."
            )
        log_powers = torch.tensor(values).log()
        if powers == "learned":
            self.log_powers = nn.Parameter(log_powers)
        else:
            self.register_buffer("log_powers", log_powers)

    def forward(
        self,
        loc: Sequence[Tensor],
        log_scale: Sequence[Tensor],
        given: Tensor,
        prior: tuple[Tensor, Tensor] | None = None,
        *,
        noise: Tensor | None = None,
        sample: bool = True,
        temperature: float = 1.0,
        squashed: bool = False,
    ) -> kernels.PoE:
        """Fuses, samples and measures, see :meth:`Posterior.forward`."""
        if len(loc) != len(self.log_powers):
            raise ValueError(
                f"'loc' should hold one tensor per expert of this rule ({len(self.log_powers)}), "
                f"but holds {len(loc)}."
            )
        shape = given.shape[:-1]
        loc, log_scale, given, prior, noise = as_rows(loc, log_scale, given, prior, noise)
        if not squashed:
            loc, log_scale = [self.squash(v) for v in loc], [self.squash(v) for v in log_scale]
            prior = None if prior is None else (self.squash(prior[0]), self.squash(prior[1]))

        # a Gaussian to the power of alpha has a variance that is 1 / alpha times as large
        present = torch.where(given, self.log_powers, -torch.inf)  # (R, M)
        total = torch.logsumexp(torch.where(given.any(dim=1, keepdim=True), present, 0), dim=1)
        log_alpha = torch.where(given, self.log_powers - total[:, None], 0)
        widening = -log_alpha.T.reshape(len(loc), -1, *(1,) * (loc[0].dim() - 1)) / 2  # (M, R, 1)
        log_scale = [(v + w).to(v.dtype) for v, w in zip(log_scale, widening, strict=True)]

        q = kernels.gaussian_poe(
            loc, log_scale, given, prior, noise=noise, sample=sample, temperature=temperature
        )
        return kernels.PoE(*(v.unflatten(0, shape) for v in q))
