r"""Calibrated imputation: matched experts for a trained model, and draws of what is missing."""

from __future__ import annotations

__all__ = [
    "Calibration",
    "Imputation",
    "Pooled",
    "add_matched_experts",
    "calibrate",
    "impute",
    "rubin_pool",
]

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmpoe.gaussian import widen
from mmpoe.hierarchy import Encodings, LatentGroup, MatchedExperts
from mmpoe.missing import check_names, check_observed
from mmpoe.models import MultimodalVAE, UncalibratedWarning
from mmpoe.nn import MLP, ModalityDict
from mmpoe.nn.modes import evaluation
from mmpoe.objectives import effective_sample_size, posterior_matching
from mmpoe.objectives.importance import log_ratio, propose, score, subset_mask, walk
from mmpoe.objectives.matching import match, teaching_rows

Reader = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
"""Returns the batch and the mask of some rows."""

CHECK_EVERY = 25
"""How many steps there are from one look at held-out rows to the next."""
HELD_OUT_TERMS = 256
"""How many pairs of a held-out row and a subset a look averages over, at least."""


class ResidualHead(nn.Module):
    """Adds to some features a function of them, which is zero at the start.

    Arguments:
        features: The number of features, or channels.
        hidden: The number of features of the hidden layer.
    """

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.network = MLP(features, features, hidden=[hidden])
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the same shape, (N, C, *)."""
        return x + self.network(x.movedim(1, -1)).movedim(-1, 1)


def add_matched_experts(model: MultimodalVAE) -> None:
    r"""Gives a model a second set of experts, equal to the first at the start.

    They share the features of the encoders. An expert that is a network is copied; one that hands
    on what its encoder says gets a small residual network. The rule that fuses them is copied too.
    Groups that have matched experts already keep them.

    :func:`calibrate` does this by itself. It is needed before loading the ``state_dict`` of a
    calibrated model into a new one, and before matching is trained along with the model.

    Arguments:
        model: The model.

    Raises:
        ValueError: If experts hand on what encoders say, and the shape of the latents is not known
            yet.

    Example:
        >>> from mmpoe.models import MVAE
        >>> from mmpoe.likelihoods import Normal
        >>> vae = MVAE({"a": nn.Linear(3, 4)}, {"a": Normal(nn.Linear(2, 3))}, latent_dim=2)
        >>> add_matched_experts(vae)
        >>> vae.is_matched
        True
    """
    like = next(model.parameters(), torch.zeros(()))
    made: list[MatchedExperts] = []
    groups = _groups(model)
    for level, group in enumerate(groups):
        expert = group.expert
        parts = dict(expert.items()) if isinstance(expert, ModalityDict) else {"": expert}
        if all(isinstance(part, nn.Identity) for part in parts.values()):
            if group.shape is None:
                raise ValueError(
                    f"The shape of 'groups[{level}]' should be known before it gets matched "
                    "experts: give 'latent_dim' to the model, or run it once."
                )
            size = 2 * group.shape[0]
            copied: Any = {m: ResidualHead(size).to(like) for m in model.modalities}
        else:
            copied = copy.deepcopy(expert)
        matched = MatchedExperts(copied, copy.deepcopy(group.posterior))
        made.append(matched.train(group.training).requires_grad_())
    for group, matched in zip(groups, made, strict=True):
        if group.matched is None:
            group.matched = matched


@dataclass
class Calibration:
    """How the matched experts were fitted."""

    losses: list[float] = field(default_factory=list)
    """The mean loss of the batch at each step, in nats."""
    held_out: dict[int, float] = field(default_factory=dict)
    """The mean loss of held-out rows, in nats, after some numbers of steps."""
    best: int = 0
    """The number of steps after which the matched experts were as they are now."""
    interrupted: bool = False
    """Whether the fit was stopped by an interrupt (Ctrl-C)."""


def calibrate(
    model: MultimodalVAE,
    data: tuple[Mapping[str, Tensor], Tensor] | Sequence[Mapping[str, Any]],
    *,
    teacher: str = "complete",
    steps: int = 1500,
    batch_size: int = 128,
    lr: float = 2e-3,
    held_out: float = 0.1,
    patience: int = 500,
) -> Calibration:
    r"""Fits matched experts to a trained model, so that its imputations spread as they should.

    It adds them to the model if there are none (:func:`add_matched_experts`), and minimises
    :func:`~mmpoe.objectives.posterior_matching` over random subsets with Adam. Every other
    parameter and buffer stays as it is, to the bit, and every module in its mode. Held-out rows
    tell which of the fits on the way is kept.

    Arguments:
        model: The model, on any device.
        data: Samples as for :func:`mmpoe.missing.collate`, in a list or dataset of known length;
            or the pair of a whole batch `x` and its mask `observed`. Each sample is read once
            beforehand, to see what it has.
        teacher: Which rows teach: ``"complete"``, ``"bootstrap"`` or ``"all"``, see
            :func:`~mmpoe.objectives.posterior_matching`. For ``"bootstrap"``, complete rows alone
            teach in the first half of the steps; in the second half, a fixed copy of the matched
            experts that they made teaches the incomplete rows.
        steps: The largest number of steps.
        batch_size: The number of rows of a batch.
        lr: The learning rate at the start; it falls to 0 along a cosine.
        held_out: The share of the rows with a posterior to learn from, drawn at random, that is
            not trained on; 0 for none, where the last fit is kept.
        patience: After how many steps without improvement on held-out rows to stop.

    Returns:
        How the fit went.

    Raises:
        ValueError: If no row has a posterior to learn from, or too few to hold some out, or a
            number is out of range.

    References:
        | Posterior Matching for Arbitrary Conditioning (Strauss & Oliva, 2022)
        | https://arxiv.org/abs/2201.12414
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("patience", patience)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"'{name}' should be an integer of at least 1, but is {value!r}.")
    if not 0 < lr < math.inf:
        raise ValueError(f"'lr' should be positive and finite, but is {lr!r}.")
    if not 0 <= held_out < 1:
        raise ValueError(f"'held_out' should be at least 0 and less than 1, but is {held_out!r}.")

    read, observed = _reader(model, data)
    anchor = "all" if teacher == "all" else "complete"
    anchors = teaching_rows(observed, anchor)  # (N), rows whose teacher does not learn
    if not bool(anchors.any()):
        wanted = "a modality" if teacher == "all" else "all modalities"
        raise ValueError(
            f"'data' should hold samples with {wanted}, to learn from what they have, "
            f"but none of {len(observed)} does."
        )
    chosen = torch.randperm(int(anchors.sum()))[: math.ceil(held_out * int(anchors.sum()))]
    apart = anchors.nonzero()[:, 0][chosen]
    if len(apart) == anchors.sum():
        raise ValueError(
            f"'data' should hold at least two samples that teach, but holds {len(apart)}; "
            "set 'held_out' to 0 to train on it."
        )
    stages = [(steps, anchor)]
    if teacher == "bootstrap":  # what complete rows taught teaches, held fixed
        stages = [(steps // 2, "complete"), (steps, "bootstrap")]
    add_matched_experts(model)
    matched = nn.ModuleList([g.matched for g in _groups(model) if g.matched is not None])
    modes = {module: module.training for module in matched.modules()}
    optimizer = torch.optim.Adam(matched.parameters(), lr=lr, betas=(0.9, 0.99))
    history, least, step = Calibration(), math.inf, 0
    best = copy.deepcopy(matched.state_dict())

    def look() -> None:
        """Keeps the matched experts if they are the best so far."""
        nonlocal least, best
        if len(apart) == 0:
            history.best, best = step, matched.state_dict()
            return
        history.held_out[step] = _held_out_loss(model, read, apart, anchor)
        if history.held_out[step] < least:
            least, history.best = history.held_out[step], step
            best = copy.deepcopy(matched.state_dict())

    try:
        for last, kind in stages:
            matched.load_state_dict(best)
            by, start = copy.deepcopy(_groups(model)), step
            rows = teaching_rows(observed, kind)
            rows[apart] = False
            batches = _shuffled(rows.nonzero()[:, 0], batch_size)
            look()
            while step < last and step - max(history.best, start) < patience:
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
                matched.train()
                loss = match(model, *read(next(batches)), teacher=kind, by=by).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                history.losses.append(loss.item())
                step += 1
                if step % CHECK_EVERY == 0 or step == last:
                    look()
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        matched.load_state_dict(best)
        for module, training in modes.items():
            module.training = training
    return history


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
        return _floating(self.draws).mean(dim=0)

    @property
    def stddev(self) -> Tensor:
        r"""The standard deviation of the draws, with shape (B, \*); 0 where observed."""
        return _floating(self.draws).std(dim=0)

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
        ordered = _floating(self.draws).sort(dim=0).values
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
                if len(rows):
                    p = model.decoders[m](h[:, rows].flatten(0, 1))
                    filled[m].append(p.sample().unflatten(0, (len(h), len(rows))))
    return {
        m: Imputation(_fill(x.get(m), filled[m], missing[m], draws), effective) for m in targets
    }


class Pooled(NamedTuple):
    """What several completed data sets say together."""

    estimate: Tensor
    """The pooled estimate."""
    variance: Tensor
    """Its total variance."""
    dof: Tensor
    """The degrees of freedom of the t distribution to make intervals with."""
    fraction_missing: Tensor
    """The fraction of the information about the quantity that is missing."""


def rubin_pool(estimates: Tensor, variances: Tensor) -> Pooled:
    r"""Pools the estimates of :math:`K` completed data sets by Rubin's rules.

    .. math::
        \bar{Q} = \frac{1}{K} \sum_k Q_k, \qquad
        T = \frac{1}{K} \sum_k U_k + \Big(1 + \frac{1}{K}\Big) B, \qquad
        B = \frac{1}{K - 1} \sum_k (Q_k - \bar{Q})^2

    .. math::
        \lambda = \frac{(1 + 1 / K) \, B}{T}, \qquad \nu = \frac{K - 1}{\lambda^2}, \qquad
        \gamma = \lambda + (1 - \lambda) \, \frac{2}{\nu + 3}

    :math:`(Q - \bar{Q}) / \sqrt{T}` is about t distributed with :math:`\nu` degrees of freedom.

    Arguments:
        estimates: The estimate :math:`Q_k` of each data set, with shape :math:`(K, *)`.
        variances: The variance :math:`U_k` of each estimate, as if its data had been complete,
            with the same shape.

    Returns:
        The estimate :math:`\bar{Q}`, its total variance :math:`T`, the degrees of freedom
        :math:`\nu`, infinite if data sets agree, and the fraction of missing information
        :math:`\gamma`, each with shape :math:`(*)`.

    Raises:
        ValueError: If the shapes differ, there are fewer than two data sets, or a variance is
            negative.

    References:
        | Multiple Imputation for Nonresponse in Surveys (Rubin, 1987)
        | https://doi.org/10.1002/9780470316696

    Example:
        >>> rubin_pool(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])).variance
        tensor(4.)
    """
    if estimates.shape != variances.shape or estimates.dim() == 0 or len(estimates) < 2:
        raise ValueError(
            "'estimates' and 'variances' should have the same shape (K, *), with K at least 2, "
            f"but have shapes {tuple(estimates.shape)} and {tuple(variances.shape)}."
        )
    if not bool((variances >= 0).all()):
        raise ValueError(
            f"'variances' should be at least 0, but go down to {variances.min():.4g}."
        )
    count = len(estimates)
    estimates, variances = _floating(estimates), _floating(variances)
    between = (1 + 1 / count) * estimates.var(dim=0)
    total = variances.mean(dim=0) + between
    share = torch.where(total > 0, between / torch.where(total > 0, total, 1), 0)
    dof = (count - 1) / share.square()
    return Pooled(estimates.mean(dim=0), total, dof, share + (1 - share) * 2 / (dof + 3))


def _groups(model: MultimodalVAE) -> list[LatentGroup]:
    return list(model.groups)  # pyright: ignore[reportReturnType]


def _reader(
    model: MultimodalVAE,
    data: tuple[Mapping[str, Tensor], Tensor] | Sequence[Mapping[str, Any]],
) -> tuple[Reader, Tensor]:
    """What reads some rows of the data onto the device of the model, and what all of them have."""
    device = next(model.parameters(), torch.zeros(())).device
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor):
        x, mask = cast("tuple[Mapping[str, Tensor], Tensor]", data)
        check_observed(mask, model.modalities)
        observed = mask.cpu()

        def batch(rows: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
            return {m: v[rows.to(v.device)] for m, v in x.items()}, observed[rows]
    else:
        samples = cast("Sequence[Mapping[str, Any]]", data)
        masks = [model.collate([samples[i]])[1] for i in range(len(samples))]
        observed = torch.cat([torch.zeros(0, len(model.modalities), dtype=torch.bool), *masks])

        def batch(rows: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
            return model.collate([samples[i] for i in rows.tolist()])

    def read(rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        x, seen = batch(rows)
        return {m: v.to(device) for m, v in x.items()}, seen.to(device)

    return read, observed


def _shuffled(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Batches of some rows, again and again, in a new order each time."""
    while True:
        yield from rows[torch.randperm(len(rows))].split(batch_size)


def _held_out_loss(model: MultimodalVAE, read: Reader, rows: Tensor, teacher: str) -> float:
    """The mean loss of some rows, with the same subsets and noise each time."""
    device = next(model.parameters()).device
    repeats = math.ceil(HELD_OUT_TERMS / len(rows))
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.no_grad(),
        evaluation(model.modules()),
    ):
        torch.manual_seed(0)
        total = 0.0
        for part in rows.repeat(repeats).split(HELD_OUT_TERMS):
            total += posterior_matching(model, *read(part), teacher=teacher).sum().item()
    return total / (repeats * len(rows))


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
        ratio = log_ratio(model, encodings, given, steps, matched=True)
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


def _floating(v: Tensor) -> Tensor:
    return widen(v) if v.is_floating_point() else v.to(torch.get_default_dtype())
