r"""Likelihoods of counts: Poisson, negative binomial, and both with more zeros."""

from __future__ import annotations

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial", "ZeroInflatedPoisson"]

import pyro.distributions as dist
from torch import Tensor, nn

from mmpoe.gaussian import widen

from . import _elements as elements
from .base import Likelihood, learned


class _Counts(Likelihood):
    """Counts whose mean is proportional to an exposure."""

    def __init__(self, network: nn.Module, *, exposure: str | None = None) -> None:
        super().__init__(network)
        if not (exposure is None or isinstance(exposure, str)):
            raise ValueError(
                f"'exposure' should be the name of a covariate, but is of type "
                f"{type(exposure).__name__}."
            )
        self.exposure = exposure


class Poisson(_Counts):
    r"""Poisson likelihood :math:`p(x \mid z) = \prod_i \lambda_i^{x_i} e^{-\lambda_i} / x_i!`.

    Mean and variance are both :math:`\lambda`. With an exposure :math:`e` (observed time, area,
    size factor or library size), it is :math:`e \lambda`.

    Arguments:
        network: Returns the logarithms of the rates, :math:`\log \lambda_i = f_i(z)`, with shape
            :math:`(N, *event)`.
        exposure: The name of the covariate that multiplies the mean: positive, with shape
            :math:`(N)`, :math:`(N, 1)` or one that broadcasts to :math:`(N, *event)`. None is an
            exposure of 1.

    Example:
        >>> Poisson(nn.Identity())(torch.zeros(2, 3)).mean
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
        >>> likelihood = Poisson(nn.Identity(), exposure="years")
        >>> likelihood(torch.zeros(2, 3), context={"years": torch.tensor([0.5, 2.0])}).mean
        tensor([[0.5000, 0.5000, 0.5000],
                [2.0000, 2.0000, 2.0000]])
    """

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise Poisson distribution with log rate `phi`."""
        return elements.Poisson(phi)


class _Dispersed(_Counts):
    """Counts with a learned inverse dispersion."""

    def __init__(
        self,
        network: nn.Module,
        inverse_dispersion: float | Tensor = 1.0,
        *,
        exposure: str | None = None,
    ) -> None:
        super().__init__(network, exposure=exposure)
        start = self._positive("inverse_dispersion", inverse_dispersion)
        self.log_inverse_dispersion = learned(start)

    @property
    def inverse_dispersion(self) -> Tensor:
        """The inverse dispersion r."""
        return widen(self.log_inverse_dispersion).exp()


class NegativeBinomial(_Dispersed):
    r"""Negative binomial likelihood: counts that vary more than Poisson ones.

    .. math::
        p(x \mid z) = \prod_i \frac{\Gamma(x_i + r)}{\Gamma(r) \, x_i!}
        \left( \frac{\mu_i}{r + \mu_i} \right)^{x_i} \left( \frac{r}{r + \mu_i} \right)^r

    The variance is :math:`\mu + \mu^2 / r`: Poisson is the limit of large :math:`r`, and the
    log-probability is right to rounding on the way there.

    Arguments:
        network: Returns the logarithms of the means, :math:`\log \mu_i = f_i(z)`, with shape
            :math:`(N, *event)`.
        inverse_dispersion: Where the inverse dispersion :math:`r` starts, which is learned: a
            number that all elements share, or a tensor with one for each, broadcastable to the
            event shape (``torch.ones(genes)``).
        exposure: As for :class:`Poisson`.

    Raises:
        ValueError: If `inverse_dispersion` is not positive and finite.

    References:
        | Deep Generative Modeling for Single-Cell Transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2

    Example:
        >>> NegativeBinomial(nn.Identity(), inverse_dispersion=0.5)(torch.zeros(1, 2)).variance
        tensor([[3., 3.]], grad_fn=<MulBackward0>)
    """

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise negative binomial distribution with log mean `phi`."""
        return elements.NegativeBinomial(phi, widen(self.log_inverse_dispersion))


class ZeroInflatedPoisson(_Counts):
    r"""Poisson likelihood with more zeros: an element is 0 with probability :math:`\pi_i`.

    .. math::
        p(x \mid z) = \prod_i \big[ \pi_i \, [x_i = 0] + (1 - \pi_i) \,
        \mathrm{Poisson}(x_i; \lambda_i) \big]

    Arguments:
        network: Returns :math:`\log \lambda_i` and the logit of :math:`\pi_i`, stacked in this
            order, with shape :math:`(N, 2, *event)`.
        exposure: As for :class:`Poisson`. It does not change :math:`\pi`.

    References:
        | Zero-Inflated Poisson Regression, with an Application to Defects in Manufacturing
          (Lambert, 1992)
        | https://doi.org/10.2307/1269547

    Example:
        >>> ZeroInflatedPoisson(nn.Identity())(torch.zeros(1, 2, 3)).mean
        tensor([[0.5000, 0.5000, 0.5000]])
    """

    outputs = 2

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise distribution with log rate and gate logit `phi`."""
        log_rate, gate = phi.unbind(dim=-1)
        return elements.ZeroInflated(elements.Poisson(log_rate), gate)


class ZeroInflatedNegativeBinomial(_Dispersed):
    r"""Negative binomial likelihood with more zeros: 0 with probability :math:`\pi_i`.

    .. math::
        p(x \mid z) = \prod_i \big[ \pi_i \, [x_i = 0] + (1 - \pi_i) \,
        \mathrm{NB}(x_i; \mu_i, r) \big]

    Arguments:
        network: Returns :math:`\log \mu_i` and the logit of :math:`\pi_i`, stacked in this order,
            with shape :math:`(N, 2, *event)`.
        inverse_dispersion: As for :class:`NegativeBinomial`.
        exposure: As for :class:`Poisson`. It does not change :math:`\pi`.

    Raises:
        ValueError: If `inverse_dispersion` is not positive and finite.

    References:
        | Deep Generative Modeling for Single-Cell Transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2
    """

    outputs = 2

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the elementwise distribution with log mean and gate logit `phi`."""
        log_mean, gate = phi.unbind(dim=-1)
        base = elements.NegativeBinomial(log_mean, widen(self.log_inverse_dispersion))
        return elements.ZeroInflated(base, gate)
