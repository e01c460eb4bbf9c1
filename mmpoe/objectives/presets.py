r"""The objectives of the models, by the names of their papers.

Most are a choice of arguments of :func:`mixture_elbo` or :func:`mixture_iwae`. All can be used
with any model of the library.
"""

from __future__ import annotations

__all__ = ["mhvae", "mmhvae", "mmvae", "mmvae_plus", "mmvm", "mopoe", "mvae", "mvtcae"]

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from mmpoe.evidence._samples import log_posterior, sum_log_prob, take
from mmpoe.missing import check_names, check_observed, subsets, with_valid
from mmpoe.models import MultimodalVAE

from ._pairs import beside, choose_family, full_and_singletons, of_same_rows, weight_dtype
from .bounds import Beta, penalty
from .mixtures import (
    check_choice,
    check_not_compiling,
    mixture_elbo,
    mixture_iwae,
    nothing,
)


def mvae(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: Beta = 1.0,
    *,
    samples: int = 0,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Sums the bounds of all that was observed, of each modality alone and of random subsets.

    .. math::
        \mathcal{L}(x_r) = \sum_{s \in \{r\} \cup \{\{m\} : m \in r\} \cup \{s_1, \dots, s_k\}}
        \mathrm{E}_{q_s} \Big[ \sum_{m \in s} \log p(x_m \mid z) \Big]
        - \beta \, \mathrm{KL}(q_s \,\|\, p)

    Each subset explains itself alone, so each term is a lower bound of :math:`\log p(x_s)`; their
    sum bounds no single evidence. A subset counts once, however often it occurs.

    Arguments:
        model: The model, :class:`~mmpoe.models.MVAE` in the paper.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: What divergences cost, see :func:`elbo`.
        samples: The number of random subsets :math:`k` of each row, drawn uniformly from the
            non-empty subsets of what it observed.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The objective, in nats, with shape :math:`(B)`.

    Raises:
        ValueError: As :func:`mixture_elbo`, and if `samples` is negative.

    References:
        | Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018)
        | https://arxiv.org/abs/1802.05335
    """
    pairs = full_and_singletons(x, observed, model.modalities, samples)
    return mixture_elbo(model, x, observed, beta, family=pairs, reconstruct="given", valid=valid)


def mmvae(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: float = 1.0,
    *,
    samples: int = 1,
    stratified: bool = False,
    gradient: str = "pathwise",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Bounds the evidence by a mixture whose components are the modalities alone.

    .. math::
        \mathcal{L}(x_r) = \frac{1}{|r|} \sum_{m \in r} \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(x_r, z_{m,k})}{\frac{1}{|r|} \sum_{n \in r} q_n(z_{m,k} \mid x_n)}, \qquad
        z_{m,k} \sim q_m(z \mid x_m)

    It is :func:`mixture_iwae` over single modalities, with the density of the mixture. Every
    observed modality is reconstructed from every other.

    Arguments:
        model: The model, :class:`~mmpoe.models.MMVAE` in the paper.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: The weight of the log-ratio of prior and posterior.
        samples: The number of samples :math:`K` of each modality.
        stratified: Whether the average over modalities is inside the logarithm: a tighter bound.
        gradient: The gradient, ``"pathwise"`` or, for one sample, ``"stl"``.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The bound, in nats, with shape :math:`(B)`.

    Raises:
        ValueError: As :func:`mixture_iwae`.

    References:
        | Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models
          (Shi et al., 2019)
        | https://arxiv.org/abs/1911.03393
    """
    return mixture_iwae(
        model,
        x,
        observed,
        beta,
        family="singletons",
        samples=samples,
        stratified=stratified,
        gradient=gradient,
        valid=valid,
    )


