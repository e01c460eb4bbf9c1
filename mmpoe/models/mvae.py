r"""MVAE: the flat model, one latent vector and a product of experts."""

from __future__ import annotations

__all__ = ["MVAE"]

from collections.abc import Mapping

from torch import nn

from mmpoe.hierarchy import LatentGroup

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
        latent_dim: The number of latent dimensions :math:`D`; by default taken from the encoders
            the first time that one runs.

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
    ) -> None:
        shape = None if latent_dim is None else (latent_dim,)
        super().__init__(encoders, [LatentGroup(shape, nn.Identity())], decoders)
