r"""Importance-weighted estimates of the evidence, by samples from a posterior."""

from __future__ import annotations

__all__ = [
    "Model",
    "effective_sample_size",
    "log_conditional",
    "log_marginal",
    "log_predictive",
    "log_ratio",
    "log_weights",
    "propose",
    "score",
    "subset_mask",
    "walk",
]

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mmpoe import gaussian
from mmpoe.distributions import DiagNormal
from mmpoe.gaussian import widen
from mmpoe.hierarchy import Encodings, Inference, LatentGroup, latent_groups, top_down
from mmpoe.likelihoods import Likelihood, check_support
from mmpoe.missing import (
    as_mask,
    check_finite,
    check_names,
    check_observed,
    distinct_pairs,
    sample_subsets,
    subsets,
)

from .bounds import absent, check_valid, log_density

ELEMENTS = 2**22
"""How many elements of data the samples of a portion stand for, all modalities together."""
CACHED = 2**18
"""How many elements of one modality are decoded at a time on a CPU, to be scored in its cache;
without gradients, for which all of them are kept in any case."""


class Model(Protocol):
    """The parts of a multimodal model that are needed to infer without decoding everything."""

    modalities: list[str]
    family: str
    groups: nn.ModuleList

    @property
    def decoders(self) -> nn.ModuleDict:
        """The likelihoods by modality."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All modules that it consists of."""
        ...

    def encode(self, x: Mapping[str, Tensor], observed: Tensor) -> Encodings:
        """Runs each encoder once."""
        ...


def log_weights(
    model: Model,
    x: Mapping[str, Tensor],
    observed: Tensor,
    given: Tensor | Sequence[str] | None = None,
    *,
    samples: int,
    matched: bool = False,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Returns the log importance weights of samples from a posterior.

    .. math::
        \log w_k = \sum_{m \in r} \log p(x_m \mid z_k)
        + \sum_l \big[ \log p(z_{k,l} \mid z_{k,>l}) - \log q(z_{k,l} \mid z_{k,>l}, x_s) \big],
        \qquad z_k \sim q(z \mid x_s)

    The mean of :math:`w_k` is an unbiased estimate of :math:`p(x_r)`, whatever :math:`x_s` the
    samples condition on. If the posterior is a mixture, its components are drawn systematically,
    each as often as it weighs up to rounding, and :math:`q` is the density of the whole mixture.

    Encoders run once, decoders only for what is scored, and samples pass through the model in
    portions: without gradients, memory stays that of one portion.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read.
        observed: What to score, :math:`r`, boolean, with shape :math:`(B, M)`.
        given: What the samples condition on, :math:`s`: a boolean mask of shape :math:`(B, M)`, or
            the names of some modalities. By default, what is scored.
        samples: The number of samples :math:`K` of each row.
        matched: Whether to sample from the matched experts, see :func:`mmpoe.calibrate`. They are
            the better choice for a part of what a model trained across modalities has seen: its
            own posterior is then too narrow, and the weights may have no variance at all.
        valid: Which elements of each modality to score, see :func:`elbo`. What conditions, and
            so is encoded, is a whole entry all the same.

    Returns:
        The log-weights, in nats, with shape :math:`(K, B)`.

    Raises:
        ValueError: If the masks do not have one boolean column per modality, an entry that is read
            is absent or not finite, or `samples` is not positive.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Example:
        >>> from mmpoe.oracles import LinearGaussian
        >>> oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=3)
        >>> x, _ = oracle.sample(5)
        >>> observed = torch.ones(5, 2, dtype=torch.bool)
        >>> log_w = log_weights(oracle.model(), x, observed, samples=3)
        >>> torch.allclose(log_w, oracle.log_prob(x, observed))  # with the exact posterior
        True
    """
    check_observed(observed, model.modalities)
    given = observed if given is None else given
    given = subset_mask(given, model.modalities, len(observed))
    encodings = model.encode(x, given)
    return _weigh(model, encodings, x, observed, given, samples, matched=matched, valid=valid)


def log_marginal(
    model: Model,
    x: Mapping[str, Tensor],
    observed: Tensor,
    given: Tensor | Sequence[str] | None = None,
    samples: int = 1000,
    *,
    matched: bool = False,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Estimates the evidence from importance weights.

    .. math:: \log \hat{p}(x_r) = \log \frac{1}{K} \sum_{k=1}^{K} w_k

    In expectation, it is a lower bound of :math:`\log p(x_r)` that rises with :math:`K`; a small
    :func:`effective_sample_size` of the :func:`log_weights` says that it is loose. A large one
    says nothing by itself: a posterior that is too narrow never sees the weights that it lacks. As
    an objective with a few samples, it is the importance-weighted bound.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What to score, boolean, with shape :math:`(B, M)`.
        given: What the samples condition on; by default, what is scored.
        samples: The number of samples :math:`K`.
        matched: Whether to sample from the matched experts, see :func:`log_weights`.
        valid: Which elements of each modality to score, see :func:`log_weights`.

    Returns:
        The estimate, in nats, with shape :math:`(B)`; 0 for a row that observed nothing and is
        given nothing.

    Raises:
        ValueError: As :func:`log_weights`.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei &
          Frellsen, 2019)
        | https://arxiv.org/abs/1812.02633
    """
    log_w = log_weights(model, x, observed, given, samples=samples, matched=matched, valid=valid)
    return _log_mean_exp(log_w)


