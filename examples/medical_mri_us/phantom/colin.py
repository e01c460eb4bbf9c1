"""A second anatomy: the brain of one person, Colin27, where Debian's mricron-data is installed."""

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from .tissues import Array

__all__ = ["COLIN27", "read_colin27", "three_classes"]

COLIN27 = Path("/usr/share/mricron/templates/ch2bet.nii.gz")
"""The brain-extracted T1 image of Debian's package."""


def read_colin27() -> tuple[Array, np.ndarray]:
    """Divides the brain of Colin27 into fluid, grey and white matter.

    Returns:
        The three fractions, with shape (3, X, Y, Z), and the affine of the image.

    Raises:
        FileNotFoundError: If mricron-data is not installed.
    """
    if not COLIN27.is_file():
        raise FileNotFoundError(
            f"The anatomy 'colin27' comes with Debian's package mricron-data, but {COLIN27} is "
            "not there. Install it with: apt-get install mricron-data; or choose 'mni'."
        )
    image = nib.Nifti1Image.from_filename(COLIN27)
    affine = np.asarray(image.affine)
    if not np.array_equal(affine[:3, :3], np.eye(3)):
        raise RuntimeError("Colin27 of mricron-data is no longer on the 1 mm grid expected.")
    t1 = np.asarray(image.dataobj, dtype=np.float32)
    inside = np.asarray(ndimage.binary_closing(t1 > 0, iterations=2))
    fractions = three_classes(t1, inside)
    fractions = np.stack([ndimage.gaussian_filter(part, 0.5) for part in fractions])
    fractions *= inside / np.maximum(fractions.sum(0), 1e-6)
    return fractions.astype(np.float32), affine


def three_classes(t1: Array, inside: np.ndarray, iterations: int = 80) -> Array:
    r"""Fits three Gaussians to the intensities of a T1 image by expectation maximisation.

    Arguments:
        t1: The image, with shape :math:`(*)`.
        inside: Where the brain is, with the same shape.
        iterations: The number of steps.

    Returns:
        The probability of fluid (darkest), grey and white matter of each voxel, 0 outside the
        brain, with shape :math:`(3, *)`.
    """
    values = t1[inside]
    counts, edges = np.histogram(values, 256)
    level = 0.5 * (edges[1:] + edges[:-1])
    mean = np.percentile(values, [8, 40, 80])
    scale = np.full(3, values.std() / 2)
    weight = np.full(3, 1 / 3)

    def responsibility(intensity: np.ndarray) -> np.ndarray:
        log = np.log(weight / scale) - 0.5 * ((intensity[..., None] - mean) / scale) ** 2
        density = np.exp(log - log.max(axis=-1, keepdims=True))
        return density / density.sum(axis=-1, keepdims=True)

    for _ in range(iterations):
        share = responsibility(level) * counts[:, None]  # (256, 3)
        total = share.sum(0)
        mean = (share * level[:, None]).sum(0) / total
        scale = np.sqrt((share * (level[:, None] - mean) ** 2).sum(0) / total) + 1e-3
        weight = total / total.sum()
    # Beyond the outer means there is no doubt, whatever the tails of the Gaussians say.
    fractions = responsibility(np.clip(t1, mean[0], mean[2]))
    fractions[t1 < mean[0]] = (1, 0, 0)
    fractions[t1 > mean[2]] = (0, 0, 1)
    return np.moveaxis(fractions * inside[..., None], -1, 0).astype(np.float32)
