r"""Diagonal Gaussian algebra on plain tensors: products, divergences, samples.

Everything works with the mean ``loc`` and the *log standard deviation* ``log_scale``, in log
space, so that no precision ever overflows. Half-precision inputs are computed in float32.
"""

from __future__ import annotations

__all__ = ["kl_divergence", "product_of_experts", "sample", "soft_clamp"]

import math

import torch
from torch import Tensor

HALF_LOG_2PI = math.log(2 * math.pi) / 2


def product_of_experts(
    loc: Tensor, log_scale: Tensor, mask: Tensor | None = None, *, power: int = 2
) -> tuple[Tensor, Tensor]:
    r"""Multiplies :math:`M` diagonal Gaussian experts and renormalises.

    .. math::
        \mathcal{N}(z; \mu, \sigma^2) \propto \prod_m \mathcal{N}(z; \mu_m, \sigma_m^2)^{r_m},
        \qquad \sigma^{-2} = \sum_m r_m \sigma_m^{-2},
        \qquad \mu = \sigma^2 \sum_m r_m \sigma_m^{-2} \mu_m

    A masked expert is never used in any arithmetic: whatever it holds, NaN included, changes no
    bit of the result and receives a gradient of exactly zero. The same is true of the mean of an
    expert with an infinite scale. A product of no expert at all is flat: mean 0, log standard
    deviation :math:`+\infty`, zero gradients.

    Arguments:
        loc: The means :math:`\mu_m`, with shape :math:`(M, *)`.
        log_scale: The log standard deviations :math:`\log \sigma_m`, with shape :math:`(M, *)`.
        mask: Which experts take part (:math:`r_m`), boolean, with as many dimensions as `loc` and
            broadcastable to :math:`(M, *)`.
        power: The power of the inverse scale that adds up. 2 is the product of Gaussians above; 1
            adds inverse standard deviations, the rule of the published MMHVAE weights.

    Returns:
        The mean and log standard deviation of the product, each with shape :math:`(*)`.

    Raises:
        ValueError: If the shapes differ, an input is not floating-point, the mask is not boolean
            or does not broadcast, or `power` is neither 1 nor 2.

    References:
        | Training Products of Experts by Minimizing Contrastive Divergence (Hinton, 2002)
        | https://doi.org/10.1162/089976602760128018

    Example:
        >>> product_of_experts(torch.tensor([0.0, 2.0]), torch.zeros(2))
        (tensor(1.), tensor(-0.3466))
    """
    check_power(power)
    _check_floating(loc=loc, log_scale=log_scale)
    if loc.shape != log_scale.shape or loc.dim() == 0:
        raise ValueError(
            "'loc' and 'log_scale' should have the same shape (M, *), "
            f"but have shapes {tuple(loc.shape)} and {tuple(log_scale.shape)}."
        )
    if len(loc) == 0:
        raise ValueError("'loc' should hold at least one expert, but holds none.")

    dtype = loc.dtype
    loc, log_scale = widen(loc), widen(log_scale)

    log_precision = -power * log_scale  # (M, *)
    if mask is not None:
        _check_mask(mask, loc)
        log_precision = torch.where(mask, log_precision, -torch.inf)

    absent = log_precision == -torch.inf
    loc = torch.where(absent, 0, loc)

    shift = log_precision.detach().amax(dim=0)  # (*)
    empty = shift == -torch.inf
    shift = torch.where(empty, 0, shift)

    weight = torch.exp(log_precision - shift)  # (M, *)
    total = torch.where(empty, 1, weight.sum(dim=0))  # (*)

    fused_loc = (weight * loc).sum(dim=0) / total
    fused_log_scale = torch.where(empty, torch.inf, -(shift + total.log()) / power)

    return fused_loc.to(dtype), fused_log_scale.to(dtype)


