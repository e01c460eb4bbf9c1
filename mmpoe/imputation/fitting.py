"""The fit of a spread to a trained model, and of its scale to held-out samples."""

from __future__ import annotations

__all__ = ["SpreadFit", "fit_spread"]

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmpoe.distributions import LowRankNormal
from mmpoe.likelihoods import Laplace, Normal, StudentT
from mmpoe.likelihoods import LowRankNormal as LowRankLikelihood
from mmpoe.missing import Batch, check_names, check_observed, random_subsets, valid_of
from mmpoe.models import MultimodalVAE
from mmpoe.models._inputs import held
from mmpoe.nn.modes import evaluation

from .held_out import HeldOut
from .spread import Point, Spread, predict_point

REAL = (Normal, Laplace, StudentT, LowRankLikelihood)
"""The likelihoods of real numbers, whose deviations are learned."""
ELEMENTS = 4096
"""How many elements of an entry a step scores, at most: the density of any of them is exact."""
QUICK = 3.0
"""How much faster the amplitudes of factors learn than the rest."""
LEVEL = 0.9
"""The coverage of the intervals that set the scale."""
WINDOWS = 8
"""The number of windows on a side of a grid, whose means set the scale of factors."""
SCALES = torch.linspace(math.log(0.25), math.log(4.0), 33).exp()
"""The scales that are tried."""
KEPT = 10_000
"""How many elements of a modality set its scale, at most."""

Part = tuple[Any, ...]
"""A batch `x`, its mask, and if there are any, element masks and other entries to predict."""
Data = Part | Iterable[Part]


@dataclass
class SpreadFit:
    """How the spread of a model was fitted."""

    losses: list[float] = field(default_factory=list)
    """The mean loss of the batch at each step, in nats per element."""
    coverage: dict[str, tuple[float, float]] = field(default_factory=dict)
    """For each modality, the share of the elements, and of the means over windows, that 90 %
    intervals held on held-out rows; NaN where none could tell."""


def fit_spread(
    model: MultimodalVAE,
    data: Data,
    held_out: HeldOut,
    *,
    rank: int = 32,
    steps: int = 300,
    batch_size: int = 8,
    lr: float = 2e-3,
    after_step: Callable[[int, float], object] | None = None,
) -> SpreadFit:
    r"""Fits a :class:`Spread` to a trained model: how far what is missing may be off.

    .. math:: \min \; - \mathrm{E} \, \log \mathcal{N}\big( x_{r \setminus s}; \mu(x_s),
        F F^\top + \mathrm{diag}(\sigma^2) \big)

    over random proper subsets s of what each row observed. From then on :func:`impute` draws
    missing modalities of real numbers from it. No parameter of the model changes, so that its
    predictions stay as they are, to the bit. Then held-out rows set two scales for each modality,
    of its factors and of the noise of single elements, so that 90 % intervals hold 90 % of the
    elements, and of the means over windows: an eighth of a side of a grid, or all columns of a
    vector, in units of their deviations.

    Arguments:
        model: The model, on any device.
        data: The pair of a batch `x` and its mask `observed`, or an iterable of such batches, as a
            :class:`torch.utils.data.DataLoader` is, which is run through again and again. A third
            entry may hold element masks by modality, of what is scored, and a fourth the entries
            to predict of modalities whose inputs are not these, as where they have more channels.
        held_out: Samples that the model was not trained on.
        rank: The number of factors R.
        steps: The number of steps.
        batch_size: The number of rows of a batch, if `data` is one whole batch.
        lr: The learning rate; it rises over 20 steps and falls along a cosine.
        after_step: Called after each step with its number, from 1, and its loss.

    Returns:
        How the fit went, and what was measured.

    Raises:
        ValueError: If no modality is one of real numbers, a number is out of range, or there is
            no batch.

    References:
        | Stochastic Segmentation Networks: Modelling Spatially Correlated Aleatoric Uncertainty
          (Monteiro et al., 2020)
        | https://arxiv.org/abs/2006.06015

    Example:
        >>> from mmpoe.oracles import LinearGaussian
        >>> oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=3)
        >>> model = oracle.model()
        >>> data = oracle.sample(50)[0], torch.ones(50, 2, dtype=torch.bool)
        >>> fit = fit_spread(model, data, HeldOut(oracle.sample(20)[0]), steps=2)
        >>> sorted(fit.coverage), model.spread.coverage.shape
        (['a', 'b'], torch.Size([2, 2]))
    """
    for name, value in (("rank", rank), ("steps", steps), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"'{name}' should be an integer of at least 1, but is {value!r}.")
    if not 0 < lr < math.inf:
        raise ValueError(f"'lr' should be positive and finite, but is {lr!r}.")
    targets = [m for m in model.modalities if isinstance(model.decoders[m], REAL)]
    if not targets:
        kinds = sorted({type(model.decoders[m]).__name__ for m in model.modalities})
        raise ValueError(
            "'model' should have a modality of real numbers, whose likelihood is Normal, "
            f"LowRankNormal, Laplace or StudentT, but has {', '.join(kinds)}."
        )
    batches = _batches(model, data, batch_size)
    case = _hide(model, next(batches), targets)
    events = {m: tuple(v.shape[1:]) for m, v in case.point.mean.items()}
    spread = Spread(model.modalities, tuple(case.point.h.shape[1:]), events, rank)
    spread.to(case.point.h)
    _set_units(spread, case)
    amplitudes = list(spread.head.amplitude.parameters())
    others = [p for n, p in spread.named_parameters() if not n.startswith("head.amplitude.")]
    groups = [{"params": others, "speed": 1.0}, {"params": amplitudes, "speed": QUICK}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    history = SpreadFit()
    for step in range(steps):
        loss = _loss(spread, case)
        fall = 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = group["speed"] * lr * min(1.0, (step + 1) / 20) * fall
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(spread.parameters(), 1.0)
        optimizer.step()
        history.losses.append(loss.item())
        if after_step is not None:
            after_step(step + 1, history.losses[-1])
        if step < steps - 1:
            case = _hide(model, next(batches), targets)
    set_scale(model, spread.eval().requires_grad_(False), held_out)
    model.spread = spread
    shares = spread.coverage.tolist()
    history.coverage = {m: (a, b) for m, (a, b) in zip(events, shares, strict=True)}
    return history


# rows with something hidden


class Rows(NamedTuple):
    """Some rows, and which of their elements are scored."""

    x: Batch
    observed: Tensor
    valid: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]
    """The entries to predict, by modality."""

    def take(self, index: Tensor) -> Rows:
        """Returns some of the rows."""
        valid, truth = ({m: v[index] for m, v in of.items()} for of in (self.valid, self.truth))
        return Rows(self.x.take(index), self.observed[index], valid, truth)


