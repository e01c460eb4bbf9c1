r"""The deviation of what is missing from its prediction at temperature 0, learned afterwards."""

from __future__ import annotations

__all__ = ["Spread"]

from collections.abc import Mapping, Sequence
from math import isnan
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmpoe.distributions import LowRankNormal, average
from mmpoe.models import MultimodalVAE
from mmpoe.models._inputs import components_of
from mmpoe.nn import Recorded

from ._heads import make_head

RANGE = (-6.0, 3.0)
"""The smallest and largest logarithm of a deviation, in units of the usual one."""
TOLERANCE = 0.05
"""How far measured coverage may be from 90 %."""


class Spread(Recorded, nn.Module):
    r"""How far what is missing may be from its prediction, and what of it deviates together.

    .. math::
        p(x_h \mid x_s) = \mathcal{N}\big( \mu_h(x_s), F F^\top + \mathrm{diag}(\sigma^2) \big)

    where :math:`\mu_h` is the model's prediction at temperature 0, and a network tells the R
    factors F and the deviations :math:`\sigma` from the state that the prediction is decoded from
    and from what was given. All modalities that are missing share the factors, which are smooth
    where entries are sequences, images or volumes. :func:`fit_spread` makes one for a model.

    Arguments:
        modalities: The names of the modalities of the model.
        state: The shape of a state.
        events: The shape of an entry of each modality whose deviation is learned.
        rank: The number of factors R.

    Attributes:
        coverage: The share of the elements, and of the means over windows, that 90 % intervals
            held on held-out rows, with shape :math:`(T, 2)` for T learned modalities; NaN where it
            was not measured.
    """

    scale: Tensor
    coverage: Tensor

    def __init__(
        self,
        modalities: Sequence[str],
        state: Sequence[int],
        events: Mapping[str, Sequence[int]],
        rank: int,
    ) -> None:
        super().__init__()
        self.events = {m: tuple(event) for m, event in events.items()}
        self.head = make_head(state, self.events, len(modalities), rank)
        for number, event in enumerate(self.events.values()):
            shape = (event[0], *(1,) * (len(event) - 1)) if event else ()
            self.register_buffer(f"unit_{number}", torch.ones(shape))
        self.register_buffer("scale", torch.ones(len(events), 2))
        self.register_buffer("coverage", torch.full((len(events), 2), torch.nan))

    @property
    def units(self) -> dict[str, Tensor]:
        """The usual deviation of each channel, or of each column of a vector, by modality."""
        return {m: getattr(self, f"unit_{k}") for k, m in enumerate(self.events)}

    def forward(
        self, h: Tensor, given: Tensor, mean: Mapping[str, Tensor]
    ) -> dict[str, LowRankNormal]:
        r"""Returns the distribution of modalities where they are missing.

        Arguments:
            h: The states at temperature 0, with shape :math:`(N, *)`.
            given: What was given, boolean, with shape :math:`(N, M)`.
            mean: The predictions at temperature 0 of some modalities, each with shape
                :math:`(N, *event)`.
        """
        parts, units, found = self.head(h, given), self.units, {}
        for number, (m, event) in enumerate(self.events.items()):
            if m not in mean:
                continue
            factors, log_scale = (v.to(mean[m].dtype) for v in parts[m])
            common, own = self.scale[number]
            found[m] = LowRankNormal(
                mean[m],
                common * units[m] * factors,
                log_scale.clamp(*RANGE) + (own * units[m]).log(),
                len(event),
            )
        return found

    def off(self) -> list[str]:
        """Says which measured coverages are not what they should be."""
        return [
            f"{'an unknown share' if isnan(held) else f'{100 * held:.0f} %'} of {what} of {m!r}"
            for m, pair in zip(self.events, self.coverage.tolist(), strict=True)
            for what, held in zip(("elements", "means over windows"), pair, strict=True)
            if not abs(held - 0.9) <= TOLERANCE
        ]


class Point(NamedTuple):
    """Predictions at temperature 0, and the states that they are decoded from."""

    h: Tensor
    mean: dict[str, Tensor]


def predict_point(
    model: MultimodalVAE, x: Mapping[str, Tensor], given: Tensor, targets: Sequence[str]
) -> Point:
    """Returns what `predict` does at temperature 0 with the trained experts, and the states.

    Arguments:
        model: The model, in evaluation mode.
        x: The batch.
        given: What to condition on, boolean, with shape (B, M).
        targets: The modalities to predict.
    """
    component, weight = components_of(given, model.family)
    q = model.infer(model.encode(x, given), component, temperature=0.0)
    mean = {m: p.mean for m, p in model.decode(q.state, targets).items()}
    if weight is None:
        return Point(q.state.h, mean)
    h = q.state.h.unflatten(0, q.state.shape)
    return Point(average(h, weight), {m: average(v, weight) for m, v in mean.items()})
