r"""Similarity of images to the truth, by scikit-image (extra ``mmpoe[metrics]``).

Images are the last two dimensions; leading dimensions index images, and each image gets its own
score. Tensors may be on any device, and their gradients are left behind. Numbers from different
definitions are not comparable: a range, a mask or an average over another unit moves them by
several dB.
"""

from __future__ import annotations

__all__ = ["psnr", "ssim"]

from typing import TYPE_CHECKING

from mmpoe.extras import needs

from ._each import each_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


def psnr(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    data_range: float = 1.0,
    mask: ArrayLike | None = None,
) -> np.ndarray:
    r"""Returns the peak signal-to-noise ratio of each image, in dB.

    .. math:: 10 \log_{10} \frac{R^2}{\frac{1}{|F|} \sum_{i \in F} (\hat{x}_i - x_i)^2}

    Arguments:
        prediction: The images :math:`\hat{x}`, with shape :math:`(*, H, W)`.
        target: The true images :math:`x`, with the same shape.
        data_range: The range :math:`R` of the intensities.
        mask: The pixels :math:`F` that count, boolean, broadcastable to :math:`(*, H, W)`; all if
            None.

    Returns:
        One number per image, with shape :math:`(*)`; infinity for identical images, NaN where no
        pixel counts.

    Raises:
        ValueError: If the shapes do not agree, or `data_range` is not positive.

    Example:
        >>> psnr(np.full((8, 8), 0.5), np.full((8, 8), 0.6)).round(6)
        np.float64(20.0)
    """
    import numpy as np

    with needs("metrics"):
        from skimage.metrics import peak_signal_noise_ratio

    def score(image: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
        if not inside.any():
            return float("nan")
        with np.errstate(divide="ignore"):  # identical images
            value = peak_signal_noise_ratio(truth[inside], image[inside], data_range=data_range)
        return float(value)

    return each_image(score, prediction, target, mask, data_range)


def ssim(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    data_range: float = 1.0,
    mask: ArrayLike | None = None,
) -> np.ndarray:
    r"""Returns the structural similarity of each image, at most 1.

    The similarity map of Wang et al. (2004), with a Gaussian window of standard deviation 1.5
    pixels (11 pixels wide) and population covariances, averaged over the pixels that count. What
    lies outside the mask still enters windows at its border.

    Without a mask, all pixels count. The means of scikit-image and piq leave out the 5 pixels next
    to each side of the image, whose windows reach beyond it (where the image is reflected); a mask
    that is False there gives their mean.

    Arguments:
        prediction: The images, with shape :math:`(*, H, W)`, at least 11 pixels wide and high.
        target: The true images, with the same shape.
        data_range: The range of the intensities.
        mask: The pixels that count, boolean, broadcastable to :math:`(*, H, W)`; all if None.

    Returns:
        One number per image, with shape :math:`(*)`; NaN where no pixel counts.

    Raises:
        ValueError: If the shapes do not agree, an image is smaller than the window, or
            `data_range` is not positive.

    References:
        | Image Quality Assessment: From Error Visibility to Structural Similarity
          (Wang et al., 2004)
        | https://doi.org/10.1109/TIP.2003.819861

    Example:
        >>> image = np.linspace(0, 1, 256).reshape(16, 16)
        >>> float(ssim(image, image))
        1.0
    """
    import numpy as np

    with needs("metrics"):
        from skimage.metrics import structural_similarity

    def score(image: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
        if not inside.any():
            return float("nan")
        result = structural_similarity(
            truth,
            image,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        similarity = np.asarray(result[1])
        return float(similarity[inside].mean())

    return each_image(score, prediction, target, mask, data_range, smallest=11)
