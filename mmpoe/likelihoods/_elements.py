r"""Distributions over single elements, for PyTorch and for Pyro.

They replace those of PyTorch and Pyro where these lose digits, refuse integer data, have moments
that are undefined or cancel, or compute the logarithm of one scale once for each element.
"""

from __future__ import annotations

__all__ = [
    "Bernoulli",
    "Categorical",
    "Laplace",
    "NegativeBinomial",
    "Normal",
    "Ordinal",
    "Poisson",
    "SideBySide",
    "StudentT",
    "ZeroInflated",
]

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid, mse_loss, softplus

from mmpoe.distributions import average, moments_of_mixture
from mmpoe.gaussian import HALF_LOG_2PI, exact


class Normal(dist.Normal):
    """Normal, in three passes over the elements."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, elementwise."""
        scale = narrow(self.scale)
        distance = (value - self.loc) / scale
        return torch.addcmul(-scale.log() - HALF_LOG_2PI, distance, distance, value=-0.5)

    def total_log_prob(self, value: Tensor, dims: Sequence[int]) -> Tensor:
        """Returns the sum of the log-density over some dimensions, fast if all share a scale.

        Squares of differences, and of that scale, have to be within the range of their dtype. A
        `log_prob` that is not the one above, of a subclass or in its place, is called.
        """
        scale = narrow(self.scale)
        if scale.numel() != 1 or replaced(self, "log_prob", _log_prob):
            return self.log_prob(value).sum(dim=tuple(dims))
        squares = mse_loss(*torch.broadcast_tensors(self.loc, value), reduction="none")
        scale = scale.reshape(())
        count = math.prod([squares.shape[dim] for dim in dims])
        total = squares.sum(dim=tuple(dims))
        return -count * (scale.log() + HALF_LOG_2PI) - total / scale.square() / 2


_log_prob = Normal.log_prob


class Laplace(dist.Laplace):
    """Laplace, in four passes over the elements."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, elementwise."""
        scale = narrow(self.scale)
        return -(2 * scale).log() - (value - self.loc).abs() / scale


class StudentT(dist.StudentT):
    """Student's t, accurate for any degrees of freedom: the normal distribution is its limit."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, elementwise."""
        df = self.df
        distance = ((value - self.loc) / self.scale).square()
        # the gamma functions grow with df and cancel: only what they leave is computed
        left = stirling_error((df + 1) / 2) - stirling_error(df / 2) - 0.5 - HALF_LOG_2PI
        left = left + df / 2 * torch.log1p(1 / df) - self.scale.log()
        return left - (df + 1) / 2 * torch.log1p(distance / df)


class Bernoulli(dist.Bernoulli):
    """Bernoulli whose data may be booleans, integers, or shares between 0 and 1."""

    support = constraints.unit_interval  # pyright: ignore[reportAssignmentType]

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns minus the cross-entropy, elementwise."""
        return super().log_prob(value.to(self.logits.dtype))


class _Codes(dist.Categorical):
    """Categorical that compiles: Pyro's compares the identity of objects."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability, elementwise."""
        return torch.distributions.Categorical.log_prob(self, value)


class Categorical(_Codes):
    """Categorical whose moments are those of the indicators of the classes, (*, K)."""

    @property
    def mean(self) -> Tensor:
        """The probabilities of the classes, with a last dimension K."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """The variances of the indicators of the classes, with a last dimension K."""
        return self.probs * (1 - self.probs)


class Ordinal(_Codes):
    """Categorical whose moments are those of the number of the level."""

    @property
    def mean(self) -> Tensor:
        """The mean of the level."""
        return (self.probs * self._levels()).sum(dim=-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the level."""
        offset = self._levels() - self.mean[..., None]
        return (self.probs * offset.square()).sum(dim=-1)

    def _levels(self) -> Tensor:
        return torch.arange(self.probs.shape[-1], device=self.probs.device)


