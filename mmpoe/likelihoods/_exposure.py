r"""The exposure of counts: a covariate that multiplies their mean."""

from __future__ import annotations

__all__ = ["broadcasts", "log_exposure"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def log_exposure(
    context: Mapping[str, Tensor], name: str, shape: Sequence[int], kind: str
) -> Tensor:
    r"""Returns the logarithm of an exposure, broadcastable to all entries.

    Arguments:
        context: The covariates by name.
        name: The name of the exposure.
        shape: The shape of the entries, :math:`(N, *event)`.
        kind: The name of the likelihood, for errors.

    Raises:
        ValueError: If the exposure is absent, not positive, or of another shape than :math:`(N)`,
            :math:`(N, 1)` or one that broadcasts to that of the entries.
    """
    wanted = f"'context' should hold {name!r}, the exposure of {kind}, "
    if name not in context:
        held = ", ".join(map(repr, context)) or "nothing"
        raise ValueError(f"{wanted}but holds {held}.")
    exposure, (rows, *event) = context[name], shape
    inner = exposure.shape[1:]
    if not event and inner == (1,):
        inner = ()
    if exposure.shape[:1] != (rows,) or not broadcasts(inner, event):
        raise ValueError(
            f"{wanted}with shape ({rows},), ({rows}, 1) or one that broadcasts to "
            f"{tuple(shape)}, but its shape is {tuple(exposure.shape)}."
        )
    if not torch.compiler.is_compiling():
        bad = ~(exposure.isfinite() & (exposure > 0))
        if bool(bad.any()):
            raise ValueError(
                f"{wanted}positive and finite, but it holds {exposure[bad][0].item():g}. "
                "Where it is not known, 1 predicts means per unit of exposure."
            )
    return exposure.reshape(rows, *(1,) * (len(event) - len(inner)), *inner).log()


def broadcasts(shape: Sequence[int], event: Sequence[int]) -> bool:
    """Returns whether a shape broadcasts to that of an entry."""
    pairs = zip(reversed(shape), reversed(event), strict=False)
    return len(shape) <= len(event) and all(size in (1, wanted) for size, wanted in pairs)
