r"""The flat models: one latent vector, and a product or a mixture as posterior."""

from __future__ import annotations

__all__ = ["MMVAE", "MVAE", "MoPoEVAE"]

from collections.abc import Mapping

from torch import nn

from mmpoe.hierarchy import LatentGroup
from mmpoe.posteriors import MoE, MoPoE, Posterior

from .core import MultimodalVAE


class MVAE(MultimodalVAE):
    r"""Multimodal VAE with a standard normal prior and a product-of-experts posterior.

    .. math::
        p(z) = \mathcal{N}(0, I), \qquad q(z \mid x_s) \propto p(z) \prod_{m \in s} e_m(z; x_m)

    Arguments:
        encoders: For each modality, a module that returns the mean and log standard deviation of
            its expert, stacked: shape :math:`(N, 2D)`.
        decoders: For each modality, a likelihood that maps :math:`z`, with shape :math:`(N, D)`,
            to :math:`p(x_m \mid z)`.
        latent_dim: The number of latent dimensions :math:`D`; by default taken from what
            the encoders return, in each call.
        posterior: The rule that fuses prior and experts, a plain :class:`~mmpoe.posteriors.PoE` by
            default.

    References:
        | Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018)
        | https://arxiv.org/abs/1802.05335

    Example:
        >>> from mmpoe.likelihoods import Normal
        >>> vae = MVAE({"a": nn.Linear(3, 4)}, {"a": Normal(nn.Linear(2, 3))})
        >>> vae({"a": torch.zeros(5, 3)}).likelihoods["a"].mean.shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        latent_dim: int | None = None,
        *,
        posterior: Posterior | None = None,
    ) -> None:
        shape = None if latent_dim is None else (latent_dim,)
        group = LatentGroup(shape, nn.Identity(), posterior=posterior)
        super().__init__(encoders, [group], decoders)

    @property
    def posterior(self) -> Posterior:
        """The rule that fuses prior and experts."""
        return self.groups[0].posterior


class MMVAE(MVAE):
    r"""Multimodal VAE with a standard normal prior and a mixture-of-experts posterior.

    .. math::
        p(z) = \mathcal{N}(0, I), \qquad
        q(z \mid x_s) = \frac{1}{|s|} \sum_{m \in s} \mathcal{N}(z; \mu_m(x_m), \sigma_m^2(x_m))

    A forward pass draws one component for each row. Components are the encoders' Gaussians as they
    are, without the prior.

    Arguments:
        encoders: For each modality, a module that returns the mean and log standard deviation of
            its component, stacked: shape :math:`(N, 2D)`.
        decoders: For each modality, a likelihood that maps :math:`z`, with shape :math:`(N, D)`,
            to :math:`p(x_m \mid z)`.
        latent_dim: The number of latent dimensions :math:`D`; by default taken from what
            the encoders return, in each call.

    References:
        | Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models
          (Shi et al., 2019)
        | https://arxiv.org/abs/1911.03393
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        latent_dim: int | None = None,
    ) -> None:
        super().__init__(encoders, decoders, latent_dim, posterior=MoE())


class MoPoEVAE(MVAE):
    r"""Multimodal VAE whose posterior is the mixture of the products of all non-empty subsets.

    .. math::
        q(z \mid x_s) = \frac{1}{2^{|s|} - 1} \sum_{\emptyset \ne A \subseteq s} q_A(z), \qquad
        q_A(z) \propto p(z) \prod_{m \in A} e_m(z; x_m)

    A forward pass draws one component for each row.

    Arguments:
        encoders: For each modality, a module that returns the mean and log standard deviation of
            its expert, stacked: shape :math:`(N, 2D)`.
        decoders: For each modality, a likelihood that maps :math:`z`, with shape :math:`(N, D)`,
            to :math:`p(x_m \mid z)`.
        latent_dim: The number of latent dimensions :math:`D`; by default taken from what
            the encoders return, in each call.
        prior_in: Which products the prior is a factor of, see :class:`~mmpoe.posteriors.PoE`;
            ``"full"`` is the rule of the code published with the paper.

    References:
        | Generalized Multimodal ELBO (Sutter et al., 2021)
        | https://arxiv.org/abs/2105.02470
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        latent_dim: int | None = None,
        *,
        prior_in: str = "always",
    ) -> None:
        super().__init__(encoders, decoders, latent_dim, posterior=MoPoE(prior_in=prior_in))
