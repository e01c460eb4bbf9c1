r"""Evidence by importance sampling: samples from posteriors, their weights, and estimates.

:func:`propose` draws samples and :func:`log_ratio` weighs them against the prior; estimates of the
evidence, imputation and objectives share both.
"""

__all__ = [
    "effective_sample_size",
    "log_conditional",
    "log_marginal",
    "log_posterior",
    "log_predictive",
    "log_ratio",
    "log_weights",
    "propose",
]

from .estimates import (
    effective_sample_size,
    log_conditional,
    log_marginal,
    log_predictive,
    log_weights,
)
from .samples import log_posterior, log_ratio, propose
