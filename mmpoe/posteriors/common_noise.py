r"""A product of experts that share noise."""

from __future__ import annotations

__all__ = ["CommonNoisePoE"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmpoe import kernels

from .base import Draw, Factors, Posterior


class CommonNoisePoE(Posterior):
    r"""Product of experts that share noise, and so cannot together be sharper than that noise.

    With the precisions relative to the prior, :math:`R = \sum_{m \in s} \sigma_p^2 / \sigma_m^2`,

    .. math::
        q(z \mid x_s) \propto p(z) \, \Big[ \prod_{m \in s}
        \mathcal{N}(z; \mu_m, \sigma_m^2) \Big]^{1 / (1 + \gamma R)}

    All experts see :math:`z` through one noise, of variance :math:`\gamma \sigma_p^2`, on top of
    their own. In a hierarchy, this is the noise of the groups below: the rule is the exact
    posterior, in every group and for every subset, of a linear-Gaussian chain that all modalities
    share, where the plain product counts the same evidence twice. :math:`\gamma = 0` is the plain
    product to the bit. The rule does not make samples across modalities wide enough: their spread
    is a matter of the objective.

    It is the consensus of dependent experts (CoDE), times the prior, of experts whose errors have
    the covariance

    .. math::
        \Sigma = \operatorname{diag}(\sigma_m^2) + \gamma \sigma_p^2 \mathbf{1} \mathbf{1}^\top,
        \qquad q(z \mid x_s) \propto p(z) \, \mathcal{N}\Big(z;
        \frac{\mathbf{1}^\top \Sigma^{-1} \mu}{\mathbf{1}^\top \Sigma^{-1} \mathbf{1}},
        \frac{1}{\mathbf{1}^\top \Sigma^{-1} \mathbf{1}}\Big)

    over what is given: in O(M) and in the fused kernel, where CoDE inverts a matrix for each
    latent. The published CoDE-VAE has errors of one correlation, :math:`\Sigma_{mn} = \rho
    \sigma_m \sigma_n`, in place of one noise, and no prior in the product.

    Arguments:
        channels: The number of channels: the size of the first event dimension of z.
        gamma: The common noise at the start, one number or one per channel; learned from
            there if all of it is positive, and fixed if not.
        clamp: The limit of the soft clamp, see :class:`Posterior`.

    Raises:
        ValueError: If `gamma` is negative or has the wrong number of channels.

    References:
        | Combining Probability Distributions from Dependent Information Sources (Winkler, 1981)
        | https://doi.org/10.1287/mnsc.27.4.479
        | Aggregation of Dependent Expert Distributions in Multimodal Variational Autoencoders
          (Mancisidor et al., 2025)
        | https://arxiv.org/abs/2505.01134

    Example:
        >>> rule = CommonNoisePoE(1, gamma=1.0)
        >>> experts = [torch.zeros(1, 1)] * 100
        >>> rule(experts, experts, torch.ones(1, 100).bool()).log_scale.exp().square()
        tensor([[0.5025]], grad_fn=<PowBackward0>)
    """

    log_gamma: Tensor

    def __init__(
        self,
        channels: int,
        gamma: float | Sequence[float] = 0.05,
        clamp: float | None = None,
    ) -> None:
        super().__init__(clamp)
        if isinstance(gamma, Sequence) or getattr(gamma, "ndim", 0) == 1:
            values = [float(g) for g in gamma]  # pyright: ignore[reportGeneralTypeIssues]
        else:
            values = [float(gamma)] * channels
        if len(values) != channels or not all(math.isfinite(g) and g >= 0 for g in values):
            raise ValueError(
                f"'gamma' should be one number of at least 0, or one per channel ({channels}), "
                f"but is {gamma!r}."
            )
        log_gamma = torch.tensor([values]).log()  # (1, C), as in the state dicts of older versions
        if all(g > 0 for g in values):
            self.log_gamma = nn.Parameter(log_gamma)
        else:
            self.register_buffer("log_gamma", log_gamma)

    @property
    def gamma(self) -> Tensor:
        """The common noise, with shape (channels)."""
        return self.log_gamma[0].exp()

    def fuse(self, factors: Factors, draw: Draw) -> kernels.Product:
        """Fuses factors, see :meth:`Posterior.fuse`."""
        dtype = torch.promote_types(self.log_gamma.dtype, factors.loc[0].dtype)
        gamma = self.log_gamma[0].to(dtype).exp()
        return draw.product(factors, clamp=self.clamp, common_noise=gamma)
