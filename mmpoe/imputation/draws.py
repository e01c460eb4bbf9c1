"""Draws of what is missing."""

from __future__ import annotations

__all__ = ["Imputation", "impute"]

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmpoe.hierarchy import Encodings
from mmpoe.missing import check_names
from mmpoe.models import MultimodalVAE, UncalibratedWarning
from mmpoe.nn.modes import evaluation
from mmpoe.objectives import effective_sample_size
from mmpoe.objectives.importance import log_ratio, propose, score, subset_mask, walk

from .pooling import floating


class Imputation(NamedTuple):
    """Draws of one modality, with what was observed as it is in all of them."""

    draws: Tensor
    """The draws, with shape (K, B, \\*)."""
    effective_sample_size: Tensor | None = None
    """How many of the proposals the draws were chosen from count, with shape (B); None if the
    draws were not chosen."""

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
    proposals: int | None = None,
) -> dict[str, Imputation]:
    r"""Fills what is missing several times over, as it might have been.

    .. math:: z_k \sim r(z \mid x_s), \qquad x_{m, k} \sim p(x_m \mid z_k), \qquad m \notin s

    Draws hold the noise of the likelihood, and all missing modalities of a draw share its latents.
    They come from the matched experts, if the model has any (:func:`calibrate`); if not, they
    spread too little, and a warning says so. Nothing is recorded for gradients, and the model is
    in evaluation mode meanwhile.

    With `proposals`, the latents of the draws are chosen among more, with weights
    :math:`p(x_s \mid z) \, p(z) / r(z \mid x_s)`, to be closer to the posterior of the model
    itself. That helps only where the model is right about the data, and the matched experts nearly
    cover its posterior, as the effective sample size tells.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read.
        observed: What was observed, and is kept: a boolean mask of shape :math:`(B, M)`, or names.
            By default, all that `x` holds.
        draws: The number of draws :math:`K`.
        targets: The modalities to fill; by default, all of them.
        proposals: The number of latents to choose those of the draws from; None does not choose.

    Returns:
        The draws of each target. Rows in which it was observed have that entry in all of them.

    Raises:
        ValueError: If a mask or name does not fit the model, an observed entry is absent or not
            finite, a number is not positive, or `proposals` is given and there are no matched
            experts, or it is less than `draws`.

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
    given = subset_mask(list(x) if observed is None else observed, modalities, size, "observed")
    given = given.to(device)
    targets = modalities if targets is None else targets
    check_names(targets, modalities, argument="targets")
    matched = model.is_matched
    if not matched:
        if proposals is not None:
            raise ValueError(
                "'proposals' should be None unless the model has matched experts: choosing among "
                "draws that spread too little does not make them spread more. 'mmpoe.calibrate' "
                "makes matched experts."
            )
        warnings.warn(
            "The spread of these draws is not calibrated: it understates how far they are from "
            "the truth. 'mmpoe.calibrate' makes it match.",
            UncalibratedWarning,
            stacklevel=2,
        )
    elif proposals is not None and (not isinstance(proposals, int) or proposals < draws):
        raise ValueError(
            f"'proposals' should be None or an integer of at least 'draws' ({draws}), "
            f"but is {proposals!r}."
        )

    missing = {m: ~given[:, modalities.index(m)] for m in targets}
    filled: dict[str, list[Tensor]] = {m: [] for m in targets}
    effective = None
    with torch.no_grad(), evaluation(model.modules()):
        encodings = model.encode(x, given)
        if proposals is None:
            states = (h for h, _ in propose(model, encodings, given, x, draws, matched=matched))
        else:
            states, effective = _choose(model, encodings, given, x, draws, proposals)
        for h in states:
            for m in targets:
                rows = missing[m].nonzero()[:, 0]
                if len(rows) or m not in x:  # decoded for its shape, if there are no rows at all
                    p = model.decoders[m](h[:, rows].flatten(0, 1))
                    filled[m].append(p.sample().unflatten(0, (len(h), len(rows))))
    return {
        m: Imputation(_fill(x.get(m), filled[m], missing[m], draws), effective) for m in targets
    }


def _choose(
    model: MultimodalVAE,
    encodings: Encodings,
    given: Tensor,
    x: Mapping[str, Tensor],
    draws: int,
    proposals: int,
) -> tuple[Iterator[Tensor], Tensor]:
    """The states of draws chosen by their weights, in portions, and the effective sample sizes."""
    latents, weights = [], []
    for h, steps in propose(model, encodings, given, x, proposals, matched=True):
        shape = h.shape[:2]
        ratio = log_ratio(model, encodings, given, steps, len(h), matched=True)
        weights.append(ratio + score(model, h, x, given))
        latents.append([step.z.unflatten(0, shape) for step in steps])
    log_w = torch.cat(weights)  # (N, B)
    z = [torch.cat(level) for level in zip(*latents, strict=True)]  # (N, B, *)

    # systematic: one random offset for each row, then even steps through the weights
    edges = log_w.softmax(dim=0).cumsum(dim=0)
    point = torch.arange(draws, device=log_w.device)[:, None] + torch.rand_like(log_w[:1])
    point = (point / draws).clamp(max=1 - 1e-6) * edges[-1]  # (K, B)
    chosen = torch.searchsorted(edges.T.contiguous(), point.T.contiguous(), right=True).T
    chosen = chosen.clamp(max=len(edges) - 1)

    row = torch.arange(given.shape[0], device=log_w.device)
    z = [v[chosen, row] for v in z]  # (K, B, *)
    size = max(1, len(weights[0]))

    def states() -> Iterator[Tensor]:
        for portion in zip(*(v.split(size) for v in z), strict=True):
            mask = given.expand(len(portion[0]), *given.shape)
            flat = [v.flatten(0, 1) for v in portion]
            yield walk(model, encodings, mask, flat, matched=True)[0].unflatten(0, mask.shape[:2])

    return states(), effective_sample_size(log_w)


def _fill(x: Tensor | None, parts: list[Tensor], missing: Tensor, draws: int) -> Tensor:
    """The draws where a modality is missing, and its entry in the other rows: (K, B, *)."""
    if not parts:
        assert x is not None  # some row would miss it
        return x.expand(draws, *x.shape)
    drawn = torch.cat(parts)  # (K, n, *)
    if x is None or bool(missing.all()):
        return drawn
    full = x.to(drawn.dtype).expand(draws, *x.shape).clone()
    full[:, missing] = drawn
    return full