def mmvae_plus(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: float = 1.0,
    *,
    private: int = 1,
    samples: int = 1,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Bounds the evidence by a mixture over modalities, with latents private to each of them.

    .. math::
        \mathcal{L}(x_r) = \frac{1}{|r|} \sum_{m \in r} \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(x_m \mid z, w_m) \prod_{n \in r, n \ne m} p(x_n \mid z, \tilde{w}_n) \;
        p(z) \, p(w_m)}
        {\frac{1}{|r|} \sum_{n \in r} q_n(z \mid x_n) \; q(w_m \mid x_m)}

    with :math:`z, w_m \sim q_m(z, w_m \mid x_m)` and :math:`\tilde{w}_n \sim p(w_n)`: a modality
    is reconstructed across modalities from the prior of its private latents, so that nothing
    private can leak into the shared ones. It is :func:`mixture_iwae` over single modalities, with
    the density of the mixture for the shared groups and that of the component for the private
    ones. The paper draws :math:`\tilde{w}_n` from a distribution of its own, with which this is no
    longer a bound; here it is the prior.

    Arguments:
        model: A model whose last groups hold the private latents, one block for each modality, see
            :mod:`mmpoe.nn`.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: The weight of the log-ratio of prior and posterior.
        private: The number of groups that hold private latents.
        samples: The number of samples :math:`K` of each modality.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The bound, in nats, with shape :math:`(B)`.

    Raises:
        ValueError: As :func:`mixture_iwae`, and if `private` is not less than the number of
            groups.

    References:
        | MMVAE+: Enhancing the Generative Quality of Multimodal VAEs without Compromises
          (Palumbo et al., 2023)
        | https://openreview.net/forum?id=sdQGxouELX
    """
    return mixture_iwae(
        model,
        x,
        observed,
        beta,
        family="singletons",
        samples=samples,
        private=private,
        valid=valid,
    )


def mmvm(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: float = 1.0,
    *,
    density: str = "component",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Sums the reconstruction of each modality from itself, and draws their posteriors together.

    .. math::
        \mathcal{L}(x_r) = \sum_{m \in r} \mathrm{E}_{q_m(z \mid x_m)} [\log p(x_m \mid z)]
        - \beta \, \mathrm{KL}(q_m \,\|\, h), \qquad
        h(z \mid x_r) = \frac{1}{|r|} \sum_{n \in r} q_n(z \mid x_n)

    The prior :math:`h` of each modality is the mixture of the posteriors of all that were observed
    (MMVM, the multimodal variational mixture-of-experts prior). The divergences from it add up to
    :math:`|r|` times the Jensen-Shannon divergence of the posteriors, which saturates at
    :math:`\log |r|`: posteriors that are far apart have next to no gradient. By default, as in the
    published code, each divergence is therefore the average of those from the components, in
    closed form, which is at least as large:

    .. math::
        \mathrm{KL}(q_m \,\|\, h) \le \frac{1}{|r|} \sum_{n \in r} \mathrm{KL}(q_m \,\|\, q_n)

    Either is 0 where all modalities say the same of z. :math:`p(z)` has no part in it, a row with
    one modality costs nothing, and the objective bounds no evidence of the model.

    Arguments:
        model: The model, :class:`~mmpoe.models.MMVAE` in the paper.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: The weight :math:`\beta` of the divergences.
        density: What posteriors diverge from, each ``"component"`` of :math:`h` on average, in
            closed form, or the ``"mixture"`` itself, at a sample.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The objective, in nats, with shape :math:`(B)`.

    Raises:
        ValueError: As :func:`mixture_elbo`, and if `density` is none of its choices.
        RuntimeError: If it is called inside ``torch.compile``.

    References:
        | Unity by Diversity: Improved Representation Learning for Multimodal VAEs (Sutter et al.,
          2024)
        | https://arxiv.org/abs/2403.05300
    """
    check_not_compiling("mmvm")
    check_choice("density", density, ["component", "mixture"])
    pairs = choose_family(x, observed, model.modalities, "singletons")
    if len(pairs.rows) == 0:
        return nothing(model, x, observed)
    given, rows, weight = pairs
    x = with_valid(x, valid)
    encodings = model.encode(x, pairs.needed(len(observed)))
    q = model.infer(encodings, given, rows=rows)
    if density == "mixture":
        log_h = log_posterior(model, encodings, q.z, rows, pairs, coarsest=q.posteriors[0])
        cost = sum_log_prob(q.posteriors, q.z) - log_h
    else:
        own, other = of_same_rows(rows)  # q_m and q_n, at a sample of the former in a hierarchy
        z = [v.index_select(0, own) for v in q.z]
        p = model.infer(encodings, given[other], rows=rows[other], z=z)
        between = [
            kl_divergence(take(q_m, own), q_n)
            for q_m, q_n in zip(q.posteriors, p.posteriors, strict=True)
        ]
        share = weight[other] * torch.stack(between).sum(dim=0)
        cost = share.new_zeros(len(rows)).index_add(0, own, share)
    log_p = model.log_likelihood(q.state, x, given, rows=rows)
    return pairs.sum(log_p - beta * cost, len(observed))


