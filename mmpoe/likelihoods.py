r"""Likelihoods: modules that map a latent state to the distribution :math:`p(x_m \mid z)`.

Each wraps a network and turns its output into a distribution over one modality. The event is the
whole entry: ``log_prob`` returns one number per sample.
"""

from __future__ import annotations

__all__ = ["Bernoulli", "Laplace", "Likelihood", "Normal"]

import math
from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .gaussian import widen


class Likelihood(nn.Module, ABC):
    r"""Base of all likelihoods: a network whose output becomes a distribution.

    Arguments:
        network: Maps a latent state of shape :math:`(N, *)` to the parameters of the distribution,
            with shape :math:`(N, *event)`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, batch_dims: int = 1) -> dist.TorchDistribution:
        r"""Returns :math:`p(x_m \mid z)`.

        Arguments:
            z: The latent state, with shape :math:`(N, *)`, or :math:`(S, B, *)` for S
                subsets, with `batch_dims` 2.
            batch_dims: The number of leading dimensions that index samples.

        Returns:
            A distribution whose batch shape is that of the leading dimensions.
        """
        phi = widen(self.network(z.flatten(0, batch_dims - 1)))  # densities need float32
        phi = phi.unflatten(0, z.shape[:batch_dims])
        return self.distribution(phi).to_event(phi.dim() - batch_dims)

    @abstractmethod
    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise distribution with the network's output `phi` as parameters."""


class _LocationScale(Likelihood):
    """A location from the network and one scale, fixed or learned, shared by all elements."""

    def __init__(
        self, network: nn.Module, scale: float = 1.0, *, learn_scale: bool = False
    ) -> None:
        super().__init__(network)
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"'scale' should be positive and finite, but is {scale!r}.")
        self._fixed_scale = float(scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if learn_scale else None

    @property
    def scale(self) -> Tensor | float:
        """The scale: a number if it is fixed, else a scalar tensor."""
        return self._fixed_scale if self.log_scale is None else widen(self.log_scale).exp()


class Normal(_LocationScale):
    r"""Normal likelihood :math:`p(x \mid z) = \prod_i \mathcal{N}(x_i; f_i(z), \sigma^2)`.

    Arguments:
        network: The network :math:`f`.
        scale: The standard deviation :math:`\sigma`, in the units of the data.
        learn_scale: Whether to learn the scale, starting from `scale`.

    Example:
        >>> likelihood = Normal(nn.Linear(2, 3), scale=0.5)
        >>> p = likelihood(torch.zeros(5, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise normal distribution with mean `phi`."""
        return dist.Normal(phi, self.scale, validate_args=False)


class Laplace(_LocationScale):
    r"""Laplace likelihood :math:`p(x \mid z) = \prod_i \frac{1}{2b} \exp(-|x_i - f_i(z)| / b)`.

    Its log-density is minus the sum of absolute errors over :math:`b`, up to a constant: the usual
    choice for images.

    Arguments:
        network: The network :math:`f`.
        scale: The scale :math:`b`, in the units of the data; the best one is the mean absolute
            error.
        learn_scale: Whether to learn the scale, starting from `scale`.
    """

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise Laplace distribution with location `phi`."""
        return dist.Laplace(phi, self.scale, validate_args=False)


class Bernoulli(Likelihood):
    r"""Bernoulli likelihood :math:`p(x \mid z) = \prod_i \pi_i^{x_i} (1 - \pi_i)^{1 - x_i}`.

    Arguments:
        network: Returns the logits of the probabilities :math:`\pi_i`.
    """

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise Bernoulli distribution with logits `phi`."""
        return dist.Bernoulli(logits=phi, validate_args=False)
