r"""The losses of each kind, from the scores :math:`D` of a discriminator.

Scores are logits, or any real numbers, with shape :math:`(N)` or :math:`(N, *)`. Each has a loss;
those of the patches of one sample are averaged, samples are not.
"""

from __future__ import annotations

__all__ = ["KINDS", "Kind", "over_patches"]

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus

Kind = Literal["lsgan", "hinge", "nonsaturating", "wgan_gp"]
"""The name of a set of losses."""


class Losses(NamedTuple):
    """The losses of scores, with their shape."""

    real: Callable[[Tensor], Tensor]
    """The loss of a discriminator from the scores of real samples."""
    fake: Callable[[Tensor], Tensor]
    """The loss of a discriminator from the scores of fake samples."""
    model: Callable[[Tensor], Tensor]
    """The loss of the model from the scores of its samples."""


KINDS: dict[str, Losses] = {
    "lsgan": Losses(lambda d: (d - 1).square(), lambda d: d.square(), lambda d: (d - 1).square()),
    "hinge": Losses(lambda d: relu(1 - d), lambda d: relu(1 + d), lambda d: -d),
    # cross-entropy: softplus(-d) is -log sigmoid(d)
    "nonsaturating": Losses(lambda d: softplus(-d), softplus, lambda d: softplus(-d)),
    "wgan_gp": Losses(lambda d: -d, lambda d: d, lambda d: -d),
}
"""The losses by name."""


def over_patches(values: Tensor) -> Tensor:
    r"""Averages the patches of each sample, :math:`(N, *)`, and returns :math:`(N)`."""
    return values.flatten(1).mean(dim=1) if values.dim() > 1 else values
