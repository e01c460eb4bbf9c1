r"""Objectives under missing modalities: one number per sample, never averaged."""

__all__ = [
    "balanced",
    "collapsed",
    "cyclical",
    "effective_sample_size",
    "elbo",
    "free_bits",
    "group_kl",
    "log_conditional",
    "log_marginal",
    "log_predictive",
    "log_weights",
    "mhvae",
    "mixture_elbo",
    "mixture_iwae",
    "mmhvae",
    "mmvae",
    "mmvae_plus",
    "mopoe",
    "mvae",
    "mvtcae",
    "not_miwae",
    "posterior_matching",
    "warmup",
]

from .annealing import balanced, collapsed, cyclical, free_bits, group_kl, warmup
from .bounds import elbo
from .importance import (
    effective_sample_size,
    log_conditional,
    log_marginal,
    log_predictive,
    log_weights,
)
from .matching import posterior_matching
from .missingness import not_miwae
from .mixtures import mixture_elbo, mixture_iwae
from .presets import mhvae, mmhvae, mmvae, mmvae_plus, mopoe, mvae, mvtcae