class Case(NamedTuple):
    """Rows with something hidden: what was predicted of it, and what is true."""

    point: Point
    given: Tensor
    truth: dict[str, Tensor]
    inside: dict[str, Tensor]
    """The elements that were observed and are hidden, by modality."""


def _batches(model: MultimodalVAE, data: Data, size: int) -> Iterator[Rows]:
    """The batches of some data, again and again; those of a whole batch in a new order."""
    if isinstance(data, tuple):
        rows = _rows(model, *cast("Part", data))
        while len(rows.observed):
            for index in torch.randperm(len(rows.observed)).split(size):
                yield rows.take(index.to(rows.observed.device))
    else:
        found = True
        while found:
            found = False
            for batch in data:
                found = True
                yield _rows(model, *batch)
    raise ValueError("'data' should hold a batch that has a row, but holds none.")


def _rows(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    valid: Mapping[str, Tensor] | None = None,
    truth: Mapping[str, Tensor] | None = None,
) -> Rows:
    check_names(list(x), model.modalities, argument="x")
    check_observed(observed, model.modalities)
    device = next(model.parameters()).device
    x = Batch.of(x).to(device)
    valid = valid_of(x) if valid is None else valid
    truth = {**x, **{m: v.to(device) for m, v in (truth or {}).items()}}
    inside = {m: v.to(device).broadcast_to(truth[m].shape) for m, v in valid.items() if m in x}
    return Rows(x, observed.to(device), inside, truth)


def _hide(
    model: MultimodalVAE,
    rows: Rows,
    targets: list[str],
    generator: torch.Generator | None = None,
) -> Case:
    """Hides random modalities of each row, and predicts them from the others."""
    x, observed, valid, entries = rows
    given = random_subsets(observed.cpu(), proper=True, generator=generator)[0].to(observed.device)
    with torch.no_grad(), evaluation(model.modules()):
        point = predict_point(model, x, given, targets)
    truth, inside = {}, {}
    for m in targets:
        column, mean = model.modalities.index(m), point.mean[m]
        hidden = (observed & ~given)[:, column].reshape(-1, *(1,) * (mean.dim() - 1))
        inside[m] = hidden.expand(mean.shape)
        if m in valid:
            inside[m] = inside[m] & valid[m]
        truth[m] = 0 * mean
        if m in entries:
            truth[m] = torch.where(inside[m], entries[m], 0).to(mean.dtype)
    return Case(point, given, truth, inside)


def _set_units(spread: Spread, case: Case) -> None:
    """Takes the deviation of a batch as the usual one; of nothing, that of all modalities."""
    errors = {
        m: torch.where(inside, case.truth[m] - case.point.mean[m], torch.nan).square()
        for m, inside in case.inside.items()
    }
    every = torch.cat([v.flatten() for v in errors.values()]).nanmean().sqrt()
    every = torch.where(every > 0, every, 1)  # of nothing, or of what is right
    for m, unit in spread.units.items():
        shared = [0, *range(2, errors[m].dim())]  # all but channels
        own = errors[m].nanmean(dim=shared).sqrt().reshape(unit.shape)
        unit.copy_(torch.where(own > 0, own, every))


