r"""A likelihood of tables: columns of several kinds in one modality."""

from __future__ import annotations

__all__ = ["Columns"]

from collections.abc import Mapping, Sequence
from itertools import chain

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from . import _elements as elements
from .base import Likelihood, MakeLikelihood
from .low_rank import LowRankNormal


class Columns(Likelihood):
    r"""A likelihood of each column of a modality, or of some columns together.

    .. math:: p(x \mid z) = \prod_i p_i(x_i \mid z)

    Entries have shape :math:`(C)`: numbers, counts, levels and classes side by side, levels and
    classes as codes from 0 on. Draws are the same. The mean is that of each likelihood. Codes of
    classes have no mean: that of a :class:`Categorical` column is the most likely class, and its
    standard deviation that of the indicator of this class, :math:`\sqrt{\pi (1 - \pi)}`.

    Arguments:
        network: Returns the parameters of all columns, with shape :math:`(N, P)`: one number for
            each column whose likelihood takes one, and K adjacent ones where it takes K.
        columns: For each column in order, what makes its likelihood of a network, by name: a class
            in :mod:`mmpoe.likelihoods`, or a :func:`~functools.partial` of one. A tuple of names
            stands for columns that share a likelihood, whose parameters have shape () or one
            number for each of them. Without names, a sequence with one item for each column.

    Raises:
        ValueError: If there is no column, a name stands twice, or an item makes no likelihood that
            fits: that of an optimal scale, say, which needs a modality of its own.

    Example:
        >>> from functools import partial
        >>> from mmpoe.likelihoods import Categorical, NegativeBinomial, Normal, Ordinal
        >>> columns = {
        ...     ("age", "weight"): partial(Normal, scale=torch.ones(2), learn_scale=True),
        ...     "visits": NegativeBinomial,
        ...     "stage": partial(Ordinal, levels=4),
        ...     "site": partial(Categorical, classes=3),
        ... }
        >>> p = Columns(nn.Linear(2, 2 + 1 + 1 + 3), columns)(torch.zeros(5, 2))
        >>> p.sample().shape, p.mean.shape
        (torch.Size([5, 5]), torch.Size([5, 5]))
    """

    def __init__(
        self,
        network: nn.Module,
        columns: Mapping[str | tuple[str, ...], MakeLikelihood] | Sequence[MakeLikelihood],
    ) -> None:
        super().__init__(network)
        if not isinstance(columns, Mapping):
            columns = {str(number): make for number, make in enumerate(columns)}
        if not columns:
            raise ValueError("'columns' should have a likelihood for each column, but is empty.")
        blocks = [(key,) if isinstance(key, str) else tuple(key) for key in columns]
        self.names = list(chain.from_iterable(blocks))
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(f"'columns' should name each column once, but repeats {name!r}.")
        self.sizes = [len(names) for names in blocks]
        # a ModuleList, whose items type checkers would take for any modules
        self.parts: Sequence[Likelihood] = nn.ModuleList(  # pyright: ignore
            _part(names, make) for names, make in zip(blocks, columns.values(), strict=True)
        )

    @property
    def asks_for_context(self) -> bool:
        """Whether :meth:`forward` needs covariates, for the network or as an exposure."""
        exposed = any(part.exposure is not None for part in self.parts)
        return exposed or super().asks_for_context

    def network_shape(self, event: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape that the network should return for one entry.

        Raises:
            ValueError: If the entry has another shape than :math:`(C)`.
        """
        if tuple(event) != (len(self.names),):
            raise ValueError(
                f"'columns' should have a likelihood for each column of entries of shape "
                f"{tuple(event)}, but has {len(self.names)}: {', '.join(self.names)}."
            )
        return (sum(self._widths()),)

    def exposed(self, phi: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Returns the parameters with the log exposures added to the log means."""
        if all(part.exposure is None for part in self.parts):
            return phi
        pieces = zip(self.parts, self._pieces(phi), strict=True)
        return torch.cat([part.exposed(v, context).flatten(1) for part, v in pieces], dim=1)

    def distribution(self, phi: Tensor) -> dist.TorchDistribution:
        """Returns the distribution of each column with parameters `phi`."""
        pieces = zip(self.parts, self._pieces(phi), strict=True)
        parts = [part.distribution(v) for part, v in pieces]
        return elements.SideBySide(parts, self.names, phi.dtype)

    def _widths(self) -> list[int]:
        """How many outputs of the network the columns of each part take together."""
        return [
            size * (part.outputs or 1) for part, size in zip(self.parts, self.sizes, strict=True)
        ]

    def _pieces(self, phi: Tensor) -> list[Tensor]:
        """The parameters of each part, of n columns: (*, n), or (*, n, K) if each takes K."""
        pieces = zip(self.parts, phi.split(self._widths(), dim=-1), strict=True)
        return [
            v if part.outputs is None else v.unflatten(-1, (-1, part.outputs))
            for part, v in pieces
        ]

    def _check_rows(self, phi: Tensor, z: Tensor) -> None:
        super()._check_rows(phi, z)
        wanted = (len(z), sum(self._widths()))
        if phi.shape != wanted:
            raise ValueError(
                f"The network of Columns should return shape {wanted}, for the columns "
                f"{', '.join(self.names)}, but returns {tuple(phi.shape)}."
            )


def _part(names: tuple[str, ...], make: MakeLikelihood) -> Likelihood:
    """The likelihood of some columns, without a network."""
    wanted, nothing = f"'columns' should make a likelihood of {', '.join(names)} ", nn.Identity()
    part = make(nothing) if callable(make) else make
    if not isinstance(part, Likelihood) or isinstance(part, Columns):
        raise ValueError(
            f"{wanted}of a network, but makes an object of type {type(part).__name__}."
        )
    if part.network is not nothing:
        raise ValueError(f"{wanted}of the network it is given, but wraps it.")
    if isinstance(part, LowRankNormal):
        raise ValueError(
            f"{wanted}whose elements are independent, but it makes LowRankNormal: that needs a "
            "modality of its own."
        )
    if getattr(part, "optimal", False):
        raise ValueError(f"{wanted}whose scale is fixed or learned, but it is 'optimal'.")
    part.check_shapes((len(names),))
    return part
