r"""The evidence lower bound of a model's output."""

from __future__ import annotations

__all__ = ["elbo"]

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mmpoe.likelihoods._scoring import check_scored, log_likelihood
from mmpoe.missing import check_names, check_observed, valid_of
from mmpoe.models import Output
from mmpoe.models._inputs import absent, check_weight

Beta = float | Sequence[float] | Tensor | Callable[[Tensor], Tensor]
"""The cost of divergences: a factor, one factor for each group, or a function that maps the
divergences of all groups, with shape (L, \\*), to their cost, with the same shape."""


def elbo(
    output: Output,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: Beta = 1.0,
    *,
    weight: Tensor | None = None,
    valid: Mapping[str, Tensor] | None = None,
    validate: bool = True,
) -> Tensor:
    r"""Scores all that was observed under a model's output, whatever that was conditioned on.

    .. math::
        \mathcal{L}_s(x_r) = \sum_{m \in r} w_m \log p(x_m \mid z)
        - \sum_l \beta_l \, \mathrm{KL}\big(q(z_l \mid z_{>l}, x_s) \,\|\, p(z_l \mid z_{>l})\big)

    with one sample :math:`z \sim q(z \mid x_s)`. In expectation, and for :math:`\beta_l = 1` and
    :math:`w_m = 1`, it is below :math:`\log p(x_r)` by exactly
    :math:`\mathrm{KL}(q(z \mid x_s) \| p(z \mid x_r))`.

    Arguments:
        output: The output of a model, conditioned on any subset :math:`s` of what was observed.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read; modalities that were observed nowhere may be absent.
        observed: What was observed, boolean, with shape :math:`(B, M)`, columns in the order of
            ``output.likelihoods``.
        beta: What divergences cost: a factor, one factor for each group, coarse to fine, or a
            function that maps the divergences of all groups, with shape :math:`(L, B)`, to their
            cost, such as :func:`free_bits`.
        weight: The weight :math:`w_m` of each entry, at least 0, broadcastable to :math:`(B, M)`:
            one number for each modality, say, or for each cell. 1 if None. An entry of weight 0 is
            not scored.
        valid: For some modalities, which elements inside an entry to score (a field of view, cells
            of a table that are not missing), boolean, broadcastable to :math:`(B, *)`; by default,
            those of the batch, see :class:`mmpoe.missing.Batch`. Elements outside are never read.
        validate: Whether to reject NaN, infinity and values outside the support of a likelihood
            in what is scored. The check waits for the device; set it to False to save that time.

    Returns:
        The bound, in nats, with shape :math:`(B)`, or :math:`(S, B)` for S subsets.

    Raises:
        ValueError: If `observed` does not have one boolean column per modality, a modality of `x`
            or `valid` is unknown, an observed modality is absent from `x`, an observed entry is
            not finite or outside the support of its likelihood, `weight` does not broadcast or is
            negative, or `beta` does not have one factor for each group.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114
    """
    modalities = list(output.likelihoods)
    check_observed(observed, modalities)
    check_names(list(x), modalities, argument="x")
    valid = valid_of(x) if valid is None else valid
    check_names(list(valid), modalities, argument="valid")

    bound = -penalty(output.kl, beta)  # (B) or (S, B)
    if bound.shape[-1] != observed.shape[0]:
        raise ValueError(
            f"'observed' should have one row per row of 'output' ({bound.shape[-1]}), "
            f"but has shape {tuple(observed.shape)}."
        )
    scored = observed.to(bound.device)
    if weight is not None:
        weight = check_weight(weight, observed).to(bound.device)
        scored = scored & (weight > 0)
    for column, (m, p) in enumerate(output.likelihoods.items()):
        seen = scored[:, column]
        if m in x:
            inside = valid.get(m)
            check_scored(p, x[m], seen, m, inside, values=validate)
            factor = None if weight is None else weight[:, column]
            bound = bound + log_likelihood(p, x[m], seen, factor, inside)
        elif not torch.compiler.is_compiling() and bool(seen.any()):
            raise absent(m, x)
    return bound


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
