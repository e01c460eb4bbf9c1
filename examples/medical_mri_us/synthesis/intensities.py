"""The scale of intensities at the input and the output of a model."""

from __future__ import annotations

__all__ = ["FACTS", "SCALE", "to_model"]

from typing import Any

import numpy as np

from examples.medical_mri_us.data import Mask, Volume, normalise

SCALE = 255.0
"""The intensity that 1 is written as, on the scale from 0 to 1 that models work on."""

FACTS: dict[str, Any] = {
    "normalisation": (
        "Ultrasound is from 0 to 255; any other volume is scaled so that the median of what is in "
        "view lands on a fixed value."
    ),
    "intensity_scale": SCALE,
}
"""The words on intensities in the description of a model that was trained here."""

PUBLISHED = "published_mmhvae"
"""The models that were not trained here take what their authors normalised."""

PERCENTILE = 99.95
"""The percentile of intensities above 0 at which the published normalisation cuts off."""


def to_model(image: Volume, fov: Mask, modality: str, description: dict[str, Any]) -> Volume:
    """Maps intensities to the range [-1, 1] of a model, -1 outside the field of view.

    Published weights take each volume from its least to its 99.95th percentile above 0.

    Arguments:
        image: The intensities.
        fov: The field of view, with the same shape.
        modality: The name of the modality.
        description: The description of the model.

    Raises:
        ValueError: If intensities in view cannot be scaled.
    """
    if np.ptp(image[fov]) == 0:
        raise ValueError("it is constant in view; leave it out if it is missing")
    if description.get("model") != PUBLISHED or "normalisation" in description:
        return normalise(image, fov, modality)
    positive = image[fov & (image > 0)]
    if positive.size == 0:
        raise ValueError("nothing in view is above 0")
    low, high = positive.min(), np.percentile(positive, PERCENTILE)
    unit = np.clip((image - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    scaled = -255 / 256 + (1 + 255 / 256) * unit
    return np.where(fov & (image > 0), scaled, -1).astype(np.float32)