def mopoe(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: Beta = 1.0,
    *,
    decode: str = "drawn",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Averages the bound over all subsets of what was observed, reconstructing from one of them.

    .. math::
        \mathcal{L}(x_r) = \frac{1}{2^{|r|} - 1} \sum_{\emptyset \ne s \subseteq r}
        \mathrm{E}_{q_s} \Big[ \sum_{m \in r} \log p(x_m \mid z) \Big]
        - \beta \, \mathrm{KL}(q_s \,\|\, p)

    It is :func:`mixture_elbo` over the powerset. Divergences are enumerated, which is cheap; each
    row is decoded once, from a subset that is drawn, which is unbiased.

    Arguments:
        model: The model, :class:`~mmpoe.models.MoPoEVAE` in the paper.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: What divergences cost, see :func:`elbo`.
        decode: The subsets to decode from, ``"drawn"`` or ``"all"``.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The bound, in nats, with shape :math:`(B)`.

    Raises:
        ValueError: As :func:`mixture_elbo`.

    References:
        | Generalized Multimodal ELBO (Sutter et al., 2021)
        | https://arxiv.org/abs/2105.02470
    """
    return mixture_elbo(model, x, observed, beta, decode=decode, valid=valid)


def mvtcae(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: Beta = 1.0,
    *,
    alpha: float = 0.9,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Trades the bound against how well each modality alone predicts the joint posterior.

    .. math::
        \mathcal{L}(x_r) = \frac{|r| - \alpha}{|r|} \,
        \mathrm{E}_{q_r} \Big[ \sum_{m \in r} \log p(x_m \mid z) \Big]
        - \beta \Big[ (1 - \alpha) \, \mathrm{KL}(q_r \,\|\, p)
        + \frac{\alpha}{|r|} \sum_{m \in r} \mathrm{KL}(q_r \,\|\, q_m) \Big]

    For :math:`\alpha = 0` it is the bound of all that was observed; otherwise it bounds not the
    evidence but the total correlation. The paper knows complete data only, with :math:`M`
    modalities. Here a row counts as data of those that it observed, :math:`M \to |r|`: missing
    ones are neither scored nor part of a divergence, and a row is worth what it would be to a
    model of its modalities alone.

    Arguments:
        model: The model; in the paper, an :class:`~mmpoe.models.MVAE` whose products leave out the
            prior, ``posterior=PoE(prior_in="never")``.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: What divergences cost, see :func:`elbo`; those of a group are added up beforehand.
        alpha: The weight :math:`\alpha` of the total correlation, in [0, 1].
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The objective, in nats, with shape :math:`(B)`.

    Raises:
        ValueError: As :func:`elbo`, and if `alpha` is not in [0, 1].

    References:
        | Multi-View Representation Learning via Total Correlation Objective (Hwang et al., 2021)
        | https://proceedings.neurips.cc/paper/2021/hash/65a99bb7a3115fdede20da98b08a370f-Abstract.html
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"'alpha' should be in [0, 1], but is {alpha}.")
    pairs = full_and_singletons(x, observed, model.modalities)
    if len(pairs.rows) == 0:
        return nothing(model, x, observed)
    observed = observed.to(pairs.rows.device)
    given, rows, weight = pairs
    size = given.sum(dim=1)  # (R)
    full = (given == observed[rows]).all(dim=1)
    joint, single = full.nonzero()[:, 0], (size == 1).nonzero()[:, 0]  # (N), (n)
    x = with_valid(x, valid)
    encodings = model.encode(x, pairs.needed(len(observed)))
    q = model.infer(encodings, given[joint], rows=rows[joint])

    # the joint posterior against that of each modality, at latents drawn from the former
    of_sample = torch.zeros_like(observed[:, 0], dtype=torch.long)  # (B)
    of_sample[rows[joint]] = torch.arange(len(joint), device=rows.device)
    against = of_sample[rows[single]]  # (n), the joint posterior of each single modality
    z = [v.index_select(0, against) for v in q.z]
    alone = model.infer(encodings, given[single], rows=rows[single], z=z)
    share = alpha / size[joint][against].to(weight)
    cost = []
    for kl, q_r, q_m in zip(q.kl, q.posteriors, alone.posteriors, strict=True):
        between = share * kl_divergence(take(q_r, against), q_m)
        cost.append((1 - alpha) * kl + kl.new_zeros(len(kl)).index_add(0, against, between))

    log_p = model.log_likelihood(q.state, x, given[joint], rows=rows[joint])
    bound = (1 - alpha / size[joint].to(log_p)) * log_p - penalty(cost, beta)  # (N)
    return bound.new_zeros(len(observed)).index_add(0, rows[joint], bound)


def mhvae(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: Beta = 1.0,
    *,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Averages the bound over all that was observed and each modality alone.

    .. math::
        \mathcal{L}(x_r) = \frac{1}{|S_r|} \sum_{s \in S_r} \mathcal{L}_s(x_r), \qquad
        S_r = \{r\} \cup \{\{m\} : m \in r\}

    It is :func:`mixture_elbo` over those subsets: each explains all that was observed. With one
    observed modality, there is one subset.

    Arguments:
        model: The model, :class:`~mmpoe.models.MHVAE` in the paper.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: What divergences cost, see :func:`elbo`.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The bound, in nats, with shape :math:`(B)`.

    Raises:
        ValueError: As :func:`mixture_elbo`.

    References:
        | Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations
          (Dorent et al., 2023)
        | https://arxiv.org/abs/2309.08747
    """
    pairs = full_and_singletons(x, observed, model.modalities)
    counts = pairs.rows.bincount(minlength=len(observed))[pairs.rows]
    pairs = pairs._replace(weight=pairs.weight / counts)
    return mixture_elbo(model, x, observed, beta, family=pairs, valid=valid)


def mmhvae(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: Beta = 1.0,
    *,
    special: str | None = None,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Averages the bound over the subsets of MMHVAE: three groups, a third each.

    .. math::
        \mathcal{L}(x_r) = \frac{1}{3} \mathcal{L}_r(x_r) + \frac{1}{3} \mathcal{L}_{\{u\}}(x_r)
        + \frac{1}{3} \, \frac{1}{2^{|o|} - 1} \sum_{\emptyset \ne s \subseteq o}
        \mathcal{L}_s(x_r), \qquad o = r \setminus \{u\}

    where :math:`u` is the special modality, ultrasound in the paper. It is :func:`mixture_elbo`
    over the family ``"groups"`` of :func:`mmpoe.missing.subsets`, which also says what happens to
    groups that are empty for a row.

    Arguments:
        model: The model, :class:`~mmpoe.models.MMHVAE` in the paper.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: What divergences cost, see :func:`elbo`.
        special: The name of the special modality; by default, the first one.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The bound, in nats, with shape :math:`(B)`.

    Raises:
        ValueError: As :func:`mixture_elbo`.

    References:
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632
    """
    check_observed(observed, model.modalities)
    column = 0
    if special is not None:
        check_names([special], model.modalities, argument="special")
        column = model.modalities.index(special)
    observed = beside(observed, x)
    family = subsets(observed, "groups", special=column, dtype=weight_dtype(x))
    return mixture_elbo(model, x, observed, beta, family=family, valid=valid)
