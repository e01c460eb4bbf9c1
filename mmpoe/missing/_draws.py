r"""Draws by weight, from given random numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_at(weight: Tensor, point: Tensor) -> Tensor:
    r"""Draws indices in proportion to weights, by the inverse of their cumulative sum.

    An index of weight 0 is never drawn, as long as another one of its column has weight.

    Arguments:
        weight: The weights, at least 0, up to a factor, with shape :math:`(G, *)`.
        point: The random numbers, in [0, 1], with shape :math:`(K, *)`.

    Returns:
        The index that each number falls on, with shape :math:`(K, *)`.
    """
    edges = weight.cumsum(dim=0)  # (G, *)
    before_one = 1 - torch.finfo(edges.dtype).eps / 2
    point = point.clamp(max=before_one) * edges[-1]  # (K, *), in front of the last edge
    rows = (v.movedim(0, -1).contiguous() for v in (edges, point))
    index = torch.searchsorted(*rows, right=True).movedim(-1, 0)  # (K, *)
    return index.clamp(max=len(edges) - 1)


def draw_systematically(weight: Tensor, offset: Tensor, samples: int) -> Tensor:
    r"""Draws several indices of each column at even steps, which share one random number.

    An index of probability :math:`q` is drawn :math:`K q` times, rounded up or down.

    Arguments:
        weight: The weights, at least 0, up to a factor, with shape :math:`(G, *)`.
        offset: The random number of each column, in [0, 1), with shape :math:`(*)`.
        samples: The number of draws :math:`K`.

    Returns:
        The indices, with shape :math:`(K, *)`.
    """
    step = torch.arange(samples, device=offset.device).reshape(-1, *(1,) * offset.dim())
    return draw_at(weight, (step + offset) / samples)
