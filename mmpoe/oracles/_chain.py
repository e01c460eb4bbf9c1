r"""Steps of a chain of latent levels, and what is said at its lower end carried up."""

from __future__ import annotations

__all__ = ["Step", "carry", "check_steps", "finest_prior", "without_noise"]

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._inputs import check_shape


class Step(NamedTuple):
    """One level given the one above: its mean is `slope` times that plus `intercept`.

    Each has shape (n, D), for n branches below each of the D dimensions of the level above.
    """

    slope: Tensor
    intercept: Tensor
    variance: Tensor


def check_steps(steps: Sequence[tuple[Tensor, Tensor, Tensor]]) -> list[Step]:
    """Returns steps in float64 with their branches, after checking that they fit together."""
    if not steps:
        raise ValueError(
            "'steps' should hold at least one step, but holds none: see LinearGaussian."
        )
    checked: list[Step] = []
    for i, step in enumerate(steps):
        a, c, q = (torch.as_tensor(v, dtype=torch.float64) for v in step)
        if a.dim() not in (1, 2) or (checked and a.shape[-1] != checked[-1].slope.numel()):
            raise ValueError(
                f"'steps[{i}]' should have a slope of shape (D) or (n, D), where D is the number "
                f"of dimensions of the level above, but it has shape {tuple(a.shape)}."
            )
        check_shape(f"steps[{i}][1]", c, tuple(a.shape))
        check_shape(f"steps[{i}][2]", q, tuple(a.shape))
        if bool((a == 0).any()) or not bool((q > 0).all()):
            raise ValueError(
                f"'steps[{i}]' should have slopes that are not 0 and positive variances, "
                f"but has {a.tolist()} and {q.tolist()}."
            )
        checked.append(Step(*(v.reshape(-1, v.shape[-1]) for v in (a, c, q))))
    return checked


def finest_prior(steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """Returns the mean and covariance of z_1, those of a standard normal carried down."""
    mean = torch.zeros(steps[0].slope.shape[1], dtype=torch.float64)
    covariance = torch.eye(len(mean), dtype=torch.float64)
    for a, c, q in steps:
        matrix = torch.diag_embed(a).flatten(0, 1)  # (n D, D)
        mean = matrix @ mean + c.flatten()
        covariance = matrix @ covariance @ matrix.T + q.flatten().diag()
    return mean, covariance


def carry(j: Tensor, h: Tensor, steps: Sequence[Step]) -> list[tuple[Tensor, Tensor]]:
    r"""Carries what is said about :math:`z_1` up through all steps.

    Arguments:
        j: The precision at :math:`z_1`, with shape :math:`(*, D_1)`.
        h: The natural mean at :math:`z_1`, with shape :math:`(*, D_1)`.
        steps: The steps, coarse to fine.

    Returns:
        The precision and natural mean at each level, coarse to fine.
    """
    messages = [(j, h)]
    for a, c, q in reversed(steps):
        j, h = j.unflatten(-1, a.shape), h.unflatten(-1, a.shape)  # (*, n, D)
        k = 1 + q * j
        # what the branches say adds up: given the level above, they are independent
        j, h = (a.square() * j / k).sum(dim=-2), (a * (h - j * c) / k).sum(dim=-2)
        messages.append((j, h))
    return messages[::-1]


def without_noise(steps: Sequence[Step]) -> list[Step]:
    """Returns steps that only scale and shift."""
    return [Step(a, c, torch.zeros_like(q)) for a, c, q in steps]
