r"""Samples from the posterior of a model, and the density that they were drawn with."""

from __future__ import annotations

__all__ = [
    "log_posterior",
    "log_ratio",
    "place_draws",
    "propose",
    "sum_log_prob",
    "take",
    "whole_rows",
]

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from mmpoe.distributions import DiagNormal, log_mixture
from mmpoe.hierarchy import Encodings, Experts, Inference
from mmpoe.missing import pack, sample_subsets, subsets
from mmpoe.models import MultimodalVAE

ELEMENTS = 2**22
"""The number of elements of data that the samples of a portion stand for, all modalities
together; and of latents, at which the densities of components are computed at a time."""


def propose(
    model: MultimodalVAE,
    encodings: Encodings,
    given: Tensor,
    x: Mapping[str, Tensor],
    samples: int,
    *,
    experts: Experts = "trained",
) -> Iterator[Inference]:
    r"""Draws from the posterior of every row, in portions that fit in memory.

    If the posterior is a mixture, its components are drawn systematically, each as often as it
    weighs up to rounding.

    Arguments:
        model: The model.
        encodings: The encodings of the batch.
        given: What to condition on, boolean, with shape :math:`(B, M)`.
        x: The batch, which tells how large a portion is once it is decoded.
        samples: The number of samples :math:`K` of each row.
        experts: The experts to infer with, ``"trained"`` or ``"matched"``.

    Returns:
        The portions, each with batch shape :math:`(K', B)`.

    Raises:
        ValueError: If `samples` is not positive.
    """
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"'samples' should be an integer of at least 1, but is {samples!r}.")
    given = given.to(encodings.like.device)
    drawn = sample_subsets(given, model.family_of(experts), samples=samples)[0]  # (K, B, M)
    elements = sum(v.numel() for v in x.values())
    for portion in drawn.split(max(1, ELEMENTS // max(elements, 1))):
        yield model.infer(encodings, portion, experts=experts)


def log_ratio(
    model: MultimodalVAE,
    encodings: Encodings,
    given: Tensor,
    q: Inference,
    *,
    experts: Experts = "trained",
) -> Tensor:
    r"""Returns the log-density of the prior minus that of the posterior, all groups together.

    .. math:: \log p(z_k) - \log q(z_k \mid x_s)

    If the posterior is a mixture, :math:`q` is the density of the whole mixture, not of the
    component that a sample was drawn from.

    Arguments:
        model: The model.
        encodings: The encodings of the batch.
        given: What the posterior conditions on, boolean, with shape :math:`(B, M)`.
        q: Samples of :func:`propose`, with batch shape :math:`(K, B)`.
        experts: The experts that inferred.

    Returns:
        The difference, in nats, with shape :math:`(K, B)`.
    """
    given = given.to(encodings.like.device)
    log_p = sum_log_prob(q.priors, q.z)  # (K, B)
    members, weight = subsets(given, model.family_of(experts), dtype=log_p.dtype)
    own = sum_log_prob(q.posteriors, q.z)
    if not bool(((weight > 0).sum(dim=0) > 1).any()):  # one component for each row
        return log_p - own
    subset, rows, alpha = pack(members, weight)
    of_sample = torch.arange(len(given), device=given.device).repeat(len(own))
    z = [v.flatten(0, 1) for v in q.z]
    log_q = log_posterior(
        model, encodings, z, of_sample, (subset, rows, alpha), experts=experts
    ).view_as(own)
    # a row that is given nothing has no component: its samples are those of the prior
    return log_p - torch.where(given.any(dim=1), log_q, own)


def log_posterior(
    model: MultimodalVAE,
    encodings: Encodings,
    z: Sequence[Tensor],
    of_sample: Tensor,
    components: tuple[Tensor, Tensor, Tensor],
    *,
    groups: int | None = None,
    coarsest: DiagNormal | None = None,
    experts: Experts = "trained",
) -> Tensor:
    r"""Returns the log-density of a mixture of posteriors at latents.

    .. math:: \log \sum_s \alpha_s \prod_l q(z_l \mid z_{>l}, x_s)

    Components are the posteriors of several subsets of what a sample of the batch has, as
    :func:`mmpoe.missing.pack` lists them. At each of N latents, the components of its sample are
    computed, some of all N times S pairs at a time.

    Arguments:
        model: The model.
        encodings: The encodings of the batch.
        z: The latents of each group, coarse to fine, each with shape :math:`(N, *)`.
        of_sample: The sample of the batch that each latent is about, with shape :math:`(N)`.
        components: The subsets, with shape :math:`(R, M)`; the sample that each belongs to,
            ascending, with shape :math:`(R)`; and their weights :math:`\alpha_s`, with shape
            :math:`(R)`.
        groups: The number of groups, from the first, whose density to take; all if None.
        coarsest: The posterior of the coarsest group of each component, of batch shape
            :math:`(R)`, if it is known. With one group, nothing is inferred then.
        experts: The experts to infer with.

    Returns:
        The log-densities, in nats, with shape :math:`(N)`; minus infinity at a latent whose sample
        has no component.
    """
    given, rows, alpha = components
    size = len(encodings.given)
    counts = rows.bincount(minlength=size)  # (B), the number of components of each sample
    first = counts.cumsum(dim=0) - counts  # (B), where they begin

    # table of N latents and up to S components; pair i of both stands at (here[i], offset[i])
    width = counts[of_sample]  # (N)
    here = torch.arange(len(of_sample), device=rows.device).repeat_interleave(width)
    start = (width.cumsum(dim=0) - width)[here]
    offset = torch.arange(len(here), device=rows.device) - start
    component = first[of_sample][here] + offset  # (N S)

    elements = sum(v[0].numel() for v in z) if len(of_sample) else 1
    chunk = max(1, ELEMENTS // max(elements, 1))
    parts = []
    for latent, which in zip(here.split(chunk), component.split(chunk), strict=True):
        there = [v.index_select(0, latent) for v in z]
        if coarsest is not None and len(z) == 1:
            posteriors = [take(coarsest, which)]
        else:
            q = model.infer(encodings, given[which], rows=rows[which], z=there, experts=experts)
            posteriors = q.posteriors[:groups]
        parts.append(sum_log_prob(posteriors, there[:groups]))
    log_q = torch.cat(parts) if parts else z[0].new_zeros(0)

    shape = (len(of_sample), int(counts.max()) if size else 0)
    place = (here, offset)
    table = log_q.new_zeros(shape).index_put(place, log_q)
    weight = alpha.new_zeros(shape).index_put(place, alpha[component])
    return log_mixture(table, weight.to(table.dtype), dim=1)


def take(q: DiagNormal, index: Tensor) -> DiagNormal:
    """Returns some rows of a distribution."""
    loc, log_scale = q.loc.index_select(0, index), q.log_scale.index_select(0, index)
    return DiagNormal(loc, log_scale, len(q.event_shape))


def sum_log_prob(distributions: Sequence[Distribution], z: Sequence[Tensor]) -> Tensor:
    """Returns the log-density of the latents of all groups together."""
    return torch.stack([q.log_prob(v) for q, v in zip(distributions, z, strict=True)]).sum(dim=0)


def whole_rows(seen: Tensor, valid: Tensor | None) -> Tensor:
    r"""Returns the rows in which every element of a modality was observed, with shape (B).

    Arguments:
        seen: The rows in which the modality was observed, boolean, with shape (B).
        valid: The elements that were observed, boolean, with shape (B, \*); all if None.
    """
    return seen if valid is None else seen & valid.unsqueeze(-1).flatten(1).all(dim=1)


def place_draws(
    x: Tensor | None, drawn: Tensor, rows: Tensor, seen: Tensor, valid: Tensor | None
) -> Tensor:
    r"""Returns all entries of a modality, with draws of what was not observed: (K, B, \*).

    What was not observed is replaced, and not read.

    Arguments:
        x: The entries, with shape (B, \*); None if none was observed.
        drawn: The draws of some rows, with shape (K, n, \*).
        rows: These rows, with shape (n): all that are not whole, see :func:`whole_rows`.
        seen: The rows in which the modality was observed, boolean, with shape (B).
        valid: The elements that were observed, boolean, with shape (B, \*); all if None.
    """
    if x is None or not bool(seen.any()):
        return drawn
    x = x.to(drawn.dtype)
    if valid is not None:
        kept = valid[rows] & seen[rows].reshape(-1, *(1,) * (x.dim() - 1))  # (n, *)
        drawn = torch.where(kept, x[rows], drawn)
    return x.expand(len(drawn), *x.shape).index_copy(1, rows, drawn)
