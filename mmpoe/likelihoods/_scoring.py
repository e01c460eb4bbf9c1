r"""The log-likelihood of the entries of one modality."""

from __future__ import annotations

__all__ = ["check_scored", "log_likelihood", "prepared"]

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from mmpoe.distributions import LowRankNormal
from mmpoe.gaussian import widen
from mmpoe.missing import check_finite, check_valid, fill

from . import _elements
from .base import check_support
from .continuous import OptimalScale

_SUM = Independent.log_prob
"""The sum of the log-density of elements, which may be computed otherwise."""


def check_scored(
    p: Distribution,
    x: Tensor,
    scored: Tensor,
    modality: str,
    valid: Tensor | None = None,
    *,
    values: bool = True,
) -> None:
    r"""Raises a ValueError unless entries can be scored under a distribution.

    Arguments:
        p: The distribution of the modality.
        x: All entries of a batch, with shape :math:`(B, *)`.
        scored: The entries that are to be scored, boolean, with shape :math:`(B)`.
        modality: The name of the modality.
        valid: The elements inside an entry that are to be scored, boolean, broadcastable to
            :math:`(B, *)`; all if None.
        values: Whether to check values too, which waits for the device.

    Raises:
        ValueError: If entries have another shape than what is decoded, `valid` is not boolean or
            does not broadcast, or a scored element is not finite or outside the support.
    """
    shape = (len(scored), *p.event_shape)
    if x.shape != shape:
        raise ValueError(
            "'x' should have one row per row of 'observed' and the shape of what is decoded, "
            f"{shape}, but {modality!r} has shape {tuple(x.shape)}."
        )
    if valid is not None:
        check_valid(valid, shape, modality)
    if values and not torch.compiler.is_compiling():
        check_finite(x, scored, modality, valid)
        check_support(p, x, scored, modality, valid)


def prepared(
    p: Distribution,
    x: Tensor,
    scored: Tensor | None = None,
    weight: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Distribution, Tensor]:
    r"""Returns a distribution and entries that can be scored, whatever missing entries hold.

    Entries that are not scored become 0, which every likelihood supports. An
    :class:`OptimalScale` is fitted to the others.

    Arguments:
        p: The distribution, with batch shape :math:`(*, R)`.
        x: The entries, with shape :math:`(R, *event)`.
        scored: The entries to score, boolean, with shape :math:`(R)`; all if None.
        weight: The weight of each entry in the optimal scale, with shape :math:`(R)`; 1 if None.
        valid: The elements inside an entry to score, boolean, broadcastable to the entries.
    """
    target = widen(x if scored is None else fill(x, scored))
    if isinstance(p, OptimalScale):
        counts = target.new_ones(len(x)) if weight is None else weight
        counts = counts if scored is None else torch.where(scored, counts, 0)
        counts = counts.reshape(-1, *(1,) * (x.dim() - 1))
        p = p.fit(target, counts if valid is None else torch.where(valid, counts, 0))
    return p, target


def log_likelihood(
    p: Distribution,
    x: Tensor,
    scored: Tensor | None = None,
    weight: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Returns the log-likelihood of what is scored of one modality, 0 elsewhere.

    .. math:: w_r \sum_i \log p(x_{r i} \mid z_r)

    where the sum is over valid elements.

    Arguments:
        p: The distribution, with batch shape :math:`(*, R)`.
        x: The entries, with shape :math:`(R, *event)`. Those not scored are never read.
        scored: The entries to score, boolean, with shape :math:`(R)`; all if None.
        weight: The weight :math:`w_r` of each entry, with shape :math:`(R)`; 1 if None.
        valid: The elements inside an entry to score, boolean, broadcastable to the entries; all if
            None. Others are never read.

    Returns:
        The log-likelihood, in nats, with shape :math:`(*, R)`.
    """
    p, target = prepared(p, x, scored, weight, valid)
    log_p = _log_density(p, target, valid)
    log_p = log_p if scored is None else torch.where(scored, log_p, 0)
    return log_p if weight is None else weight * log_p


def _log_density(p: Distribution, x: Tensor, valid: Tensor | None) -> Tensor:
    """The log-density of the valid elements of each entry, with the batch shape of `p`."""
    if isinstance(p, LowRankNormal):
        return p.log_prob(x, valid)
    own = not isinstance(p, Independent) or _elements.replaced(p, "log_prob", _SUM)
    if own and p.event_shape:
        if valid is None:
            return p.log_prob(x)
        raise ValueError(
            "'valid' needs a likelihood that is independent over elements, or LowRankNormal, "
            f"but got {type(p).__name__}."
        )
    elements = p.base_dist if isinstance(p, Independent) else p
    if valid is None and p.event_shape and isinstance(elements, _elements.Normal):
        return elements.total_log_prob(x, range(len(p.batch_shape), len(elements.batch_shape)))
    if valid is None:
        log_p = elements.log_prob(x)
    else:
        log_p = torch.where(valid, elements.log_prob(torch.where(valid, x, 0)), 0)
    dims = tuple(range(len(p.batch_shape), log_p.dim()))
    return log_p.sum(dim=dims) if dims else log_p
