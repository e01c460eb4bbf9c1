"""Networks that see covariates beside their input."""

from __future__ import annotations

__all__ = ["Conditional"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ._asking import call


class Conditional(nn.Module):
    r"""Stacks covariates to the input of a network: :math:`f(x, c) = g([x, c])`, dimension 1.

    It makes an encoder or a decoder network conditional. In images and sequences, a covariate that
    is one number or one category for each sample has the same value everywhere; one with the
    dimensions of the input is stacked as it is.

    Arguments:
        network: The network :math:`g`, which takes :math:`(N, C + D, *)` where the input has C
            features and the covariates D.
        covariates: The names of the covariates, in the order in which they are stacked. A mapping
            also says how many categories a covariate has, or None for numbers. Categories are
            codes from 0 on, with shape :math:`(N)` or :math:`(N, 1)`, and stacked as indicators.

    Raises:
        ValueError: If there is no covariate, or a number of categories is below 2.

    Example:
        >>> network = Conditional(nn.Linear(2 + 1 + 3, 4), {"age": None, "site": 3})
        >>> context = {"age": torch.randn(5), "site": torch.tensor([0, 1, 2, 0, 1])}
        >>> network(torch.zeros(5, 2), context).shape
        torch.Size([5, 4])
    """

    def __init__(
        self, network: nn.Module, covariates: Sequence[str] | Mapping[str, int | None]
    ) -> None:
        super().__init__()
        if isinstance(covariates, str) or not covariates:
            raise ValueError(
                f"'covariates' should be names of covariates, one or more, but is {covariates!r}."
            )
        self.network = network
        self.covariates = (
            dict(covariates) if isinstance(covariates, Mapping) else dict.fromkeys(covariates)
        )
        for name, number in self.covariates.items():
            if number is not None and (not isinstance(number, int) or number < 2):
                raise ValueError(
                    "'covariates' should have the number of categories, at least 2, or None for "
                    f"numbers, but has {number!r} for {name!r}."
                )

    def forward(
        self,
        x: Tensor | None,
        context: Mapping[str, Tensor] | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        r"""Returns the output of the network.

        Arguments:
            x: The input, with shape :math:`(N, C, *)`; None for covariates alone, as for the prior
                of the first group.
            context: The covariates by name, each with N rows.
            valid: The element mask of the input, for a network that asks for it. Covariates count
                as observed.

        Raises:
            ValueError: If a covariate is absent, of another shape, not finite or no category.
        """
        parts = [
            self._features(name, categories, x, context or {})
            for name, categories in self.covariates.items()
        ]
        seen = torch.cat(parts if x is None else [x, *parts], dim=1)
        if valid is not None:
            valid = torch.cat([valid, *(torch.ones_like(c).bool() for c in parts)], dim=1)
        return call(self.network, seen, context=context, valid=valid)

    def _features(
        self, name: str, categories: int | None, x: Tensor | None, context: Mapping[str, Tensor]
    ) -> Tensor:
        """The features of a covariate, with the dimensions of the input."""
        if name not in context:
            raise ValueError(
                f"'context' should hold the covariate {name!r}, "
                f"but holds {', '.join(map(repr, context)) or 'nothing'}. It comes from a batch, "
                "see mmpoe.missing.Batch, and a network around this one has to pass it on."
            )
        c = context[name]
        c = c[:, None] if c.dim() == 1 else c  # (N, D) or (N, D, *)
        if x is None:
            x = c.new_zeros((len(c), 1), dtype=torch.get_default_dtype())
        flat = c.dim() == 2 and (categories is None or c.shape[1] == 1)
        full = categories is None and c.shape[2:] == x.shape[2:]
        if c.shape[:1] != x.shape[:1] or not (flat or full):
            wanted = "(N) or (N, 1)" if categories else "(N), (N, D) or (N, D, *)"
            raise ValueError(
                f"'context' should hold {name!r} with shape {wanted} for an input of shape "
                f"{tuple(x.shape)}, but its shape is {tuple(context[name].shape)}."
            )
        _check_values(name, categories, c)
        if categories is not None:
            c = c == torch.arange(categories, device=c.device)  # (N, K)
        c = c.to(x.dtype) if x.is_floating_point() else c
        return c if full else c[(..., *(None,) * (x.dim() - 2))].expand(-1, -1, *x.shape[2:])


def _check_values(name: str, categories: int | None, c: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    if categories is None:
        valid, wanted = c.isfinite(), "finite numbers"
    else:
        valid = (c >= 0) & (c < categories) & (c == c.floor() if c.is_floating_point() else True)
        wanted = f"integers from 0 to {categories - 1}"
    if not bool(valid.all()):
        raise ValueError(
            f"'context' should hold {wanted} for {name!r}, but it holds {c[~valid][0].item():g}."
        )
