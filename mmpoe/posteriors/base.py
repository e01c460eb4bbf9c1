r"""The base of all fusion rules: one call, and one hook that a rule overrides."""

from __future__ import annotations

__all__ = ["Draw", "Factors", "Posterior"]

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmpoe import gaussian, kernels
from mmpoe.nn import Recorded


class Factors(NamedTuple):
    """The Gaussians that a rule fuses, for R pairs of a sample of a batch and a subset."""

    loc: list[Tensor]
    r"""The means of the M experts, each with shape (B, \*)."""
    log_scale: list[Tensor]
    r"""Their log standard deviations, each with shape (B, \*)."""
    given: Tensor
    """The experts that take part in each pair, boolean, with shape (R, M)."""
    prior: tuple[Tensor, Tensor] | None
    r"""The mean and log standard deviation of the prior, each with shape (R, \*); None is the
    standard normal."""
    rows: Tensor | None
    """The sample of each pair, with shape (R); None if pair r is about sample r."""

    def at_rows(self) -> Factors:
        r"""Returns the same factors with experts of shape (R, \*): pair r is about row r."""
        if self.rows is None:
            return self
        rows = self.rows
        return self._replace(
            loc=[v.index_select(0, rows) for v in self.loc],
            log_scale=[v.index_select(0, rows) for v in self.log_scale],
            rows=None,
        )

    def filled(self) -> Factors:
        """Returns factors of one row a pair, with 0 wherever an expert is not given.

        Values that are not given may be anything. Arithmetic on the result is safe, and so are
        its gradients.
        """
        whole = self.at_rows()

        def select(v: Tensor, column: int) -> Tensor:
            return torch.where(spread(self.given[:, column], v), v, 0)

        return whole._replace(
            loc=[select(v, m) for m, v in enumerate(whole.loc)],
            log_scale=[select(v, m) for m, v in enumerate(whole.log_scale)],
        )


