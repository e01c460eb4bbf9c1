r"""The evidence lower bound of a model's output."""

from __future__ import annotations

__all__ = [
    "Beta",
    "Outcome",
    "absent",
    "check_valid",
    "elbo",
    "log_density",
    "penalty",
    "score",
]

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from mmpoe.gaussian import widen
from mmpoe.likelihoods import OptimalScale, _elements, check_support
from mmpoe.missing import check_finite, check_names, check_observed, fill

Beta = float | Sequence[float] | Tensor | Callable[[Tensor], Tensor]
"""What divergences cost: a factor, one factor for each group, or a function that maps the
divergences of all groups, with shape (L, \\*), to their cost, with the same shape."""


class Outcome(Protocol):
    """The part of a model's output that a bound needs."""

    @property
    def likelihoods(self) -> dict[str, Distribution]:
        """The distribution of each modality."""
        ...

    @property
    def kl(self) -> list[Tensor]:
        """The divergence of each group."""
        ...


def elbo(
    output: Outcome,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: Beta = 1.0,
    *,
    rows: Tensor | None = None,
    valid: Mapping[str, Tensor] | None = None,
    validate: bool = True,
) -> Tensor:
    r"""Scores all that was observed under a model's output, whatever that was conditioned on.

    .. math::
        \mathcal{L}_s(x_r) = \sum_{m \in r} \log p(x_m \mid z)
        - \sum_l \beta_l \, \mathrm{KL}\big(q(z_l \mid z_{>l}, x_s) \,\|\, p(z_l \mid z_{>l})\big)

    with one sample :math:`z \sim q(z \mid x_s)`. In expectation, and for :math:`\beta_l = 1`, it
    is below :math:`\log p(x_r)` by exactly :math:`\mathrm{KL}(q(z \mid x_s) \| p(z \mid x_r))`.

    Arguments:
        output: The output of a model, conditioned on any subset :math:`s` of what was observed.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read; modalities that were observed nowhere may be absent.
        observed: What was observed, boolean, with shape :math:`(B, M)`, columns in the order of
            ``output.likelihoods``.
        beta: What divergences cost: a factor, one factor for each group, coarse to fine, or a
            function that maps the divergences of all groups, with shape :math:`(L, B)`, to their
            cost, such as :func:`free_bits`.
        rows: The sample of `x` that each row of the output is about, with shape :math:`(R)`, if
            the output is packed; `observed` then has shape :math:`(R, M)`.
        valid: For some modalities, which elements inside an entry to score (a field of view, cells
            of a table that are not missing), boolean, broadcastable to :math:`(B, *)`. Elements
            outside are never read.
        validate: Whether to reject NaN, infinity and values outside the support of a likelihood
            in what is scored. The check waits for the device; set it to False to save that time.

    Returns:
        The bound, in nats, with shape :math:`(B)`, or :math:`(S, B)` for S subsets, or
        :math:`(R)`.

    Raises:
        ValueError: If `observed` does not have one boolean column per modality, a modality of `x`
            or `valid` is unknown, an observed modality is absent from `x`, an observed entry is
            not finite or outside the support of its likelihood, or `beta` does not have one
            factor for each group.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114
    """
    modalities = list(output.likelihoods)
    check_observed(observed, modalities)
    check_names(list(x), modalities, argument="x")
    check_names(list(valid or {}), modalities, argument="valid")

    bound = -penalty(output.kl, beta)  # (B) or (S, B)
    observed = observed.to(bound.device)
    for column, (m, p) in enumerate(output.likelihoods.items()):
        seen = observed[:, column]
        if m in x:
            inside = None if valid is None else valid.get(m)
            bound = bound + score(p, x[m], m, seen, rows=rows, valid=inside, validate=validate)
        elif not torch.compiler.is_compiling() and bool(seen.any()):
            raise absent(m, x)
    return bound


def absent(modality: str, x: Mapping[str, Tensor]) -> ValueError:
    """Returns the error to raise where an observed modality is not part of the batch."""
    return ValueError(
        f"'x' should hold {modality!r}, which 'observed' says was observed, "
        f"but holds {', '.join(x)}."
    )


