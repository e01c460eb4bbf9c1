r"""The hierarchical models: several latent groups, and a product for each subset."""

from __future__ import annotations

__all__ = ["MHVAE", "MMHVAE"]

from .core import MultimodalVAE


class MMHVAE(MultimodalVAE):
    r"""Hierarchical multimodal VAE, trained on a mixture of products of experts.

    .. math::
        q(z_l \mid z_{>l}, x_s) \propto p(z_l \mid z_{>l}) \prod_{m \in s} e_m(z_l; x_m, z_{>l})

    The posterior given a subset is one product in every group, and :attr:`family` is ``"full"``:
    evidence, predictions and imputations condition on the product of all that is given. The
    mixture :math:`\sum_{s \subseteq r} \alpha_{s \mid r} \, q(z \mid x_s)` of the paper is that of
    its objective, :func:`mmpoe.objectives.mmhvae`, which averages over the subsets of what a row
    observed. Arguments are those of :class:`~mmpoe.models.MultimodalVAE`; for images,
    :func:`~mmpoe.models.image_mmhvae` builds all parts.

    References:
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632
    """


class MHVAE(MultimodalVAE):
    r"""Hierarchical multimodal VAE, trained on all that was observed and on single modalities.

    .. math::
        q(z_l \mid z_{>l}, x_s) \propto p(z_l \mid z_{>l}) \prod_{m \in s} e_m(z_l; x_m, z_{>l})

    It is the network of :class:`MMHVAE`, for another objective: :func:`mmpoe.objectives.mhvae`.
    Arguments are those of :class:`~mmpoe.models.MultimodalVAE`.

    References:
        | Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations
          (Dorent et al., 2023)
        | https://arxiv.org/abs/2309.08747
    """
