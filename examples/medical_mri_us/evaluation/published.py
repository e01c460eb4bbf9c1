"""The definitions of the published evaluation of MMHVAE, protocol ``mmhvae-2026``."""

from __future__ import annotations

__all__ = ["quantise", "score"]

import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.data import Volume
from mmpoe.extras import needs
from mmpoe.metrics import lpips

Integers = npt.NDArray[np.int32]


def quantise(image: Volume) -> Integers:
    """Maps [-1, 1] to whole numbers from 0 to 255, cutting off what is behind the point."""
    return (np.float32(255) * (image + np.float32(1)) / np.float32(2)).astype(np.int32)


def score(
    prediction: Volume, truth: Volume, first: Volume, fov: np.ndarray, without: set[str]
) -> dict[str, np.ndarray]:
    """Scores each slice of a case that has any signal; see `Protocol`.

    Nothing is masked: the field of view is not used. Outputs are background where the first given
    modality is, as the published network makes them.
    """
    image = quantise(np.where(first > -1, prediction, np.float32(-1)))
    true = quantise(truth)
    signal = [k for k in range(len(true)) if true[k].sum() > 0]
    scores = {name: np.full(len(signal), np.nan) for name in ("psnr", "ssim", "lpips", "l1")}
    for row, k in enumerate(signal):
        scores["psnr"][row] = _psnr(true[k], image[k])
        scores["l1"][row] = np.abs(true[k] - image[k]).mean()
        if "ssim" not in without:
            scores["ssim"][row] = _row_ssim(true[k], image[k])
    if "lpips" not in without and signal:
        scores["lpips"] = lpips(image[signal], true[signal], data_range=255.0, net="alex")
    return scores


def _psnr(true: Integers, image: Integers) -> float:
    with needs("metrics"):
        from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):  # a constant slice, or one without error
        return float(peak_signal_noise_ratio(true, image, data_range=true.max() - true.min()))


def _row_ssim(true: Integers, image: Integers) -> float:
    with needs("metrics"):
        from skimage.metrics import structural_similarity

    with np.errstate(divide="ignore", invalid="ignore"):  # a constant slice has no range
        found = structural_similarity(
            true, image, data_range=true.max() - true.min(), channel_axis=0
        )
    return float(np.asarray(found))
