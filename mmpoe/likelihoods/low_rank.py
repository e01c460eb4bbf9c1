r"""A likelihood of real numbers that vary together."""

from __future__ import annotations

__all__ = ["LowRankNormal"]

import math

import pyro.distributions as dist
from torch import Tensor, nn

from mmpoe import distributions

from . import _elements as elements
from .base import Likelihood

START = 0.1
"""How large a factor starts beside the scale. The likelihood hardly sees factors that are too
large, so that they should grow where the data ask for it, and not have to shrink."""


class LowRankNormal(Likelihood):
    r"""Normal likelihood of elements that vary together: a diagonal plus a low-rank covariance.

    .. math::
        p(x \mid z) = \mathcal{N}\big( \mu(z), F(z) F(z)^\top + \mathrm{diag}(\sigma(z)^2) \big)

    Noise that is independent over elements averages out of a mean over many. This noise does not:
    R factors say what elements do together, so that regions of an image, or columns of a table,
    spread as they should. The density is exact. Elements that are not valid are integrated out of
    it, see :meth:`mmpoe.distributions.LowRankNormal.log_prob`.

    Arguments:
        network: Returns the mean :math:`\mu`, :math:`\log(\sigma / c)` and the factors
            :math:`10 F / c`, stacked in this order, with shape :math:`(N, 2 + R, *event)`.
        rank: The number of factors R.
        scale: The scale :math:`c` that :math:`\sigma` starts near, in the units of the data.

    Raises:
        ValueError: If `rank` is not an integer of at least 1, or `scale` is not positive and
            finite.

    References:
        | Stochastic Segmentation Networks: Modelling Spatially Correlated Aleatoric Uncertainty
          (Monteiro et al., 2020)
        | https://arxiv.org/abs/2006.06015
        | Structured Uncertainty Prediction Networks (Dorta et al., 2018)
        | https://arxiv.org/abs/1802.07079

    Example:
        >>> p = LowRankNormal(nn.Unflatten(1, (3, 4)), rank=1, scale=2.0)(torch.ones(5, 12))
        >>> p.event_shape, p.variance[0, 0]  # (2 e)^2 + 0.2^2
        (torch.Size([4]), tensor(29.5962))
    """

    def __init__(self, network: nn.Module, rank: int = 8, scale: float = 1.0) -> None:
        super().__init__(network)
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"'rank' should be an integer of at least 1, but is {rank!r}.")
        if isinstance(scale, Tensor):
            raise ValueError("'scale' should be a number, but is a tensor.")
        self.outputs, self.scale = 2 + rank, self._positive("scale", scale)

    def joint(self, phi: Tensor, event_dim: int) -> distributions.LowRankNormal:
        """Returns the distribution of whole entries, see :meth:`Likelihood.joint`."""
        factors = START * self.scale * phi[..., 2:].movedim(-1, -1 - event_dim)
        return distributions.LowRankNormal(
            phi[..., 0], factors, phi[..., 1] + math.log(self.scale), event_dim
        )

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the marginal distribution of each element."""
        p = self.joint(phi, 0)
        return elements.Normal(p.mean, p.stddev, validate_args=False)
