"""Masks of the modalities that discriminators score."""

from __future__ import annotations

__all__ = ["scored_targets"]

from typing import Literal

import torch
from torch import Tensor

from mmpoe.missing import check_observed

Rule = Literal["hidden", "unobserved", "all"]
RULES = ("hidden", "unobserved", "all")


def scored_targets(given: Tensor, observed: Tensor, rule: Rule = "hidden") -> Tensor:
    r"""Returns a mask of the modalities to score, by a rule.

    The rules, for a row that observed :math:`r` and a subset :math:`s \subseteq r` of it:

    - ``"hidden"``: the modalities that were not given, :math:`m \notin s`, observed or not;
    - ``"unobserved"``: the modalities that were never observed, :math:`m \notin r`, which no
      likelihood can score;
    - ``"all"``: every modality, reconstructions included.

    Nothing is scored for an empty subset, which is how :func:`mmpoe.missing.subsets` marks one
    that does not count. Masks can be combined: ``scored_targets(given, observed) & observed``
    holds the observed targets that were hidden.

    Arguments:
        given: The subsets, boolean, with shape :math:`(S, B, M)`, :math:`(B, M)`, or
            :math:`(R, M)` if packed.
        observed: What was observed, boolean, with shape :math:`(B, M)` or :math:`(R, M)`.
        rule: The rule.

    Returns:
        The mask, boolean, with the shape of `given`.

    Raises:
        ValueError: If the rule is unknown, a mask is not boolean or has another shape, or a subset
            holds what was not observed.

    Example:
        >>> given = torch.tensor([[True, False, False]])
        >>> observed = torch.tensor([[True, True, False]])
        >>> scored_targets(given, observed, "hidden")
        tensor([[False,  True,  True]])
        >>> scored_targets(given, observed, "unobserved")
        tensor([[False, False,  True]])
    """
    check_observed(observed)
    if rule not in RULES:
        raise ValueError(f"'rule' should be one of {', '.join(RULES)}, but is {rule!r}.")
    if (
        given.dtype != torch.bool
        or given.dim() not in (2, 3)
        or given.shape[-2:] != observed.shape
    ):
        raise ValueError(
            "'given' should be boolean and have shape (S, B, M) or (B, M), where (B, M) is "
            f"{tuple(observed.shape)}, but has dtype {given.dtype} and shape "
            f"{tuple(given.shape)}."
        )
    observed = observed.to(given.device)
    if bool((given & ~observed).any()):
        raise ValueError(
            "'given' should hold subsets of what was observed, but holds "
            f"{int((given & ~observed).any(dim=-1).sum())} that are not."
        )
    counts = given.any(dim=-1, keepdim=True)
    if rule == "all":
        return counts.expand_as(given).clone()
    return counts & ~(given if rule == "hidden" else observed)
