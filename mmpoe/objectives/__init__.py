r"""Objectives under missing modalities: bounds with one number per sample, never averaged.

An objective calls a model's verbs: :meth:`~mmpoe.models.MultimodalVAE.encode`,
:meth:`~mmpoe.models.MultimodalVAE.infer`, :meth:`~mmpoe.models.MultimodalVAE.decode` and
:meth:`~mmpoe.models.MultimodalVAE.log_likelihood`. The other functions say how a batch fares,
:func:`group_kl` and :func:`collapsed`, or change what divergences cost by their averages over the
batch, :func:`free_bits` and :func:`balanced`.
"""

__all__ = [
    "SubsetWeights",
    "balanced",
    "collapsed",
    "elbo",
    "free_bits",
    "group_kl",
    "log_marginal",
    "mhvae",
    "mixture_elbo",
    "mixture_iwae",
    "mmhvae",
    "mmvae",
    "mmvae_plus",
    "mmvm",
    "mopoe",
    "mvae",
    "mvtcae",
    "not_miwae",
    "posterior_matching",
    "warmup",
]

from mmpoe.evidence import log_marginal

from .annealing import balanced, collapsed, free_bits, group_kl, warmup
from .bounds import elbo
from .matching import posterior_matching
from .missingness import not_miwae
from .mixtures import mixture_elbo, mixture_iwae
from .presets import mhvae, mmhvae, mmvae, mmvae_plus, mmvm, mopoe, mvae, mvtcae
from .weights import SubsetWeights
