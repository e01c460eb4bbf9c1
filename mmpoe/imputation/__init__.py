"""Calibrated imputation: what makes draws of what is missing spread as they should, and draws."""

__all__ = [
    "Calibration",
    "HeldOut",
    "Imputation",
    "Pooled",
    "Spread",
    "SpreadFit",
    "add_matched_experts",
    "calibrate",
    "fit_spread",
    "impute",
    "rubin_pool",
]

from .calibration import Calibration, calibrate
from .draws import Imputation, impute
from .fitting import SpreadFit, fit_spread
from .held_out import HeldOut
from .matched import add_matched_experts
from .pooling import Pooled, rubin_pool
from .spread import Spread
