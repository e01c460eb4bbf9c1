r"""A product of experts that share noise."""

from __future__ import annotations

__all__ = ["CommonNoisePoE"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmpoe import gaussian, kernels

from .base import Posterior, Rows, as_rows


class CommonNoisePoE(Posterior):
    r"""Product of experts that share noise, and so cannot together be sharper than that noise.

    With the precisions relative to the prior, :math:`R = \sum_{m \in s} \sigma_p^2 / \sigma_m^2`,

    .. math::
        q(z \mid x_s) \propto p(z) \, \Big[ \prod_{m \in s}
        \mathcal{N}(z; \mu_m, \sigma_m^2) \Big]^{1 / (1 + \gamma R)}

    All experts see :math:`z` through one noise, of variance :math:`\gamma \sigma_p^2`, on top of
    their own. In a hierarchy, this is the noise of the groups below: the rule is the exact
    posterior, in every group and for every subset, of a linear-Gaussian chain that all modalities
    share, where the plain product counts the same evidence twice. :math:`\gamma = 0` is the plain
    product to the bit. The rule does not make samples across modalities wide enough: their spread
    is a matter of the objective.

    Arguments:
        channels: The number of channels: the size of the first event dimension of z.
        gamma: The common noise at the start, one number or one per channel; learned from
            there if all of it is positive, and fixed if not.
        groups: Sets of experts, by their positions, that share further noise among themselves:
            the rule is first applied inside each set, with a :math:`\gamma` of its own, then
            between them. Every expert should be in one set.
        clamp: The limit of the soft clamp, see :class:`Posterior`.

    Raises:
        ValueError: If `gamma` is negative or has the wrong number of channels, or `groups` is not
            a partition of the experts.

    Example:
        >>> rule = CommonNoisePoE(1, gamma=1.0)
        >>> experts = [torch.zeros(1, 1)] * 100
        >>> rule(experts, experts, torch.ones(1, 100).bool()).log_scale.exp().square()
        tensor([[0.5025]], grad_fn=<PowBackward0>)
    """

    log_gamma: Tensor

    def __init__(
        self,
        channels: int,
        gamma: float | Sequence[float] = 0.05,
        groups: Sequence[Sequence[int]] | None = None,
        clamp: float | None = None,
    ) -> None:
        super().__init__(clamp)
        if isinstance(gamma, Sequence) or getattr(gamma, "ndim", 0) == 1:
            values = [float(g) for g in gamma]  # pyright: ignore[reportGeneralTypeIssues]
        else:
            values = [float(gamma)] * channels
        if len(values) != channels or not all(math.isfinite(g) and g >= 0 for g in values):
            raise ValueError(
                f"'gamma' should be one number of at least 0, or one per channel ({channels}), "
                f"but is {gamma!r}."
            )
        self.groups = None if groups is None else [list(members) for members in groups]
        if self.groups is not None:
            flat = sorted(m for members in self.groups for m in members)
            if flat != list(range(len(flat))) or not all(self.groups):
                raise ValueError(
                    f"'groups' should hold each expert in one set, but is {self.groups!r}."
                )
        rules = 1 + len(self.groups or [])
        log_gamma = torch.tensor(values).log().expand(rules, channels).clone()
        if all(g > 0 for g in values):
            self.log_gamma = nn.Parameter(log_gamma)
        else:
            self.register_buffer("log_gamma", log_gamma)

    @property
    def gamma(self) -> Tensor:
        """The common noise of all experts, then of each group: shape (1 + groups, channels)."""
        return self.log_gamma.exp()

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
        """Fuses, samples and measures, see :meth:`Posterior.forward`."""
        shape, clamp = given.shape[:-1], None if squashed else self.clamp
        if self.groups is not None:
            rows = as_rows(loc, log_scale, given, prior, noise)
            loc, log_scale, given, prior, noise = self._messages(*rows, squashed=squashed)
            clamp = None
        q = kernels.gaussian_poe(
            loc,
            log_scale,
            given,
            prior,
            noise=noise,
            sample=sample,
            temperature=temperature,
            clamp=clamp,
            common_noise=self.gamma[0],
        )
        return q if self.groups is None else kernels.Product(*(v.unflatten(0, shape) for v in q))

    def _messages(
        self,
        loc: list[Tensor],
        log_scale: list[Tensor],
        given: Tensor,
        prior: tuple[Tensor, Tensor] | None,
        noise: Tensor | None,
        *,
        squashed: bool,
    ) -> Rows:
        """One expert for each group: the product of its members, with their noise in common."""
        if not squashed:
            loc, log_scale = [self.squash(v) for v in loc], [self.squash(v) for v in log_scale]
            prior = None if prior is None else (self.squash(prior[0]), self.squash(prior[1]))
        if len(loc) != sum(map(len, self.groups or [])):
            raise ValueError(
                f"'groups' should hold each of the {len(loc)} experts in one set, "
                f"but is {self.groups!r}."
            )
        event_dim = loc[0].dim() - 1
        prior_log_scale = 0 if prior is None else prior[1]
        group_loc, group_log_scale, group_given = [], [], []
        for members, log_gamma in zip(self.groups or [], self.log_gamma[1:], strict=True):
            takes_part = given[:, members]  # (R, m)
            mean, deviation = gaussian.product_of_experts(
                torch.stack([loc[m] for m in members]),
                torch.stack([log_scale[m] for m in members]),
                takes_part.T.reshape(len(members), -1, *(1,) * event_dim),
            )
            any_part = takes_part.any(dim=1)
            seen = any_part.reshape(-1, *(1,) * event_dim)
            deviation = torch.where(seen, deviation, 0)
            log_ratio = 2 * (prior_log_scale - deviation)  # log R
            log_gamma = log_gamma.reshape(-1, *(1,) * (event_dim - 1))
            deviation = deviation + nn.functional.softplus(log_gamma + log_ratio) / 2
            group_loc.append(mean)
            group_log_scale.append(deviation.to(mean.dtype))
            group_given.append(any_part)
        return group_loc, group_log_scale, torch.stack(group_given, dim=1), prior, noise
