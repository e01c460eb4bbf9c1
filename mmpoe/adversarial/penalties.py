r"""Penalties on the gradient of a discriminator: one number per sample."""

from __future__ import annotations

__all__ = ["gradient_penalty", "r1_penalty"]

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ._losses import over_patches


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    generator: Generator | None = None,
) -> Tensor:
    r"""Returns the gradient penalty, which holds gradient norms near 1 between real and fake.

    .. math::
        \big(\lVert \nabla_x D(x_\varepsilon) \rVert_2 - 1\big)^2, \qquad
        x_\varepsilon = \varepsilon \, x + (1 - \varepsilon) \, \hat x, \quad
        \varepsilon \sim \mathcal{U}(0, 1)

    where :math:`D` is the mean score over patches. Samples must not interact in the
    discriminator, as they would in batch normalisation.

    Arguments:
        discriminator: Maps samples to scores, with shape :math:`(N, *)`.
        real: Real samples, with shape :math:`(N, *)`.
        fake: Fake samples, one for each of them; constants here.
        generator: The random generator, on the CPU; PyTorch's own if None.

    Returns:
        The penalty of each pair, with shape :math:`(N)`, to be added to the loss of the
        discriminator; its weight in the reference is 10.

    Raises:
        ValueError: If `real` and `fake` do not have the same shape.

    References:
        | Improved Training of Wasserstein GANs (Gulrajani et al., 2017)
        | https://arxiv.org/abs/1704.00028

    Example:
        >>> gradient_penalty(lambda x: 3 * x, torch.zeros(2, 1), torch.ones(2, 1))
        tensor([4., 4.])
    """
    if real.shape != fake.shape:
        raise ValueError(
            "'real' and 'fake' should have the same shape, "
            f"but have {tuple(real.shape)} and {tuple(fake.shape)}."
        )
    share = torch.rand(len(real), generator=generator, dtype=real.dtype).to(real.device)
    share = share.reshape(-1, *(1,) * (real.dim() - 1))  # (N, 1...)
    slope = _gradient(discriminator, share * real + (1 - share) * fake)
    return (torch.linalg.vector_norm(slope, dim=1) - 1).square()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    r"""Returns the R1 penalty, which holds gradients near 0 at real samples.

    .. math:: \frac{1}{2} \lVert \nabla_x D(x) \rVert_2^2

    where :math:`D` is the mean score over patches. With it, and any loss, training converges to
    fake samples that are like real ones, instead of circling around them.

    Arguments:
        discriminator: Maps samples to scores, with shape :math:`(N, *)`.
        real: Real samples, with shape :math:`(N, *)`.

    Returns:
        The penalty of each sample, with shape :math:`(N)`, to be added to the loss of the
        discriminator with a weight, the :math:`\gamma` of the reference.

    References:
        | Which Training Methods for GANs do actually Converge? (Mescheder et al., 2018)
        | https://arxiv.org/abs/1801.04406

    Example:
        >>> r1_penalty(lambda x: 3 * x, torch.zeros(2, 1))
        tensor([4.5000, 4.5000])
    """
    return _gradient(discriminator, real).square().sum(dim=1) / 2


def _gradient(discriminator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of the score of each sample, flat, with shape (N, D)."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        score = over_patches(discriminator(x)).sum()
        (slope,) = torch.autograd.grad(score, x, create_graph=differentiable)
    return slope.flatten(1)
