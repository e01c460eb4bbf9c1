r"""The fused operation in plain PyTorch: the oracle of every other backend, and the fallback."""

from __future__ import annotations

__all__ = ["gaussian_poe", "gradients", "run"]

from collections.abc import Sequence

import torch
from torch import Tensor

from mmpoe.gaussian import exp_minus_tangent, sample, soft_clamp, standardise, widen

from . import _philox
from ._arguments import InputGradients, Inputs, Needed, Outputs


def gaussian_poe(
    loc: Sequence[Tensor],
    log_scale: Sequence[Tensor],
    given: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    noise: Tensor | None,
    *,
    power: int,
    clamp: float | None,
    temperature: float,
    common_noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Computes prior x experts, one reparameterised sample and the divergence from the prior.

    With :math:`x_m = -p \log \sigma_m` for power :math:`p`, everything is relative to the prior:

    .. math::
        \delta = \log \Big(1 + \sum_m r_m e^{x_m - x_p}\Big), \quad
        w_m = e^{x_m - x_p - \delta}, \quad
        \mu = \mu_p + \sum_m w_m (\mu_m - \mu_p), \quad
        \log \sigma = \log \sigma_p - \delta / p

    so that an empty product is the prior to the bit, with a divergence of exactly zero. Common
    noise :math:`\gamma` adds :math:`\log k = -\log(1 + \gamma \sum_m r_m e^{x_m - x_p})` to every
    :math:`x_m`. Arguments are those of :func:`mmpoe.kernels.gaussian_poe`, already validated;
    `given` has shape (S, B, M).
    """
    dtype, event_dim = loc[0].dtype, loc[0].dim() - 1

    def squash(value: Tensor) -> Tensor:
        value = widen(value)
        return value if clamp is None else soft_clamp(value, clamp)

    if prior is None:
        prior_loc = prior_log_scale = widen(loc[0].new_zeros(()))
    else:
        prior_loc, prior_log_scale = map(squash, prior)  # (B, *event)

    log_ratios, offsets = [], []
    for m in range(len(loc)):
        present = given[..., m].reshape(*given.shape[:-1], *(1,) * event_dim)  # (S, B, 1...)
        # select before any arithmetic: a NaN that is not given must not reach a gradient either
        expert_loc = squash(torch.where(present, loc[m], 0))  # (S, B, *event)
        expert_log_scale = squash(torch.where(present, log_scale[m], 0))
        log_ratio = power * (prior_log_scale - expert_log_scale)
        log_ratios.append(torch.where(present, log_ratio, -torch.inf))
        informative = present & (expert_log_scale != torch.inf)  # else its mean does not matter
        offsets.append(torch.where(informative, expert_loc - prior_loc, 0))

    log_ratios = torch.stack(log_ratios)  # (M, S, B, *event)
    if common_noise is not None:
        gamma = widen(common_noise).reshape(-1, *(1,) * (event_dim - 1))  # (C, 1...)
        log_ratios = log_ratios + _log_discount(log_ratios, gamma)
    itself = torch.zeros_like(log_ratios[:1])  # the prior, in proportion to itself
    delta = torch.logsumexp(torch.cat([itself, log_ratios]), dim=0)  # (S, B, *event)
    weights = torch.exp(log_ratios - delta)

    shift = (weights * torch.stack(offsets)).sum(dim=0)  # loc - prior_loc
    fused_loc = prior_loc + shift
    fused_log_scale = prior_log_scale - delta / power

    distance = standardise(shift, prior_log_scale)
    kl = (exp_minus_tangent(-2 * delta / power) + distance.square()) / 2
    kl = kl.flatten(2).sum(dim=2) if event_dim else kl  # (S, B)

    z = fused_loc if noise is None else sample(fused_loc, fused_log_scale, noise, temperature)

    return z.to(dtype), fused_loc.to(dtype), fused_log_scale.to(dtype), kl


def run(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes `z`, `loc`, `log_scale` and `kl` of the same inputs as a kernel."""
    loc, log_scale, given, prior, noise, seed, common_noise, power, clamp, temperature = inputs
    if noise is None and seed is not None:
        event = loc[0].shape[1:]
        rows = given.shape[:-1].numel()
        noise = _philox.normal(seed, rows, event.numel()).reshape(inputs.shape)
        noise = noise.to(widen(loc[0]).dtype)
    alone = given.dim() == 2
    outputs = gaussian_poe(
        loc,
        log_scale,
        given.unsqueeze(0) if alone else given,
        prior,
        noise.unsqueeze(0) if alone and noise is not None else noise,
        power=power,
        clamp=clamp or None,
        temperature=temperature,
        common_noise=common_noise,
    )
    z, loc_, log_scale_, kl = (t.squeeze(0) for t in outputs) if alone else outputs
    return z, loc_, log_scale_, kl


def gradients(inputs: Inputs, gradients: Outputs, needed: Needed) -> InputGradients:
    """Computes the gradients of the inputs so that they can be differentiated again.

    Arguments:
        inputs: The inputs.
        gradients: The gradients of the outputs, None for zero.
        needed: Which gradients to compute.
    """
    with torch.enable_grad():
        # views, so that an input that is given twice gets each of its two gradients
        loc, log_scale = ([t.view_as(t) for t in part] for part in inputs[:2])
        prior, gamma = inputs.prior, inputs.common_noise
        if prior is not None:
            prior = (prior[0].view_as(prior[0]), prior[1].view_as(prior[1]))
        if gamma is not None:
            gamma = gamma.view_as(gamma)
        fused = inputs._replace(loc=loc, log_scale=log_scale, prior=prior, common_noise=gamma)
        pairs = [(t, g) for t, g in zip(run(fused), gradients, strict=True) if g is not None]

        sources = [*loc, *log_scale, *(prior or (None, None)), gamma]
        wanted = [*needed.loc, *needed.log_scale, *needed[2:]]
        targets = [t for t, want in zip(sources, wanted, strict=True) if t is not None and want]
        found = iter(
            torch.autograd.grad(
                [t for t, _ in pairs],
                targets,
                [g for _, g in pairs],
                create_graph=True,
                materialize_grads=True,
            )
        )
    results = [
        next(found) if t is not None and want else None
        for t, want in zip(sources, wanted, strict=True)
    ]
    half = len(loc)
    return InputGradients(results[:half], results[half : 2 * half], *results[2 * half :])


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