def log_conditional(
    model: Model,
    x: Mapping[str, Tensor],
    targets: Tensor | Sequence[str],
    given: Tensor | Sequence[str],
    samples: int = 1000,
    *,
    matched: bool = False,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Estimates the evidence of some modalities given others.

    .. math:: \log \hat{p}(x_t \mid x_s) = \log \hat{p}(x_t, x_s) - \log \hat{p}(x_s)

    This is the difference of two estimates that are both too low on average, each with samples
    from a posterior of its own: it is consistent, but no bound, and can err on either side.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        targets: What to score, :math:`t`: a boolean mask of shape :math:`(B, M)`, or names.
        given: What to condition on, :math:`s`: a mask or names.
        samples: The number of samples :math:`K` of each of the two estimates.
        matched: Whether to sample from the matched experts, see :func:`log_weights`. Those of
            :math:`(x_t, x_s)` come from the matched experts too.
        valid: Which elements of each modality to score, see :func:`log_weights`.

    Returns:
        The estimate, in nats, with shape :math:`(B)`; 0 for a row without targets beyond what is
        given.

    Raises:
        ValueError: As :func:`log_weights`.
    """
    size = _size(x)
    given = subset_mask(given, model.modalities, size)
    both = given | subset_mask(targets, model.modalities, size, argument="targets")
    encodings = model.encode(x, both)
    joint, part = (
        _log_mean_exp(
            _weigh(model, encodings, x, mask, mask, samples, matched=matched, valid=valid)
        )
        for mask in (both, given)
    )
    return torch.where((both != given).any(dim=1).to(joint.device), joint - part, 0)


def log_predictive(
    model: Model,
    x: Mapping[str, Tensor],
    targets: Tensor | Sequence[str],
    given: Tensor | Sequence[str],
    samples: int = 1000,
    *,
    matched: bool = False,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Estimates the log-density that predictions from a posterior give to the truth.

    .. math::
        \log \frac{1}{K} \sum_{k=1}^{K} p(x_t \mid z_k), \qquad z_k \sim q(z \mid x_s)

    It scores what :func:`mmpoe.impute` draws, and is a strictly proper score of it. It is
    :func:`log_conditional` only if the posterior is exact. Only targets are decoded.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        targets: What to score, :math:`t`: a boolean mask of shape :math:`(B, M)`, or names.
        given: What to condition on, :math:`s`: a mask or names.
        samples: The number of samples :math:`K`.
        matched: Whether to sample from the matched experts.
        valid: Which elements of each modality to score, see :func:`log_weights`.

    Returns:
        The estimate, in nats, with shape :math:`(B)`, on average too low.

    Raises:
        ValueError: As :func:`log_weights`.
    """
    size = _size(x)
    targets = subset_mask(targets, model.modalities, size, argument="targets")
    given = subset_mask(given, model.modalities, size)
    parts = propose(model, model.encode(x, given), given, x, samples, matched=matched)
    return _log_mean_exp(torch.cat([score(model, h, x, targets, valid) for h, _ in parts]))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Returns how many samples of equal weight the weighted samples are worth.

    .. math:: \frac{(\sum_k w_k)^2}{\sum_k w_k^2} \in [1, K]

    For a normal target and a normal proposal of :math:`\rho` times its variance in each of
    :math:`D` dimensions, the share :math:`\mathrm{ESS} / K` tends to :math:`(\sqrt{2 \rho - 1} /
    \rho)^D`; for :math:`\rho \le 1/2`, to 0.

    Arguments:
        log_weights: The log-weights, with shape :math:`(K, B)`.

    Returns:
        The size, with shape :math:`(B)`.

    Example:
        >>> effective_sample_size(torch.tensor([[0.0], [0.0], [-100.0]]))
        tensor([2.])
    """
    return (2 * log_weights.logsumexp(dim=0) - (2 * log_weights).logsumexp(dim=0)).exp()


def propose(
    model: Model,
    encodings: Encodings,
    given: Tensor,
    x: Mapping[str, Tensor],
    samples: int,
    *,
    matched: bool = False,
) -> Iterator[tuple[Tensor, list[Inference]]]:
    r"""Draws from the posterior of every row, in portions that fit in memory.

    Arguments:
        model: The model.
        encodings: What the encoders made of the batch.
        given: What to condition on, boolean, with shape :math:`(B, M)`.
        x: The batch, which tells how large a portion is once it is decoded.
        samples: The number of samples :math:`K` of each row.
        matched: Whether to sample from the matched experts.

    Returns:
        The portions: the states that decoders see, with shape :math:`(K', B, *)`, and the
        inference of each group, over :math:`K' B` rows, sample by sample.
    """
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"'samples' should be an integer of at least 1, but is {samples!r}.")
    given = given.to(encodings.like.device)
    drawn = sample_subsets(given, _family(model, matched), samples=samples)[0]  # (K, B, M)
    elements = sum(v.numel() for v in x.values())
    for portion in drawn.split(max(1, ELEMENTS // max(elements, 1))):
        h, steps = walk(model, encodings, portion, matched=matched)
        yield h.unflatten(0, portion.shape[:2]), steps


def log_ratio(
    model: Model,
    encodings: Encodings,
    given: Tensor,
    steps: Sequence[Inference],
    samples: int,
    *,
    matched: bool = False,
) -> Tensor:
    r"""Returns the log-density of the prior minus that of the posterior, all groups together.

    Arguments:
        model: The model.
        encodings: What the encoders made of the batch.
        given: What the posterior conditions on, boolean, with shape :math:`(B, M)`.
        steps: The inference of each group, over :math:`K B` rows, sample by sample.
        samples: The number of samples :math:`K`.
        matched: Whether the posterior is that of the matched experts.

    Returns:
        The difference, in nats, with shape :math:`(K, B)`.
    """
    given = given.to(encodings.like.device)
    z = [step.z for step in steps]
    log_p = torch.stack([step.prior.log_prob(step.z) for step in steps]).sum(dim=0)
    log_q = _log_posterior(steps)

    members, weight = subsets(given, _family(model, matched), dtype=log_q.dtype)
    weight[0] = torch.where(given.any(dim=1), weight[0], 1)  # given nothing: the prior, once
    used = (weight > 0).any(dim=1)
    shape = (samples, len(given))  # (K, B)
    if used.sum() > 1:  # the density of the mixture, not of the component that was drawn
        terms = []
        for subset, alpha in zip(members[used], weight[used], strict=True):
            _, there = walk(model, encodings, subset.expand(*shape, -1), z, matched=matched)
            inside = (alpha > 0).repeat(shape[0])
            log_alpha = torch.where(alpha > 0, alpha, 1).log().repeat(shape[0])
            terms.append(torch.where(inside, log_alpha + _log_posterior(there), -torch.inf))
        log_q = torch.stack(terms).logsumexp(dim=0)
    return (log_p - log_q).unflatten(0, shape)


def walk(
    model: Model,
    encodings: Encodings,
    given: Tensor,
    z: Sequence[Tensor] | None = None,
    *,
    matched: bool,
) -> tuple[Tensor, list[Inference]]:
    """Walks down the groups for every row of a mask of shape (K, B, M), see `top_down`."""
    groups, flat = latent_groups(model.groups), given.flatten(0, 1)
    coarsest = None
    if len(given) > 1 and groups[0].prior is None:
        coarsest = _infer_repeated(
            groups[0], encodings, flat, None if z is None else z[0], matched=matched
        )
    return top_down(groups, encodings, flat, z=z, matched=matched, coarsest=coarsest)


def _infer_repeated(
    group: LatentGroup, encodings: Encodings, given: Tensor, z: Tensor | None, *, matched: bool
) -> Inference:
    """Infers the first group: once for each row and subset, however many samples it gets."""
    rows = torch.arange(len(given), device=given.device) % max(encodings.batch_size, 1)
    one, pair = distinct_pairs(rows, given)
    inferred: Inference = group(
        None, 0, encodings, given[one], rows[one], sample=False, matched=matched
    )
    of_pair = inferred.posterior
    loc, log_scale = (v.index_select(0, pair) for v in (of_pair.loc, of_pair.log_scale))
    q = DiagNormal(loc, log_scale, len(of_pair.event_shape))
    return Inference(
        z=gaussian.sample(loc, log_scale, torch.randn_like(loc)) if z is None else z,
        posterior=q,
        prior=group.prior_distribution(None, len(given), loc),
        kl=inferred.kl.index_select(0, pair),
    )


def score(
    model: Model,
    h: Tensor,
    x: Mapping[str, Tensor],
    observed: Tensor,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Returns the log-likelihood of what was observed, without decoding anything else.

    .. math:: \sum_{m \in r} \log p(x_m \mid h)

    Arguments:
        model: The model.
        h: The states that decoders see, with shape :math:`(K, B, *)`.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What to score, :math:`r`, boolean, with shape :math:`(B, M)`.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The log-likelihood, with shape :math:`(K, B)`.
    """
    check_names(list(x), model.modalities, argument="x")
    check_names(list(valid or {}), model.modalities, argument="valid")
    check_observed(observed, model.modalities)
    dtype = torch.promote_types(h.dtype, torch.float32)
    total = torch.zeros(h.shape[:2], dtype=dtype, device=h.device)
    for column, m in enumerate(model.modalities):
        seen = observed[:, column].to(h.device)
        rows = seen.nonzero()[:, 0]  # (n)
        if len(rows) == 0:
            continue
        if m not in x:
            raise absent(m, x)
        inside = None if valid is None else valid.get(m)
        if inside is not None:
            check_valid(inside, tuple(x[m].shape), m)
            inside = inside.broadcast_to(x[m].shape)
        check_finite(x[m], seen, m, inside)
        log_p = _log_likelihood(model.decoders[m], h[:, rows], x[m], m, seen, inside)
        total = total.index_add(1, rows, log_p.to(dtype))
    return total


def _log_likelihood(
    decoder: nn.Module,
    h: Tensor,
    x: Tensor,
    modality: str,
    observed: Tensor,
    valid: Tensor | None,
) -> Tensor:
    """The log-likelihood of the n entries of one modality that were observed, (K, n).

    Arguments:
        decoder: Its likelihood, or a module that returns a distribution.
        h: The states of these rows, with shape (K, n, *).
        x: All entries, with shape (B, *).
        modality: The name of the modality, for messages.
        observed: Which entries were observed, with shape (B).
        valid: Which elements to score, with the shape of `x`; all if None.
    """
    rows = observed.nonzero()[:, 0]
    entries = widen(x[rows])
    scored = None if valid is None else valid[rows]

    def score_part(h: Tensor, *, check: bool) -> Tensor:
        if isinstance(decoder, Likelihood):
            p, copies = decoder(h, batch_dims=2), 1
        else:  # a module that knows one batch dimension
            p, copies = decoder(h.flatten(0, 1)), len(h)
        if x.shape[1:] != p.event_shape:
            raise ValueError(
                f"'x' should have the shape of what is decoded, (B, *{tuple(p.event_shape)}), "
                f"but {modality!r} has shape {tuple(x.shape)}."
            )
        if check:
            check_support(p, x, observed, modality, valid)
        part = None if scored is None else _repeat(scored, copies)
        return log_density(p, _repeat(entries, copies), part).reshape(h.shape[:2])

    parts = 1
    if h.device.type == "cpu" and not torch.is_grad_enabled():
        parts = min(len(h), -(-len(h) * entries.numel() // CACHED))
    chunks = h.chunk(max(1, parts))
    return torch.cat([score_part(part, check=i == 0) for i, part in enumerate(chunks)])


def subset_mask(
    given: Tensor | Sequence[str], modalities: Sequence[str], size: int, argument: str = "given"
) -> Tensor:
    """Returns a mask of shape (B, M), from a mask or from names.

    Arguments:
        given: The mask or the names.
        modalities: The names of the modalities.
        size: The number of rows B.
        argument: The name of the argument, for messages.
    """
    if hasattr(given, "__array__"):
        given = torch.as_tensor(given)
    if not isinstance(given, Tensor):
        check_names(given, modalities, argument=argument)
        return as_mask(given, modalities, size)
    if given.dtype != torch.bool or given.shape != (size, len(modalities)):
        raise ValueError(
            f"'{argument}' should be boolean with shape (B, M) = {(size, len(modalities))}, "
            f"but has dtype {given.dtype} and shape {tuple(given.shape)}."
        )
    return given


def _weigh(
    model: Model,
    encodings: Encodings,
    x: Mapping[str, Tensor],
    observed: Tensor,
    given: Tensor,
    samples: int,
    *,
    matched: bool,
    valid: Mapping[str, Tensor] | None,
) -> Tensor:
    """The log-weights, with shape (K, B), see :func:`log_weights`."""
    parts = propose(model, encodings, given, x, samples, matched=matched)
    return torch.cat(
        [
            log_ratio(model, encodings, given, steps, len(h), matched=matched)
            + score(model, h, x, observed, valid)
            for h, steps in parts
        ]
    )


def _family(model: Model, matched: bool) -> str:
    """The subsets that are components of a posterior; matched experts are one product."""
    return "full" if matched else model.family


def _log_posterior(steps: Sequence[Inference]) -> Tensor:
    """The log-density of the posterior of all groups together, with shape (R)."""
    return torch.stack([step.posterior.log_prob(step.z) for step in steps]).sum(dim=0)


def _repeat(x: Tensor, copies: int) -> Tensor:
    return x if copies == 1 else x.repeat(copies, *(1,) * (x.dim() - 1))


def _log_mean_exp(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(dim=0) - math.log(len(log_w))


def _size(x: Mapping[str, Tensor]) -> int:
    if not x:
        raise ValueError("'x' should hold at least one modality.")
    return len(next(iter(x.values())))
