r"""Evidence by importance sampling, for any subset of the modalities.

Estimates of the evidence draw samples from a posterior and weigh them. Imputation and objectives
with several samples share how.
"""

__all__ = [
    "effective_sample_size",
    "log_conditional",
    "log_marginal",
    "log_predictive",
    "log_weights",
]

from .estimates import (
    effective_sample_size,
    log_conditional,
    log_marginal,
    log_predictive,
    log_weights,
)
