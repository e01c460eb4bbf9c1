r"""A bound for data that are not missing at random."""

from __future__ import annotations

__all__ = ["not_miwae"]

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmpoe.evidence._samples import log_ratio, place_draws, propose, whole_rows
from mmpoe.hierarchy import Context, State
from mmpoe.missing import check_names, check_observed, context_of, valid_of, with_valid
from mmpoe.models import MultimodalVAE
from mmpoe.nn._asking import call


def not_miwae(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    missingness: Callable[..., Tensor],
    *,
    samples: int = 10,
    latents: bool = False,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Bounds the evidence of what was observed together with what was not.

    .. math::
        \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(x_r \mid z_k) \, p(z_k) \, p(r \mid x_r, x_{\bar r}^{(k)}, z_k)}{q(z_k \mid x_r)},
        \qquad z_k \sim q(z \mid x_r), \quad x_{\bar r}^{(k)} \sim p(x_{\bar r} \mid z_k)

    Other objectives ignore why something is missing, which is right only if that does not depend
    on what is missing. Here a model of it, :math:`p(r \mid x, z) = \prod_m p(r_m \mid x, z)`,
    sees the entries that were observed, draws of those that were not and, if asked, the latents,
    and is trained along with the rest. It should say how missingness comes about in as few words
    as are true: what cannot be seen is learned from that form alone.

    Draws are reparameterised where a likelihood allows it. Where not, as for counts and
    categories, no gradient passes from the missingness to its decoder. A missing modality is
    decoded as well, so that this takes about as long as if all had been observed.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read.
        observed: What was observed, :math:`r`, boolean, with shape :math:`(B, M)`.
        missingness: Maps complete entries, a dictionary with a tensor of shape :math:`(N, *)` for
            each modality, to the logits of being observed, :math:`\operatorname{logit} p(r_m = 1
            \mid x, z)`, with shape :math:`(N, M)`. It gets covariates if it has a parameter
            `context`, see :class:`mmpoe.missing.Batch`.
        samples: The number of samples :math:`K`.
        latents: Whether `missingness` takes the latents as a second argument: a list of tensors of
            shape :math:`(N, *)`, one for each group, coarse to fine.
        valid: Which elements of each modality were observed, see :func:`elbo`. `missingness` sees
            draws of the others.

    Returns:
        The bound on :math:`\log p(x_r, r)`, in nats, with shape :math:`(B)`.

    Raises:
        ValueError: If `observed` does not have one boolean column per modality, an observed entry
            is absent or not finite, or `missingness` returns another shape.

    References:
        | not-MIWAE: Deep Generative Modelling with Missing not at Random Data (Ipsen et al., 2021)
        | https://arxiv.org/abs/2006.12871
    """
    check_names(list(x), model.modalities, argument="x")
    check_observed(observed, model.modalities)
    x = with_valid(x, valid)
    encodings = model.encode(x, observed)
    observed = observed.to(encodings.like.device)
    log_w = []
    for q in propose(model, encodings, observed, x, samples):
        count = len(q.kl[0])
        complete = {
            m: _complete(
                model, m, q.state, x.get(m), observed[:, column], valid_of(x).get(m)
            ).flatten(0, 1)
            for column, m in enumerate(model.modalities)
        }
        seen = (complete, [z.flatten(0, 1) for z in q.z]) if latents else (complete,)
        context = Context(context_of(x)).repeat(count).gather()
        logits = call(missingness, *seen, context=context)  # (K B, M)
        if logits.shape != (count * len(observed), len(model.modalities)):
            raise ValueError(
                "'missingness' should return one logit per row and modality, with shape "
                f"{(count * len(observed), len(model.modalities))}, "
                f"but returns {tuple(logits.shape)}."
            )
        sign = torch.where(observed, 1, -1).repeat(count, 1)
        log_r = logsigmoid(sign * logits).sum(dim=1).view_as(q.kl[0])
        log_w.append(
            log_ratio(model, encodings, observed, q)
            + model.log_likelihood(q.state, x, observed)
            + log_r
        )
    return torch.cat(log_w).logsumexp(dim=0) - math.log(samples)


def _complete(
    model: MultimodalVAE,
    modality: str,
    state: State,
    x: Tensor | None,
    seen: Tensor,
    valid: Tensor | None,
) -> Tensor:
    """One modality with draws of what is missing, with shape (K, B, *)."""
    inside = None if valid is None or x is None else valid.broadcast_to(x.shape)
    whole = whole_rows(seen, inside)
    rows = (~whole).nonzero()[:, 0]  # (n)
    if len(rows) == 0:
        assert x is not None  # it was observed
        return x.expand(state.shape[0], *x.shape)
    p = model.decode(state.take(rows).flatten(), [modality])[modality]
    drawn = p.rsample() if p.has_rsample else p.sample()
    return place_draws(x, drawn.unflatten(0, (state.shape[0], len(rows))), rows, seen, inside)