def _loss(spread: Spread, case: Case) -> Tensor:
    """Minus the log-density of what is hidden, all modalities together, per element."""
    parts = spread(case.point.h, case.given, case.point.mean)
    total = sum(p.loc[0].numel() for p in parts.values())
    some = torch.randperm(total)[:ELEMENTS].to(case.given.device)

    def joined(tensors: Iterable[Tensor], start: int = 1) -> Tensor:
        return torch.cat([v.flatten(start) for v in tensors], dim=start).index_select(start, some)

    joint = LowRankNormal(
        joined(p.loc for p in parts.values()),
        joined((p.factors for p in parts.values()), 2),
        joined(p.log_scale for p in parts.values()),
    )
    inside = joined(case.inside[m] for m in parts)
    number = inside.sum(dim=1)
    log_p = joint.log_prob(joined(case.truth[m] for m in parts), inside)
    return -(log_p / number.clamp(min=1)).sum() / (number > 0).sum().clamp(min=1)


# the scale


class Squares(NamedTuple):
    """Squared errors, and both parts of the variance that was predicted, each with shape (N)."""

    error: Tensor
    common: Tensor
    own: Tensor

    def held(self, common: float, own: float) -> float:
        """The share that an interval holds, with scales of both parts."""
        bound = math.sqrt(2) * torch.erfinv(torch.tensor(LEVEL, dtype=torch.float64)).item()
        variance = common**2 * self.common + own**2 * self.own
        return (self.error <= bound**2 * variance).float().mean().item()


@torch.no_grad()
def set_scale(model: MultimodalVAE, spread: Spread, held_out: HeldOut) -> None:
    """Sets both scales of each modality by what intervals hold of held-out rows.

    Each row is hidden from in two ways, which are the same in every call.

    Arguments:
        model: The model.
        spread: Its spread, which learns its coverage too.
        held_out: The held-out rows.
    """
    observed = held_out.observed
    observed = held(held_out.x, model.modalities) if observed is None else observed
    targets = list(spread.events)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[list[Squares], list[Squares]]] = {m: ([], []) for m in targets}
    spread.scale.fill_(1)
    spread.coverage.fill_(torch.nan)
    for index in torch.arange(len(held_out)).repeat(2).split(32):
        part = _rows(
            model,
            held_out.x.take(index),
            observed[index],
            {m: v for m in held_out.valid if (v := held_out.inside(m, index)) is not None},
            {m: v[index.to(v.device)] for m, v in held_out.truth.items()},
        )
        case = _hide(model, part, targets, generator)
        parts = spread(case.point.h, case.given, case.point.mean)
        for m, p in parts.items():
            error, inside = case.truth[m] - p.loc, case.inside[m]
            found[m][0].append(_of_elements(p, error, inside))
            found[m][1].append(_of_windows(p, error, inside, spread.units[m]))
    for number, kinds in enumerate(found.values()):
        squares = [Squares(*map(torch.cat, zip(*kind, strict=True))) for kind in kinds]
        squares = [Squares(*(v[:: max(1, len(v) // KEPT)] for v in kind)) for kind in squares]
        if all(len(kind.error) for kind in squares):
            scales, held_shares = _best_scales(squares)
            spread.scale[number] = torch.tensor(scales)
            spread.coverage[number] = torch.tensor(held_shares)


def _best_scales(squares: list[Squares]) -> tuple[tuple[float, float], list[float]]:
    """The scales whose intervals hold what they should, the ones nearest to 1 among equals."""
    best = (math.inf, (1.0, 1.0), [math.nan, math.nan])
    for common in SCALES.tolist():
        for own in SCALES.tolist():
            shares = [kind.held(common, own) for kind in squares]
            loss = sum((share - LEVEL) ** 2 for share in shares)
            loss += 1e-6 * (math.log(common) ** 2 + math.log(own) ** 2)
            best = min(best, (loss, (common, own), shares), key=lambda item: item[0])
    return best[1], best[2]


def _of_elements(p: LowRankNormal, error: Tensor, inside: Tensor) -> Squares:
    common, own = p.factors.square().sum(dim=1), (2 * p.log_scale).exp()
    return Squares(error[inside].square(), common[inside], own[inside])


def _of_windows(p: LowRankNormal, error: Tensor, inside: Tensor, unit: Tensor) -> Squares:
    """Means over windows that are inside by half, in units of the usual deviation."""
    grid = error.dim() > 2
    sizes = [max(1, side // WINDOWS) for side in error.shape[2:]]
    number = math.prod(sizes) if grid else math.prod(error.shape[1:])

    def mean(values: Tensor, power: int) -> Tensor:
        """The mean over windows of (N, R, C, *), of what is inside."""
        values = torch.where(inside.unsqueeze(1), values / unit**power, 0)
        if not grid:
            return values.flatten(2).mean(dim=2, keepdim=True)
        pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
        pooled = pool[len(sizes) - 1](values.flatten(0, 1), sizes)
        return pooled.unflatten(0, values.shape[:2])

    share = mean(torch.ones_like(error)[:, None], 0)[:, 0]
    counted = share >= 0.5
    common = mean(p.factors, 1).square().sum(dim=1)
    own = mean((2 * p.log_scale).exp()[:, None], 2)[:, 0] / number
    squares = mean(error[:, None], 1)[:, 0].square()
    return Squares(squares[counted], common[counted], own[counted])
