"""The definitions of the protocol ``strict``: one number per case, in view, on a fixed range."""

from __future__ import annotations

__all__ = ["score"]

from collections.abc import Callable

import numpy as np

from examples.medical_mri_us.data import Volume
from mmpoe.metrics import gmsd, lpips, ms_ssim, psnr, ssim, st_lpips


def score(
    prediction: Volume, truth: Volume, first: Volume, fov: np.ndarray, without: set[str]
) -> dict[str, np.ndarray]:
    """Scores a case as a whole; see `Protocol`. The first given modality is not used."""
    shown = fov.any(axis=(1, 2))
    fov = fov[shown]
    image, true = (
        np.where(fov, (np.clip(v[shown], -1, 1) + 1) / 2, 0) for v in (prediction, truth)
    )
    whole = (-1, fov.shape[-1])  # all slices as one image
    metrics: dict[str, Callable[[], float]] = {
        "psnr": lambda: float(
            psnr(image.reshape(whole), true.reshape(whole), mask=fov.reshape(whole))
        ),
        "ssim": lambda: _mean(ssim(image, true, mask=fov)),
        "ms_ssim": lambda: _mean(ms_ssim(image, true)),
        "mae": lambda: float(np.abs(image - true)[fov].mean()),
        "gmsd": lambda: _mean(gmsd(image, true, mask=fov)),
        "st_lpips": lambda: _mean(st_lpips(image, true, net="alex")),
        "lpips": lambda: _mean(lpips(image, true, net="alex")),
    }
    return {
        name: np.array([np.nan if name in without else metric()])
        for name, metric in metrics.items()
    }


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")
