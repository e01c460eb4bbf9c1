r"""Likelihoods of binary, categorical and ordered data."""

from __future__ import annotations

__all__ = ["Bernoulli", "Categorical", "Ordinal"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from mmpoe.gaussian import widen

from . import _elements as elements
from .base import Likelihood


class Bernoulli(Likelihood):
    r"""Bernoulli likelihood :math:`p(x \mid z) = \prod_i \pi_i^{x_i} (1 - \pi_i)^{1 - x_i}`.

    The data are booleans or 0 and 1. Shares between 0 and 1 are taken as the mean of many of them:
    their log-likelihood is minus the cross-entropy.

    Arguments:
        network: Returns the logits of the probabilities :math:`\pi_i`, with shape :math:`(N,
            *event)`.
    """

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise Bernoulli distribution with logits `phi`."""
        return elements.Bernoulli(logits=phi, validate_args=False)


class Categorical(Likelihood):
    r"""Categorical likelihood of classes without an order.

    .. math::
        p(x \mid z) = \prod_i \pi_{i, x_i}, \qquad
        \pi_{i, k} = \frac{\exp f_{k, i}(z)}{\sum_{j < K} \exp f_{j, i}(z)}

    The data are class indices from 0 to K - 1, with shape :math:`(B, *event)`. A class index has
    no mean: the mean of the distribution is that of the indicators of the classes, the
    probabilities :math:`\pi`, with shape :math:`(B, *event, K)`, classes last, and its variance is
    :math:`\pi (1 - \pi)`. The most likely class is its mode.

    Arguments:
        network: Returns the logits :math:`f`, with shape :math:`(N, K, *event)`.
        classes: The number of classes K.

    Raises:
        ValueError: If `classes` is not an integer of at least 2.

    Example:
        >>> p = Categorical(nn.Linear(2, 3), classes=3)(torch.zeros(5, 2))
        >>> p.sample().shape, p.mean.shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__(network)
        _check_number("classes", classes)
        self.outputs = classes

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise categorical distribution with logits `phi`, classes last."""
        return elements.Categorical(logits=phi, validate_args=False)


class Ordinal(Likelihood):
    r"""Ordinal likelihood: levels are what thresholds cut out of a logistic variable.

    .. math::
        p(x \mid z) = \prod_i \left[ \varsigma(c_{x_i + 1} - f_i(z)) - \varsigma(c_{x_i} - f_i(z))
        \right], \qquad -\infty = c_0 < c_1 < \ldots < c_K = \infty

    The data are levels from 0 to K - 1, :math:`\varsigma` is the logistic function, and the
    thresholds :math:`c` are learned, the same for all elements. They start where the levels are
    equally likely at :math:`f = 0`, and stay in order whatever the parameters are. Mean and
    standard deviation are those of the number of the level.

    Arguments:
        network: The network :math:`f`. It returns shape :math:`(N, *event)`.
        levels: The number of levels K.

    Raises:
        ValueError: If `levels` is not an integer of at least 2.

    References:
        | Regression Models for Ordinal Data (McCullagh, 1980)
        | https://doi.org/10.1111/j.2517-6161.1980.tb01109.x

    Example:
        >>> likelihood = Ordinal(nn.Identity(), levels=3)
        >>> likelihood(torch.tensor([[0.0], [9.0]])).mean
        tensor([[1.0000],
                [1.9997]], grad_fn=<SumBackward1>)
    """

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__(network)
        _check_number("levels", levels)
        start = torch.logit(torch.arange(1, levels) / levels)  # (K - 1)
        self.lowest = nn.Parameter(start[0].clone())
        # a gap is the softplus of its parameter
        self.gaps = nn.Parameter(start.diff().expm1().log())  # (K - 2)

    @property
    def thresholds(self) -> Tensor:
        """The thresholds between levels, ascending, with shape (K - 1)."""
        gaps = softplus(widen(self.gaps))
        return torch.cat([gaps.new_zeros(1), gaps.cumsum(dim=0)]) + widen(self.lowest)

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise distribution of the level, for a logistic variable at `phi`."""
        distance = self.thresholds - phi[..., None]  # (*, K - 1)
        at_most, above = logsigmoid(distance), logsigmoid(-distance)
        # s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)), and the last factor is s(parameter of the gap)
        between = at_most[..., 1:] + above[..., :-1] + logsigmoid(widen(self.gaps))
        logits = torch.cat([at_most[..., :1], between, above[..., -1:]], dim=-1)  # (*, K)
        return elements.Ordinal(logits=logits, validate_args=False)


def _check_number(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        raise ValueError(f"'{name}' should be an integer of at least 2, but is {value!r}.")
