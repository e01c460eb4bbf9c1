r"""Rules that pool what is given without a product: barycentres, and sums of features."""

from __future__ import annotations

__all__ = ["SumPooling", "WassersteinBarycenter"]

import torch
from torch import Tensor, nn

from mmpoe import gaussian, kernels

from .base import Draw, Factors, Posterior, spread


class WassersteinBarycenter(Posterior):
    r"""Wasserstein barycentre of the given experts: means and standard deviations are averaged.

    .. math::
        q(z \mid x_s) = \operatorname*{arg\,min}_q \frac{1}{|s|} \sum_{m \in s}
        W_2^2\big(q, \mathcal{N}(\mu_m, \sigma_m^2)\big) = \mathcal{N}\Big(z;
        \frac{1}{|s|} \sum_{m \in s} \mu_m, \Big(\frac{1}{|s|} \sum_{m \in s} \sigma_m\Big)^2\Big)

    Each expert is a posterior by itself: the barycentre is that of the posteriors of single
    modalities, evenly weighted, and the prior is not among them. Divergences are from the prior.
    More modalities do not make it narrower, so it is no exact posterior where they are independent
    given z.

    The mixture of barycentres of the paper is :func:`mmpoe.objectives.mopoe` with this rule.

    Arguments:
        clamp: The limit of the soft clamp, see :class:`Posterior`.

    References:
        | Multimodal Variational Autoencoder: A Barycentric View (Qiu et al., 2025)
        | https://arxiv.org/abs/2412.20487

    Example:
        >>> loc = [torch.zeros(1, 1), torch.full((1, 1), 4.0)]
        >>> log_scale = [torch.zeros(1, 1), torch.full((1, 1), 3.0).log()]
        >>> q = WassersteinBarycenter()(loc, log_scale, torch.tensor([[True, True]]))
        >>> q.loc, q.log_scale.exp()
        (tensor([[2.]]), tensor([[2.0000]]))
    """

    def fuse(self, factors: Factors, draw: Draw) -> kernels.Product:
        """Fuses factors, see :meth:`Posterior.fuse`."""
        locs, log_scales, given, prior, _ = self.squashed(factors.filled())
        members = given | ~given.any(dim=1, keepdim=True)  # (R, M), none is empty
        loc, log_scale = (
            gaussian.widen(torch.stack(v, dim=1)) for v in (locs, log_scales)
        )  # (R, M, *)
        share = members.to(loc) / members.sum(dim=1, keepdim=True)
        share = share.reshape(*share.shape, *(1,) * (loc.dim() - 2))
        mean = (share * loc).sum(dim=1)
        deviation = (log_scale + share.log()).logsumexp(dim=1)  # the log of the average
        return _settled(mean, deviation, given, prior, locs[0].dtype, draw)


class SumPooling(Posterior):
    r"""Posterior of a network that sees the sum of the features of what is given.

    .. math::
        q(z \mid x_s) = \mathcal{N}\big(z; \mu_p + \sigma_p \odot a, (\sigma_p \odot e^b)^2\big),
        \qquad (a, b) = f\Big(\sum_{m \in s} h_m\Big)

    What encoders return, mean and log standard deviation stacked, are features :math:`h_m` here,
    and experts no Gaussians. A sum does not know the order of modalities nor how many there are,
    and the product is the case in which features are natural parameters. What the network does for
    a subset that training never saw is up to the network.

    Arguments:
        network: The network :math:`f`, which maps the sum, with shape :math:`(R, 2C, *)`, to
            :math:`a` and :math:`b`, stacked, with the same shape.

    References:
        | Deep Sets (Zaheer et al., 2017)
        | https://arxiv.org/abs/1703.06114
        | Learning Multi-Modal Generative Models with Permutation-Invariant Encoders and Tighter
          Variational Objectives (Hirt et al., 2024)
        | https://arxiv.org/abs/2309.00380

    Example:
        >>> rule = SumPooling(nn.Linear(4, 4))
        >>> features = [torch.randn(5, 2), torch.randn(5, 2)]
        >>> rule(features, features, torch.ones(5, 2).bool()).loc.shape
        torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def fuse(self, factors: Factors, draw: Draw) -> kernels.Product:
        """Fuses factors, see :meth:`Posterior.fuse`.

        Raises:
            ValueError: If the network does not return what it should.
        """
        first, second, given, prior, _ = factors.filled()
        total = torch.cat([torch.stack(v).sum(dim=0) for v in (first, second)], dim=1)
        out = self.network(total)
        if out.shape != total.shape:
            raise ValueError(
                f"'network' should return the shape of its input, {tuple(total.shape)}, "
                f"but returns {tuple(out.shape)}."
            )
        loc, log_scale = gaussian.widen(out).chunk(2, dim=1)
        if prior is not None:
            prior_loc, prior_log_scale = (gaussian.widen(v) for v in prior)
            loc = gaussian.sample(prior_loc, prior_log_scale, loc)
            log_scale = prior_log_scale + log_scale
        return _settled(loc, log_scale, given, prior, first[0].dtype, draw)


def _settled(
    loc: Tensor,
    log_scale: Tensor,
    given: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
    draw: Draw,
) -> kernels.Product:
    """Returns a Gaussian, the prior in pairs that are given nothing, its sample and divergence."""
    some = spread(given.any(dim=1), loc)
    p = (torch.zeros_like(loc),) * 2 if prior is None else [v.to(loc.dtype) for v in prior]
    loc, log_scale = torch.where(some, loc, p[0]), torch.where(some, log_scale, p[1])
    kl = gaussian.kl_divergence(loc, log_scale, *p).flatten(1).sum(dim=1)
    loc, log_scale = loc.to(dtype), log_scale.to(dtype)
    return kernels.Product(draw.sample(loc, log_scale), loc, log_scale, kl)
