r"""Gaussian experts and their products as distributions, for PyTorch and for Pyro."""

from __future__ import annotations

__all__ = [
    "DiagNormal",
    "Draws",
    "LowRankNormal",
    "MixtureOfProducts",
    "log_mixture",
    "product_of_experts",
]

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import Independent, Normal, TorchDistribution
from torch import Size, Tensor
from torch.distributions import Categorical, Distribution, constraints, register_kl

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

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Returns the log-density, also of a batch without rows, where that of PyTorch fails.

        Arguments:
            value: The points, with shape :math:`(N, *, *event)`.

        Returns:
            The log-densities, with shape :math:`(N, *)`.
        """
        log_p = self.base_dist.log_prob(value)
        event_dim = len(self.event_shape)
        return log_p.flatten(-event_dim).sum(dim=-1) if event_dim else log_p

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


def log_mixture(log_q: Tensor, weight: Tensor, dim: int) -> Tensor:
    r"""Returns the log-density of a mixture from those of its components.

    .. math:: \log q(z) = \log \sum_s \alpha_s \, q_s(z)

    A component of weight 0 is never used: whatever its entry of `log_q` holds, NaN included, it
    changes no bit of the result, and both the entry and the weight receive a gradient of 0.

    Arguments:
        log_q: The log-densities :math:`\log q_s(z)`, with one entry per component along `dim`.
        weight: The weights :math:`\alpha_s`, at least 0, broadcastable to `log_q`.
        dim: The dimension of the components in `log_q`.

    Returns:
        The log-density, in nats, with the shape of `log_q` without `dim`; :math:`-\infty` where
        all weights are 0.

    Example:
        >>> log_q = torch.tensor([0.0, 1.0, torch.nan])
        >>> log_mixture(log_q, torch.tensor([0.5, 0.5, 0.0]), dim=0)
        tensor(0.6201)
    """
    used = weight > 0
    log_weight = torch.where(used, torch.where(used, weight, 1).log(), -torch.inf)
    return torch.logsumexp(torch.where(used, log_q, 0) + log_weight, dim=dim)


class MixtureOfProducts(TorchDistribution):
    r"""Mixture of diagonal normal distributions, with weights of its own for every row.

    .. math:: q(z) = \sum_s \alpha_s \, q_s(z)

    Components are the products of experts of several subsets; one of weight 0 is never used.

    Arguments:
        components: The components :math:`q_s`, with batch shape :math:`(S, *)`.
        weight: Their weights :math:`\alpha_s`, with shape :math:`(S, *)`; those of a row sum to 1.

    Raises:
        ValueError: If the shapes differ, a weight is negative or not finite, or none of a row is
            positive.

    Example:
        >>> loc, log_scale = torch.tensor([[[-1.0]], [[1.0]]]), torch.zeros(2, 1, 1)
        >>> q = MixtureOfProducts(DiagNormal(loc, log_scale), weight=torch.full((2, 1), 0.5))
        >>> q.batch_shape, q.event_shape, q.variance
        (torch.Size([1]), torch.Size([1]), tensor([[2.]]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # pyright: ignore
    has_rsample = False

    def __init__(self, components: DiagNormal, weight: Tensor) -> None:
        if not components.batch_shape or weight.shape != components.batch_shape:
            raise ValueError(
                "'weight' should have the batch shape of 'components', (S, *), "
                f"but they have {tuple(weight.shape)} and {tuple(components.batch_shape)}."
            )
        if not bool(((weight >= 0) & weight.isfinite()).all() & (weight.sum(dim=0) > 0).all()):
            raise ValueError(
                "'weight' should be finite and at least 0 everywhere and positive for some "
                f"component of every row, but is {weight.tolist()}."
            )
        # select before any arithmetic: what has no weight must not reach a gradient either
        event_dim = len(components.event_shape)
        used = (weight > 0).reshape(*weight.shape, *(1,) * event_dim)
        loc, log_scale = components.loc, components.log_scale
        self.components = DiagNormal(
            torch.where(used, loc, 0), torch.where(used, log_scale, 0), event_dim
        )
        self.weight = weight / weight.sum(dim=0)
        super().__init__(components.batch_shape[1:], components.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Vectors of real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch_shape: Size, _instance: Distribution | None = None
    ) -> MixtureOfProducts:
        """Returns the same distribution with its batch expanded to `batch_shape`."""
        size = len(self.weight)
        dims = len(batch_shape) - len(self.batch_shape)
        components, weight = self.components, self.weight

        def widen(v: Tensor, event: Size) -> Tensor:
            v = v.reshape(size, *(1,) * dims, *v.shape[1:])
            return v.expand(size, *batch_shape, *event)

        loc, log_scale = (
            widen(v, self.event_shape) for v in (components.loc, components.log_scale)
        )
        return MixtureOfProducts(
            DiagNormal(loc, log_scale, len(self.event_shape)), widen(weight, Size())
        )

    @property
    def mean(self) -> Tensor:
        """The mean, with shape :math:`(*, *event)`."""
        return self._average(self.components.loc)

    @property
    def variance(self) -> Tensor:
        """The variance within components plus that of their means, shaped like the mean."""
        between = (self.components.loc - self.mean).square()
        return self._average(self.components.scale.square() + between)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Returns the exact density :math:`\log \sum_s \alpha_s \, q_s(z)`.

        Arguments:
            value: The points :math:`z`, with shape :math:`(N, *, *event)`, for any number of
                leading dimensions N.

        Returns:
            The log-densities, with shape :math:`(N, *)`.
        """
        lead = value.dim() - len(self.batch_shape) - len(self.event_shape)
        log_q = self.components.log_prob(value.unsqueeze(lead))  # (N, S, *)
        return log_mixture(log_q, self.weight, dim=lead)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        r"""Draws a component by its weight, then from it: shape :math:`(N, *, *event)`."""
        with torch.no_grad():
            shape = Size(sample_shape)
            chosen = Categorical(self.weight.movedim(0, -1)).sample(shape)  # (N, *)
            draws = self.components.sample(shape)  # (N, S, *, *event)
            index = chosen.unsqueeze(len(shape))
            index = index.reshape(*index.shape, *(1,) * len(self.event_shape))
            index = index.expand(
                *index.shape[: len(shape) + 1 + len(self.batch_shape)], *self.event_shape
            )
            return draws.gather(len(shape), index).squeeze(len(shape))

    def _average(self, values: Tensor) -> Tensor:
        """The weighted average of (S, *, *event) over components."""
        weight = self.weight.reshape(*self.weight.shape, *(1,) * len(self.event_shape))
        return (weight * values).sum(dim=0)


class LowRankNormal(TorchDistribution):
    r"""Normal distribution whose covariance is diagonal plus of low rank.

    .. math::
        x = \mu + \sum_{r \le R} \epsilon_r f_r + \sigma \odot \eta, \qquad
        \Sigma = F F^\top + \mathrm{diag}(\sigma^2)

    with standard normal :math:`\epsilon` and :math:`\eta`. The factors :math:`f_r` are what
    elements do together, :math:`\sigma` is what each does alone. The density is exact, by the
    matrix determinant lemma and Woodbury's identity in the form of a ridge regression,

    .. math::
        (x - \mu)^\top \Sigma^{-1} (x - \mu) = \min_c
        \lVert (x - \mu - F c) / \sigma \rVert^2 + \lVert c \rVert^2, \qquad
        \log |\Sigma| = \sum_i \log \sigma_i^2 + \log |I + F^\top \mathrm{diag}(\sigma^{-2}) F|

    which takes :math:`O(n R^2)` for n elements.

    Arguments:
        loc: The mean :math:`\mu`, with shape :math:`(*, *event)`.
        factors: The factors :math:`f_r`, with shape :math:`(*, R, *event)`, R of at least 1.
        log_scale: The logarithm of :math:`\sigma`, with the shape of the mean.
        event_dim: The number of event dimensions.

    Raises:
        ValueError: If the shapes do not agree.

    References:
        | Stochastic Segmentation Networks: Modelling Spatially Correlated Aleatoric Uncertainty
          (Monteiro et al., 2020)
        | https://arxiv.org/abs/2006.06015

    Example:
        >>> p = LowRankNormal(torch.zeros(5, 3), torch.ones(5, 1, 3), torch.zeros(5, 3))
        >>> p.batch_shape, p.event_shape, p.variance[0]
        (torch.Size([5]), torch.Size([3]), tensor([2., 2., 2.]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # pyright: ignore
    has_rsample = True

    def __init__(
        self, loc: Tensor, factors: Tensor, log_scale: Tensor, event_dim: int = 1
    ) -> None:
        batch_dim = loc.dim() - event_dim
        shape, event = loc.shape[:batch_dim], loc.shape[batch_dim:]
        if (
            batch_dim < 0
            or log_scale.shape != loc.shape
            or factors.dim() != loc.dim() + 1
            or (factors.shape[:batch_dim], factors.shape[batch_dim + 1 :]) != (shape, event)
            or factors.shape[batch_dim] == 0
        ):
            raise ValueError(
                "'loc', 'factors' and 'log_scale' should have shapes (*, *event), (*, R, *event) "
                f"and (*, *event), with 'event_dim' {event_dim}, but have shapes "
                f"{tuple(loc.shape)}, {tuple(factors.shape)} and {tuple(log_scale.shape)}."
            )
        self.loc, self.factors, self.log_scale = loc, factors, log_scale
        super().__init__(shape, event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Entries of real numbers."""
        event_dim = len(self.event_shape)
        return (
            constraints.independent(constraints.real, event_dim) if event_dim else constraints.real
        )

    @property
    def mean(self) -> Tensor:
        """The mean, with shape :math:`(*, *event)`."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance of each element, shaped like the mean."""
        common = self.factors.square().sum(dim=len(self.batch_shape))
        return common + (2 * self.log_scale).exp()

    def expand(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch_shape: Size, _instance: Distribution | None = None
    ) -> LowRankNormal:
        """Returns the same distribution with its batch expanded to `batch_shape`."""
        event, rank = self.event_shape, self.factors.shape[len(self.batch_shape)]
        batch_shape = Size(batch_shape)
        return LowRankNormal(
            self.loc.expand(batch_shape + event),
            self.factors.expand(batch_shape + Size([rank]) + event),
            self.log_scale.expand(batch_shape + event),
            len(event),
        )

    def log_prob(self, value: Tensor, valid: Tensor | None = None) -> Tensor:
        r"""Returns the log-density of entries, or of some of their elements.

        Arguments:
            value: The entries, with shape :math:`(N, *, *event)`, for any number of leading
                dimensions N.
            valid: The elements whose density to return, boolean, broadcastable to
                :math:`(*, *event)`; all if None. The others are integrated out, and never read.

        Returns:
            The log-densities, in nats, with shape :math:`(N, *)`.
        """
        event_dim, batch_dim = len(self.event_shape), len(self.batch_shape)
        log_scale, inside = self.log_scale, None
        if valid is not None:
            inside = valid.broadcast_to(self.loc.shape)
            value = torch.where(inside, value, 0)
            log_scale = torch.where(inside, log_scale, torch.inf)  # of no precision
        precision = (-log_scale).exp()
        residual = (value.to(self.loc.dtype) - self.loc) * precision
        number = math.prod(self.event_shape)
        a = self.factors * precision.unsqueeze(batch_dim)
        a = a.reshape(*a.shape[: batch_dim + 1], number)  # (*, R, n)
        lead = residual.shape[: residual.dim() - batch_dim - event_dim]
        y = residual.reshape(math.prod(lead), *self.batch_shape, number).movedim(0, -1)

        gram: Tensor = _Product.apply(a, a.mT)  # pyright: ignore
        identity = torch.eye(a.shape[-2], dtype=gram.dtype, device=a.device)
        root = torch.linalg.cholesky(identity + gram)
        moment: Tensor = _Product.apply(a, y)  # pyright: ignore
        c = torch.cholesky_solve(moment, root).to(a.dtype)  # (*, R, N)
        squares = (y - a.mT @ c).square().sum(dim=-2) + c.square().sum(dim=-2)  # (*, N)
        constant = self.log_scale + gaussian.HALF_LOG_2PI
        if inside is not None:
            constant = torch.where(inside, constant, 0)
        constant = constant.reshape(*self.batch_shape, number).sum(dim=-1)
        constant = constant + root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        log_p = -constant[..., None] - squares / 2
        return log_p.movedim(-1, 0).reshape((*lead, *self.batch_shape)).to(self.loc.dtype)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        r"""Draws samples that have gradients: shape :math:`(N, *, *event)`."""
        rank = self.factors.shape[len(self.batch_shape)]
        noise = self.loc.new_empty(*sample_shape, *self.batch_shape, rank).normal_()
        return self.rsample_with(noise)

    def rsample_with(self, common: Tensor) -> Tensor:
        r"""Draws samples with given noise of the factors.

        Distributions of the parts of something, whose factors mean the same, are drawn together
        with the same noise.

        Arguments:
            common: Standard normal noise :math:`\epsilon`, with shape :math:`(N, *, R)`.

        Returns:
            The samples, with shape :math:`(N, *, *event)`.
        """
        batch_dim, shape = len(self.batch_shape), common.shape[:-1]
        lead = shape[: len(shape) - batch_dim]
        flat = self.factors.reshape(
            *self.factors.shape[: batch_dim + 1], math.prod(self.event_shape)
        )  # (*, R, n)
        noise = common.reshape(math.prod(lead), *common.shape[len(lead) :]).movedim(0, -2)
        moved = (noise @ flat).movedim(-2, 0).reshape((*shape, *self.event_shape))
        own = torch.randn_like(moved) * self.log_scale.exp()
        return self.loc + moved + own


class _Product(torch.autograd.Function):
    """The product of two matrices, summed up in float64.

    The products of factors square their range, so that float32 would lose the identity beside
    them. The gradients need no more digits than the factors have.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(a, b)
        return gaussian.exact(a) @ gaussian.exact(b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401  # pyright: ignore
        a, b = ctx.saved_tensors
        grad = grad.to(a.dtype)
        return grad @ b.mT, a.mT @ grad


class Draws:
    r"""A mixture of :math:`K` distributions, such as several latent samples predict together.

    .. math::
        p(x) = \sum_k \alpha_k p_k(x), \qquad
        \mathrm{Var}[x] = \sum_k \alpha_k \big( \mathrm{Var}_k[x] +
        (\mathrm{E}_k[x] - \mathrm{E}[x])^2 \big)

    Arguments:
        components: The distributions, with batch shape :math:`(K, B)`.
        weight: The weights :math:`\alpha_k`, which sum to 1 over :math:`k`, with shape
            :math:`(K, B)`; even if None.
    """

    def __init__(self, components: Distribution, weight: Tensor | None = None) -> None:
        self.components = components
        self.weight = weight

    @property
    def mean(self) -> Tensor:
        """The mean of the mixture, with shape :math:`(B, *)`."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """The variance within components plus that of their means, with shape :math:`(B, *)`."""
        return self._moments()[1]

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of the mixture, with shape :math:`(B, *)`."""
        return self.variance.sqrt()

    def sample(self) -> Tensor:
        """Draws once from each component, with shape :math:`(K, B, *)`."""
        return self.components.sample()

    def _moments(self) -> tuple[Tensor, Tensor]:
        p = self.components
        elements = p.base_dist if isinstance(p, Independent) else p
        mixed = getattr(elements, "mixed_moments", None)
        if mixed is not None:  # a mean of codes of classes would be none of them
            return mixed(self.weight)
        return moments_of_mixture(p.mean, p.variance, self.weight)


def moments_of_mixture(
    mean: Tensor, variance: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""Returns the mean and variance of a mixture from those of its components.

    Arguments:
        mean: The means, with shape :math:`(K, B, *)`.
        variance: The variances, with the same shape.
        weight: The weights, see :class:`Draws`.
    """
    center = average(mean, weight)
    return center, average(variance + (mean - center) ** 2, weight)


def average(values: Tensor, weight: Tensor | None) -> Tensor:
    r"""Returns the weighted mean over the first dimension, with shape :math:`(B, *)`.

    Arguments:
        values: The values, with shape :math:`(K, B, *)`.
        weight: The weights, with shape :math:`(K, B)`; even if None.
    """
    if weight is None:
        return values.mean(dim=0)
    weight = weight.reshape(*weight.shape, *(1,) * (values.dim() - 2))
    return (weight.to(values.dtype) * values).sum(dim=0)
