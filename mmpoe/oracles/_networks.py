"""The parts of a model that is linear and Gaussian throughout, in float64."""

from __future__ import annotations

__all__ = ["ChainEncoder", "Expert", "JointPoE", "Transition", "likelihood", "probe"]

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from mmpoe import gaussian, kernels
from mmpoe.likelihoods import Likelihood, Normal
from mmpoe.posteriors import Draw, Factors, Posterior

from ._chain import Step, carry


def affine(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Returns the layer with some weight, of shape (out, in), and bias, of shape (out)."""
    # on the meta device, parameters are not drawn: the random generator stays as it was
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer


def probe(size: int) -> Tensor:
    """Returns the points that show an affine function of a vector: 0 and the unit vectors."""
    return torch.eye(size + 1, size, dtype=torch.float64).roll(1, dims=0)


class Expert(nn.Module):
    r"""The expert :math:`\mathcal{N}(z; A x + b, \sigma^2)`.

    Arguments:
        precision: The precision :math:`\sigma^{-2}`, with shape :math:`(D)`; where it is 0, the
            expert says nothing.
        natural: The mean times the precision at the points of :func:`probe`, with shape
            :math:`(D_m + 1, D)`.
    """

    def __init__(self, precision: Tensor, natural: Tensor) -> None:
        super().__init__()
        loc = torch.where(precision > 0, natural / precision, 0)
        self.loc = affine((loc[1:] - loc[0]).T, loc[0])
        self.log_scale = nn.Parameter(-0.5 * precision.log())

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean and log standard deviation, stacked."""
        loc = self.loc(x)
        return torch.cat([loc, self.log_scale.expand_as(loc)], dim=1)


class ChainEncoder(nn.Module):
    """The experts of one modality, one for each level, coarse to fine."""

    def __init__(self, experts: Sequence[Expert]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the mean and log standard deviation of each expert, stacked."""
        return [expert(x) for expert in self.experts]


class Transition(nn.Module):
    r"""The prior :math:`p(z_l \mid z_{l+1})`, with one or more branches below each dimension.

    Arguments:
        slope: The slope, with shape :math:`(n, D)` for :math:`n` branches.
        intercept: The intercept, with the same shape.
        variance: The variance, with the same shape.
    """

    def __init__(self, slope: Tensor, intercept: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope.clone())
        self.intercept = nn.Parameter(intercept.clone())
        self.log_scale = nn.Parameter(0.5 * variance.log())

    def forward(self, h: Tensor) -> Tensor:
        """Returns the mean and log standard deviation, stacked."""
        loc = (self.slope * h.unsqueeze(1) + self.intercept).flatten(1)
        return torch.cat([loc, self.log_scale.flatten().expand_as(loc)], dim=1)


class JointPoE(Posterior):
    r"""The exact posterior of a chain without branches, from experts of :math:`z_1` at any level.

    Given experts are multiplied at :math:`z_1`, and what they say together is carried up.

    Arguments:
        below: The steps below this level, coarse to fine.
        channels: The number of dimensions of each level.
    """

    below: Tensor

    def __init__(self, below: Sequence[Step], channels: int) -> None:
        super().__init__()
        blank = torch.zeros(0, 3, 1, channels, dtype=torch.float64)
        stacked = torch.stack([torch.stack(step) for step in below]) if below else blank
        self.register_buffer("below", stacked)  # (steps, 3, 1, D)

    def fuse(self, factors: Factors, draw: Draw) -> kernels.Product:
        """Fuses factors, see :meth:`mmpoe.posteriors.Posterior.fuse`."""
        loc, log_scale, given, prior, _ = factors.at_rows()
        j = h = loc[0].new_zeros(())
        for m in range(len(loc)):
            seen = given[:, m, None]
            precision = torch.where(seen, (-2 * log_scale[m]).exp(), 0)  # (R, D)
            j, h = j + precision, h + precision * torch.where(seen, loc[m], 0)
        j, h = carry(j, h, [Step(*step) for step in self.below])[0]

        prior_loc, prior_log_scale = (j.new_zeros(()),) * 2 if prior is None else prior
        variance = 1 / ((-2 * prior_log_scale).exp() + j)
        mean = prior_loc + variance * (h - j * prior_loc)
        deviation = variance.log() / 2
        kl = gaussian.kl_divergence(mean, deviation, prior_loc, prior_log_scale).sum(dim=-1)
        return kernels.Product(draw.sample(mean, deviation), mean, deviation, kl)


def likelihood(weight: Tensor, bias: Tensor, covariance: Tensor) -> Likelihood:
    r"""Returns the likelihood :math:`p(x \mid z) = \mathcal{N}(x; W z + b, \Psi)`.

    Arguments:
        weight: The weight :math:`W`, with shape :math:`(D_m, D)`.
        bias: The bias :math:`b`, with shape :math:`(D_m)`.
        covariance: The covariance :math:`\Psi`, with shape :math:`(D_m, D_m)`. If it is diagonal,
            the distribution is independent over elements.
    """
    variance = covariance.diagonal()
    if torch.equal(covariance, variance.diag()):
        return Normal(affine(weight, bias), scale=variance.sqrt())
    return _CorrelatedNormal(affine(weight, bias), torch.linalg.cholesky(covariance))


class _CorrelatedNormal(Likelihood):
    """A normal distribution whose elements share noise."""

    scale_tril: Tensor

    def __init__(self, network: nn.Module, scale_tril: Tensor) -> None:
        super().__init__(network)
        self.register_buffer("scale_tril", scale_tril)

    def joint(self, phi: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Returns the distribution of whole entries, see :meth:`Likelihood.joint`."""
        return self.distribution(phi)

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the distribution of a whole entry with mean `phi`."""
        return dist.MultivariateNormal(phi, scale_tril=self.scale_tril, validate_args=False)
