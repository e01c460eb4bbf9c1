r"""Gaussian experts and their products as distributions, for PyTorch and for Pyro."""

from __future__ import annotations

__all__ = ["DiagNormal", "Draws", "product_of_experts"]

from collections.abc import Sequence

import torch
from pyro.distributions import Independent, Normal
from torch import Size, Tensor
from torch.distributions import Distribution, register_kl

from . import gaussian


class DiagNormal(Independent):
    r"""Diagonal normal distribution over the last `event_dim` dimensions.

    It is a :class:`torch.distributions.Independent` and a Pyro distribution at once, and keeps the
    log standard deviation it was built from.

    Arguments:
        loc: The mean, with shape :math:`(*, *event)`.
        log_scale: The log standard deviation, with the same shape.
        event_dim: The number of event dimensions.

    Raises:
        ValueError: If the shapes differ, or have fewer dimensions than `event_dim`.

    Example:
        >>> q = DiagNormal(torch.zeros(3, 2), torch.zeros(3, 2))
        >>> q.batch_shape, q.event_shape, q.rsample().shape
        (torch.Size([3]), torch.Size([2]), torch.Size([3, 2]))
    """

    log_scale: Tensor

    def __init__(self, loc: Tensor, log_scale: Tensor, event_dim: int = 1) -> None:
        if loc.shape != log_scale.shape or not 0 <= event_dim <= loc.dim():
            raise ValueError(
                "'loc' and 'log_scale' should have the same shape, of at least 'event_dim' "
                f"({event_dim}) dimensions, but have shapes "
                f"{tuple(loc.shape)} and {tuple(log_scale.shape)}."
            )
        base = Normal(loc, gaussian.widen(log_scale).exp().to(loc.dtype), validate_args=False)
        super().__init__(base, event_dim, validate_args=False)
        self.log_scale = log_scale

    @property
    def loc(self) -> Tensor:
        """The mean, with shape :math:`(*, *event)`."""
        return self.base_dist.loc

    @property
    def scale(self) -> Tensor:
        """The standard deviation, with shape :math:`(*, *event)`."""
        return self.base_dist.scale

    def expand(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch_shape: Size, _instance: Distribution | None = None
    ) -> DiagNormal:
        """Returns the same distribution with its batch expanded to `batch_shape`."""
        shape = Size(batch_shape) + self.event_shape
        return DiagNormal(
            self.loc.expand(shape), self.log_scale.expand(shape), len(self.event_shape)
        )


@register_kl(DiagNormal, DiagNormal)
def _kl_diag_normal(q: DiagNormal, p: DiagNormal) -> Tensor:
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"The event shapes should be equal, but are {q.event_shape} and {p.event_shape}."
        )
    kl = gaussian.kl_divergence(q.loc, q.log_scale, p.loc, p.log_scale)
    event_dims = tuple(range(-len(q.event_shape), 0))
    return kl.sum(dim=event_dims) if event_dims else kl


def product_of_experts(
    prior: DiagNormal, experts: Sequence[DiagNormal], given: Tensor | None = None
) -> DiagNormal:
    r"""Returns the normalised product of a prior and the experts that take part.

    .. math:: q(z \mid x_s) \propto p(z) \prod_{m \in s} \mathcal{N}(z; \mu_m, \sigma_m^2)

    Arguments:
        prior: The prior, always part of the product, with batch shape :math:`(*)`.
        experts: The :math:`M` experts, with the batch and event shapes of the prior.
        given: Which experts take part, boolean, with shape :math:`(*, M)`; all of them if None.

    Returns:
        The product, with the batch and event shapes of the prior. Where nothing is given, it is
        the prior.

    Raises:
        ValueError: If the shapes do not agree, or `given` does not have one column per expert.

    References:
        | Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018)
        | https://arxiv.org/abs/1802.05335

    Example:
        >>> prior = DiagNormal(torch.zeros(1), torch.zeros(1))
        >>> product_of_experts(prior, [DiagNormal(torch.tensor([3.0]), torch.zeros(1))] * 2).loc
        tensor([2.])
    """
    for i, expert in enumerate(experts):
        if expert.loc.shape != prior.loc.shape or expert.event_shape != prior.event_shape:
            raise ValueError(
                f"'experts[{i}]' should have the batch and event shapes of 'prior', "
                f"{tuple(prior.batch_shape)} and {tuple(prior.event_shape)}, "
                f"but has {tuple(expert.batch_shape)} and {tuple(expert.event_shape)}."
            )

    mask = None
    if given is not None:
        if given.dtype != torch.bool:
            raise ValueError(f"'given' should be boolean, but has dtype {given.dtype}.")
        if given.shape != (*prior.batch_shape, len(experts)):
            raise ValueError(
                f"'given' should have one column per expert and shape "
                f"{(*prior.batch_shape, len(experts))}, but has shape {tuple(given.shape)}."
            )
        mask = torch.cat([torch.ones_like(given[..., :1]), given], dim=-1).movedim(-1, 0)
        mask = mask.reshape(*mask.shape, *(1,) * len(prior.event_shape))

    loc = torch.stack([prior.loc, *(q.loc for q in experts)])
    log_scale = torch.stack([prior.log_scale, *(q.log_scale for q in experts)])

    return DiagNormal(*gaussian.product_of_experts(loc, log_scale, mask), len(prior.event_shape))


class Draws:
    r"""An even mixture of :math:`K` distributions: what several latent samples predict together.

    .. math::
        p(x) = \frac{1}{K} \sum_k p_k(x), \qquad
        \mathrm{Var}[x] = \frac{1}{K} \sum_k \mathrm{Var}_k[x] +
        \mathrm{Var}_k\big[\mathrm{E}_k[x]\big]

    Arguments:
        components: The distributions, with batch shape :math:`(K, B)`.
    """

    def __init__(self, components: Distribution) -> None:
        self.components = components

    @property
    def mean(self) -> Tensor:
        """The mean of the mixture, with shape :math:`(B, *)`."""
        return self.components.mean.mean(dim=0)

    @property
    def variance(self) -> Tensor:
        """The variance within components plus that of their means, with shape :math:`(B, *)`."""
        between = self.components.mean.var(dim=0, unbiased=False)
        return self.components.variance.mean(dim=0) + between

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of the mixture, with shape :math:`(B, *)`."""
        return self.variance.sqrt()

    def sample(self) -> Tensor:
        """Draws once from each component, with shape :math:`(K, B, *)`."""
        return self.components.sample()
