r"""Teachers and learners of posterior matching."""

from __future__ import annotations

__all__ = ["match", "teaching_rows"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from mmpoe.missing import (
    Batch,
    check_names,
    check_observed,
    check_within,
    random_subsets,
    sample_subsets,
)
from mmpoe.models import MultimodalVAE
from mmpoe.models._inputs import subset_mask
from mmpoe.nn.modes import evaluation

TEACHERS = ("complete", "bootstrap", "all")


def match(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    given: Tensor | Sequence[str] | None = None,
    *,
    teacher: str,
    by: MultimodalVAE,
) -> Tensor:
    """Returns the loss, see :func:`posterior_matching`.

    Arguments:
        model: The model.
        x: The batch.
        observed: What was observed.
        given: The subset of it that the matched experts see.
        teacher: Which rows teach.
        by: The model whose matched experts teach incomplete rows: a frozen copy, or the model.
    """
    check_observed(observed, model.modalities)
    check_names(list(x), model.modalities, argument="x")
    matched = _matched(model)
    observed = observed.to(next(iter(x.values()), observed).device)
    complete = observed.all(dim=1)
    teaching = teaching_rows(observed, teacher)
    if given is None:
        given = random_subsets(observed)[0]
        if teacher == "bootstrap":
            proper = random_subsets(observed, proper=True)[0]
            given = torch.where(complete[:, None], given, proper)
    else:
        given = subset_mask(given, model.modalities, len(observed)).to(observed.device)
        check_within(given, observed, model.modalities, argument="given")

    dtype = torch.promote_types(next(matched.parameters()).dtype, torch.float32)
    loss = torch.zeros(len(observed), dtype=dtype, device=observed.device)
    loss.requires_grad_(torch.is_grad_enabled())  # so that backward works if no row teaches
    by_matched = teaching & ~complete & (teacher == "bootstrap")
    for where, matched_teacher in ((teaching & ~by_matched, None), (by_matched, by)):
        rows = where.nonzero()[:, 0]
        if len(rows):
            part = Batch.of(x).take(rows)
            kl = _divergence(model, matched, part, observed[rows], given[rows], matched_teacher)
            loss = loss.index_add(0, rows, kl.to(dtype))
    return loss


def teaching_rows(observed: Tensor, teacher: str) -> Tensor:
    """Returns which rows teach, boolean, with shape (B), see :func:`posterior_matching`.

    Arguments:
        observed: What was observed, boolean, with shape (B, M).
        teacher: Which rows teach.
    """
    if teacher not in TEACHERS:
        raise ValueError(f"'teacher' should be one of {', '.join(TEACHERS)}, but is {teacher!r}.")
    if teacher == "all":
        return observed.any(dim=1)
    complete = observed.all(dim=1)
    if teacher == "complete":
        return complete
    return complete | (observed.sum(dim=1) > 1)  # with one modality, there is no proper subset


def _matched(model: MultimodalVAE) -> nn.ModuleList:
    """The matched experts of all groups."""
    found = [group.matched for group in model.groups if group.matched is not None]
    if len(found) < len(model.groups):
        raise ValueError(
            "'model' should have matched experts in every latent group; "
            "'mmpoe.imputation.add_matched_experts' makes them."
        )
    return nn.ModuleList(found)


def _divergence(
    model: MultimodalVAE,
    matched: nn.ModuleList,
    x: Mapping[str, Tensor],
    observed: Tensor,
    given: Tensor,
    by: MultimodalVAE | None,
) -> Tensor:
    """The loss of rows that the posterior teaches, or the matched experts of some model."""
    teacher, experts = (model, "trained") if by is None else (by, "matched")
    with evaluation(model.modules()), torch.no_grad():
        encodings = model.encode(x, observed)
        shown = sample_subsets(observed, model.family_of(experts), samples=1)[0][0]
        q = teacher.infer(encodings, shown, experts=experts)
    with evaluation(model.modules(), besides=matched.modules()):
        r = model.infer(encodings, given, z=q.z, experts="matched")
    levels = zip(q.posteriors, r.posteriors, strict=True)
    return torch.stack([kl_divergence(taught, learned) for taught, learned in levels]).sum(dim=0)
