r"""Evidence lower bounds under missing modalities: one number per sample, never averaged."""

from __future__ import annotations

__all__ = ["elbo", "mixture_elbo"]

from collections.abc import Mapping
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from .gaussian import widen
from .missing import check_finite, check_names, check_observed, fill, subsets


class Outcome(Protocol):
    """The part of a model's output that a bound needs."""

    @property
    def likelihoods(self) -> dict[str, Distribution]:
        """The distribution of each modality."""
        ...

    @property
    def kl(self) -> list[Tensor]:
        """The divergence of each group."""
        ...


class Model(Protocol):
    """A multimodal model: conditions on subsets of a batch."""

    modalities: list[str]

    def __call__(self, x: Mapping[str, Tensor], given: Tensor) -> Outcome:
        """Infers and decodes."""
        ...


def elbo(
    output: Outcome,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: float = 1.0,
    *,
    valid: Mapping[str, Tensor] | None = None,
    validate: bool = True,
) -> Tensor:
    r"""Scores all that was observed under a model's output, whatever that was conditioned on.

    .. math::
        \mathcal{L}_s(x_r) = \sum_{m \in r} \log p(x_m \mid z)
        - \beta \sum_l \mathrm{KL}\big(q(z_l \mid z_{>l}, x_s) \,\|\, p(z_l \mid z_{>l})\big)

    with one sample :math:`z \sim q(z \mid x_s)`. In expectation, and for :math:`\beta = 1`, it is
    below :math:`\log p(x_r)` by exactly :math:`\mathrm{KL}(q(z \mid x_s) \| p(z \mid x_r))`.

    Arguments:
        output: The output of a model, conditioned on any subset :math:`s` of what was observed.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read; modalities that were observed nowhere may be absent.
        observed: What was observed, boolean, with shape :math:`(B, M)`, columns in the order of
            ``output.likelihoods``.
        beta: The weight of the divergence.
        valid: For some modalities, which elements inside an entry to score (a field of view, cells
            of a table that are not missing), boolean, broadcastable to :math:`(B, *)`. Elements
            outside are never read.
        validate: Whether to reject NaN and infinity in what is scored. The check waits for the
            device; set it to False to save that time.

    Returns:
        The bound, in nats, with shape :math:`(B)`, or :math:`(S, B)` for S subsets.

    Raises:
        ValueError: If `observed` does not have one boolean column per modality, a modality of `x`
            or `valid` is unknown, an observed modality is absent from `x`, or an observed entry is
            not finite.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114
    """
    modalities = list(output.likelihoods)
    check_observed(observed, modalities)
    check_names(list(x), modalities, argument="x")
    check_names(list(valid or {}), modalities, argument="valid")

    bound = -beta * torch.stack(output.kl).sum(dim=0)  # (B) or (S, B)
    observed = observed.to(bound.device)
    for column, (m, p) in enumerate(output.likelihoods.items()):
        seen = observed[:, column]
        if m not in x:
            if bool(seen.any()):
                raise ValueError(
                    f"'x' should hold {m!r}, which 'observed' says was observed, "
                    f"but holds {', '.join(x)}."
                )
            continue
        shape = (len(observed), *p.event_shape)
        if x[m].shape != shape:
            raise ValueError(
                f"'x' should have one row per row of 'observed' and the shape of what is decoded, "
                f"{shape}, but {m!r} has shape {tuple(x[m].shape)}."
            )
        inside = None if valid is None else valid.get(m)
        if inside is not None:
            _check_valid(inside, shape, m)
        if validate:
            check_finite(x[m], seen, m, inside)
        log_p = _log_prob(p, widen(fill(x[m], seen)), inside)
        bound = bound + torch.where(seen, log_p, 0)
    return bound


def mixture_elbo(
    model: Model,
    x: Mapping[str, Tensor],
    observed: Tensor,
    beta: float = 1.0,
    *,
    family: str = "powerset",
    special: str | None = None,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Averages the bound over a family of subsets of what was observed: the objective of MMHVAE.

    .. math:: \mathcal{L}(x_r) = \sum_{s} \alpha_{s \mid r} \, \mathcal{L}_s(x_r) \le \log p(x_r)

    Every subset reconstructs all that was observed. The modalities are encoded once.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        beta: The weight of the divergence.
        family: The family of subsets and its weights, see :func:`mmpoe.missing.subsets`:
            ``"powerset"`` (uniform, as in MoPoE) or ``"groups"`` (as in MMHVAE), among others.
        special: The name of the special modality of ``"groups"``; by default, the first one.
        valid: Which elements of each modality to score, see :func:`elbo`.

    Returns:
        The bound, in nats, with shape :math:`(B)`; 0 for a row that observed nothing.

    Raises:
        ValueError: As :func:`elbo` and :func:`mmpoe.missing.subsets`, and if `special` is unknown.

    References:
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632
        | Generalized Multimodal ELBO (Sutter et al., 2021)
        | https://arxiv.org/abs/2105.02470
    """
    check_observed(observed, model.modalities)
    if special is not None:
        check_names([special], model.modalities, argument="special")
    column = 0 if special is None else model.modalities.index(special)

    floating = [v.dtype for v in x.values() if v.is_floating_point()]
    dtype = reduce(torch.promote_types, floating, torch.float32)
    given, weight = subsets(observed, family, special=column, dtype=dtype)
    used = (weight > 0).any(dim=1)
    used[0] |= ~used.any()  # a batch that observed nothing still needs a bound of 0
    given, weight = given[used], weight[used]  # (S, B, M), (S, B)

    # each observed entry is given in some subset, so the model has checked it already
    bounds = elbo(model(x, given), x, observed, beta, valid=valid, validate=False)
    return torch.where(weight > 0, weight * bounds, 0).sum(dim=0)


def _check_valid(valid: Tensor, shape: tuple[int, ...], modality: str) -> None:
    if valid.dtype != torch.bool:
        raise ValueError(f"'valid' should be boolean, but has dtype {valid.dtype}.")
    try:
        valid.broadcast_to(shape)
    except RuntimeError:
        raise ValueError(
            f"'valid' should broadcast to the shape of {modality!r}, {shape}, "
            f"but has shape {tuple(valid.shape)}."
        ) from None


def _log_prob(p: Distribution, x: Tensor, valid: Tensor | None) -> Tensor:
    if not isinstance(p, Independent):
        if valid is None:
            return p.log_prob(x)
        raise ValueError(
            "'valid' needs a likelihood that is independent over elements, "
            f"but got {type(p).__name__}."
        )
    if valid is None:
        log_p = p.base_dist.log_prob(x)
    else:
        log_p = torch.where(valid, p.base_dist.log_prob(torch.where(valid, x, 0)), 0)
    dims = tuple(range(len(p.batch_shape), log_p.dim()))
    return log_p.sum(dim=dims) if dims else log_p
