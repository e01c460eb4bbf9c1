r"""The cost of divergences during training: warm-up, free bits and balance.

A warm-up maps a step to a number, for the `beta` of an objective. Free bits and balance map
divergences to their cost, and are a `beta` themselves.
"""

from __future__ import annotations

__all__ = ["balanced", "collapsed", "free_bits", "group_kl", "warmup"]

from collections.abc import Sequence

import torch
from torch import Tensor

from mmpoe.models import Output


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


def balanced(kl: Tensor) -> Tensor:
    r"""Charges groups in proportion to what they hold, so that small ones are spared.

    .. math::
        \gamma_l \, \mathrm{KL}_{l b}, \qquad
        \gamma_l = \frac{L \, c_l}{\sum_k c_k}, \qquad
        c_l = \frac{1}{B} \sum_b \mathrm{KL}_{l b}

    The factors :math:`\gamma_l` average to 1 and are constants for gradients. It belongs to the
    warm-up: with it an objective is not a bound. It is a `beta` of :func:`elbo` and others:
    ``beta=lambda kl: warmup(step, 1000) * balanced(kl)``.

    Arguments:
        kl: The divergences, with shape :math:`(L, B)` or :math:`(L, S, B)`, at least 0.

    Returns:
        The cost, in nats, with the shape of `kl`.

    References:
        | NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
        | https://arxiv.org/abs/2007.03898

    Example:
        >>> balanced(torch.tensor([[1.0, 1.0], [2.0, 4.0]]))  # factors 1/2 and 3/2
        tensor([[0.5000, 0.5000],
                [3.0000, 6.0000]])
    """
    content = kl.detach().flatten(1).mean(dim=1).reshape(-1, *(1,) * (kl.dim() - 1))  # (L, 1...)
    mean = content.mean()
    return torch.where(mean > 0, content / torch.where(mean > 0, mean, 1), 1) * kl


def group_kl(output: Output) -> Tensor:
    r"""Returns the mean divergence of each group, coarse to fine, in nats, with shape :math:`(L)`.

    Arguments:
        output: The output of a model.
    """
    return torch.stack([kl.detach().mean() for kl in output.kl])


def collapsed(output: Output) -> Tensor:
    r"""Returns which groups have collapsed: their KL is below 0.01 nats per latent dimension.

    Arguments:
        output: The output of a model.

    Returns:
        Whether each group has collapsed, coarse to fine, boolean, with shape :math:`(L)`.
    """
    sizes = [q.event_shape.numel() for q in output.posteriors]
    kl = group_kl(output)
    return kl < 0.01 * torch.tensor(sizes, device=kl.device)


def _one_per_group(argument: str, value: float | Sequence[float], kl: Tensor) -> Tensor:
    """One number for each group as a tensor of shape (L, 1...)."""
    numbers = torch.as_tensor(value, dtype=kl.dtype, device=kl.device)
    if numbers.dim() > 1 or (numbers.dim() == 1 and len(numbers) != len(kl)):
        raise ValueError(
            f"'{argument}' should be a number or hold one for each group ({len(kl)}), "
            f"but is {value}."
        )
    return numbers.expand(len(kl)).reshape(-1, *(1,) * (kl.dim() - 1))
