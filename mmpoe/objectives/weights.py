r"""Weights of the subsets of a mixture, as parameters."""

from __future__ import annotations

__all__ = ["SubsetWeights"]

import torch
from torch import Tensor, nn

from mmpoe.missing import subsets


class SubsetWeights(nn.Module):
    r"""Learned weights of a family of subsets, for each row those of what it observed.

    .. math::
        \alpha_{s \mid r} = \frac{e^{a_s}}{\sum_{t \subseteq r} e^{a_t}}

    A call returns what objectives take as `family`. The weights are even at first.

    A weighted average of bounds, as :func:`mixture_elbo` is, is best where all weight is on the
    subset with the best bound. Adding :math:`\tau` times the entropy of the weights, as CoDE-VAE
    does, moves the best weights to :math:`\alpha_{s \mid r} \propto e^{\mathcal{L}_s / \tau}`;
    with it, the sum is no bound. The bound of the mixture itself, :func:`mixture_iwae`, has its
    best weights where the mixture is closest to :math:`p(z \mid x_r)`. Decode all subsets: with
    ``decode="drawn"``, reconstructions tell the weights nothing.

    Arguments:
        modalities: The number of modalities :math:`M`.
        family: The family of subsets, its name or patterns, see :func:`mmpoe.missing.subsets`;
            its own weights do not count.

    Raises:
        ValueError: If there is no modality, or as :func:`mmpoe.missing.subsets`.

    References:
        | Aggregation of Dependent Expert Distributions in Multimodal Variational Autoencoders
          (Mancisidor et al., 2025)
        | https://arxiv.org/abs/2505.01134

    Example:
        >>> from mmpoe.objectives import mixture_elbo
        >>> from mmpoe.oracles import LinearGaussian
        >>> oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=3)
        >>> x, _ = oracle.sample(5)
        >>> observed = torch.ones(5, 2, dtype=torch.bool)
        >>> family = SubsetWeights(2)(observed)  # 3 subsets and their weights
        >>> bound = mixture_elbo(oracle.model(), x, observed, family=family)
        >>> log_weight = family[1].clamp(min=1e-30).log()  # finite where a weight is 0
        >>> total = bound - (family[1] * log_weight).sum(dim=0)
    """

    patterns: Tensor

    def __init__(self, modalities: int, family: str | Tensor = "powerset") -> None:
        super().__init__()
        if modalities < 1:
            raise ValueError(f"'modalities' should be at least 1, but is {modalities}.")
        complete = torch.ones(1, modalities, dtype=torch.bool)
        given, weight = subsets(complete, family)
        self.register_buffer("patterns", given[:, 0][weight[:, 0] > 0])  # (S, M)
        self.logits = nn.Parameter(torch.zeros(len(self.patterns)))

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the subsets of what each row observed, and their weights.

        Arguments:
            observed: What was observed, boolean, with shape (B, M).

        Returns:
            The subsets, boolean, with shape (S, B, M), and their weights, with shape (S, B). Those
            of a row sum to 1, and those of a row that observed nothing are 0.

        Raises:
            ValueError: If `observed` does not have a column for each modality, or the family has
                no subset for a row that observed something.
        """
        given, even = subsets(observed.to(self.logits.device), self.patterns)
        inside = even > 0
        logits = torch.where(inside | ~inside.any(dim=0), self.logits[:, None], -torch.inf)
        return given, torch.where(inside, logits.softmax(dim=0), 0)
