r"""What divergences cost during training: schedules, free bits and balance.

A schedule maps a step to a number, for the `beta` of an objective. Free bits and balance map
divergences to their cost, and are a `beta` themselves.
"""

from __future__ import annotations

__all__ = ["balanced", "collapsed", "cyclical", "free_bits", "group_kl", "warmup"]

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mmpoe.distributions import DiagNormal


class Inferred(Protocol):
    """The part of a model's output that says what was inferred."""

    @property
    def kl(self) -> list[Tensor]:
        """The divergence of each group."""
        ...

    @property
    def posteriors(self) -> list[DiagNormal]:
        """The posterior of each group."""
        ...


def warmup(step: float, steps: float, *, start: float = 0.0) -> float:
    r"""Rises linearly to 1, and stays there.

    .. math:: \beta(t) = \min\big(1, \; \beta_0 + (1 - \beta_0) \, t / T\big)

    Arguments:
        step: The step :math:`t`, from 0.
        steps: The number of steps of the rise, :math:`T`; 0 for none.
        start: The first value :math:`\beta_0`.

    Raises:
        ValueError: If a number of steps is negative.

    References:
        | Generating Sentences from a Continuous Space (Bowman et al., 2016)
        | https://arxiv.org/abs/1511.06349

    Example:
        >>> [warmup(step, 4) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if step < 0 or steps < 0:
        raise ValueError(f"'step' and 'steps' should be at least 0, but are {step} and {steps}.")
    share = 1.0 if steps == 0 else min(1.0, step / steps)
    return start + (1.0 - start) * share


def cyclical(step: int, period: int, *, rise: float = 0.5, start: float = 0.0) -> float:
    r"""Rises linearly to 1 in the first part of every period, and stays there for the rest.

    Arguments:
        step: The step, from 0.
        period: The number of steps of a period.
        rise: The share of a period that is spent rising, in (0, 1].
        start: The value at the start of every period.

    Raises:
        ValueError: If `step` is negative, `period` is not positive, or `rise` is out of range.

    References:
        | Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing (Fu et al.,
          2019)
        | https://arxiv.org/abs/1903.10145

    Example:
        >>> [cyclical(step, 4) for step in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    """
    if step < 0 or period < 1:
        raise ValueError(
            f"'step' should be at least 0 and 'period' at least 1, but are {step} and {period}."
        )
    if not 0 < rise <= 1:
        raise ValueError(f"'rise' should be in (0, 1], but is {rise}.")
    return start + (1.0 - start) * min(1.0, step % period / (rise * period))


def free_bits(kl: Tensor, floor: float | Sequence[float]) -> Tensor:
    r"""Charges at least a floor for each group, on average over a batch.

    .. math:: \max\Big( \kappa_l, \; \frac{1}{B} \sum_b \mathrm{KL}_{l b} \Big)

    Rows of a group below its floor all cost the floor, without gradient; those of a group above
    it, their divergence. It keeps groups in use early in training. With it an objective is not a
    bound. It is a `beta` of :func:`elbo` and others: ``beta=lambda kl: free_bits(kl, 0.5)``.

    Arguments:
        kl: The divergences, with shape :math:`(L, B)`; or :math:`(L, S, B)`, and the floor then
            holds for each group and subset.
        floor: The floor :math:`\kappa_l`, in nats per sample, one for all groups or one for each.

    Returns:
        The cost, in nats, with the shape of `kl`.

    Raises:
        ValueError: If a floor is negative, or there is not one for each group.

    References:
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934

    Example:
        >>> free_bits(torch.tensor([[0.0, 0.4], [1.0, 3.0]]), floor=0.5)
        tensor([[0.5000, 0.5000],
                [1.0000, 3.0000]])
    """
    floors = _one_per_group("floor", floor, kl)
    if bool((floors < 0).any()):
        raise ValueError(f"'floor' should be at least 0, but is {floor}.")
    return torch.where(kl.detach().mean(dim=-1, keepdim=True) > floors, kl, floors)


def balanced(kl: Tensor, sizes: float | Sequence[float] = 1.0) -> Tensor:
    r"""Charges groups in proportion to what they hold, so that small ones are spared.

    .. math::
        \gamma_l \, \mathrm{KL}_{l b}, \qquad
        \gamma_l = \frac{L \, c_l}{\sum_k c_k}, \qquad
        c_l = \frac{1}{n_l B} \sum_b \mathrm{KL}_{l b}

    The factors :math:`\gamma_l` average to 1 and are constants for gradients. It belongs to the
    warm-up: with it an objective is not a bound. It is a `beta` of :func:`elbo` and others:
    ``beta=lambda kl: warmup(step, 1000) * balanced(kl)``.

    Arguments:
        kl: The divergences, with shape :math:`(L, B)` or :math:`(L, S, B)`, at least 0.
        sizes: The size :math:`n_l` of each group, such as its number of latents, if large groups
            should hold more.

    Returns:
        The cost, in nats, with the shape of `kl`.

    Raises:
        ValueError: If a size is not positive, or there is not one for each group.

    References:
        | NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
        | https://arxiv.org/abs/2007.03898

    Example:
        >>> balanced(torch.tensor([[1.0, 1.0], [2.0, 4.0]]))  # factors 1/2 and 3/2
        tensor([[0.5000, 0.5000],
                [3.0000, 6.0000]])
    """
    numbers = _one_per_group("sizes", sizes, kl)
    if not bool((numbers > 0).all()):
        raise ValueError(f"'sizes' should be positive, but is {sizes}.")
    content = kl.detach().flatten(1).mean(dim=1).reshape(numbers.shape) / numbers  # (L, 1...)
    mean = content.mean()
    return torch.where(mean > 0, content / torch.where(mean > 0, mean, 1), 1) * kl


def group_kl(output: Inferred) -> Tensor:
    r"""Returns the mean divergence of each group, coarse to fine, in nats, with shape :math:`(L)`.

    Arguments:
        output: The output of a model.
    """
    return torch.stack([kl.detach().mean() for kl in output.kl])


def collapsed(output: Inferred, threshold: float = 0.01) -> Tensor:
    r"""Returns which groups are not in use: those that hold next to nothing per latent dimension.

    Arguments:
        output: The output of a model.
        threshold: The least mean divergence per dimension of a group in use, in nats.

    Returns:
        Which groups are collapsed, coarse to fine, boolean, with shape :math:`(L)`.
    """
    sizes = [q.event_shape.numel() for q in output.posteriors]
    kl = group_kl(output)
    return kl < threshold * torch.tensor(sizes, device=kl.device)


def _one_per_group(argument: str, value: float | Sequence[float], kl: Tensor) -> Tensor:
    """One number for each group as a tensor of shape (L, 1...)."""
    numbers = torch.as_tensor(value, dtype=kl.dtype, device=kl.device)
    if numbers.dim() > 1 or (numbers.dim() == 1 and len(numbers) != len(kl)):
        raise ValueError(
            f"'{argument}' should be a number or hold one for each group ({len(kl)}), "
            f"but is {value}."
        )
    return numbers.expand(len(kl)).reshape(-1, *(1,) * (kl.dim() - 1))
