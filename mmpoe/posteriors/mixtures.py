r"""Mixtures of products of experts, one component of which is fused at a time."""

from __future__ import annotations

__all__ = ["MoE", "MoPoE"]

from .products import PoE


class MoE(PoE):
    r"""Mixture of experts: one given modality, drawn evenly, is the posterior.

    .. math:: q(z \mid x_s) = \frac{1}{|s|} \sum_{m \in s} \mathcal{N}(z; \mu_m, \sigma_m^2)

    A call fuses one component: what each row is given.

    Arguments:
        clamp: The limit of the soft clamp, see :class:`Posterior`.
        prior_in: Which components the prior is a factor of, see :class:`PoE`.

    References:
        | Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models
          (Shi et al., 2019)
        | https://arxiv.org/abs/1911.03393
    """

    family = "singletons"

    def __init__(self, clamp: float | None = None, *, prior_in: str = "never") -> None:
        super().__init__(clamp=clamp, prior_in=prior_in)


class MoPoE(PoE):
    r"""Mixture of products of experts: one non-empty subset of what is given, drawn evenly.

    .. math::
        q(z \mid x_s) = \frac{1}{2^{|s|} - 1} \sum_{\emptyset \ne A \subseteq s} q_A(z), \qquad
        q_A(z) \propto p(z) \prod_{m \in A} \mathcal{N}(z; \mu_m, \sigma_m^2)

    A call fuses one component: what each row is given.

    Arguments:
        clamp: The limit of the soft clamp, see :class:`Posterior`.
        prior_in: Which components the prior is a factor of, see :class:`PoE`.

    References:
        | Generalized Multimodal ELBO (Sutter et al., 2021)
        | https://arxiv.org/abs/2105.02470
    """

    family = "powerset"

    def __init__(self, clamp: float | None = None, *, prior_in: str = "always") -> None:
        super().__init__(clamp=clamp, prior_in=prior_in)
