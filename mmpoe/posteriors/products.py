r"""Products of experts that are independent given the latent variable."""

from __future__ import annotations

__all__ = ["GPoE", "PoE"]

import torch
from torch import Tensor, nn

from mmpoe import gaussian, kernels

from .base import Draw, Factors, Posterior, spread

MAX_GAP = 600.0
"""The largest difference of log precisions whose exponentials float64 can add up."""

ExpertProduct = tuple[Tensor, Tensor]
r"""The mean and log precision of a product of experts without the prior, each of shape (R, \*).
They are 0 and minus infinity for a pair that is given nothing."""


class PoE(Posterior):
    r"""Product of experts, with the prior as one of them.

    .. math:: q(z \mid x_s) \propto p(z) \prod_{m \in s} \mathcal{N}(z; \mu_m, \sigma_m^2)

    One pair for each sample is fused by :func:`mmpoe.kernels.gaussian_poe`, and any other pairs by
    a sparse matrix product.

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
        always = self.prior_in == "always"
        product = None if always and factors.rows is None else self._sparse_product(factors)
        if product is None and always:
            return draw.product(factors, power=self.power, clamp=self.clamp)
        if product is None:
            product = self._dense_product(factors)
        return self._times_prior(*product, factors, draw)

    def _sparse_product(self, factors: Factors) -> ExpertProduct | None:
        """Adds up the precisions of all pairs by one sparse matrix product, in float64.

        The work is proportional to the number of pairs, not to that times the number of experts.
        None if it cannot be done: neither a compiler nor other devices know sparse matrices of
        float64, and it cannot hold precisions that are too far apart.
        """
        loc, log_scale, given, _, rows = factors
        if torch.compiler.is_compiling() or loc[0].device.type not in ("cpu", "cuda"):
            return None
        if rows is None:
            rows = torch.arange(given.shape[0], device=given.device)
        event = (1,) * (loc[0].dim() - 1)
        counts = given.new_zeros((len(loc[0]), len(loc)), dtype=torch.long)
        used = counts.index_add(0, rows, given.long()) > 0  # by some pair, (B, M)
        used = used.reshape(*used.shape, *event)
        means = self.squash(torch.where(used, torch.stack(loc, dim=1), 0)).double()
        scales = self.squash(torch.where(used, torch.stack(log_scale, dim=1), 0)).double()
        log_precisions = torch.where(used, -self.power * scales, -torch.inf)  # (B, M, *)
        if _gap(log_precisions) > MAX_GAP:
            return None
        wide = torch.promote_types(loc[0].dtype, torch.float32)
        mean, log_precision = _sum_pairs(means, log_precisions, given, rows)
        return mean.to(wide), log_precision.to(wide)

    def _dense_product(self, factors: Factors) -> ExpertProduct:
        """Multiplies the experts of each pair, all of them in a row."""
        loc, log_scale, given, _, _ = self.squashed(factors.filled())
        some = given.any(dim=1)
        mask = (given | ~some[:, None]).T  # (M, R), not empty for any pair
        mean, deviation = gaussian.product_of_experts(
            torch.stack(loc),
            torch.stack(log_scale),
            mask.reshape(*mask.shape, *(1,) * (loc[0].dim() - 1)),  # (M, R, 1...)
            power=self.power,
        )
        some = spread(some, mean)
        log_precision = torch.where(some, -self.power * deviation, -torch.inf)
        return torch.where(some, mean, 0), log_precision

    def _times_prior(
        self, mean: Tensor, log_precision: Tensor, factors: Factors, draw: Draw
    ) -> kernels.Product:
        """Multiplies products of experts by the prior where it is a factor, and samples."""
        given, prior, dtype = factors.given, factors.prior, factors.loc[0].dtype
        prior_loc, prior_log_precision = mean.new_zeros(()), mean.new_zeros(())
        if prior is not None:
            prior_loc = self.squash(prior[0]).to(mean.dtype)
            prior_log_precision = -self.power * self.squash(prior[1]).to(mean.dtype)

        if self.prior_in == "always":
            mean, log_precision = _times(mean, log_precision, prior_loc, prior_log_precision)
        else:
            joins = ~given.any(dim=1)  # an empty product is the prior
            if self.prior_in == "full":
                joins = joins | given.all(dim=1)
            if torch.compiler.is_compiling():
                at = torch.arange(given.shape[0], device=given.device)
            else:
                at = joins.nonzero()[:, 0]  # often a few of many pairs
            own, log_own = prior_loc, prior_log_precision
            if prior is not None:
                own, log_own = own.index_select(0, at), log_own.index_select(0, at)
            few, log_few = mean.index_select(0, at), log_precision.index_select(0, at)
            joined, log_joined = _times(few, log_few, own, log_own)
            there = spread(joins[at], mean)
            mean = mean.index_copy(0, at, torch.where(there, joined, few))
            log_precision = log_precision.index_copy(
                0, at, torch.where(there, log_joined, log_few)
            )

        log_ratio = (prior_log_precision - log_precision) * (2 / self.power)  # of variances
        distance = (mean - prior_loc) * torch.exp(prior_log_precision / self.power)
        kl = (torch.expm1(log_ratio) - log_ratio + distance.square()) / 2
        mean, deviation = mean.to(dtype), (-log_precision / self.power).to(dtype)
        return kernels.Product(
            draw.sample(mean, deviation), mean, deviation, kl.flatten(1).sum(dim=1)
        )


def _times(
    mean: Tensor, log_precision: Tensor, other: Tensor, log_other: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean and log precision of a Gaussian times another; the first may have precision 0."""
    share = (log_precision - log_other).sigmoid()  # of the first in the precision
    return other + share * (mean - other), torch.logaddexp(log_precision, log_other)


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

    Row r of a sparse matrix, (R, B M), has a 1 for each expert that takes part in pair r. It is
    multiplied by a table, (B M, 2 E), that holds the precision of each expert and that times its
    mean, relative to the largest precision of the sample, so that no exponential overflows.

    The mean is 0 and the log precision minus infinity where nothing is given that says something.
    Experts, (B, M, *), that no pair is given have a log precision of minus infinity and any finite
    mean.
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
        present = torch.where(given, self.log_powers, -torch.inf)  # (R, M)
        total = torch.logsumexp(torch.where(given.any(dim=1, keepdim=True), present, 0), dim=1)
        log_alpha = torch.where(given, self.log_powers - total[:, None], 0)
        widening = [-spread(log_alpha[:, m], like) / 2 for m in range(len(factors.loc))]
        wide = [(v + w).to(v.dtype) for v, w in zip(factors.log_scale, widening, strict=True)]
        return draw.product(factors._replace(log_scale=wide))
