r"""Likelihoods of real numbers: normal, Laplace, Student's t."""

from __future__ import annotations

__all__ = ["Laplace", "Normal", "OptimalScale", "StudentT"]

from collections.abc import Mapping
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from mmpoe.gaussian import widen

from . import _elements as elements
from .base import Likelihood, current, fixed, learned

MEMORY = 0.9
"""How much of what earlier batches say about an optimal scale each new one keeps."""


class _Scaled(Likelihood):
    """A location from the network, and a scale that is fixed or learned."""

    def __init__(self, network: nn.Module, scale: float | Tensor, *, learn_scale: bool) -> None:
        super().__init__(network)
        scale = self._positive("scale", scale)
        self._fixed_scale = fixed(scale)
        self.log_scale = learned(scale) if learn_scale else None

    @property
    def scale(self) -> Tensor | float:
        """The scale: as it was given if it is fixed, else a tensor."""
        return current(self._fixed_scale, self.log_scale)


class _LocationScale(_Scaled):
    r"""A location from the network, and a scale that is fixed, learned or optimal.

    The optimal scale is :math:`(\sum_i |x_i - f_i|^k / n)^{1/k}`, where `power` is k.
    """

    power: int
    error: Tensor
    scored: Tensor

    def __init__(
        self,
        network: nn.Module,
        scale: float | Tensor | Literal["optimal"] = 1.0,
        *,
        learn_scale: bool = False,
    ) -> None:
        self.optimal = False
        if isinstance(scale, str):
            if scale != "optimal":
                raise ValueError(
                    f"'scale' should be a positive number or 'optimal', but is {scale!r}."
                )
            if learn_scale:
                raise ValueError("'learn_scale' should be False if 'scale' is 'optimal'.")
            self.optimal = True
        super().__init__(
            network, 1.0 if isinstance(scale, str) else scale, learn_scale=learn_scale
        )
        if self.optimal:
            self.register_buffer("error", torch.ones(()))  # mean of |x - f|^k
            self.register_buffer("scored", torch.zeros(()))  # elements that it stands for

    @property
    def scale(self) -> Tensor | float:
        """The scale: as it was given if it is fixed, else a tensor."""
        if self.optimal:
            return self._scale_of(widen(self.error))
        return current(self._fixed_scale, self.log_scale)  # torch.compile has no super().scale

    def forward(
        self,
        z: Tensor,
        batch_dims: int = 1,
        context: Mapping[str, Tensor] | None = None,
        *,
        phi: Tensor | None = None,
    ) -> dist.TorchDistribution:
        """Returns the distribution, as :meth:`Likelihood.forward`."""
        p = super().forward(z, batch_dims, context, phi=phi)
        if not (self.optimal and self.training):
            return p
        base = p.base_dist if isinstance(p, dist.Independent) else p
        return OptimalScale(base, len(p.event_shape), self)

    @torch.no_grad()
    def fit(self, loc: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Returns the optimal scale of a batch, and takes it up into the one that is kept."""
        weight = weight.expand(loc.shape)
        error = torch.where(weight > 0, (x - loc).abs() ** self.power, 0)
        number = weight.sum(dtype=loc.dtype)
        best = torch.where(number > 0, (weight * error).sum() / number, self.error)

        self.scored.mul_(MEMORY).add_(number)
        share = torch.where(number > 0, number / self.scored, 0)
        self.error.lerp_(best.to(self.error.dtype), share.to(self.error.dtype))
        return self._scale_of(best)

    def _scale_of(self, error: Tensor) -> Tensor:
        return (error ** (1 / self.power)).clamp(min=torch.finfo(error.dtype).eps)


class OptimalScale(dist.Independent):
    r"""The distribution of a likelihood of optimal scale in training: the scale awaits the data.

    Until :meth:`fit` is called, it has the scale that the likelihood keeps.

    Arguments:
        base: The elementwise distribution, with that scale.
        event_dim: The number of event dimensions.
        likelihood: The likelihood that keeps the scale.
    """

    def __init__(
        self, base: dist.TorchDistribution, event_dim: int, likelihood: _LocationScale
    ) -> None:
        super().__init__(base, event_dim, validate_args=False)
        self.likelihood = likelihood

    def fit(self, x: Tensor, weight: Tensor) -> dist.TorchDistribution:
        r"""Returns the distribution with the scale at which some data are most likely.

        The scale is that of :math:`\max_\sigma \sum_i w_i \log p(x_i \mid z; \sigma)`, one for all
        elements and rows. It is a constant for gradients. No gradient is lost by that: the
        derivative of the maximum in :math:`\sigma` is zero. The likelihood takes it up into the
        scale that it keeps.

        Arguments:
            x: The data, broadcastable to the batch and event shape. Elements of weight zero are
                never read.
            weight: The weights :math:`w_i`, broadcastable to the batch and event shape; or a
                boolean mask of what counts. If nothing counts, the scale is the one that was kept.
        """
        base = self.base_dist
        scale = self.likelihood.fit(base.loc, x, weight)
        return type(base)(base.loc, scale, validate_args=False).to_event(len(self.event_shape))

    def expand(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch_shape: Size, _instance: Distribution | None = None
    ) -> OptimalScale:
        """Returns the same distribution with its batch expanded to `batch_shape`."""
        base = self.base_dist.expand(Size(batch_shape) + self.event_shape)
        return OptimalScale(base, len(self.event_shape), self.likelihood)


class Normal(_LocationScale):
    r"""Normal likelihood :math:`p(x \mid z) = \prod_i \mathcal{N}(x_i; f_i(z), \sigma^2)`.

    A fixed scale weighs this modality against the others and against the divergence; a learned one
    is a parameter like any other. The optimal scale is the root of the mean squared error over all
    that is scored of the modality in a batch,

    .. math::
        \sigma^2 = \frac{1}{n} \sum_i (x_i - f_i(z))^2,

    so that the bound is :math:`-\tfrac{n}{2} \log (2 \pi e \sigma^2)` less the divergence. It
    couples the rows of a batch during training: :func:`mmpoe.elbo <mmpoe.objectives.elbo>`
    computes it from the data that it scores. What missing rows and invalid elements hold plays no
    part. In evaluation mode, and wherever no bound is computed, the scale is the one that is kept:
    that of the last ten batches or so, a buffer of the state dict, 1 before the first of them.

    Arguments:
        network: The network :math:`f`. It returns shape :math:`(N, *event)`.
        scale: The standard deviation :math:`\sigma`, in the units of the data: a number, or a
            tensor with one for each element, broadcastable to the event shape; or ``"optimal"``,
            one number that fits the data best and is at least the machine epsilon.
        learn_scale: Whether to learn the scale, starting from `scale`.

    Raises:
        ValueError: If `scale` is not positive and finite, or optimal and learned at once.

    References:
        | Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021)
        | https://arxiv.org/abs/2006.13202

    Example:
        >>> likelihood = Normal(nn.Linear(2, 3), scale=0.5)
        >>> p = likelihood(torch.zeros(5, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    power = 2

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise normal distribution with mean `phi`."""
        return elements.Normal(phi, self.scale, validate_args=False)


class Laplace(_LocationScale):
    r"""Laplace likelihood :math:`p(x \mid z) = \prod_i \frac{1}{2b} \exp(-|x_i - f_i(z)| / b)`.

    Its log-density is minus the sum of absolute errors over :math:`b`, up to a constant: the usual
    choice for images. The optimal scale is the mean absolute error; the rest is as for
    :class:`Normal`.

    Arguments:
        network: The network :math:`f`. It returns shape :math:`(N, *event)`.
        scale: The scale :math:`b`, in the units of the data: a number, or a tensor with one for
            each element, broadcastable to the event shape; or ``"optimal"``.
        learn_scale: Whether to learn the scale, starting from `scale`.

    Raises:
        ValueError: If `scale` is not positive and finite, or optimal and learned at once.

    Example:
        >>> likelihood = Laplace(nn.Identity(), scale="optimal")
        >>> p = likelihood(torch.zeros(2, 2))
        >>> x = torch.tensor([[0.5, -1.5], [torch.nan, 1.0]])
        >>> _ = p.fit(x, weight=~x.isnan())  # as a bound does
        >>> likelihood.scale
        tensor(1.)
    """

    power = 1

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise Laplace distribution with location `phi`."""
        return elements.Laplace(phi, self.scale, validate_args=False)


class StudentT(_Scaled):
    r"""Student's t likelihood: normal in the middle, with tails that forgive outliers.

    .. math::
        p(x \mid z) = \prod_i \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2}) \sqrt{\pi \nu}
        \, \sigma} \left( 1 + \frac{(x_i - f_i(z))^2}{\nu \sigma^2} \right)^{-(\nu + 1) / 2}

    Its mean exists for :math:`\nu > 1` (NaN otherwise), and its standard deviation, which is not
    :math:`\sigma`, for :math:`\nu > 2` (infinite otherwise).

    Arguments:
        network: The network :math:`f`. It returns shape :math:`(N, *event)`.
        scale: The scale :math:`\sigma`, in the units of the data: a number, or a tensor with one
            for each element, broadcastable to the event shape.
        df: The degrees of freedom :math:`\nu`, likewise.
        learn_scale: Whether to learn the scale, starting from `scale`.
        learn_df: Whether to learn the degrees of freedom, starting from `df`.

    Raises:
        ValueError: If `scale` or `df` is not positive and finite.

    References:
        | Robust Statistical Modeling Using the t Distribution (Lange et al., 1989)
        | https://doi.org/10.1080/01621459.1989.10478852

    Example:
        >>> StudentT(nn.Identity(), scale=3.0, df=8.0)(torch.zeros(1, 2)).stddev
        tensor([[3.4641, 3.4641]])
    """

    def __init__(
        self,
        network: nn.Module,
        scale: float | Tensor = 1.0,
        df: float | Tensor = 4.0,
        *,
        learn_scale: bool = False,
        learn_df: bool = False,
    ) -> None:
        super().__init__(network, scale, learn_scale=learn_scale)
        df = self._positive("df", df)
        self._fixed_df = fixed(df)
        self.log_df = learned(df) if learn_df else None

    @property
    def df(self) -> Tensor | float:
        """The degrees of freedom: as they were given if they are fixed, else a tensor."""
        return current(self._fixed_df, self.log_df)

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise Student's t distribution with location `phi`."""
        return elements.StudentT(self.df, phi, self.scale, validate_args=False)
