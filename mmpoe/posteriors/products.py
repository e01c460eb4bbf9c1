r"""Products of experts that are independent given the latent variable."""

from __future__ import annotations

__all__ = ["GPoE", "PoE"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmpoe import gaussian, kernels

from .base import Posterior, as_rows

MAX_GAP = 600.0
"""The largest difference of log precisions whose exponentials float64 can add up."""


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
    ) -> kernels.Product:
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
        return kernels.Product(*(v.unflatten(0, shape) for v in (z, mean, deviation, kl)))

    def pairs(
        self,
        loc: Sequence[Tensor],
        log_scale: Sequence[Tensor],
        given: Tensor,
        rows: Tensor,
        prior: tuple[Tensor, Tensor] | None = None,
        *,
        noise: Tensor | None = None,
        sample: bool = True,
        temperature: float = 1.0,
    ) -> kernels.Product:
        """Fuses, samples and measures pairs, see :meth:`Posterior.pairs`.

        Precisions add up by one sparse matrix product, so the work is proportional to the number
        of pairs, not to that times the number of experts.
        """
        options = {"noise": noise, "sample": sample, "temperature": temperature}
        # neither a compiler nor other devices know sparse matrices of float64
        if torch.compiler.is_compiling() or loc[0].device.type not in ("cpu", "cuda"):
            return super().pairs(loc, log_scale, given, rows, prior, **options)
        dtype, event = loc[0].dtype, loc[0].shape[1:]

        def spread(v: Tensor) -> Tensor:
            return v.reshape(*v.shape, *(1,) * len(event))

        counts = given.new_zeros((len(loc[0]), len(loc)), dtype=torch.long)
        used = spread(counts.index_add(0, rows, given.long()) > 0)  # by some pair, (B, M, 1...)
        means = self.squash(torch.where(used, torch.stack(list(loc), dim=1), 0)).double()
        scales = self.squash(torch.where(used, torch.stack(list(log_scale), dim=1), 0)).double()
        log_precisions = torch.where(used, -self.power * scales, -torch.inf)  # (B, M, *)
        if _gap(log_precisions) > MAX_GAP:
            return super().pairs(loc, log_scale, given, rows, prior, **options)
        wide = torch.promote_types(dtype, torch.float32)
        mean, log_precision = (  # (R, *)
            v.to(wide) for v in _sum_pairs(means, log_precisions, given, rows)
        )

        prior_loc, prior_log_precision = mean.new_zeros(()), mean.new_zeros(())
        if prior is not None:
            prior_loc = self.squash(prior[0]).to(wide)
            prior_log_precision = -self.power * self.squash(prior[1]).to(wide)

        some = spread(given.any(dim=1))
        if self.prior_in != "never":  # multiply by the prior: a weighted average with it
            joins = given.any(dim=1) if self.prior_in == "always" else given.all(dim=1)
            at = joins.nonzero()[:, 0]  # often a few of many pairs
            fused, log_fused = mean.index_select(0, at), log_precision.index_select(0, at)
            own, log_own = prior_loc, prior_log_precision
            if prior is not None:
                own, log_own = own.index_select(0, at), log_own.index_select(0, at)
            share = (log_fused - log_own).sigmoid()  # of the experts in the precision
            mean = mean.index_copy(0, at, own + share * (fused - own))
            log_precision = log_precision.index_copy(0, at, torch.logaddexp(log_fused, log_own))
        if not bool(some.all()):
            mean = torch.where(some, mean, prior_loc)
            log_precision = torch.where(some, log_precision, prior_log_precision)

        log_ratio = (prior_log_precision - log_precision) * (2 / self.power)  # of variances
        distance = (mean - prior_loc) * torch.exp(prior_log_precision / self.power)
        kl = (torch.expm1(log_ratio) - log_ratio + distance.square()) / 2
        kl = kl.flatten(1).sum(dim=1)
        mean, deviation = mean.to(dtype), (-log_precision / self.power).to(dtype)
        z = mean
        if sample:
            noise = torch.randn_like(mean) if noise is None else noise
            z = gaussian.sample(mean, deviation, noise, temperature)
        return kernels.Product(z, mean, deviation, kl)


def _gap(log_precisions: Tensor) -> float:
    """How far experts of a sample, (B, M, *), are apart at most, but for those of precision 0."""
    finite, values = log_precisions.isfinite(), log_precisions.detach()
    high = torch.where(finite, values, -torch.inf).amax(dim=1)
    low = torch.where(finite, values, torch.inf).amin(dim=1)
    return (high - low).max().item() if high.numel() else 0.0


def _sum_pairs(
    loc: Tensor, log_precision: Tensor, given: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean and log precision of the product of what each pair is given, with shape (R, *).

    They are 0 and minus infinity where that says nothing. Experts, (B, M, *), that no pair is
    given have a log precision of minus infinity and any finite mean.
    """
    batch, experts, *event = loc.shape
    shift = log_precision.detach().amax(dim=1)  # (B, *)
    shift = torch.where(shift.isneginf(), 0, shift)
    precision = torch.exp(log_precision - shift.unsqueeze(1))
    terms = torch.cat([precision.flatten(2), (precision * loc).flatten(2)], dim=2)  # (B, M, 2E)

    pair, expert = given.nonzero(as_tuple=True)
    members = torch.sparse_coo_tensor(
        torch.stack([pair, rows[pair] * experts + expert]),
        terms.new_ones(len(pair)),
        (len(given), batch * experts),
        is_coalesced=True,
        check_invariants=False,
    )
    total, weighted = torch.sparse.mm(members, terms.flatten(0, 1)).chunk(2, dim=1)  # (R, E)
    some = total > 0  # something is given, and says something
    every = bool(some.all())
    if not every:
        total, weighted = torch.where(some, total, 1), torch.where(some, weighted, 0)
    log_total = total.log() + shift.flatten(1).index_select(0, rows)
    if not every:
        log_total = torch.where(some, log_total, -torch.inf)
    return (weighted / total).unflatten(1, event), log_total.unflatten(1, event)


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
            values = [float(a) for a in powers]
        if len(values) != experts or not all(math.isfinite(a) and a > 0 for a in values):
            raise ValueError(
                f"'powers' should hold one positive number per expert ({experts}), "
                f"but is {powers!r}."
            )
        log_powers = torch.tensor(values).log()
        if isinstance(powers, str) and powers == "learned":
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
    ) -> kernels.Product:
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
        return kernels.Product(*(v.unflatten(0, shape) for v in q))
