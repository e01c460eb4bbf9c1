r"""Structural metrics of whole images, without learned weights: multi-scale SSIM and GMSD."""

from __future__ import annotations

__all__ = ["gmsd", "ms_ssim"]

from typing import TYPE_CHECKING

from ._each import each_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The exponents of the scales of the multi-scale SSIM, finest first, which add to 1."""

RADIUS = 5
"""The Gaussian window, of standard deviation 1.5 pixels, ends after this many pixels."""


def ms_ssim(prediction: ArrayLike, target: ArrayLike, *, data_range: float = 1.0) -> np.ndarray:
    r"""Returns the multi-scale structural similarity of each image, at most 1.

    .. math::
        \overline{\mathrm{ssim}}_5^{\,w_5} \prod_{j=1}^{4} \max(\overline{\mathrm{cs}}_j, 0)^{w_j},
        \qquad \mathrm{cs} = \frac{2 \sigma_{x \hat{x}} + C_2}
        {\sigma_x^2 + \sigma_{\hat{x}}^2 + C_2},
        \qquad \mathrm{ssim} = \frac{2 \mu_x \mu_{\hat{x}} + C_1}
        {\mu_x^2 + \mu_{\hat{x}}^2 + C_1} \, \mathrm{cs}

    Five scales, each half as fine as the one before (means of 2 x 2 pixels), with weights 0.0448,
    0.2856, 0.3001, 0.2363, 0.1333. Local moments have a Gaussian window of standard deviation 1.5
    pixels (11 pixels wide), and only windows that lie inside the image count. With the range
    :math:`R`, :math:`C_1 = (0.01 R)^2` and :math:`C_2 = (0.03 R)^2`. A negative mean counts as 0.

    Arguments:
        prediction: The images :math:`\hat{x}`, with shape :math:`(*, H, W)`, at least 161 pixels
            wide and high, so that the coarsest scale still holds a window.
        target: The true images :math:`x`, with the same shape.
        data_range: The range :math:`R` of the intensities.

    Returns:
        One number per image, with shape :math:`(*)`.

    Raises:
        ValueError: If the shapes do not agree, an image is too small, or `data_range` is not
            positive.

    References:
        | Multiscale Structural Similarity for Image Quality Assessment (Wang et al., 2003)
        | https://doi.org/10.1109/ACSSC.2003.1292216

    Example:
        >>> image = np.linspace(0, 1, 192 * 192).reshape(192, 192)
        >>> float(ms_ssim(image, image))
        1.0
    """
    return each_image(
        lambda image, truth, _: _scales(image, truth, data_range),
        prediction,
        target,
        None,
        data_range,
        smallest=2 * RADIUS * 2 ** (len(WEIGHTS) - 1) + 1,
    )


def gmsd(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    data_range: float = 1.0,
    mask: ArrayLike | None = None,
) -> np.ndarray:
    r"""Returns the gradient magnitude similarity deviation of each image; 0 is the best.

    .. math::
        \operatorname{sd}_{i \in F} \, \frac{2 \, g_i \, \hat{g}_i + c}{g_i^2 + \hat{g}_i^2 + c},
        \qquad c = 170 \, (R / 255)^2

    with the gradient magnitudes :math:`g` of the truth and :math:`\hat{g}` of the prediction, by
    Prewitt's filters, after both images were halved (means of 2 x 2 pixels). As in the authors'
    code, images continue with zeros beyond their border, and the standard deviation divides by
    :math:`|F| - 1`.

    Arguments:
        prediction: The images, with shape :math:`(*, H, W)`.
        target: The true images, with the same shape.
        data_range: The range :math:`R` of the intensities.
        mask: The pixels that count, boolean, broadcastable to :math:`(*, H, W)`; all if None. A
            pixel of the halved image counts if all its pixels do.

    Returns:
        One number per image, with shape :math:`(*)`; NaN where fewer than two halved pixels count.

    Raises:
        ValueError: If the shapes do not agree, or `data_range` is not positive.

    References:
        | Gradient Magnitude Similarity Deviation (Xue et al., 2014)
        | https://arxiv.org/abs/1308.3052

    Example:
        >>> image = np.eye(16)
        >>> float(gmsd(image, image))
        0.0
    """
    import numpy as np

    constant = 170 * (data_range / 255) ** 2

    def score(image: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
        a, b = _gradient(_halved_by_zeros(image)), _gradient(_halved_by_zeros(truth))
        similarity = (2 * a * b + constant) / (a**2 + b**2 + constant)
        scored = similarity[_halved_by_zeros(inside.astype(np.float64)) == 1]
        return float(scored.std(ddof=1)) if scored.size > 1 else float("nan")

    return each_image(score, prediction, target, mask, data_range, smallest=2)


def _scales(image: np.ndarray, truth: np.ndarray, data_range: float) -> float:
    result = 1.0
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            image, truth = _halved(image), _halved(truth)
        luminance, structure = _moments(image, truth, data_range)
        last = scale == len(WEIGHTS) - 1
        mean = (luminance * structure if last else structure).mean()
        result *= max(float(mean), 0.0) ** weight
    return result


def _moments(
    image: np.ndarray, truth: np.ndarray, data_range: float
) -> tuple[np.ndarray, np.ndarray]:
    """The luminance, and contrast times structure, of each window inside the images."""
    from scipy.ndimage import gaussian_filter

    def local(values: np.ndarray) -> np.ndarray:
        blurred = gaussian_filter(values, sigma=1.5, radius=RADIUS)
        return blurred[RADIUS:-RADIUS, RADIUS:-RADIUS]

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    a, b = local(image), local(truth)
    variances = local(image**2) - a**2 + local(truth**2) - b**2
    covariance = local(image * truth) - a * b
    luminance = (2 * a * b + c1) / (a**2 + b**2 + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


def _halved(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; of what there is of them in a last odd row or column."""
    import numpy as np

    odd = [(0, side % 2) for side in image.shape]
    return _pooled(np.pad(image, odd, mode="edge"))


def _halved_by_zeros(image: np.ndarray) -> np.ndarray:
    import numpy as np

    return _pooled(np.pad(image, [(0, side % 2) for side in image.shape]))


def _pooled(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return image.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


def _gradient(image: np.ndarray) -> np.ndarray:
    import numpy as np
    from scipy.ndimage import prewitt

    return np.hypot(*(prewitt(image, axis, mode="constant") / 3 for axis in (0, 1)))
