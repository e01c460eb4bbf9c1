r"""Losses of a discriminator and a generator, from scores: one number per sample.

Scores are logits, or any real numbers, with shape :math:`(N)` or :math:`(N, *)`. Those of the
patches of one sample are judged one by one, and averaged; samples are not.
"""

from __future__ import annotations

__all__ = [
    "KINDS",
    "Kind",
    "Losses",
    "hinge_discriminator",
    "hinge_generator",
    "lsgan_discriminator",
    "lsgan_generator",
    "nonsaturating_discriminator",
    "nonsaturating_generator",
    "over_patches",
    "wasserstein_discriminator",
    "wasserstein_generator",
]

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus

Kind = Literal["lsgan", "hinge", "nonsaturating", "wgan_gp"]
"""The name of a pair of losses."""


def lsgan_discriminator(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    r"""Wants scores of 1 for real samples and 0 for fake ones, by least squares.

    .. math:: \ell_\mathrm{real} = \big(D(x) - 1\big)^2, \qquad
        \ell_\mathrm{fake} = D(\hat x)^2

    A discriminator that cannot tell scores 1/2, and loses 1/4 on either.

    Arguments:
        real: The scores of real samples, with shape :math:`(N, *)`.
        fake: The scores of fake samples, with shape :math:`(N', *)`.

    Returns:
        The loss of each real sample, with shape :math:`(N)`, and of each fake one, :math:`(N')`.

    References:
        | Least Squares Generative Adversarial Networks (Mao et al., 2017)
        | https://arxiv.org/abs/1611.04076

    Example:
        >>> lsgan_discriminator(torch.tensor([1.0, 0.5]), torch.tensor([0.5, 2.0]))
        (tensor([0.0000, 0.2500]), tensor([0.2500, 4.0000]))
    """
    return over_patches((real - 1).square()), over_patches(fake.square())


def lsgan_generator(fake: Tensor) -> Tensor:
    r"""Wants scores of 1 for fake samples, by least squares.

    .. math:: \ell_G = \big(D(\hat x) - 1\big)^2

    Arguments:
        fake: The scores of fake samples, with shape :math:`(N, *)`.

    Returns:
        The loss of each sample, with shape :math:`(N)`.

    References:
        | Least Squares Generative Adversarial Networks (Mao et al., 2017)
        | https://arxiv.org/abs/1611.04076

    Example:
        >>> lsgan_generator(torch.tensor([[1.0, 3.0], [0.5, 0.5]]))  # of two patches each
        tensor([2.0000, 0.2500])
    """
    return over_patches((fake - 1).square())


def hinge_discriminator(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    r"""Wants scores of at least 1 for real samples and at most -1 for fake ones.

    .. math:: \ell_\mathrm{real} = \max\big(0, 1 - D(x)\big), \qquad
        \ell_\mathrm{fake} = \max\big(0, 1 + D(\hat x)\big)

    A discriminator that cannot tell loses 2 on both together.

    Arguments:
        real: The scores of real samples, with shape :math:`(N, *)`.
        fake: The scores of fake samples, with shape :math:`(N', *)`.

    Returns:
        The loss of each real sample, with shape :math:`(N)`, and of each fake one, :math:`(N')`.

    References:
        | Geometric GAN (Lim & Ye, 2017)
        | https://arxiv.org/abs/1705.02894

    Example:
        >>> hinge_discriminator(torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0]))
        (tensor([0.0000, 0.5000]), tensor([0., 1.]))
    """
    return over_patches(relu(1 - real)), over_patches(relu(1 + fake))


def hinge_generator(fake: Tensor) -> Tensor:
    r"""Wants high scores for fake samples, against :func:`hinge_discriminator`.

    .. math:: \ell_G = -D(\hat x)

    Arguments:
        fake: The scores of fake samples, with shape :math:`(N, *)`.

    Returns:
        The loss of each sample, with shape :math:`(N)`.

    References:
        | Geometric GAN (Lim & Ye, 2017)
        | https://arxiv.org/abs/1705.02894

    Example:
        >>> hinge_generator(torch.tensor([3.0, -1.0]))
        tensor([-3.,  1.])
    """
    return -over_patches(fake)


def nonsaturating_discriminator(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    r"""Tells real from fake samples by the cross-entropy of logits.

    .. math:: \ell_\mathrm{real} = -\log \sigma\big(D(x)\big), \qquad
        \ell_\mathrm{fake} = -\log\big(1 - \sigma(D(\hat x))\big)

    A discriminator that cannot tell scores 0, and loses :math:`\log 2` on either.

    Arguments:
        real: The scores of real samples, with shape :math:`(N, *)`.
        fake: The scores of fake samples, with shape :math:`(N', *)`.

    Returns:
        The loss of each real sample, in nats, with shape :math:`(N)`, and of each fake one,
        :math:`(N')`.

    References:
        | Generative Adversarial Networks (Goodfellow et al., 2014)
        | https://arxiv.org/abs/1406.2661

    Example:
        >>> nonsaturating_discriminator(torch.tensor([0.0, 200.0]), torch.tensor([200.0]))
        (tensor([0.6931, 0.0000]), tensor([200.]))
    """
    return over_patches(softplus(-real)), over_patches(softplus(fake))


def nonsaturating_generator(fake: Tensor) -> Tensor:
    r"""Wants fake samples to be taken for real; its gradient is steep where they are not.

    .. math:: \ell_G = -\log \sigma\big(D(\hat x)\big)

    Arguments:
        fake: The scores of fake samples, with shape :math:`(N, *)`.

    Returns:
        The loss of each sample, in nats, with shape :math:`(N)`.

    References:
        | Generative Adversarial Networks (Goodfellow et al., 2014)
        | https://arxiv.org/abs/1406.2661

    Example:
        >>> nonsaturating_generator(torch.tensor([0.0, -200.0]))
        tensor([  0.6931, 200.0000])
    """
    return over_patches(softplus(-fake))


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    r"""Wants high scores for real samples and low ones for fake samples.

    .. math:: \ell_\mathrm{real} = -D(x), \qquad \ell_\mathrm{fake} = D(\hat x)

    Their sum is an estimate of minus the Wasserstein distance for the best :math:`D` of slope 1
    at most; :func:`gradient_penalty` keeps it there, and without it the loss has no lower bound.

    Arguments:
        real: The scores of real samples, with shape :math:`(N, *)`.
        fake: The scores of fake samples, with shape :math:`(N', *)`.

    Returns:
        The loss of each real sample, with shape :math:`(N)`, and of each fake one, :math:`(N')`.

    References:
        | Wasserstein GAN (Arjovsky et al., 2017)
        | https://arxiv.org/abs/1701.07875

    Example:
        >>> wasserstein_discriminator(torch.tensor([2.0]), torch.tensor([-1.0, 3.0]))
        (tensor([-2.]), tensor([-1.,  3.]))
    """
    return -over_patches(real), over_patches(fake)


def wasserstein_generator(fake: Tensor) -> Tensor:
    r"""Wants high scores for fake samples, against :func:`wasserstein_discriminator`.

    .. math:: \ell_G = -D(\hat x)

    Arguments:
        fake: The scores of fake samples, with shape :math:`(N, *)`.

    Returns:
        The loss of each sample, with shape :math:`(N)`.

    References:
        | Wasserstein GAN (Arjovsky et al., 2017)
        | https://arxiv.org/abs/1701.07875

    Example:
        >>> wasserstein_generator(torch.tensor([3.0, -1.0]))
        tensor([-3.,  1.])
    """
    return -over_patches(fake)


def over_patches(values: Tensor) -> Tensor:
    r"""Averages the patches of each sample, :math:`(N, *)`, and returns :math:`(N)`."""
    return values.flatten(1).mean(dim=1) if values.dim() > 1 else values


class Losses(NamedTuple):
    """The losses of the two sides."""

    discriminator: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Maps the scores of real and of fake samples to their losses."""
    generator: Callable[[Tensor], Tensor]
    """Maps the scores of fake samples to their losses."""


KINDS: dict[str, Losses] = {
    "lsgan": Losses(lsgan_discriminator, lsgan_generator),
    "hinge": Losses(hinge_discriminator, hinge_generator),
    "nonsaturating": Losses(nonsaturating_discriminator, nonsaturating_generator),
    "wgan_gp": Losses(wasserstein_discriminator, wasserstein_generator),
}
"""The losses by name."""
