"""How good imputations are: images, calibration, coherence, and how sure a comparison is.

Scores are never averaged: one number per image, per sample or per element, NaN for what is not
scored. :func:`mean_with_error` averages them, and :func:`paired_table` compares systems.
"""

__all__ = [
    "Comparison",
    "Mean",
    "PairedTable",
    "conditional_coherence",
    "coverage",
    "crps",
    "energy_score",
    "joint_coherence",
    "linear_functionals",
    "mean_with_error",
    "paired_table",
    "per_case",
    "project",
    "psnr",
    "rank_histogram",
    "ssim",
]

from .calibration import (
    coverage,
    crps,
    energy_score,
    linear_functionals,
    project,
    rank_histogram,
)
from .coherence import conditional_coherence, joint_coherence
from .images import psnr, ssim
from .significance import (
    Comparison,
    Mean,
    PairedTable,
    mean_with_error,
    paired_table,
    per_case,
)
