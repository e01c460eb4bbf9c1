"""Draws of what is missing."""

from __future__ import annotations

__all__ = ["Imputation", "impute"]

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmpoe.evidence._samples import place_draws, propose, whole_rows
from mmpoe.missing import check_names, valid_of
from mmpoe.models import MultimodalVAE, UncalibratedWarning
from mmpoe.models._inputs import held, subset_mask
from mmpoe.nn.modes import evaluation

from .pooling import floating


class Imputation(NamedTuple):
    """Draws of one modality, with what was observed as it is in all of them."""

    draws: Tensor
    """The draws, with shape (K, B, \\*)."""

    @property
    def mean(self) -> Tensor:
        r"""The mean of the draws, with shape (B, \*)."""
        return floating(self.draws).mean(dim=0)

    @property
    def stddev(self) -> Tensor:
        r"""The standard deviation of the draws, with shape (B, \*); 0 where observed."""
        return floating(self.draws).std(dim=0)

    def quantile(self, q: float) -> Tensor:
        r"""Returns the value below which a new draw is with probability `q`.

        The :math:`k`-th smallest of :math:`K` draws stands for :math:`q = k / (K + 1)`. Values in
        between are interpolated, those outside are the smallest or largest draw.

        Arguments:
            q: The probability, between 0 and 1.

        Returns:
            The quantile, with shape :math:`(B, *)`.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"'q' should be between 0 and 1, but is {q!r}.")
        ordered = floating(self.draws).sort(dim=0).values
        count = len(ordered)
        position = min(max(q * (count + 1) - 1, 0), count - 1)
        below = math.floor(position)
        above = min(below + 1, count - 1)
        return ordered[below].lerp(ordered[above], position - below)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Returns the ends of the central interval that a new draw is in with some probability.

        Arguments:
            level: The probability.
        """
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)


def impute(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor | Sequence[str] | None = None,
    draws: int = 100,
    *,
    targets: Sequence[str] | None = None,
) -> dict[str, Imputation]:
    r"""Fills what is missing several times over, as it might have been.

    .. math:: z_k \sim r(z \mid x_s), \qquad x_{m, k} \sim p(x_m \mid z_k), \qquad m \notin s

    Draws hold the noise of the likelihood, and all missing modalities of a draw share its latents.
    They come from the matched experts, if the model has any (:func:`calibrate`); if not, they
    spread too little, and a warning says so. Nothing is recorded for gradients, and the model is
    in evaluation mode meanwhile.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read, nor are elements that the element masks of a
            :class:`mmpoe.missing.Batch` leave out.
        observed: What was observed, and is kept: a boolean mask of shape :math:`(B, M)`, or names.
            By default, all that `x` holds.
        draws: The number of draws :math:`K`.
        targets: The modalities to fill; by default, all of them.

    Returns:
        The draws of each target. Rows in which it was observed have that entry in all of them, but
        for elements that were not, which are drawn.

    Raises:
        ValueError: If a mask or name does not fit the model, an observed entry is absent or not
            finite, or `draws` is not positive.

    References:
        | Multiple Imputation for Nonresponse in Surveys (Rubin, 1987)
        | https://doi.org/10.1002/9780470316696
    """
    modalities = model.modalities
    check_names(list(x), modalities, argument="x")
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"'draws' should be an integer of at least 1, but is {draws!r}.")
    if not x:
        raise ValueError("'x' should hold at least one modality.")
    size, device = len(next(iter(x.values()))), next(iter(x.values())).device
    observed = held(x, modalities) if observed is None else observed
    given = subset_mask(observed, modalities, size, "observed").to(device)
    targets = modalities if targets is None else targets
    check_names(targets, modalities, argument="targets")
    if not model.is_matched:
        warnings.warn(
            "The spread of these draws is not calibrated: it understates how far they are from "
            "the truth. 'mmpoe.calibrate' makes it match.",
            UncalibratedWarning,
            stacklevel=2,
        )

    inside = {m: v.broadcast_to(x[m].shape).to(device) for m, v in valid_of(x).items() if m in x}
    seen = {m: given[:, modalities.index(m)] for m in targets}
    rows = {m: (~whole_rows(seen[m], inside.get(m))).nonzero()[:, 0] for m in targets}
    drawn: dict[str, list[Tensor]] = {m: [] for m in targets}
    with torch.no_grad(), evaluation(model.modules()):
        encodings = model.encode(x, given)
        for q in propose(model, encodings, given, x, draws, experts=model.best_experts):
            for m in targets:
                if len(rows[m]) or m not in x:  # decoded for its shape, if there are no rows
                    p = model.decode(q.state.take(rows[m]).flatten(), [m])[m]
                    drawn[m].append(p.sample().unflatten(0, (q.state.shape[0], len(rows[m]))))
    return {
        m: Imputation(
            place_draws(x.get(m), torch.cat(drawn[m]), rows[m], seen[m], inside.get(m))
            if drawn[m]
            else x[m].expand(draws, *x[m].shape)
        )
        for m in targets
    }