def kl_divergence(
    loc: Tensor, log_scale: Tensor, prior_loc: Tensor, prior_log_scale: Tensor
) -> Tensor:
    r"""Returns the Kullback-Leibler divergence of each dimension, in nats.

    .. math::
        \mathrm{KL}\big(\mathcal{N}(\mu, \sigma^2) \,\|\, \mathcal{N}(\mu_p, \sigma_p^2)\big)
        = \tfrac{1}{2} \left[ e^u - 1 - u + \frac{(\mu - \mu_p)^2}{\sigma_p^2} \right],
        \qquad u = 2 (\log \sigma - \log \sigma_p)

    The terms in :math:`u` are evaluated without cancellation, so that the divergence of two nearly
    equal Gaussians is right to rounding and never negative.

    Arguments:
        loc: The mean :math:`\mu`, with shape :math:`(*)`.
        log_scale: The log standard deviation :math:`\log \sigma`, with shape :math:`(*)`.
        prior_loc: The mean :math:`\mu_p`, broadcastable to :math:`(*)`.
        prior_log_scale: The log standard deviation :math:`\log \sigma_p`, broadcastable to
            :math:`(*)`.

    Returns:
        The divergence, elementwise, with shape :math:`(*)`, float32 or wider.

    Example:
        >>> one, zero = torch.tensor([1.0, 0.0])
        >>> kl_divergence(one, zero, zero, zero)
        tensor(0.5000)
    """
    _check_floating(
        loc=loc, log_scale=log_scale, prior_loc=prior_loc, prior_log_scale=prior_log_scale
    )
    loc, log_scale = widen(loc), widen(log_scale)
    prior_loc, prior_log_scale = widen(prior_loc), widen(prior_log_scale)

    distance = standardise(loc - prior_loc, prior_log_scale)
    return (exp_minus_tangent(2 * (log_scale - prior_log_scale)) + distance.square()) / 2


def sample(loc: Tensor, log_scale: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Returns a reparameterised sample :math:`z = \mu + T \sigma \epsilon`.

    Arguments:
        loc: The mean :math:`\mu`, with shape :math:`(*)`.
        log_scale: The log standard deviation :math:`\log \sigma`, with shape :math:`(*)`.
        noise: Standard normal noise :math:`\epsilon`, broadcastable to :math:`(*)`.
        temperature: The temperature :math:`T`; 0 returns the mean.

    Returns:
        The sample, with shape :math:`(*)`.

    Example:
        >>> sample(torch.tensor(1.0), torch.tensor(0.0), noise=torch.tensor(-2.0), temperature=0.5)
        tensor(0.)
    """
    return (widen(loc) + temperature * torch.exp(widen(log_scale)) * widen(noise)).to(loc.dtype)


def soft_clamp(x: Tensor, limit: float) -> Tensor:
    r"""Squashes values smoothly into :math:`(-c, c)` by :math:`c \tanh(x / c)`.

    Arguments:
        x: Any tensor.
        limit: The limit :math:`c`, positive.

    Example:
        >>> soft_clamp(torch.tensor([0.1, 100.0]), 5.0)
        tensor([0.1000, 5.0000])
    """
    return limit * torch.tanh(x / limit)


def exp_minus_tangent(u: Tensor) -> Tensor:
    r"""Returns :math:`e^u - 1 - u`, accurate near zero, where the plain formula cancels."""
    is_near = u.abs() < 0.1
    # each branch is evaluated at 0 where it is not taken, so that its gradient stays finite there
    near, far = torch.where(is_near, u, 0), torch.where(is_near, 0, u)

    series = torch.ones_like(u)
    for k in range(10, 2, -1):  # 1 + u/3 + u^2/(3*4) + ...
        series = 1 + near / k * series

    return torch.where(is_near, near.square() / 2 * series, torch.expm1(far) - far)


def standardise(offset: Tensor, log_scale: Tensor) -> Tensor:
    r"""Returns :math:`x / \sigma`, and 0 for an offset of 0 even where the precision overflows."""
    overflows = (offset == 0) & (log_scale < -80)
    return offset * torch.exp(-torch.where(overflows, 0, log_scale))


def widen(x: Tensor) -> Tensor:
    """Converts half-precision tensors to float32 and leaves wider ones alone."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def exact(x: Tensor) -> Tensor:
    """Converts to float64, for terms that are as large as counts and cancel.

    Where a device has no float64, integers become float32 and others stay as they are.
    """
    if x.device.type == "mps":
        return x if x.is_floating_point() else x.float()
    return x.double()


def check_power(power: int) -> None:
    """Raises a ValueError unless `power` is one of the two fusion rules."""
    if power not in (1, 2):
        raise ValueError(
            "'power' should be 2 (product of Gaussians) or 1 (inverse scales add), "
            f"but is {power!r}."
        )


def _check_floating(**inputs: Tensor) -> None:
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"'{name}' should be a floating-point tensor, but is {kind}.")


def _check_mask(mask: Tensor, like: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"'mask' should be boolean, but has dtype {mask.dtype}.")
    # with fewer dimensions than 'loc', which of them are experts would be a guess
    fits = mask.dim() == like.dim() and all(
        size in (1, wanted) for size, wanted in zip(mask.shape, like.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"'mask' should broadcast to the shape of 'loc', {tuple(like.shape)}, "
            f"but has shape {tuple(mask.shape)}."
        )
