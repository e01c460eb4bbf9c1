r"""The fused operation in plain PyTorch: the oracle of every other backend, and the fallback."""

from __future__ import annotations

__all__ = ["forward", "gradients"]

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from mmpoe.gaussian import exp_minus_tangent, sample, soft_clamp, standardise, widen

from . import _philox
from ._arguments import Inputs, Outputs, gather


def forward(inputs: Inputs) -> Outputs:
    r"""Computes prior x experts, one reparameterised sample and the divergence from the prior.

    With :math:`x_m = -p \log \sigma_m` for power :math:`p`, everything is relative to the prior:

    .. math::
        \delta = \log \Big(1 + \sum_m r_m e^{x_m - x_p}\Big), \quad
        w_m = e^{x_m - x_p - \delta}, \quad
        \mu = \mu_p + \sum_m w_m (\mu_m - \mu_p), \quad
        \log \sigma = \log \sigma_p - \delta / p

    so that an empty product is the prior to the bit, with a divergence of exactly zero. Where the
    prior is no factor, there is no 1 in the sum, and one expert alone is itself, to the bit.
    Common noise :math:`\gamma` adds
    :math:`\log k = -\log(1 + \gamma \sum_m r_m e^{x_m - x_p})` to every :math:`x_m`.
    """
    given, power, clamp = inputs.given, inputs.power, inputs.clamp
    dtype, event_dim = inputs.loc[0].dtype, inputs.loc[0].dim() - 1

    def squash(value: Tensor) -> Tensor:
        value = widen(value)
        return soft_clamp(value, clamp) if clamp else value

    if inputs.prior_loc is None or inputs.prior_log_scale is None:
        prior_loc = prior_log_scale = widen(inputs.loc[0].new_zeros(()))
    else:
        prior_loc, prior_log_scale = squash(inputs.prior_loc), squash(inputs.prior_log_scale)

    def spread(value: Tensor) -> Tensor:
        return value.reshape(*value.shape, *(1,) * event_dim)  # ([S,] B, 1...)

    def of_pairs(value: Tensor) -> Tensor:  # of what samples have, (B, *event) or ()
        if inputs.rows is None or not value.dim():
            return value
        return value.index_select(0, inputs.rows)

    log_ratios, offsets, experts, used = [], [], [], _used(inputs)
    for m, (loc, log_scale) in enumerate(zip(inputs.loc, inputs.log_scale, strict=True)):
        seen = spread(used[:, m])  # by some pair
        present = seen if used is given else spread(given[..., m])
        # select before any arithmetic: a NaN that is not given must not reach a gradient either
        expert_loc = squash(torch.where(seen, loc, 0))  # (B, *event)
        expert_log_scale = squash(torch.where(seen, log_scale, 0))
        informative = expert_log_scale != torch.inf  # else its mean does not matter
        offset = torch.where(informative, expert_loc - prior_loc, 0)
        log_ratio = power * (prior_log_scale - expert_log_scale)
        offsets.append(torch.where(present, of_pairs(offset), 0))  # ([S,] B, *event)
        log_ratios.append(torch.where(present, of_pairs(log_ratio), -torch.inf))
        experts.append((expert_loc, expert_log_scale))
    prior_loc, prior_log_scale = of_pairs(prior_loc), of_pairs(prior_log_scale)

    if inputs.common_noise is not None:
        gamma = widen(inputs.common_noise).reshape(-1, *(1,) * (event_dim - 1))  # (C, 1...)
        discount = _log_discount(torch.stack(log_ratios), gamma)
        log_ratios = [v + discount for v in log_ratios]
    largest = functools.reduce(torch.maximum, [v.detach() for v in log_ratios])
    itself = torch.zeros_like(largest)  # the prior, in proportion to itself
    joins = nothing = None
    if inputs.prior_in != "always":
        joins = spread(_prior_joins(inputs))
        nothing = ~joins & largest.isneginf()  # experts without information
        itself = torch.where(joins | nothing, itself, -torch.inf)
    largest = torch.maximum(largest, itself)

    total, moment = torch.exp(itself - largest), torch.zeros_like(largest)
    for log_ratio, offset in zip(log_ratios, offsets, strict=True):
        ratio = torch.exp(log_ratio - largest)
        total, moment = total + ratio, moment + ratio * offset
    delta, shift = largest + torch.log(total), moment / total  # shift is loc - prior_loc
    if nothing is not None:
        delta = torch.where(nothing, -torch.inf, delta)
    fused_loc = prior_loc + shift
    fused_log_scale = prior_log_scale - delta / power
    if joins is not None and nothing is not None:
        alone = ~joins & ~nothing & spread(given.sum(dim=-1) == 1)
        samples = torch.arange(given.shape[-2], device=given.device)
        first = given.int().argmax(dim=-1), samples if inputs.rows is None else inputs.rows
        own_loc, own_log_scale = (torch.stack(v)[first] for v in zip(*experts, strict=True))
        fused_loc = torch.where(alone, own_loc, fused_loc)
        fused_log_scale = torch.where(alone, own_log_scale, fused_log_scale)

    distance = standardise(shift, prior_log_scale)
    kl = (exp_minus_tangent(-2 * delta / power) + distance.square()) / 2
    rows = given.dim() - 1
    kl = kl.flatten(rows).sum(dim=rows) if event_dim else kl  # ([S,] B)

    noise = _draw(inputs) if inputs.noise is None else inputs.noise
    z = fused_loc
    if noise is not None:
        z = sample(fused_loc, fused_log_scale, noise, inputs.temperature)
    return Outputs(z.to(dtype), fused_loc.to(dtype), fused_log_scale.to(dtype), kl)


