r"""Scores image by image: the checks and the loop of all image metrics."""

from __future__ import annotations

__all__ = ["each_image", "image_pair"]

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


def each_image(
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    prediction: ArrayLike | Tensor,
    target: ArrayLike | Tensor,
    mask: ArrayLike | Tensor | None,
    data_range: float,
    smallest: int = 1,
) -> np.ndarray:
    """Returns the score of each image, with shape (*).

    Arguments:
        score: What scores one image, given the prediction, the truth and what counts, (H, W).
        prediction: The images, with shape (*, H, W).
        target: The true images, with the same shape.
        mask: The pixels that count, boolean, broadcastable to (*, H, W); all if None.
        data_range: The range of the intensities.
        smallest: The smallest height and width that can be scored.
    """
    import numpy as np

    image, truth = image_pair(prediction, target, data_range, smallest)
    inside = np.ones((), dtype=bool) if mask is None else _array(mask)
    if inside.dtype != bool:
        raise ValueError(f"'mask' should be boolean, but has dtype {inside.dtype}.")
    try:
        inside = np.broadcast_to(inside, image.shape)
    except ValueError:
        raise ValueError(
            f"'mask' should broadcast to the shape of the images, {image.shape}, "
            f"but has shape {inside.shape}."
        ) from None

    scores = np.empty(image.shape[:-2])
    for index in np.ndindex(scores.shape):
        scores[index] = score(image[index], truth[index], inside[index])
    return scores


def image_pair(
    prediction: ArrayLike | Tensor,
    target: ArrayLike | Tensor,
    data_range: float,
    smallest: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as float64 arrays of one shape (*, H, W), or says what is wrong with them."""
    import numpy as np

    image = _array(prediction).astype(np.float64)
    truth = _array(target).astype(np.float64)
    if image.shape != truth.shape or image.ndim < 2:
        raise ValueError(
            "'prediction' and 'target' should have the same shape (*, H, W), "
            f"but have shapes {image.shape} and {truth.shape}."
        )
    if min(image.shape[-2:]) < smallest:
        raise ValueError(
            f"'prediction' and 'target' should be at least {smallest} pixels wide and high, "
            f"but have shape {image.shape}."
        )
    if not data_range > 0:
        raise ValueError(f"'data_range' should be positive, but is {data_range!r}.")
    return image, truth


def _array(values: ArrayLike | Tensor) -> np.ndarray:
    import numpy as np

    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values  # bfloat16 too
    return np.asarray(values)
