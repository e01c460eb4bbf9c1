"""A moving average of the weights."""

from __future__ import annotations

__all__ = ["moving_average"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    r"""Returns a copy of a model that averages its weights, with ``update_parameters(model)``.

    .. math:: \bar w_t = d_t \, \bar w_{t-1} + (1 - d_t) \, w_t, \qquad
        d_t = \min\Big(d, \frac{1 + t}{10 + t}\Big), \quad \bar w_0 = w_0

    Arguments:
        model: The model.
        decay: The decay :math:`d`, in [0, 1), smaller during the first steps; 0 keeps the last
            weights.
    """
    return AveragedModel(model, multi_avg_fn=_update(decay), use_buffers=True)


def _update(decay: float) -> Callable[[Any, Any, Any], None]:
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        rate = min(decay, (1 + int(count)) / (10 + int(count)))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - rate)
            else:
                average.copy_(value)

    return torch.no_grad()(update)