class Draw(NamedTuple):
    """The way in which a rule draws from the Gaussian that it arrives at."""

    noise: Tensor | None = None
    r"""Standard normal noise, with shape (R, \*); drawn if None."""
    temperature: float = 1.0
    """The factor of the standard deviation; the draw is the mean if it is 0."""

    def product(self, factors: Factors, **options: Any) -> kernels.Product:  # noqa: ANN401
        """Fuses factors by the product of experts, see `gaussian_poe`.

        Arguments:
            factors: The factors.
            options: Further arguments of :func:`mmpoe.kernels.gaussian_poe`: `power`, `clamp`,
                `common_noise` and `prior_in`.
        """
        if factors.prior is not None:  # it belongs to a pair, not to a sample
            factors = factors.at_rows()
        loc, log_scale, given, prior, rows = factors
        return kernels.gaussian_poe(
            loc,
            log_scale,
            given,
            prior,
            rows=rows,
            noise=self.noise,
            sample=self.temperature != 0,
            temperature=self.temperature,
            **options,
        )

    def sample(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        r"""Draws from a Gaussian, given its mean and log standard deviation of shape (R, \*)."""
        if self.temperature == 0:
            return loc
        noise = torch.randn_like(loc) if self.noise is None else self.noise
        return gaussian.sample(loc, log_scale, noise, self.temperature)


class Posterior(Recorded, nn.Module, ABC):
    r"""Base of all rules that fuse a prior and experts into :math:`q(z \mid x_s)`.

    A rule overrides one method, :meth:`fuse`.

    Arguments:
        clamp: The limit :math:`c` of a soft clamp :math:`c \tanh(v / c)` on the means and log
            standard deviations of experts and prior; None leaves them alone.

    Attributes:
        family: The subsets of what is given that are components of the posterior, as in
            :func:`mmpoe.missing.subsets`: ``"full"`` for a product.

    Example:
        A rule that takes the mean of the experts' parameters, and the prior where none is given:

        >>> class Mean(Posterior):
        ...     def fuse(self, factors, draw):
        ...         (loc, log_scale, given, prior, _) = factors.filled()
        ...         number = given.sum(dim=1, keepdim=True).clamp(min=1)
        ...         mean, deviation = sum(loc) / number, sum(log_scale) / number
        ...         kl = gaussian.kl_divergence(mean, deviation, *(torch.zeros_like(mean),) * 2)
        ...         z = draw.sample(mean, deviation)
        ...         return kernels.Product(z, mean, deviation, kl.sum(dim=1))
        >>> experts = [torch.ones(1, 2), torch.zeros(1, 2)]
        >>> Mean()(experts, experts, torch.tensor([[True, True]])).loc
        tensor([[0.5000, 0.5000]])
    """

    family = "full"

    def __init__(self, clamp: float | None = None) -> None:
        super().__init__()
        if clamp is not None and not clamp > 0:
            raise ValueError(f"'clamp' should be positive or None, but is {clamp!r}.")
        self.clamp = clamp

    def forward(
        self,
        loc: Sequence[Tensor],
        log_scale: Sequence[Tensor],
        given: Tensor,
        prior: tuple[Tensor, Tensor] | None = None,
        *,
        rows: Tensor | None = None,
        noise: Tensor | None = None,
        temperature: float = 1.0,
    ) -> kernels.Product:
        r"""Fuses experts, draws a sample and measures the divergence from the prior.

        Arguments:
            loc: The means of the :math:`M` experts, each with shape :math:`(B, *)`.
            log_scale: Their log standard deviations, each with shape :math:`(B, *)`.
            given: The experts that take part in each of R pairs of a sample and a subset, boolean,
                with shape :math:`(R, M)`.
            prior: The mean and log standard deviation of the prior, each with shape
                :math:`(R, *)`; None is the standard normal.
            rows: The sample of each pair, with shape :math:`(R)`. None is one pair for each
                sample, in order.
            noise: Standard normal noise, with shape :math:`(R, *)`; drawn if None.
            temperature: The temperature of the sample; at 0, it is the mean.

        Returns:
            A sample, the mean and the log standard deviation, with shape :math:`(R, *)`, and the
            divergence from the prior in nats, with shape :math:`(R)`. A pair that is given nothing
            has the prior.

        Raises:
            ValueError: If `given` does not have one column per expert.
        """
        if given.dim() != 2 or given.shape[-1] != len(loc):
            raise ValueError(
                f"'given' should have one column per expert ({len(loc)}), "
                f"but has shape {tuple(given.shape)}."
            )
        factors = Factors(list(loc), list(log_scale), given, prior, rows)
        return self.fuse(factors, Draw(noise, temperature))

    @abstractmethod
    def fuse(self, factors: Factors, draw: Draw) -> kernels.Product:
        """Fuses factors that :meth:`forward` has checked, and returns what it returns.

        Arguments:
            factors: The factors, with parameters as networks return them: the soft clamp has not
                been applied.
            draw: The way in which to draw the sample: ``draw.sample`` of the mean and log standard
                deviation that are returned. Pairs that stand several times are fused once, at
                temperature 0, and so sampled apart.
        """

    def squash(self, value: Tensor) -> Tensor:
        """Applies the soft clamp to a raw parameter of an expert or a prior."""
        if self.clamp is None:
            return value
        return gaussian.soft_clamp(gaussian.widen(value), self.clamp).to(value.dtype)

    def squashed(self, factors: Factors) -> Factors:
        """Applies the soft clamp to all parameters of some factors."""
        if self.clamp is None:
            return factors
        prior = factors.prior
        return factors._replace(
            loc=[self.squash(v) for v in factors.loc],
            log_scale=[self.squash(v) for v in factors.log_scale],
            prior=None if prior is None else (self.squash(prior[0]), self.squash(prior[1])),
        )


def spread(v: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor of shape (R) that broadcasts over one of shape (R, *)."""
    return v.reshape(-1, *(1,) * (like.dim() - 1))
