"""Scores of imputations: images, calibration, coherence; and their means and paired tests.

Scores are never averaged: one number per image, per sample or per element, NaN for what is not
scored. :func:`mean_with_error` averages them, and :func:`paired_table` compares systems.
"""

__all__ = [
    "PerceptualWeightsUnavailable",
    "conditional_coherence",
    "coverage",
    "crps",
    "energy_score",
    "gmsd",
    "joint_coherence",
    "linear_functionals",
    "lpips",
    "mean_with_error",
    "ms_ssim",
    "paired_table",
    "per_case",
    "project",
    "psnr",
    "rank_histogram",
    "ssim",
    "st_lpips",
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
from .perceptual import PerceptualWeightsUnavailable, lpips, st_lpips
from .significance import mean_with_error, paired_table, per_case
from .structure import gmsd, ms_ssim
