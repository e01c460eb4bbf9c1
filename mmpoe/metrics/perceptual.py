r"""Learned perceptual distances. Their weights are looked up on this machine, never downloaded.

Features of a network that was trained on photographs are compared, weighted as people judge
similarity. Images are the last two dimensions and are seen as grey ones. LPIPS and ST-LPIPS are
different metrics, and so are their networks: numbers of one say nothing about another.
"""

from __future__ import annotations

__all__ = ["PerceptualWeightsUnavailable", "lpips", "st_lpips"]

import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, pad, relu

from mmpoe.extras import needs

from ._each import image_pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

BACKBONES = {
    "alex": ("alexnet-owt-7be5be79.pth", 233),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", 5),
    "vgg": ("vgg16-397923af.pth", 528),
}
"""The file of torchvision's weights that each network of LPIPS needs, and its size in MB."""

BATCH = 16
"""The number of images that go through a network at a time."""


class PerceptualWeightsUnavailable(FileNotFoundError):
    """The weights of a perceptual metric are not on this machine: the message says what to do."""


def lpips(
    prediction: ArrayLike | Tensor,
    target: ArrayLike | Tensor,
    *,
    data_range: float = 1.0,
    net: str = "alex",
    weights: str | Path | None = None,
) -> np.ndarray:
    r"""Returns the learned perceptual distance (LPIPS, version 0.1) of each image; 0 is the best.

    .. math:: \sum_l \frac{1}{H_l W_l} \sum_{i} w_l^\top (f_{l i} - \hat{f}_{l i})^2

    with unit-length features :math:`f` of the truth and :math:`\hat{f}` of the prediction at pixel
    :math:`i` of layer :math:`l`. The package ``lpips`` (extra ``mmpoe[metrics]``) has the
    :math:`w_l`; the network's own weights are a file of torchvision, which is looked up: first
    `weights`, then the environment variable ``MMPOE_LPIPS_WEIGHTS``, then the cache of
    ``torch.hub``. It is read as tensors alone. Nothing is ever downloaded.

    Arguments:
        prediction: The images, with shape :math:`(*, H, W)`, intensities from 0 to `data_range`.
        target: The true images, with the same shape.
        data_range: The range of the intensities.
        net: The network: ``"alex"``, ``"squeeze"`` or ``"vgg"``.
        weights: The file of the network's weights, or a folder that it is in.

    Returns:
        One number per image, with shape :math:`(*)`.

    Raises:
        ValueError: If the network is unknown, the shapes do not agree, an image is smaller than 32
            pixels, or `data_range` is not positive.
        PerceptualWeightsUnavailable: If the weights are not found.

    References:
        | The Unreasonable Effectiveness of Deep Features as a Perceptual Metric
          (Zhang et al., 2018)
        | https://arxiv.org/abs/1801.03924
    """
    if net not in BACKBONES:
        raise ValueError(f"'net' should be one of {', '.join(BACKBONES)}, but is {net!r}.")
    images, truth = image_pair(prediction, target, data_range, smallest=32)
    metric = _lpips_network(net, _find_backbone(net, weights))
    return _in_batches(lambda x, y: metric(x, y).flatten(), images, truth, data_range)


def st_lpips(
    prediction: ArrayLike | Tensor,
    target: ArrayLike | Tensor,
    *,
    data_range: float = 1.0,
    net: str = "alex",
) -> np.ndarray:
    r"""Returns the shift-tolerant perceptual distance (ST-LPIPS) of each image; 0 is the best.

    The distance of :func:`lpips`, with networks that blur before they subsample, so that a shift
    of a pixel changes little. All its weights are in the package ``stlpips_pytorch`` (extra
    ``mmpoe[metrics]``); they are read as tensors alone, and the package is not imported.

    Arguments:
        prediction: The images, with shape :math:`(*, H, W)`, intensities from 0 to `data_range`.
        target: The true images, with the same shape.
        data_range: The range of the intensities.
        net: The network: ``"alex"`` or, slower, ``"vgg"``.

    Returns:
        One number per image, with shape :math:`(*)`.

    Raises:
        ValueError: If the network is unknown, the shapes do not agree, an image is smaller than 32
            pixels, or `data_range` is not positive.
        PerceptualWeightsUnavailable: If the package is not installed.

    References:
        | Shift-Tolerant Perceptual Similarity Metric (Ghildyal & Liu, 2022)
        | https://arxiv.org/abs/2207.13686
    """
    if net not in NETWORKS:
        raise ValueError(f"'net' should be one of {', '.join(NETWORKS)}, but is {net!r}.")
    images, truth = image_pair(prediction, target, data_range, smallest=32)
    state = _st_lpips_weights(net)
    return _in_batches(lambda x, y: _distance(state, net, x, y), images, truth, data_range)


