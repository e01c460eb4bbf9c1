"""Subjects of smooth blobs, each with a round tumour, for the tests of downstream tasks."""

import numpy as np
from scipy import ndimage

from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.modalities import MODALITIES

SPACING = (2.0, 1.5, 1.5)


def subject(name="a", seed=0, modalities=MODALITIES, shape=(8, 64, 64)):
    """Blobs of several sizes in all modalities, another contrast in each, and a round tumour."""
    rng = np.random.default_rng(seed)
    depth, lateral = np.mgrid[: shape[1], : shape[2]] / shape[1]
    fov = np.broadcast_to(depth > 0.6 * np.abs(lateral - 0.5), shape).copy()
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), (1, 3, 3))
    smooth = np.tanh(smooth / smooth.std())
    tumour = np.hypot(depth - 0.5, lateral - 0.55) < 0.15
    images = {}
    for m in modalities:
        contrast = {"us": np.abs(smooth) - 0.5, "t2": smooth}.get(m, -smooth)
        images[m] = np.where(fov, contrast * 0.8 + 0.4 * tumour, -1).clip(-1, 1).astype("f4")
    label = np.broadcast_to(np.where(tumour, 1, 0), shape).astype(np.uint8) * fov
    return Subject(name, images, fov, label.astype(np.uint8), spacing=SPACING)
