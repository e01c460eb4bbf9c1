r"""What all rules of fusion have in common."""

from __future__ import annotations

__all__ = ["Posterior", "Rows", "as_rows"]

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmpoe import gaussian, kernels

Rows = tuple[list[Tensor], list[Tensor], Tensor, tuple[Tensor, Tensor] | None, Tensor | None]
"""Means and log standard deviations of experts, which are given, prior, noise."""


class Posterior(nn.Module, ABC):
    r"""Base of all rules.

    Arguments:
        clamp: The limit :math:`c` of a soft clamp :math:`c \tanh(v / c)` on the means and log
            standard deviations of experts and prior; None leaves them alone.

    Attributes:
        family: The subsets of what is given that are components of the posterior, as in
            :func:`mmpoe.missing.subsets`: ``"full"`` for a product.
    """

    family = "full"

    def __init__(self, clamp: float | None = None) -> None:
        super().__init__()
        if clamp is not None and not clamp > 0:
            raise ValueError(f"'clamp' should be positive or None, but is {clamp!r}.")
        self.clamp = clamp

    @abstractmethod
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
        squashed: bool = False,
    ) -> kernels.Product:
        r"""Fuses, samples and measures.

        Arguments:
            loc: The means of the :math:`M` experts, each with shape :math:`(B, *)`.
            log_scale: Their log standard deviations, each with shape :math:`(B, *)`.
            given: Which experts take part, boolean, with shape :math:`(B, M)` or
                :math:`(S, B, M)`.
            prior: The mean and log standard deviation of the prior, each with shape
                :math:`(B, *)`; None is the standard normal.
            noise: Standard normal noise, with the shape of z; drawn if None.
            sample: Whether to sample; if not, z is the mean.
            temperature: The temperature of the sample.
            squashed: Whether the soft clamp has been applied already.

        Returns:
            A sample, the mean and log standard deviation, with shape :math:`(B, *)` or
            :math:`(S, B, *)`, and the divergence from the prior, with shape :math:`(B)` or
            :math:`(S, B)`. A row given nothing has the prior.
        """

    def pairs(
        self,
        loc: Sequence[Tensor],
        log_scale: Sequence[Tensor],
        given: Tensor,
        rows: Tensor,
        prior: tuple[Tensor, Tensor] | None = None,
        *,
        noise: Tensor | None = None,
        sample: bool = True,
        temperature: float = 1.0,
    ) -> kernels.Product:
        r"""Fuses, samples and measures any pairs of a sample of a batch and a subset.

        Arguments:
            loc: The means of the :math:`M` experts, each with shape :math:`(B, *)`.
            log_scale: Their log standard deviations, each with shape :math:`(B, *)`.
            given: Which experts take part, boolean, with shape :math:`(R, M)`.
            rows: The sample that each row of `given` is about, with shape :math:`(R)`.
            prior: The mean and log standard deviation of the prior, each with shape
                :math:`(R, *)`; None is the standard normal.
            noise: Standard normal noise, with the shape of z; drawn if None.
            sample: Whether to sample; if not, z is the mean.
            temperature: The temperature of the sample.

        Returns:
            As :meth:`forward`, of the R pairs.
        """
        return self(
            [v.index_select(0, rows) for v in loc],
            [v.index_select(0, rows) for v in log_scale],
            given,
            prior,
            noise=noise,
            sample=sample,
            temperature=temperature,
        )

    def squash(self, value: Tensor) -> Tensor:
        """Applies the soft clamp to a raw parameter of an expert or a prior."""
        if self.clamp is None:
            return value
        return gaussian.soft_clamp(gaussian.widen(value), self.clamp).to(value.dtype)


def as_rows(
    loc: Sequence[Tensor],
    log_scale: Sequence[Tensor],
    given: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    noise: Tensor | None,
) -> Rows:
    """The arguments of a rule with S subsets of B rows as S * B rows of one subset each.

    Experts hold 0 where they are not given, so that arithmetic on them is safe.
    """
    if given.shape[-1] != len(loc):
        raise ValueError(
            f"'given' should have one column per expert ({len(loc)}), "
            f"but has shape {tuple(given.shape)}."
        )

    def repeat(v: Tensor) -> Tensor:
        return v if given.dim() == 2 else v.expand(given.shape[0], *v.shape).flatten(0, 1)

    def select(v: Tensor, column: int) -> Tensor:
        takes_part = given[..., column].flatten()
        return torch.where(takes_part.reshape(-1, *(1,) * (v.dim() - 1)), repeat(v), 0)

    return (
        [select(v, m) for m, v in enumerate(loc)],
        [select(v, m) for m, v in enumerate(log_scale)],
        given.flatten(0, -2),
        None if prior is None else (repeat(prior[0]), repeat(prior[1])),
        noise if noise is None or given.dim() == 2 else noise.flatten(0, 1),
    )