def _in_batches(
    distance: Callable[[Tensor, Tensor], Tensor],
    images: np.ndarray,
    truth: np.ndarray,
    data_range: float,
) -> np.ndarray:
    def rows(values: np.ndarray) -> Tensor:
        unit = torch.from_numpy(values.reshape(-1, 1, *values.shape[-2:])).float() / data_range
        return (2 * unit - 1).expand(-1, 3, -1, -1)  # (N, 3, H, W), between -1 and 1

    pairs = zip(rows(images).split(BATCH), rows(truth).split(BATCH), strict=True)
    with torch.no_grad():
        distances = [distance(x, y) for x, y in pairs if len(x)]
    found = torch.cat(distances) if distances else torch.zeros(0)
    return found.double().numpy().reshape(images.shape[:-2])


def _find_backbone(net: str, weights: str | Path | None) -> Path:
    name, size = BACKBONES[net]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    asked = weights if weights is not None else os.environ.get("MMPOE_LPIPS_WEIGHTS")
    places = [cache] if asked is None else [Path(asked)]
    for place in places:
        file = place / name if place.is_dir() else place
        if file.is_file():
            return file
    where = f"{cache}" if asked is None else f"{places[0]}"
    raise PerceptualWeightsUnavailable(
        f"LPIPS with net='{net}' needs {name} ({size} MB), which is not at {where}. Put "
        f"https://download.pytorch.org/models/{name} into {cache}, or name the file or its folder "
        "by 'weights' or the environment variable MMPOE_LPIPS_WEIGHTS. Nothing is downloaded "
        "here. mmpoe.metrics.st_lpips, another metric, has its weights in a package."
    )


@lru_cache(maxsize=2)
def _lpips_network(net: str, file: Path) -> torch.nn.Module:
    import warnings

    with needs("metrics"):
        from lpips import LPIPS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision: the name of an argument of lpips is old
        metric = LPIPS(net=net, pnet_rand=True, verbose=False)
    state = torch.load(file, map_location="cpu", weights_only=True)
    own = {name: f"features.{name.split('.', 1)[1]}" for name in metric.net.state_dict()}
    if lacking := [theirs for theirs in own.values() if theirs not in state]:
        raise ValueError(
            f"'weights' should hold torchvision's weights for net='{net}', "
            f"but {file} lacks {lacking[0]}."
        )
    metric.net.load_state_dict({name: state[theirs] for name, theirs in own.items()})
    return metric.eval()


@lru_cache(maxsize=2)
def _st_lpips_weights(net: str) -> dict[str, Tensor]:
    package = importlib.util.find_spec("stlpips_pytorch")
    folders = [] if package is None else list(package.submodule_search_locations or [])
    files = [Path(f) / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth" for f in folders]
    for file in files:
        if file.is_file():
            return torch.load(file, map_location="cpu", weights_only=True)
    raise PerceptualWeightsUnavailable(
        f"ST-LPIPS needs {net}_shift_tolerant.pth from the package stlpips_pytorch (64 MB), which "
        "is not installed: pip install 'mmpoe[metrics]', or '.[metrics]' in a clone. "
        "Metrics without learned weights are mmpoe.metrics.ms_ssim and mmpoe.metrics.gmsd."
    )


def _distance(state: dict[str, Tensor], net: str, x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros(len(x))
    pairs = zip(_features(state, net, x), _features(state, net, y), strict=True)
    for layer, (f, g) in enumerate(pairs):
        f, g = (h / (h.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for h in (f, g))
        weighted = conv2d((f - g).square(), state[f"lin{layer}.model.1.weight"])  # (N, 1, H, W)
        total = total + weighted.mean(dim=(1, 2, 3))
    return total


def _features(state: dict[str, Tensor], net: str, x: Tensor) -> list[Tensor]:
    x = (x - state["scaling_layer.shift"]) / state["scaling_layer.scale"]
    features = []
    for layer, block in enumerate(NETWORKS[net], start=1):
        for step in block:
            if isinstance(step, int):
                x = _convolve(state, f"net.slice{layer}.{step}", x)
            else:
                x = step(x)
        features.append(x)
    return features


def _convolve(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    if weight.shape[-1] == 11:  # the first one of alex subsamples, and so blurs
        return relu(_blur(conv2d(x, weight, bias, padding=2)))
    return relu(conv2d(x, weight, bias, padding=weight.shape[-1] // 2))


def _blur(x: Tensor) -> Tensor:
    """A 3 x 3 binomial filter that keeps every other pixel."""
    binomial = torch.tensor([1.0, 2.0, 1.0])
    kernel = (binomial[:, None] * binomial / 16).expand(x.shape[1], 1, 3, 3)
    return conv2d(pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _halve_alex(x: Tensor) -> Tensor:
    return _blur(max_pool2d(x, 3, stride=1))


def _halve_vgg(x: Tensor) -> Tensor:
    return _blur(max_pool2d(x, 2, stride=1))


NETWORKS: dict[str, tuple[tuple[int | Callable[[Tensor], Tensor], ...], ...]] = {
    "alex": ((0,), (_halve_alex, 5), (_halve_alex, 9), (11,), (13,)),
    "vgg": (
        (0, 2),
        (_halve_vgg, 6, 8),
        (_halve_vgg, 12, 14, 16),
        (_halve_vgg, 20, 22, 24),
        (_halve_vgg, 28, 30, 32),
    ),
}
"""The five blocks of each network: numbers name a convolution of the weights."""