def _used(inputs: Inputs) -> Tensor:
    """Says which experts some pair of each sample is given, with shape (B, M)."""
    given = inputs.given
    if inputs.rows is not None:
        counts = given.new_zeros((inputs.loc[0].shape[0], len(inputs.loc)), dtype=torch.int64)
        return counts.index_add(0, inputs.rows, given.long()) > 0
    return given if given.dim() == 2 else given.any(dim=0)


def _prior_joins(inputs: Inputs) -> Tensor:
    """Says in which products the prior is a factor, with the shape of `kl`."""
    nothing = ~inputs.given.any(dim=-1)
    return nothing | inputs.given.all(dim=-1) if inputs.prior_in == "full" else nothing


def _draw(inputs: Inputs) -> Tensor | None:
    """Returns the noise that a kernel draws from the seed, None without a seed."""
    if inputs.seed is None:
        return None
    rows = inputs.given.shape[:-1].numel()
    noise = _philox.normal(inputs.seed, rows, inputs.size).reshape(inputs.shape)
    return noise.to(widen(inputs.loc[0]).dtype)


def gradients(inputs: Inputs, gradients: Outputs, needed: Sequence[bool]) -> list[Tensor | None]:
    """Does what `_launch.backward` does, so that gradients can be differentiated again."""
    with torch.enable_grad():
        # views, so that an input that is given twice gets each of its two gradients
        views = [None if t is None else t.view_as(t) for t in inputs.tensors]
        outputs = forward(gather(views, inputs.numbers))
        weights = [g for g in gradients if g is not None]
        used = [
            t for t, g in zip(outputs, gradients, strict=True) if t is not None and g is not None
        ]
        leaves = [t for t, need in zip(views, needed, strict=True) if t is not None and need]
        options = {"create_graph": True, "materialize_grads": True}
        found = iter(torch.autograd.grad(used, leaves, weights, **options))
    return [next(found) if need else None for need in needed]


def _log_discount(log_ratios: Tensor, gamma: Tensor) -> Tensor:
    r"""Returns :math:`-\log(1 + \gamma R)` with :math:`R = \sum_m e^{x_m - x_p}`, for any R."""
    absent = log_ratios.isneginf().all(dim=0)
    log_total = torch.logsumexp(torch.where(absent, 0, log_ratios), dim=0)  # log R

    # each branch is evaluated at 0 or 1 where it is not taken: its gradient stays finite there
    is_large = log_total > 60
    moderate = torch.log1p(gamma * torch.where(is_large, 0, log_total).exp())
    log_gamma = torch.where(gamma > 0, gamma, 1).log()
    exponent = torch.where(is_large & (gamma > 0), log_gamma + log_total, -torch.inf)
    large = torch.nn.functional.softplus(torch.where(is_large, exponent, 0))

    discount = -torch.where(is_large, large, moderate)
    return torch.where(absent, 0, discount)
