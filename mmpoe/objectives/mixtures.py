r"""Bounds of mixtures over subsets of what was observed, of which named objectives are cases.

Both functions average over a family of subsets :math:`s` with weights :math:`\alpha_s`, where each
has a posterior :math:`q_s`, one component of a mixture. They differ in the divergence:

- :func:`mixture_elbo` takes that of each component, in closed form. Averaged, it is an upper bound
  of the divergence of the mixture.
- :func:`mixture_iwae` takes a log-ratio of densities at samples, of each component or of the
  mixture, with any number of samples inside the logarithm.
"""

from __future__ import annotations

__all__ = [
    "Model",
    "log_likelihood",
    "mixture_elbo",
    "mixture_iwae",
    "nothing",
    "packed_elbo",
    "posteriors_at",
    "sum_by_sample",
    "take",
]

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from mmpoe.distributions import DiagNormal
from mmpoe.missing import check_names

from .bounds import Beta, absent, elbo, penalty, score
from .pairs import Family, Pairs, choose, choose_family, places


class Sampled(Protocol):
    """A model's output."""

    @property
    def likelihoods(self) -> dict[str, Distribution]:
        """The distribution of each modality, of the rows that were decoded."""
        ...

    @property
    def kl(self) -> list[Tensor]:
        """The divergence of each group."""
        ...

    @property
    def z(self) -> list[Tensor]:
        """The sample of each group."""
        ...

    @property
    def posteriors(self) -> list[DiagNormal]:
        """The posterior of each group given the sample of those above."""
        ...

    @property
    def priors(self) -> list[DiagNormal]:
        """The prior of each group given the sample of those above."""
        ...


class Model(Protocol):
    """A multimodal model: conditions on one subset for each row, of any sample of a batch."""

    modalities: list[str]

    def __call__(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        *,
        rows: Tensor | None = None,
        component: bool = False,
        z: Sequence[Tensor] | None = None,
        decode: Tensor | None = None,
    ) -> Sampled:
        """Infers, and decodes some rows, see :meth:`mmpoe.models.MultimodalVAE.forward`."""
        ...


def mixture_elbo(
    model: Model,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: Beta = 1.0,
    *,
    family: Family = "powerset",
    special: str | None = None,
    reconstruct: str = "observed",
    decode: str = "all",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Averages the bound over a family of subsets of what was observed.

    .. math::
        \mathcal{L}(x_r) = \sum_{s} \alpha_{s \mid r} \, \mathcal{L}_s(x_r), \qquad
        \mathcal{L}_s(x_r) = \mathrm{E}_{q_s} \Big[ \sum_{m \in r} \log p(x_m \mid z) \Big]
        - \beta \, \mathrm{KL}(q_s \,\|\, p)

    It is a lower bound of :math:`\log p(x_r)` (for :math:`\beta = 1`), below it by
    :math:`\sum_s \alpha_s \mathrm{KL}(q_s \| p(z \mid x_r))`. What is computed are the distinct
    pairs of a row and a non-empty subset, see :func:`mmpoe.missing.pack`; the modalities are
    encoded once, and only what is scored is decoded. Compiled (``torch.compile``), all pairs are
    computed and decoded, since the shapes in a graph cannot depend on data; a family that is a
    tensor of patterns, and ``decode="drawn"``, then break the graph.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: What divergences cost, see :func:`elbo`.
        family: The family of subsets and its weights, see :func:`mmpoe.missing.subsets`:
            ``"powerset"`` (uniform, as in MoPoE), ``"groups"`` (as in MMHVAE) and others, or a
            tensor of patterns. Or the subsets of each row, with shape :math:`(S, B, M)`, and their
            weights, with shape :math:`(S, B)`, as a tuple, for instance those of
            :func:`mmpoe.missing.sample_subsets`.
        special: The name of the special modality of ``"groups"``; by default, the first one.
        reconstruct: What each subset has to explain: ``"observed"``, all of it; or ``"given"``,
            the subset itself, which makes :math:`\mathcal{L}_s` a bound of :math:`\log p(x_s)`.
        decode: The subsets to decode from: ``"all"``; or ``"drawn"``, one for each row, drawn by
            its weight. The expectation is the same, divergences are those of all subsets either
            way, and decoders run once for each row.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The bound, in nats, with shape :math:`(B)`; 0 for a row that observed nothing.

    Raises:
        ValueError: As :func:`elbo` and :func:`mmpoe.missing.subsets`, and if `special` is unknown,
            `reconstruct` or `decode` are none of their choices, or subsets in `family` hold what
            was not observed.

    References:
        | Generalized Multimodal ELBO (Sutter et al., 2021)
        | https://arxiv.org/abs/2105.02470
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632

    Example:
        >>> from mmpoe.oracles import LinearGaussian
        >>> oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=3)
        >>> x, _ = oracle.sample(5)
        >>> observed = torch.ones(5, 2, dtype=torch.bool)
        >>> mixture_elbo(oracle.model(), x, observed, family="singletons").shape
        torch.Size([5])
    """
    pairs = choose_family(x, observed, model.modalities, family, special)
    return packed_elbo(
        model, x, observed, pairs, beta, reconstruct=reconstruct, decode=decode, valid=valid
    )


def packed_elbo(
    model: Model,
    x: Mapping[str, Tensor],
    observed: Tensor,
    pairs: Pairs,
    beta: Beta = 1.0,
    *,
    reconstruct: str = "observed",
    decode: str = "all",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Sums the bounds of pairs of a row and a subset, by their weights: see :func:`mixture_elbo`.

    Arguments:
        model: The model.
        x: The batch.
        observed: What was observed, boolean, with shape (B, M).
        pairs: The pairs. Their weights may have any sum.
        beta: What divergences cost.
        reconstruct: What each subset has to explain.
        decode: The subsets to decode from.
        valid: Which elements of each modality to score.
    """
    _check_choice("reconstruct", reconstruct, ["observed", "given"])
    _check_choice("decode", decode, ["all", "drawn"])
    given, rows, weight = pairs
    if len(rows) == 0:
        return nothing(model, x, observed)

    scored = given if reconstruct == "given" else observed.to(rows.device)[rows]  # (R, M)
    share = choose(pairs) if decode == "drawn" else weight
    scored = scored & (share > 0)[:, None]
    # a compiled graph decodes all, since it cannot depend on what there is to score
    decoded = None if torch.compiler.is_compiling() else scored
    output = model(x, given, rows=rows, component=True, decode=decoded)
    log_p = log_likelihood(model, output, x, scored, rows, share, valid)  # (R)
    return sum_by_sample(rows, share * log_p - weight * penalty(output.kl, beta), observed)


