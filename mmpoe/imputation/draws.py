"""Draws of what is missing."""

from __future__ import annotations

__all__ = ["Imputation", "impute"]

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmpoe.evidence._samples import place_draws, propose, whole_rows
from mmpoe.missing import Batch, check_names, valid_of
from mmpoe.models import MultimodalVAE, UncalibratedWarning
from mmpoe.models._inputs import held, subset_mask
from mmpoe.nn.modes import evaluation

from ._conformal import conformal_width, fewest_cases
from .held_out import HeldOut
from .pooling import floating
from .spread import Spread, predict_point

Functional = Tensor | Callable[[Tensor], Tensor]
"""Weights of elements, or a function of entries."""

PORTION = 32
"""The number of held-out samples that are drawn at a time."""


class Conformal(NamedTuple):
    """The held-out samples that tell how wide the intervals of a modality have to be."""

    model: MultimodalVAE
    held_out: HeldOut
    modality: str
    given: Tensor
    """The modalities that each row was given, boolean, with shape (B, M)."""

    def widths(self, functional: Functional | None, coverage: float, draws: int) -> Tensor:
        """The half-width of the interval of each row, in standard deviations of its draws, (B).

        Arguments:
            functional: The quantity, see :meth:`Imputation.interval`.
            coverage: The probability.
            draws: The number of draws.
        """
        widths = torch.zeros(len(self.given), dtype=torch.float64)
        column = self.model.modalities.index(self.modality)
        patterns, which = self.given.cpu().unique(dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            if pattern[column]:  # observed: there is nothing to predict
                continue
            scores, cases = self._scores(pattern, functional, draws)
            widths[which == number] = width = conformal_width(scores, cases, coverage)
            if math.isinf(width):
                names = [m for m, p in zip(self.model.modalities, pattern, strict=True) if p]
                have = len(cases.unique())
                warnings.warn(
                    f"Intervals that hold {self.modality!r} given {', '.join(names) or 'nothing'} "
                    f"with probability {coverage:g} are infinite: it takes "
                    f"{fewest_cases(coverage)} held-out cases that have all of these to tell, "
                    f"and there are {have}.",
                    UserWarning,
                    stacklevel=3,
                )
        return widths

    def _scores(
        self, pattern: Tensor, functional: Functional | None, draws: int
    ) -> tuple[Tensor, Tensor]:
        r"""Errors of held-out samples in standard deviations, (n, \*F), and their cases, (n)."""
        data, m, modalities = self.held_out, self.modality, self.model.modalities
        observed = held(data.x, modalities) if data.observed is None else data.observed
        observed = subset_mask(observed, modalities, len(data), "held_out").cpu()
        needed = pattern.clone()
        needed[modalities.index(m)] = True
        rows = (observed | ~needed).all(dim=1).nonzero()[:, 0]
        device, parts = next(self.model.parameters(), self.given).device, []
        for some in rows.split(PORTION):
            x = data.x.take(some).to(device)
            truth = floating(data.truth[m][some].to(device))
            given = pattern.expand(len(some), -1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UncalibratedWarning)  # this is what it is about
                drawn = impute(self.model, x, given, draws, targets=[m])[m].draws
            inside = data.inside(m, some)
            if inside is not None:
                inside = inside.to(device)
                truth, drawn = (
                    torch.where(inside, v, torch.nan) for v in (truth, floating(drawn))
                )
            center, deviation = _moments(_values(functional, drawn))
            error = (_values(functional, truth[None])[0] - center).abs()
            parts.append(torch.where(error == 0, 0, error / deviation).cpu())
        scores = torch.cat(parts) if parts else torch.zeros(0, 1)
        return scores, data.cases[rows]


class Imputation(NamedTuple):
    """Draws of one modality, with what was observed as it is in all of them."""

    draws: Tensor
    """The draws, with shape (K, B, \\*)."""
    conformal: Conformal | None = None
    """The held-out samples that tell how wide intervals have to be, if there are any."""

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
        return _quantile(floating(self.draws), q)

    def interval(
        self, coverage: float = 0.9, *, functional: Functional | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Returns the ends of an interval that the truth is in with some probability.

        If :func:`impute` was told of held-out samples, the interval is conformal,

        .. math:: \bar{f} \pm q_c \, s_f

        with the mean and standard deviation of the draws of a quantity f, and the width
        :math:`q_c` that held the truth of held-out cases of the same pattern of what was given,
        each reduced to that pattern. For a case that is exchangeable with these, the share of the
        elements of f that are in their intervals is at least c in expectation, whatever the
        model. Reducing them presumes that modalities are missing completely at random. Without
        held-out samples, it is the central interval of the draws, which is right if the model is.

        Arguments:
            coverage: The probability :math:`c`.
            functional: The quantity: weights of elements, with shape :math:`(*F, *event)`, for
                weighted sums; or a function of entries, :math:`(N, *event)`, to numbers,
                :math:`(N, *F)`, which sees NaN in held-out elements that are not valid. Values
                that are NaN are not counted. By default, each element.

        Returns:
            The lower and upper ends, with shape :math:`(B, *F)`. They are infinite, with a
            warning, where there are too few held-out cases to tell.

        Raises:
            ValueError: If `coverage` is not between 0 and 1, `functional` does not fit, or there
                are fewer than two draws.

        References:
            | Conformal Risk Control (Angelopoulos et al., 2024)
            | https://arxiv.org/abs/2208.02814
        """
        if not 0 < coverage < 1:
            raise ValueError(f"'coverage' should be between 0 and 1, but is {coverage!r}.")
        values = _values(functional, floating(self.draws))
        if self.conformal is None:
            return _quantile(values, (1 - coverage) / 2), _quantile(values, (1 + coverage) / 2)
        if len(values) < 2:
            raise ValueError("'draws' should be at least 2 for a conformal interval, but is 1.")
        center, deviation = _moments(values)
        width = self.conformal.widths(functional, coverage, len(values)).to(deviation)
        width = width.reshape(-1, *(1,) * (deviation.dim() - 1))
        half = torch.where(deviation > 0, width * deviation, 0)  # 0 where all was observed
        return center - half, center + half


def _quantile(values: Tensor, q: float) -> Tensor:
    """The value below which a new one is with some probability, see `Imputation.quantile`."""
    ordered = values.sort(dim=0).values
    count = len(ordered)
    position = min(max(q * (count + 1) - 1, 0), count - 1)
    below = math.floor(position)
    above = min(below + 1, count - 1)
    return ordered[below].lerp(ordered[above], position - below)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations over the first dimension; no deviation where all agree."""
    first = values[0]
    same = (values == first).all(dim=0)
    return (
        torch.where(same, first, values.mean(dim=0)),
        torch.where(same, 0, values.std(dim=0)),
    )


def _values(functional: Functional | None, draws: Tensor) -> Tensor:
    r"""The values of a functional at draws, (K, B, \*F) of (K, B, \*event)."""
    if functional is None:
        return draws
    count, size = draws.shape[:2]
    event = tuple(draws.shape[2:])
    if isinstance(functional, Tensor):
        weight = functional.to(draws)
        split = weight.dim() - len(event)
        if split < 0 or tuple(weight.shape[split:]) != event:
            raise ValueError(
                f"'functional' should have weights of shape (*, {', '.join(map(str, event))}), "
                f"that of an entry, but has shape {tuple(weight.shape)}."
            )
        flat = draws.reshape(count * size, -1)
        rows = weight.reshape(-1, flat.shape[1]).T
        value = flat.nan_to_num() @ rows
        unknown = flat.isnan().to(rows) @ (rows != 0).to(rows) > 0
        value = torch.where(unknown, torch.nan, value)
        return value.reshape(count, size, *weight.shape[:split])
    value = functional(draws.flatten(0, 1))
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != count * size:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"'functional' should return one row per entry ({count * size}), but returns {found}."
        )
    return floating(value).unflatten(0, (count, size))


def impute(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor | Sequence[str] | None = None,
    draws: int = 100,
    *,
    targets: Sequence[str] | None = None,
    held_out: HeldOut | None = None,
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
        held_out: Samples that the model was not trained on, for conformal intervals, see
            :meth:`Imputation.interval`.

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
    _warn(model)
    inside = {m: v.broadcast_to(x[m].shape).to(device) for m, v in valid_of(x).items() if m in x}
    seen = {m: given[:, modalities.index(m)] for m in targets}
    rows = {m: (~whole_rows(seen[m], inside.get(m))).nonzero()[:, 0] for m in targets}
    drawn: dict[str, list[Tensor]] = {m: [] for m in targets}
    with torch.no_grad(), evaluation(model.modules()):
        learned = _learned(model, x, given, [m for m in targets if len(rows[m])], draws)
        rest = {m: r[seen[m][r]] if m in learned else r for m, r in rows.items()}
        # if there are no rows of a modality, it is decoded for its shape
        latent = [m for m in targets if len(rest[m]) or (m not in x and m not in learned)]
        encodings = model.encode(x, given)  # which checks entries, of rows that lack nothing too
        if latent:
            for q in propose(model, encodings, given, x, draws, experts=model.best_experts):
                for m in latent:
                    p = model.decode(q.state.take(rest[m]).flatten(), [m])[m]
                    drawn[m].append(p.sample().unflatten(0, (q.state.shape[0], len(rest[m]))))
    whole = {m: torch.cat(parts) for m, parts in drawn.items() if parts}
    for m, values in learned.items():
        whole[m] = values if m not in whole else _merge(values, whole[m], seen[m][rows[m]])
    return {
        m: Imputation(
            place_draws(x.get(m), whole[m], rows[m], seen[m], inside.get(m))
            if m in whole
            else x[m].expand(draws, *x[m].shape),
            None if held_out is None else Conformal(model, held_out, m, given),
        )
        for m in targets
    }


def _learned(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    given: Tensor,
    targets: Sequence[str],
    draws: int,
) -> dict[str, Tensor]:
    r"""Draws of the model's spread, of the rows that lack a modality: (K, n, \*) by modality."""
    spread = model.spread
    if not isinstance(spread, Spread):
        return {}
    targets = [m for m in targets if m in spread.events]
    columns = [model.modalities.index(m) for m in targets]
    lacking = ~given[:, columns]  # (B, T)
    found: dict[str, list[Tensor]] = {m: [] for m in targets}
    for rows in lacking.any(dim=1).nonzero()[:, 0].split(PORTION):
        point = predict_point(model, Batch.of(x).take(rows), given[rows], targets)
        parts = spread(point.h, given[rows], point.mean)
        common = None  # of a draw, for all modalities
        for column, (m, p) in enumerate(parts.items()):
            if common is None:
                common = p.loc.new_empty(draws, len(rows), p.factors.shape[1]).normal_()
            found[m].append(p.rsample_with(common)[:, lacking[rows, column]])
    return {m: torch.cat(parts, dim=1) for m, parts in found.items() if parts}


def _merge(learned: Tensor, others: Tensor, seen: Tensor) -> Tensor:
    r"""Puts draws of rows that lack a modality, and of rows that have part of it, in order."""
    merged = learned.new_empty((len(learned), len(seen), *learned.shape[2:]))
    merged[:, ~seen] = learned
    merged[:, seen] = others.to(merged.dtype)
    return merged


def _warn(model: MultimodalVAE) -> None:
    """Warns unless draws spread as they should, as far as that is known."""
    if isinstance(model.spread, Spread):
        off = model.spread.off()
        if off:
            warnings.warn(
                "The spread of these draws is not calibrated: on held-out rows, intervals of 90 % "
                f"held {', '.join(off)}. 'mmpoe.imputation.fit_spread' sets it, and conformal "
                "intervals hold what they say ('held_out').",
                UncalibratedWarning,
                stacklevel=3,
            )
    elif not model.is_matched:
        warnings.warn(
            "The spread of these draws is not calibrated: it understates how far they are from "
            "the truth. 'mmpoe.calibrate' makes it match.",
            UncalibratedWarning,
            stacklevel=3,
        )
