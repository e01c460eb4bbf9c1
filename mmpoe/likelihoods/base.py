r"""The base of all likelihoods: a network, and the check that data are in the support."""

from __future__ import annotations

__all__ = ["Likelihood"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, constraints
from torch.nn.functional import pad

from mmpoe.gaussian import widen
from mmpoe.nn import Recorded
from mmpoe.nn._asking import asks_for, call

from ._elements import SideBySide
from ._exposure import broadcasts, log_exposure


class Likelihood(Recorded, nn.Module, ABC):
    r"""Base of all likelihoods: a network whose output becomes a distribution.

    Arguments:
        network: Maps a latent state of shape :math:`(N, *)` to the parameters of the distribution,
            with shape :math:`(N, *event)`, or :math:`(N, K, *event)` if each element takes K. If
            its `forward` has a parameter named `context`, it is passed the covariates too.

    Attributes:
        outputs: How many numbers K the network returns for each element, stacked along dimension
            1; None if it returns one, without that dimension.
        exposure: The name of the covariate that multiplies the mean, None without one.
    """

    outputs: int | None = None
    exposure: str | None = None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._shapes: dict[str, torch.Size] = {}

    @property
    def asks_for_context(self) -> bool:
        """Whether :meth:`forward` needs covariates, for the network or as an exposure."""
        return self.exposure is not None or asks_for(self.network, "context")

    def forward(
        self,
        z: Tensor,
        batch_dims: int = 1,
        context: Mapping[str, Tensor] | None = None,
        *,
        phi: Tensor | None = None,
    ) -> dist.TorchDistribution:
        r"""Returns :math:`p(x_m \mid z)`.

        Arguments:
            z: The latent state, with shape :math:`(N, *)`, or :math:`(S, B, *)` for S
                subsets, with `batch_dims` 2.
            batch_dims: The number of leading dimensions that index samples.
            context: Covariates by name, each with one row for each row of z whose leading
                dimensions are flattened; needed if :attr:`asks_for_context`.
            phi: The output of the network, if it has been computed, with one batch dimension.

        Returns:
            A distribution whose batch shape is that of the leading dimensions, in float32 or
            wider.

        Raises:
            ValueError: If the network does not return one row per row of z and the numbers that
                each element takes, a parameter of the likelihood does not have the shape of an
                entry, or the exposure is absent, not positive or of another shape.
        """
        rows = z.flatten(0, batch_dims - 1)
        output = call(self.network, rows, context=context) if phi is None else phi
        self._check_rows(output, rows)
        phi = widen(output)  # densities need float32
        if self.outputs is not None:
            phi = phi.movedim(1, -1)  # (N, *event, K)
        event = phi.shape[1:] if self.outputs is None else phi.shape[1:-1]
        self.check_shapes(event)
        phi = self.exposed(phi, context or {})

        phi = phi.unflatten(0, z.shape[:batch_dims])
        return self.joint(phi, len(event))

    def joint(self, phi: Tensor, event_dim: int) -> dist.TorchDistribution:
        r"""Returns the distribution of whole entries: elements are independent.

        Arguments:
            phi: The parameters, as for :meth:`distribution`.
            event_dim: The number of dimensions of an entry.
        """
        return self.distribution(phi).to_event(event_dim)

    def network_shape(self, event: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape that the network should return for one entry.

        Arguments:
            event: The shape of an entry.
        """
        return tuple(event) if self.outputs is None else (self.outputs, *event)

    @abstractmethod
    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        r"""Returns the elementwise distribution with the network's output as parameters.

        Arguments:
            phi: The output, with shape :math:`(*, *event)`, or :math:`(*, *event, K)` if each
                element takes K numbers.
        """

    def exposed(self, phi: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Returns the parameters with the log exposure added to the log mean, if there is one.

        Arguments:
            phi: The parameters, as for :meth:`distribution`, with one batch dimension.
            context: The covariates by name.
        """
        if self.exposure is None:
            return phi
        shape = phi.shape if self.outputs is None else phi.shape[:-1]
        more = log_exposure(context, self.exposure, shape, type(self).__name__).to(phi.dtype)
        if self.outputs is not None:
            more = pad(more[..., None], (0, self.outputs - 1))  # the log mean comes first
        return phi + more

    def check_shapes(self, event: Sequence[int]) -> None:
        """Raises a ValueError unless parameters that are tensors broadcast to an entry.

        Arguments:
            event: The shape of an entry.
        """
        for name, shape in self._shapes.items():
            if not broadcasts(shape, event):
                raise ValueError(
                    f"'{name}' should be a number or broadcast to the shape of an entry, "
                    f"{tuple(event)}, but has shape {tuple(shape)}."
                )

    def _positive(self, name: str, value: float | Tensor) -> float | Tensor:
        """Checks a positive number for all elements, or a tensor with one for each."""
        if not isinstance(value, Tensor):
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f"'{name}' should be positive and finite, but is {value!r}.")
            return float(value)
        if not bool((value.isfinite() & (value > 0)).all()):
            raise ValueError(
                f"'{name}' should be positive and finite everywhere, "
                f"but goes from {value.min().item():.4g} to {value.max().item():.4g}."
            )
        self._shapes[name] = value.shape
        return value.detach().to(torch.promote_types(value.dtype, torch.float32))

    def _check_rows(self, phi: Tensor, z: Tensor) -> None:
        if not isinstance(phi, Tensor):
            raise ValueError(
                f"The network of {type(self).__name__} should return a tensor, "
                f"but returns an object of type {type(phi).__name__}."
            )
        fits = phi.dim() >= 1 and phi.shape[0] == z.shape[0]
        if self.outputs is not None:
            fits = fits and phi.dim() >= 2 and phi.shape[1] == self.outputs
        if not fits:
            wanted = f"({len(z)}, *)" if self.outputs is None else f"({len(z)}, {self.outputs}, *)"
            raise ValueError(
                f"The network of {type(self).__name__} should return shape {wanted}, "
                f"but returns {tuple(phi.shape)}."
            )


MakeLikelihood = Callable[[nn.Module], Likelihood]
"""Makes a likelihood of a network, as the classes in :mod:`mmpoe.likelihoods` do."""


def fixed(value: float | Tensor) -> float | Tensor:
    """Returns what a module holds for a value that is not learned."""
    return nn.Buffer(value, persistent=False) if isinstance(value, Tensor) else value


def learned(value: float | Tensor) -> nn.Parameter:
    """Returns the parameter whose exponential starts at a positive value."""
    return nn.Parameter(
        value.log() if isinstance(value, Tensor) else torch.tensor(math.log(value))
    )


def current(held: float | Tensor, log_value: Tensor | None) -> float | Tensor:
    """Returns the value of a parameter that is held as it is, or learned as a logarithm."""
    if log_value is not None:
        return widen(log_value).exp()
    return widen(held) if isinstance(held, Tensor) else held


def check_support(
    p: Distribution,
    x: Tensor,
    observed: Tensor,
    modality: str,
    valid: Tensor | None = None,
) -> None:
    r"""Raises a ValueError unless a distribution can produce what was observed.

    Distributions over all real numbers are not checked. Zero is in the support of every likelihood
    of the library, so that it may stand wherever nothing was observed.

    Arguments:
        p: The distribution of the modality, with event shape :math:`(*)`.
        x: The entries, with shape :math:`(B, *)`.
        observed: Which entries were observed, boolean, with shape :math:`(B)`.
        modality: The name of the modality.
        valid: Which elements to check, boolean, broadcastable to :math:`(B, *)`; all if None.
    """
    elements = p.base_dist if isinstance(p, Independent) else p
    support, where = elements.support, ""
    if support is constraints.real or support is None or support.event_dim > 0:
        return
    outside = ~support.check(x) & observed.reshape(-1, *(1,) * (x.dim() - 1))
    if valid is not None:
        outside = outside & valid
    if bool(outside.any()):
        row, *inner = outside.nonzero()[0].tolist()
        if isinstance(elements, SideBySide):
            name, support = elements.column(inner[-1])
            where = f" in column {name!r}"
        raise ValueError(
            f"'x' should hold {_describe(support)}{where}, but {modality!r} holds "
            f"{x[outside][0].item():g} in row {row}."
        )


def _describe(support: constraints.Constraint) -> str:
    kind = "integers" if support.is_discrete else "numbers"
    lower, upper = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    if lower is None:
        return f"values in the support of its likelihood, {support}"
    return (
        f"{kind} of at least {lower:g}" if upper is None else f"{kind} from {lower:g} to {upper:g}"
    )