def mixture_iwae(
    model: Model,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: float = 1.0,
    *,
    family: Family = "powerset",
    special: str | None = None,
    reconstruct: str = "observed",
    samples: int = 1,
    density: str = "mixture",
    stratified: bool = False,
    gradient: str = "pathwise",
    private: int = 0,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Bounds the evidence by importance weights of samples from every component of a mixture.

    .. math::
        \mathcal{L}(x_r) = \sum_s \alpha_s \log \frac{1}{K} \sum_{k=1}^{K} w(z_{s,k}), \qquad
        \log w(z) = \sum_{m \in r} \log p(x_m \mid z) + \beta \log \frac{p(z)}{q(z)}, \qquad
        z_{s,k} \sim q_s

    where :math:`q` is the mixture :math:`\sum_s \alpha_s q_s`, or the component :math:`q_s`. All
    are lower bounds of :math:`\log p(x_r)` (for :math:`\beta = 1`). With one sample, those are the
    bound of the mixture itself, which gains the Jensen-Shannon divergence of the components over
    :func:`mixture_elbo`, and an estimate of :func:`mixture_elbo` with a sampled divergence. With
    stratified samples, the average over components moves inside the logarithm as well,

    .. math:: \log \sum_s \alpha_s \frac{1}{K} \sum_{k=1}^{K} w(z_{s,k}) ,

    which is tighter. In a hierarchy, densities are those of all groups together.

    Gradients are unbiased for all that is accepted, in three ways:

    - ``"pathwise"``: through samples and densities.
    - ``"stl"``: without the score of :math:`q`, whose expectation is 0 for one sample. It has no
      variance where the posterior is exact.
    - ``"dreg"``: doubly reparameterised, what ``"stl"`` becomes for several samples. It is biased
      for several samples and the density of a mixture, and refused there.

    Samples are passed down a hierarchy again for densities that are not those of their own
    component, and for the last two gradients, so networks should not draw, as dropout does.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: The weight of the log-ratio.
        family: The family of subsets and its weights, see :func:`mixture_elbo`.
        special: The name of the special modality of ``"groups"``; by default, the first one.
        reconstruct: What each subset has to explain, ``"observed"`` or ``"given"``, see
            :func:`mixture_elbo`. The latter needs the density of the component and an average
            outside the logarithm: it takes each subset for itself.
        samples: The number of samples :math:`K` of each component.
        density: The density :math:`q`, ``"mixture"`` or ``"component"``.
        stratified: Whether the average over components is inside the logarithm.
        gradient: The gradient, ``"pathwise"``, ``"stl"`` or ``"dreg"``.
        private: The number of groups, from the last, that hold private latents: their density is
            that of the component in any case.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The bound, in nats, with shape :math:`(B)`; 0 for a row that observed nothing.

    Raises:
        ValueError: As :func:`mixture_elbo`, if an argument is none of its choices, or if the
            gradient would be biased.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models
          (Shi et al., 2019)
        | https://arxiv.org/abs/1911.03393
        | Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
          Inference (Roeder et al., 2017)
        | https://arxiv.org/abs/1703.09194
        | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al.,
          2019)
        | https://arxiv.org/abs/1810.04152
    """
    _check_choice("reconstruct", reconstruct, ["observed", "given"])
    _check_choice("density", density, ["mixture", "component"])
    _check_choice("gradient", gradient, ["pathwise", "stl", "dreg"])
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"'samples' should be an integer of at least 1, but is {samples!r}.")
    if reconstruct == "given" and (density == "mixture" or stratified):
        raise ValueError(
            "'reconstruct' should be observed unless 'density' is component and 'stratified' is "
            f"False, but is {reconstruct!r} with {density!r} and {stratified}."
        )
    pairs = choose_family(x, observed, model.modalities, family, special)
    if len(pairs.rows) == 0:
        return nothing(model, x, observed)
    present, row, column = places(pairs.rows)  # (N), (R), (R)
    total = torch.zeros_like(pairs.weight).index_add(0, row, pairs.weight)
    alpha = pairs.weight / total[row]
    if gradient != "pathwise":
        _check_gradient(gradient, samples, density, stratified, several=bool(column.any()))

    # sample k of pair r is row k R + r of what the model computes
    given, rows = pairs.given.repeat(samples, 1), pairs.rows.repeat(samples)
    scored = given if reconstruct == "given" else observed.to(rows.device)[rows]
    factor = torch.ones_like(alpha).repeat(samples)  # of the gradient of each sample
    z = None
    if gradient == "dreg":
        drawn = model(x, given, rows=rows, component=True, decode=scored & False)
        z = [_scale_gradient(v, factor) for v in drawn.z]
    output = model(x, given, rows=rows, component=True, z=z, decode=scored)
    z = output.z

    mixed = len(z) - private if density == "mixture" else 0
    if not 0 <= private < len(z):
        raise ValueError(
            f"'private' should be at least 0 and less than the number of groups ({len(z)}), "
            f"but is {private}."
        )
    pairs = pairs._replace(weight=alpha)
    log_q = _log_density(model, x, output, pairs, z, mixed)  # (K R)
    if gradient != "pathwise":
        # at fixed latents, all that is left of the gradient is the score: take it away
        fixed = _log_density(model, x, output, pairs, [v.detach() for v in z], mixed)
        log_q = log_q - (fixed - fixed.detach())
    log_p = log_likelihood(model, output, x, scored, rows, alpha.repeat(samples), valid)
    log_w = log_p + beta * (_sum_log_prob(output.priors, z) - log_q)
    log_w = log_w.unflatten(0, (samples, len(row)))  # (K, R)

    if gradient == "dreg":
        share = log_w.detach().softmax(dim=0).flatten()
        factor.copy_(1 - beta + beta * share)
    bound = log_w.logsumexp(dim=0) - math.log(samples)  # (R)
    if not stratified:
        return sum_by_sample(pairs.rows, alpha * bound, observed)
    table = _table(row, column, bound + alpha.log())
    return sum_by_sample(present, table.logsumexp(dim=1), observed)


def posteriors_at(
    model: Model,
    x: Mapping[str, Tensor],
    output: Sampled,
    pairs: Pairs,
    index: Tensor,
    z: Sequence[Tensor],
) -> list[DiagNormal]:
    r"""Returns the posteriors of some pairs, of each group given the latents of those above.

    Arguments:
        model: The model.
        x: The batch.
        output: The output of the model whose first R rows are the pairs.
        pairs: The pairs.
        index: Which pairs, with shape (N).
        z: The latents of each group, coarse to fine, each with shape (N, \*).
    """
    if len(z) > 1:
        given, rows = pairs.given[index], pairs.rows[index]
        return model(
            x, given, rows=rows, component=True, z=z, decode=torch.zeros_like(given)
        ).posteriors
    (q,) = output.posteriors  # there is nothing above it
    return [take(q, index)]


def take(q: DiagNormal, index: Tensor) -> DiagNormal:
    """Returns some rows of a distribution."""
    loc, log_scale = q.loc.index_select(0, index), q.log_scale.index_select(0, index)
    return DiagNormal(loc, log_scale, len(q.event_shape))


def _log_density(
    model: Model,
    x: Mapping[str, Tensor],
    output: Sampled,
    pairs: Pairs,
    z: Sequence[Tensor],
    mixed: int,
) -> Tensor:
    r"""The log-density of the posterior at the latents of each row, with shape (K R).

    Arguments:
        model: The model.
        x: The batch.
        output: The output of the model, at K samples of each of R pairs.
        pairs: The pairs. Their weights are those of the mixture.
        z: The latents of each group, coarse to fine, each with shape (K R, \*).
        mixed: The number of groups, from the first, that take the density of the mixture; the
            others take that of the component.
    """
    present, row, column = places(pairs.rows)
    size = len(z[0])
    pair = torch.arange(len(row), device=row.device).repeat(size // len(row))  # (K R)
    log_q = torch.zeros_like(pairs.weight[pair])
    if mixed < len(z):
        own = output.posteriors
        if z is not output.z:
            own = posteriors_at(model, x, output, pairs, pair, z)
        log_q = log_q + _sum_log_prob(own[mixed:], z[mixed:])
    if mixed == 0:
        return log_q

    # all pairs that have the same sample: the first of them is at `first`
    counts = row.bincount(minlength=len(present))[row][pair]  # (K R)
    first = (torch.arange(len(row), device=row.device) - column)[pair]
    here = torch.arange(size, device=row.device).repeat_interleave(counts)  # (N)
    offset = torch.arange(len(here), device=row.device) - (counts.cumsum(0) - counts)[here]
    other = first[here] + offset

    there = [v.index_select(0, here) for v in z]
    components = posteriors_at(model, x, output, pairs, other, there)
    each = _sum_log_prob(components[:mixed], there[:mixed]) + pairs.weight.log()[other]
    return log_q + _table(here, offset, each).logsumexp(dim=1)


def log_likelihood(
    model: Model,
    output: Sampled,
    x: Mapping[str, Tensor],
    scored: Tensor,
    rows: Tensor,
    weight: Tensor,
    valid: Mapping[str, Tensor] | None,
) -> Tensor:
    """The log-likelihood of what is scored of each row, (R, M), from what was decoded: (R)."""
    check_names(list(valid or {}), model.modalities, argument="valid")
    total = torch.zeros_like(output.kl[0])
    for column, m in enumerate(model.modalities):
        if m not in output.likelihoods:
            continue
        compiling = torch.compiler.is_compiling()
        if m not in x:
            if compiling:  # nor on whether it was observed
                continue
            raise absent(m, x)
        p, inside = output.likelihoods[m], None if valid is None else valid.get(m)
        if compiling:
            seen = scored[:, column]
            total = total + score(p, x[m], m, seen, rows=rows, valid=inside, weight=weight)
            continue
        where = scored[:, column].nonzero()[:, 0]  # (n)
        log_p = score(
            p,
            x[m],
            m,
            torch.ones_like(where, dtype=torch.bool),
            rows=rows[where],
            valid=inside,
            weight=weight[where],
        )
        total = total + log_p.new_zeros(len(rows)).index_add(0, where, log_p)
    return total


def nothing(model: Model, x: Mapping[str, Tensor], observed: Tensor) -> Tensor:
    """The bound of a batch that observed nothing: 0, from which gradients can be taken."""
    given = torch.zeros_like(observed)
    return elbo(model(x, given), x, given)


def sum_by_sample(rows: Tensor, bound: Tensor, observed: Tensor) -> Tensor:
    """Adds up the bounds of each sample: from (R) to (B)."""
    return bound.new_zeros(len(observed)).index_add(0, rows, bound)


def _table(row: Tensor, column: Tensor, values: Tensor) -> Tensor:
    """A table of logarithms, with zeros, of which the logarithm is -inf, where there is none."""
    shape = (int(row.max()) + 1, int(column.max()) + 1)
    return values.new_full(shape, -torch.inf).index_put((row, column), values)


def _sum_log_prob(distributions: Sequence[Distribution], z: Sequence[Tensor]) -> Tensor:
    return torch.stack([q.log_prob(v) for q, v in zip(distributions, z, strict=True)]).sum(dim=0)


def _scale_gradient(z: Tensor, factor: Tensor) -> Tensor:
    """The same latents; their gradient is multiplied by what `factor` (R) holds by then."""
    z = z.clone()
    if z.requires_grad:
        z.register_hook(lambda g: g * factor.reshape(-1, *(1,) * (g.dim() - 1)))
    return z


def _check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"'{argument}' should be one of {', '.join(choices)}, but is {value!r}.")


def _check_gradient(
    gradient: str, samples: int, density: str, stratified: bool, several: bool
) -> None:
    """Raises a ValueError for a gradient that would be biased."""
    joint = stratified and several  # one logarithm of samples of several components
    if gradient == "stl" and (samples > 1 or joint):
        raise ValueError(
            "'gradient' should be pathwise or dreg for several samples in one logarithm: stl is "
            f"biased, with {samples} samples{' of several components' * joint}."
        )
    if gradient == "dreg" and several and (stratified or (samples > 1 and density == "mixture")):
        raise ValueError(
            "'gradient' should be pathwise: dreg is biased for several samples in one logarithm "
            "and a mixture of several components."
        )
