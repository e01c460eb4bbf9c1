r"""Bounds of mixtures over subsets of what was observed, of which named objectives are cases.

Both functions average over a family of subsets :math:`s` with weights :math:`\alpha_s`, where each
has a posterior :math:`q_s`, one component of a mixture. They differ in the divergence:

- :func:`mixture_elbo` takes that of each component, in closed form. Averaged, it is an upper bound
  of the divergence of the mixture.
- :func:`mixture_iwae` takes a log-ratio of densities at samples, of each component or of the
  mixture, with any number of samples inside the logarithm.
"""

from __future__ import annotations

__all__ = ["mixture_elbo", "mixture_iwae"]

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmpoe.distributions import log_mixture
from mmpoe.evidence._samples import log_posterior, sum_log_prob, take
from mmpoe.hierarchy import Encodings, Inference
from mmpoe.missing import with_valid
from mmpoe.models import MultimodalVAE
from mmpoe.models._inputs import check_weight

from ._pairs import Family, Packed, choose, choose_family, places
from .bounds import Beta, elbo, penalty


def mixture_elbo(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: Beta = 1.0,
    *,
    family: Family = "powerset",
    reconstruct: str = "observed",
    decode: str = "all",
    weight: Tensor | None = None,
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
            ``"powerset"`` (uniform, as in MoPoE), ``"groups"`` (as in MMHVAE, whose special
            modality is the first) and others, or a tensor of patterns. Or the subsets of each row,
            with shape :math:`(S, B, M)`, and their weights, with shape :math:`(S, B)`, as a tuple,
            for instance those of :func:`mmpoe.missing.sample_subsets`.
        reconstruct: What each subset has to explain: ``"observed"``, all of it; or ``"given"``,
            the subset itself, which makes :math:`\mathcal{L}_s` a bound of :math:`\log p(x_s)`.
        decode: The subsets to decode from: ``"all"``; or ``"drawn"``, one for each row, drawn by
            its weight. The expectation is the same, divergences are those of all subsets either
            way, and decoders run once for each row.
        weight: The weight of each entry that is scored, broadcastable to :math:`(B, M)`, see
            :func:`elbo`.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The bound, in nats, with shape :math:`(B)`; 0 for a row that observed nothing.

    Raises:
        ValueError: As :func:`elbo` and :func:`mmpoe.missing.subsets`, and if `reconstruct` or
            `decode` are none of their choices, or subsets in `family` hold what was not observed.

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
    check_choice("reconstruct", reconstruct, ["observed", "given"])
    check_choice("decode", decode, ["all", "drawn"])
    pairs = choose_family(x, observed, model.modalities, family)
    if len(pairs.rows) == 0:
        return nothing(model, x, observed)
    given, rows, alpha = pairs
    scored = given if reconstruct == "given" else observed.to(rows.device)[rows]  # (R, M)
    share = choose(pairs) if decode == "drawn" else alpha
    entry = share[:, None]  # the weight of the log-likelihood of each pair and modality
    if weight is not None:
        entry = entry * check_weight(weight, observed).to(rows.device)[rows]

    x = with_valid(x, valid)
    q = model.infer(model.encode(x, pairs.needed(len(observed))), given, rows=rows)
    log_p = model.log_likelihood(q.state, x, scored, rows=rows, weight=entry)  # (R)
    return pairs.sum(log_p - alpha * penalty(q.kl, beta), len(observed))


def mixture_iwae(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: float = 1.0,
    *,
    family: Family = "powerset",
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
    component, and for the last two gradients, so networks should not draw, as dropout does. The
    function cannot be compiled, since the shapes inside depend on data.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: The weight of the log-ratio.
        family: The family of subsets and its weights, see :func:`mixture_elbo`.
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
        RuntimeError: If it is called inside ``torch.compile``.

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
    check_not_compiling("mixture_iwae")
    check_choice("density", density, ["mixture", "component"])
    check_choice("gradient", gradient, ["pathwise", "stl", "dreg"])
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"'samples' should be an integer of at least 1, but is {samples!r}.")
    levels = len(model.groups)
    if not 0 <= private < levels:
        raise ValueError(
            f"'private' should be at least 0 and less than the number of groups ({levels}), "
            f"but is {private}."
        )
    mixed = levels - private if density == "mixture" else 0  # groups with that of the mixture
    pairs = choose_family(x, observed, model.modalities, family)
    pairs = Packed(*(v[pairs.weight > 0] for v in pairs))  # compiled, it lists others too
    if len(pairs.rows) == 0:
        return nothing(model, x, observed)
    present, row, column = places(pairs.rows)  # (N), (R), (R)
    total = pairs.weight.new_zeros(len(present)).index_add(0, row, pairs.weight)  # (N)
    pairs = pairs._replace(weight=pairs.weight / total[row])
    if gradient != "pathwise":
        _check_gradient(gradient, samples, density, stratified, several=bool(column.any()))

    # sample k of pair r is row k R + r of all that is inferred
    given, rows = pairs.given.repeat(samples, 1), pairs.rows.repeat(samples)
    alpha = pairs.weight.repeat(samples)
    x = with_valid(x, valid)
    encodings = model.encode(x, pairs.needed(len(observed)))
    factor = torch.ones_like(alpha)  # of the gradient of each sample
    z = None
    if gradient == "dreg":
        # the gradient of each sample is scaled, once, on its way back to what it was drawn from;
        # those that are passed down have no history but that
        drawn = model.infer(encodings, given, rows=rows)
        z = [_scale_gradient(v, factor) for v in drawn.z]
    q = model.infer(encodings, given, rows=rows, z=z)

    log_q = _log_density(model, encodings, q, pairs, mixed)  # (K R)
    if gradient != "pathwise":
        # at fixed latents, all that is left of the gradient is the score: take it away
        fixed = model.infer(encodings, given, rows=rows, z=[v.detach() for v in q.z])
        score = _log_density(model, encodings, fixed, pairs, mixed)
        log_q = log_q - (score - score.detach())
    scored = observed.to(rows.device)[rows]
    # a pair counts in an optimal scale by its weight, which its own log-likelihood is without
    log_p = model.log_likelihood(q.state, x, scored, rows=rows, weight=alpha[:, None])
    log_w = log_p / alpha + beta * (sum_log_prob(q.priors, q.z) - log_q)
    log_w = log_w.unflatten(0, (samples, len(row)))  # (K, R)

    if gradient == "dreg":
        share = log_w.detach().softmax(dim=0).flatten()
        factor.copy_(1 - beta + beta * share)
    bound = log_w.logsumexp(dim=0) - math.log(samples)  # (R)
    if not stratified:
        return pairs.sum(pairs.weight * bound, len(observed))
    shape = (len(present), int(column.max()) + 1)
    table = bound.new_zeros(shape).index_put((row, column), bound)
    weight = bound.new_zeros(shape).index_put((row, column), pairs.weight.to(bound.dtype))
    bound = log_mixture(table, weight, dim=1)  # (N)
    return bound.new_zeros(len(observed)).index_add(0, present, bound)


def _log_density(
    model: MultimodalVAE, encodings: Encodings, q: Inference, pairs: Packed, mixed: int
) -> Tensor:
    """The log-density of the posterior at K samples of each pair, with shape (K R).

    Arguments:
        model: The model.
        encodings: The encodings of the batch.
        q: The inference at these samples.
        pairs: The R pairs. Their weights are those of the mixture.
        mixed: The number of groups, from the first, that take the density of the mixture; the
            others take that of the component.
    """
    log_q = sum_log_prob(q.posteriors[mixed:], q.z[mixed:]) if mixed < len(q.z) else 0
    if mixed == 0:
        return torch.as_tensor(log_q)
    number = len(pairs.rows)
    of_sample = pairs.rows.repeat(len(q.z[0]) // number)
    coarsest = take(q.posteriors[0], torch.arange(number, device=of_sample.device))
    return log_q + log_posterior(
        model, encodings, q.z, of_sample, pairs, groups=mixed, coarsest=coarsest
    )


def nothing(model: MultimodalVAE, x: Mapping[str, Tensor], observed: Tensor) -> Tensor:
    """The bound of a batch that observed nothing: 0, from which gradients can be taken."""
    given = torch.zeros_like(observed)
    return elbo(model(x, given), x, given)


def _scale_gradient(z: Tensor, factor: Tensor) -> Tensor:
    """The same latents; their gradient is multiplied by what `factor` (R) holds by then."""
    z = z.clone()
    if z.requires_grad:
        z.register_hook(lambda g: g * factor.reshape(-1, *(1,) * (g.dim() - 1)))
    return z


def check_not_compiling(objective: str) -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"{objective} cannot be compiled: the shapes inside depend on data. Call "
            f"torch.compiler.disable({objective}), or of the objective that uses it."
        )


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
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
