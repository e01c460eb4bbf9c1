r"""Posteriors: rules that fuse a prior and given experts into :math:`q(z \mid x_s)`."""

from __future__ import annotations

__all__ = ["PoE"]

from collections.abc import Sequence

from torch import Tensor, nn

from . import gaussian, kernels


class PoE(nn.Module):
    r"""Product of experts, with the prior as one of them.

    .. math:: q(z \mid x_s) \propto p(z) \prod_{m \in s} \mathcal{N}(z; \mu_m, \sigma_m^2)

    Arguments:
        power: The power of the inverse scale that adds up: 2 is the product of Gaussians, 1 the
            rule of the published MMHVAE weights.
        clamp: The limit :math:`c` of a soft clamp :math:`c \tanh(v / c)` on the means and log
            standard deviations of experts and prior; None leaves them alone.

    References:
        | Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018)
        | https://arxiv.org/abs/1802.05335
    """

    def __init__(self, power: int = 2, clamp: float | None = None) -> None:
        super().__init__()
        gaussian.check_power(power)
        if clamp is not None and not clamp > 0:
            raise ValueError(f"'clamp' should be positive or None, but is {clamp!r}.")
        self.power, self.clamp = power, clamp

    def forward(
        self,
        loc: Sequence[Tensor],
        log_scale: Sequence[Tensor],
        given: Tensor,
        prior: tuple[Tensor, Tensor] | None = None,
        *,
        noise: Tensor | None = None,
        sample: bool = True,
        temperature: float = 1.0,
    ) -> kernels.PoE:
        """Fuses, samples and measures; arguments as in :func:`mmpoe.kernels.gaussian_poe`."""
        return kernels.gaussian_poe(
            loc,
            log_scale,
            given,
            prior,
            noise=noise,
            sample=sample,
            temperature=temperature,
            power=self.power,
            clamp=self.clamp,
        )

    def squash(self, value: Tensor) -> Tensor:
        """Applies the soft clamp to a raw parameter of an expert or a prior."""
        if self.clamp is None:
            return value
        return gaussian.soft_clamp(gaussian.widen(value), self.clamp).to(value.dtype)
