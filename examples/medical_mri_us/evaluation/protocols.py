"""How images are scored: a protocol is a name for definitions that belong together.

A number means nothing without its protocol. The equations are in the documentation, "Evaluation
protocols".
"""

from __future__ import annotations

__all__ = ["PROTOCOLS", "Metric", "Protocol", "parse_protocols", "unavailable"]

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from examples.medical_mri_us.data import Volume
from mmpoe.metrics import PerceptualWeightsUnavailable, lpips, st_lpips

from . import published, strict

Score = Callable[[Volume, Volume, Volume, np.ndarray, set[str]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Metric:
    """A metric of a protocol."""

    name: str
    """Its name in files."""
    label: str
    """How it is written."""
    higher_is_better: bool
    digits: int
    """The number of decimals that are shown."""
    smallest: int = 1
    """The smallest height and width of images that it can be computed for."""


@dataclass(frozen=True)
class Protocol:
    """Definitions that belong together."""

    name: str
    unit: str
    """The unit of averages: ``"case"`` or ``"slice"``."""
    temperature: float
    """The temperature of the latent sample that images are synthesised at; 0 is the mean."""
    metrics: tuple[Metric, ...]
    score: Score
    """Returns one number per unit of a case for each metric, NaN for what is left out. It is given
    the prediction, the truth, the first of the given modalities (all in [-1, 1], with axes (slice,
    depth, lateral)), the field of view, and the names of the metrics to leave out."""
    definition: str
    """The definition of the numbers, in words."""


def parse_protocols(names: str) -> list[Protocol]:
    """Returns the protocols of a list of names with commas between them.

    Raises:
        ValueError: If a name is unknown or none is there.
    """
    found = [name.strip() for name in names.split(",") if name.strip()]
    wrong = [name for name in found if name not in PROTOCOLS]
    if wrong or not found:
        raise ValueError(
            f"'protocol' should be some of {', '.join(PROTOCOLS)}, with commas between them, "
            f"but is {wrong[0] if found else names!r}."
        )
    return [PROTOCOLS[name] for name in dict.fromkeys(found)]


def unavailable(protocol: Protocol, size: int, *, perceptual: bool = True) -> dict[str, str]:
    """Returns which metrics of a protocol cannot be computed here, and why.

    Arguments:
        protocol: The protocol.
        size: The smaller of the height and width of the images, in pixels.
        perceptual: Whether metrics by networks are wanted.
    """
    reasons = {}
    for metric in protocol.metrics:
        if metric.name in PERCEPTUAL and not perceptual:
            reasons[metric.name] = "not asked for"
        elif size < metric.smallest:
            reasons[metric.name] = f"needs images of at least {metric.smallest} pixels"
        elif metric.name in PERCEPTUAL:
            try:
                PERCEPTUAL[metric.name](np.zeros((0, 32, 32)), np.zeros((0, 32, 32)))
            except (PerceptualWeightsUnavailable, ModuleNotFoundError) as error:
                reasons[metric.name] = f"weights absent: {error}"
    return reasons


PERCEPTUAL = {"lpips": lpips, "st_lpips": st_lpips}
"""The metrics by networks, whose weights may be absent."""

PROTOCOLS = {
    "strict": Protocol(
        name="strict",
        unit="case",
        temperature=0.0,
        metrics=(
            Metric("psnr", "PSNR, dB", True, 1),
            Metric("ssim", "SSIM", True, 3, smallest=11),
            Metric("ms_ssim", "MS-SSIM", True, 3, smallest=161),
            Metric("mae", "MAE", False, 4),
            Metric("gmsd", "GMSD", False, 3),
            Metric("st_lpips", "ST-LPIPS", False, 4, smallest=32),
            Metric("lpips", "LPIPS", False, 3, smallest=32),
        ),
        score=strict.score,
        definition="One number per case. Images at the mean of the posterior (temperature 0), on "
        "a fixed range from 0 to 1, 0 outside the field of view. PSNR and MAE count the pixels "
        "of the whole volume in view; SSIM (2-D Gaussian window) and GMSD those of each slice, "
        "then the mean over slices; MS-SSIM, ST-LPIPS and LPIPS (alex) see whole slices.",
    ),
    "mmhvae-2026": Protocol(
        name="mmhvae-2026",
        unit="slice",
        temperature=0.7,
        metrics=(
            Metric("psnr", "PSNR, dB", True, 1),
            Metric("ssim", "row-wise SSIM", True, 3, smallest=7),
            Metric("lpips", "LPIPS", False, 3, smallest=32),
            Metric("l1", "L1 of 255", False, 2),
        ),
        score=published.score,
        definition="The published evaluation, its slips included. One number per slice with any "
        "signal. Images from one latent sample at temperature 0.7, background where the first "
        "given modality is background, cut to whole numbers from 0 to 255. Whole slices, no mask; "
        "the range of PSNR and SSIM is that of each true slice; SSIM takes rows for channels, so "
        "it is the mean of one-dimensional SSIMs; LPIPS (alex).",
    ),
}
"""The protocols, by name."""
