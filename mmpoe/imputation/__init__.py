"""Calibrated imputation: matched experts for a trained model, and draws of what is missing."""

__all__ = [
    "Calibration",
    "Imputation",
    "Pooled",
    "add_matched_experts",
    "calibrate",
    "impute",
    "rubin_pool",
]

from .calibration import Calibration, calibrate
from .draws import Imputation, impute
from .matched import add_matched_experts
from .pooling import Pooled, rubin_pool