def penalty(kl: Sequence[Tensor], beta: Beta) -> Tensor:
    """Returns what the divergences of all groups cost together, with the shape of one of them.

    Arguments:
        kl: The divergence of each group, each with shape (B), (S, B) or (R).
        beta: What they cost, see :func:`elbo`.
    """
    stacked = torch.stack(list(kl))  # (L, *)
    if callable(beta):
        return beta(stacked).sum(dim=0)
    factor = torch.as_tensor(beta, dtype=stacked.dtype, device=stacked.device)
    if factor.dim() == 0:
        return factor * stacked.sum(dim=0)
    if factor.shape != stacked.shape[:1]:
        raise ValueError(
            f"'beta' should be a number or hold one for each group ({len(stacked)}), "
            f"but has shape {tuple(factor.shape)}."
        )
    return torch.tensordot(factor, stacked, dims=1)


def score(
    p: Distribution,
    x: Tensor,
    modality: str,
    observed: Tensor,
    *,
    rows: Tensor | None = None,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    r"""Returns the log-likelihood of what was observed of one modality, 0 elsewhere.

    Arguments:
        p: The distribution, with batch shape :math:`(R)` or :math:`(S, R)`.
        x: The entries, with shape :math:`(B, *)`.
        modality: The name of the modality, for messages.
        observed: What was observed, boolean, with shape :math:`(R)`.
        rows: The entry that each row of `p` is about, with shape :math:`(R)`; None if R is B.
        valid: Which elements inside an entry to score, see :func:`elbo`.
        weight: How much each row counts in the optimal scale of a likelihood, with shape
            :math:`(R)`; evenly if None.
        validate: Whether to check what is scored.
    """
    shape = (len(x), *p.event_shape)
    if (rows is None and len(x) != len(observed)) or x.shape != shape:
        raise ValueError(
            "'x' should have one row per row of 'observed' and the shape of what is decoded, "
            f"{(len(observed), *p.event_shape)}, but {modality!r} has shape {tuple(x.shape)}."
        )
    if valid is not None:
        check_valid(valid, shape, modality)
    if validate and not torch.compiler.is_compiling():  # each entry once, in terms of the batch
        seen = observed
        if rows is not None:
            seen = observed.new_zeros(len(x)).index_fill(0, rows[observed], True)
        check_finite(x, seen, modality, valid)
        check_support(p, x, seen, modality, valid)
    if rows is not None:
        x = x.index_select(0, rows)
        valid = None if valid is None else valid.broadcast_to(shape).index_select(0, rows)

    target = widen(fill(x, observed))  # (R, *)
    if isinstance(p, OptimalScale):
        counted = observed if weight is None else torch.where(observed, weight, 0)
        counted = counted.reshape(-1, *(1,) * (x.dim() - 1))
        p = p.fit(target, counted if valid is None else torch.where(valid, counted, 0))
    return torch.where(observed, log_density(p, target, valid), 0)


def check_valid(valid: Tensor, shape: tuple[int, ...], modality: str) -> None:
    """Raises a ValueError unless `valid` is boolean and broadcasts to the shape of a modality."""
    if valid.dtype != torch.bool:
        raise ValueError(f"'valid' should be boolean, but has dtype {valid.dtype}.")
    try:
        valid.broadcast_to(shape)
    except RuntimeError:
        raise ValueError(
            f"'valid' should broadcast to the shape of {modality!r}, {shape}, "
            f"but has shape {tuple(valid.shape)}."
        ) from None


def log_density(p: Distribution, x: Tensor, valid: Tensor | None) -> Tensor:
    r"""Returns the log-density of the valid elements of each entry.

    Arguments:
        p: The distribution, with batch shape :math:`(*)`.
        x: The entries, broadcastable to the batch and event shape.
        valid: Which elements count, boolean, broadcastable to the shape of `x`; all if None.
            Others are never read.

    Returns:
        The log-densities, with shape :math:`(*)`.
    """
    if not isinstance(p, Independent) and p.event_shape:
        if valid is None:
            return p.log_prob(x)
        raise ValueError(
            "'valid' needs a likelihood that is independent over elements, "
            f"but got {type(p).__name__}."
        )
    elements = p.base_dist if isinstance(p, Independent) else p
    if valid is None and p.event_shape and type(elements) is _elements.Normal:
        return elements.total_log_prob(x, range(len(p.batch_shape), len(elements.batch_shape)))
    if valid is None:
        log_p = elements.log_prob(x)
    else:
        log_p = torch.where(valid, elements.log_prob(torch.where(valid, x, 0)), 0)
    dims = tuple(range(len(p.batch_shape), log_p.dim()))
    return log_p.sum(dim=dims) if dims else log_p
