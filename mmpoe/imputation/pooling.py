"""Estimates from several completed data sets, pooled."""

from __future__ import annotations

__all__ = ["Pooled", "rubin_pool"]

from typing import NamedTuple

import torch
from torch import Tensor

from mmpoe.gaussian import widen


class Pooled(NamedTuple):
    """What several completed data sets say together."""

    estimate: Tensor
    """The pooled estimate."""
    variance: Tensor
    """Its total variance."""
    dof: Tensor
    """The degrees of freedom of the t distribution to make intervals with."""
    fraction_missing: Tensor
    """The fraction of the information about the quantity that is missing."""


def rubin_pool(estimates: Tensor, variances: Tensor) -> Pooled:
    r"""Pools the estimates of :math:`K` completed data sets by Rubin's rules.

    .. math::
        \bar{Q} = \frac{1}{K} \sum_k Q_k, \qquad
        T = \frac{1}{K} \sum_k U_k + \Big(1 + \frac{1}{K}\Big) B, \qquad
        B = \frac{1}{K - 1} \sum_k (Q_k - \bar{Q})^2

    .. math::
        \lambda = \frac{(1 + 1 / K) \, B}{T}, \qquad \nu = \frac{K - 1}{\lambda^2}, \qquad
        \gamma = \lambda + (1 - \lambda) \, \frac{2}{\nu + 3}

    :math:`(Q - \bar{Q}) / \sqrt{T}` is about t distributed with :math:`\nu` degrees of freedom.

    Arguments:
        estimates: The estimate :math:`Q_k` of each data set, with shape :math:`(K, *)`.
        variances: The variance :math:`U_k` of each estimate, as if its data had been complete,
            with the same shape.

    Returns:
        The estimate :math:`\bar{Q}`, its total variance :math:`T`, the degrees of freedom
        :math:`\nu`, infinite if data sets agree, and the fraction of missing information
        :math:`\gamma`, each with shape :math:`(*)`.

    Raises:
        ValueError: If the shapes differ, there are fewer than two data sets, or a variance is
            negative.

    References:
        | Multiple Imputation for Nonresponse in Surveys (Rubin, 1987)
        | https://doi.org/10.1002/9780470316696

    Example:
        >>> rubin_pool(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])).variance
        tensor(4.)
    """
    if estimates.shape != variances.shape or estimates.dim() == 0 or len(estimates) < 2:
        raise ValueError(
            "'estimates' and 'variances' should have the same shape (K, *), with K at least 2, "
            f"but have shapes {tuple(estimates.shape)} and {tuple(variances.shape)}."
        )
    if not bool((variances >= 0).all()):
        raise ValueError(
            f"'variances' should be at least 0, but go down to {variances.min():.4g}."
        )
    count = len(estimates)
    estimates, variances = floating(estimates), floating(variances)
    between = (1 + 1 / count) * estimates.var(dim=0)
    total = variances.mean(dim=0) + between
    share = torch.where(total > 0, between / torch.where(total > 0, total, 1), 0)
    dof = (count - 1) / share.square()
    return Pooled(estimates.mean(dim=0), total, dof, share + (1 - share) * 2 / (dof + 3))


def floating(v: Tensor) -> Tensor:
    """Returns numbers of any dtype as floating-point ones, at least float32."""
    return widen(v) if v.is_floating_point() else v.to(torch.get_default_dtype())