class Poisson(dist.Poisson):
    """Poisson that is built from the logarithm of its rate, and keeps it."""

    def __init__(self, log_rate: Tensor) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=False)

    def expand(self, batch_shape: Size, _instance: Distribution | None = None) -> Poisson:
        """Returns the same distribution with its batch expanded to `batch_shape`."""
        return Poisson(self.log_rate.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability, elementwise."""
        x, log_rate = exact(value), exact(self.log_rate)
        log_p = x * log_rate - log_rate.exp() - torch.lgamma(x + 1)
        return log_p.to(self.log_rate.dtype)


class NegativeBinomial(dist.NegativeBinomial):
    r"""Negative binomial with mean :math:`\mu` and variance :math:`\mu + \mu^2 / r`.

    It is accurate for any inverse dispersion :math:`r`: Poisson is its limit.
    """

    def __init__(self, log_mean: Tensor, log_inverse_dispersion: Tensor) -> None:
        self.log_mean, self.log_inverse_dispersion = broadcast_all(
            log_mean, log_inverse_dispersion
        )
        super().__init__(
            self.log_inverse_dispersion.exp(),
            logits=self.log_mean - self.log_inverse_dispersion,
            validate_args=False,
        )

    def expand(self, batch_shape: Size, _instance: Distribution | None = None) -> NegativeBinomial:
        """Returns the same distribution with its batch expanded to `batch_shape`."""
        return NegativeBinomial(
            self.log_mean.expand(batch_shape), self.log_inverse_dispersion.expand(batch_shape)
        )

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """The variance."""
        return self.mean * (1 + self.logits.exp())

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability, elementwise."""
        dtype = self.log_mean.dtype
        x, log_mean = exact(value), exact(self.log_mean)
        log_r = exact(narrow(self.log_inverse_dispersion))
        r = log_r.exp()
        u = softplus(x.log() - log_r, threshold=40)  # log(1 + x / r)
        v = softplus(log_mean - log_r, threshold=40)  # log(1 + mean / r)
        large = x * (log_mean - 1) + (r + x) * (u - v) - u / 2 - torch.lgamma(x + 1)
        # log Gamma(r + x) - log Gamma(r) grows with r and cancels: only what is left is computed
        r = r.to(dtype)
        return large.to(dtype) + (stirling_error(r + value.to(dtype)) - stirling_error(r))


class ZeroInflated(dist.TorchDistribution):
    r"""Zero with probability :math:`\pi`, the gate, else a draw from a distribution of counts."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # pyright: ignore

    def __init__(self, counts: dist.TorchDistribution, gate_logits: Tensor) -> None:
        self.counts, self.gate_logits = counts, gate_logits
        super().__init__(counts.batch_shape, validate_args=False)

    def expand(self, batch_shape: Size, _instance: Distribution | None = None) -> ZeroInflated:
        """Returns the same distribution with its batch expanded to `batch_shape`."""
        return ZeroInflated(self.counts.expand(batch_shape), self.gate_logits.expand(batch_shape))

    @property
    def support(self) -> constraints.Constraint | None:
        """The support, that of the counts."""
        return self.counts.support

    @property
    def gate(self) -> Tensor:
        """The probability of a zero that is not drawn."""
        return self.gate_logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return torch.sigmoid(-self.gate_logits) * self.counts.mean

    @property
    def variance(self) -> Tensor:
        """The variance."""
        spread = self.counts.variance + self.gate * self.counts.mean.square()
        return torch.sigmoid(-self.gate_logits) * spread

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws samples."""
        with torch.no_grad():
            drawn = self.counts.sample(Size(sample_shape))
            return torch.where(torch.bernoulli(self.gate.expand(drawn.shape)) == 1, 0, drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability, elementwise."""
        drawn = logsigmoid(-self.gate_logits) + self.counts.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), drawn), drawn)


class SideBySide(dist.TorchDistribution):
    r"""Distributions of several families, each over some columns, the last batch dimension.

    The mean of a column of classes is the code of the most likely class, and its variance that of
    the indicator of this class, :math:`\pi (1 - \pi)`.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # pyright: ignore

    def __init__(
        self, parts: Sequence[dist.TorchDistribution], names: Sequence[str], dtype: torch.dtype
    ) -> None:
        self.parts, self.names, self.dtype = parts, names, dtype
        self.sizes = [part.batch_shape[-1] for part in parts]
        super().__init__(Size((*parts[0].batch_shape[:-1], len(names))), validate_args=False)

    def expand(self, batch_shape: Size, _instance: Distribution | None = None) -> SideBySide:
        """Returns the same distribution with its batch expanded to `batch_shape`."""
        rows = batch_shape[:-1]
        parts = [
            part.expand(Size((*rows, size)))
            for part, size in zip(self.parts, self.sizes, strict=True)
        ]
        return SideBySide(parts, self.names, self.dtype)

    @property
    def support(self) -> constraints.Constraint:
        """The support of each column."""
        return constraints.cat([part.support for part in self.parts], dim=-1, lengths=self.sizes)

    def column(self, number: int) -> tuple[str, constraints.Constraint]:
        """Returns the name and the support of a column."""
        of = [part for part, size in zip(self.parts, self.sizes, strict=True) for _ in range(size)]
        support = of[number].support
        assert support is not None  # else nothing was checked
        return self.names[number], support

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all families can be reparameterised."""
        return all(part.has_rsample for part in self.parts)

    @property
    def mean(self) -> Tensor:
        """The mean of each column."""
        return self._joined([_moments(part) for part in self.parts])[0]

    @property
    def variance(self) -> Tensor:
        """The variance of each column."""
        return self._joined([_moments(part) for part in self.parts])[1]

    def mixed_moments(self, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the mean and variance of the mixture over the first batch dimension.

        Arguments:
            weight: The weights of its components, with shape (K, B); even if None.
        """
        return self._joined([_mixed_moments(part, weight) for part in self.parts])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws samples, classes as their codes."""
        return self._join([part.sample(Size(sample_shape)) for part in self.parts])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws samples that have gradients."""
        return self._join([part.rsample(Size(sample_shape)) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density or log-probability, elementwise."""
        values = value.split(self.sizes, dim=-1)
        pieces = zip(self.parts, values, strict=True)
        return self._join([part.log_prob(v) for part, v in pieces])

    def _joined(self, moments: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        means, variances = zip(*moments, strict=True)
        return self._join(means), self._join(variances)

    def _join(self, columns: Sequence[Tensor]) -> Tensor:
        return torch.cat([column.to(self.dtype) for column in columns], dim=-1)


def _moments(p: Distribution) -> tuple[Tensor, Tensor]:
    """The mean and variance of some columns; of classes, the likeliest code."""
    return _of_classes(p.probs) if isinstance(p, Categorical) else (p.mean, p.variance)


def _mixed_moments(p: Distribution, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean and variance of a mixture of some columns over the first dimension."""
    if isinstance(p, Categorical):
        return _of_classes(average(p.probs, weight))
    return moments_of_mixture(p.mean, p.variance, weight)


def _of_classes(probs: Tensor) -> tuple[Tensor, Tensor]:
    share, code = probs.max(dim=-1)
    return code, share * (1 - share)


def replaced(p: Distribution, name: str, original: Callable[..., object]) -> bool:
    """Returns whether a distribution, or its class, has another method than the original."""
    return getattr(type(p), name) is not original or name in vars(p)


def narrow(x: Tensor) -> Tensor:
    """Returns a tensor that was expanded as it was before, in the same number of dimensions.

    Example:
        >>> narrow(torch.ones(2, 1).expand(3, 2, 5)).shape
        torch.Size([1, 2, 1])
    """
    for dim, stride in enumerate(x.stride()):
        if stride == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def stirling_error(a: Tensor) -> Tensor:
    r"""Returns :math:`\log \Gamma(a)` less the leading terms of Stirling's series.

    .. math::
        s(a) = \log \Gamma(a) - \left[ (a - \tfrac{1}{2}) \log a - a + \tfrac{1}{2} \log 2 \pi
        \right] = \frac{1}{12 a} - \frac{1}{360 a^3} + \ldots

    A difference of two log-gamma functions of large arguments is right to rounding when the
    leading terms are subtracted on paper.

    Arguments:
        a: Positive numbers, with shape :math:`(*)`.

    Example:
        >>> stirling_error(torch.tensor([0.5, 1e6]))
        tensor([1.5343e-01, 8.3333e-08])
    """
    is_large = a > 10
    # each branch is evaluated at 10 where it is not taken, so that its gradient stays finite
    small, large = torch.where(is_large, 10, a), torch.where(is_large, a, 10)

    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - HALF_LOG_2PI

    y, series = large**-2, torch.zeros_like(a)
    for coefficient in (1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = coefficient + y * series

    return torch.where(is_large, series / large, direct)
