r"""Random subsets of what each row observed."""

from __future__ import annotations

__all__ = ["random_subsets", "sample_subsets"]

import torch
from torch import Generator, Tensor

from ._checks import check_observed
from ._draws import draw_systematically
from .subsets import check_covered, check_family, distinct, within


def random_subsets(
    observed: Tensor, *, samples: int = 1, proper: bool = False, generator: Generator | None = None
) -> Tensor:
    r"""Draws subsets of what each row observed, uniformly over its non-empty subsets.

    Arguments:
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        samples: The number of subsets to draw for each row, :math:`S`, independently.
        proper: Whether to leave out the full set, where a row observed two modalities or more.
        generator: The random generator, on the CPU; PyTorch's own if None.

    Returns:
        The subsets, boolean, with shape :math:`(S, B, M)`. A row that observed nothing gets
        nothing.

    Raises:
        ValueError: If `observed` is not a boolean matrix or has over 62 columns, or `samples` is
            not positive.

    Example:
        >>> random_subsets(torch.tensor([[True, False, True]]), proper=True).sum(dim=-1)
        tensor([[1]])
    """
    check_observed(observed)
    _check_samples(samples)
    if observed.shape[1] > 62:
        raise ValueError(
            f"'observed' should have at most 62 columns, but has shape {tuple(observed.shape)}."
        )
    size = observed.sum(dim=1)
    count = 2**size - 1 - (proper & (size > 1)).long()  # of the subsets to choose from
    draw = torch.randint(2**62, (samples, len(observed)), generator=generator)
    code = 1 + draw.to(observed.device) % count.clamp(min=1)

    # the k-th observed modality of a row takes part if the k-th bit of its code is set
    rank = observed.cumsum(dim=1) - 1
    return observed & (code[..., None] >> rank.clamp(min=0) & 1).bool()


def sample_subsets(
    observed: Tensor,
    family: str | Tensor = "powerset",
    *,
    samples: int,
    special: int = 0,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draws subsets from a family that is too large to enumerate, each of weight :math:`1 / K`.

    For any function :math:`f` of a subset, and the weights :math:`\alpha_{s | r}` of the family
    (:func:`subsets`),

    .. math:: \mathrm{E}\Big[\sum_{k=1}^{K} w_k \, f(s_k)\Big] = \sum_s \alpha_{s | r} \, f(s)

    A family falls into strata, whose members weigh the same: the subsets of one size
    (``"powerset"``), single modalities (``"singletons"``), single patterns (a tensor) or, for
    ``"groups"``, what was observed, the special modality, and the subsets of the others by size.
    A stratum is drawn by its weight, then one of its members, uniformly. The strata of a row are
    drawn systematically: the :math:`K` draws share one random number, and a stratum of weight
    :math:`q` is drawn :math:`K q` times, rounded up or down. Members are independent.

    Arguments:
        observed: What was observed, boolean, with shape :math:`(B, M)`, for any :math:`M`.
        family: The family, as for :func:`subsets`.
        samples: The number of subsets to draw for each row, :math:`K`.
        special: The column of the special modality of ``"groups"``.
        generator: The random generator, on the CPU; PyTorch's own if None.
        dtype: The dtype of the weights, PyTorch's default if None.

    Returns:
        The subsets, boolean, with shape :math:`(K, B, M)`, and their weights
        :math:`w_k = 1 / K`, with shape :math:`(K, B)`. A subset may stand several times for a row
        (:func:`pack` merges them). A row that observed nothing gets nothing, of weight 0.

    Raises:
        ValueError: As :func:`subsets`, save that no family is too large, and if `samples` is not
            positive.

    Example:
        >>> observed = torch.ones(1, 40, dtype=torch.bool)  # 2^40 - 1 subsets
        >>> given, weight = sample_subsets(observed, samples=4)
        >>> given.shape, weight.flatten()
        (torch.Size([4, 1, 40]), tensor([0.2500, 0.2500, 0.2500, 0.2500]))
    """
    check_family(family, observed, special)
    _check_samples(samples)
    pool, size, alpha = _strata(observed, family, special)
    covered = alpha.any(dim=0)
    check_covered(covered, observed)

    offset = torch.rand(len(observed), generator=generator, dtype=torch.float64)
    keys = torch.rand(samples, *observed.shape, generator=generator, dtype=torch.float64)
    stratum = draw_systematically(alpha, offset.to(alpha), samples)  # (K, B)
    row = torch.arange(len(observed), device=observed.device)
    given = _draw_members(pool[stratum, row], size[stratum, row], keys.to(alpha))
    weight = (covered.to(alpha) / samples).repeat(samples, 1)
    return given, weight.to(torch.get_default_dtype() if dtype is None else dtype)


def _strata(observed: Tensor, family: str | Tensor, special: int) -> tuple[Tensor, Tensor, Tensor]:
    """The G strata of a family: all subsets of a pool (G, B, M) that have some size (G, B).

    Also returns how much the members of a stratum weigh together, in float64, with shape (G, B).
    """
    modalities = observed.shape[1]
    if isinstance(family, str) and family == "groups":
        alone = torch.arange(modalities, device=observed.device) == special
        groups = [
            _strata(observed, "full", special),
            _strata(observed & alone, "full", special),
            _strata(observed & ~alone, "powerset", special),
        ]
        pool, size, alpha = (torch.cat(parts) for parts in zip(*groups, strict=True))
        usable = sum(alpha.any(dim=0).long() for _, _, alpha in groups)
        return pool, size, alpha / torch.as_tensor(usable).clamp(min=1)

    if isinstance(family, Tensor) or family == "singletons":
        eye = torch.eye(modalities, dtype=torch.bool)
        members, count = distinct(family if isinstance(family, Tensor) else eye)
        pool, inside = within(members, observed)
        weight = (inside * count.to(inside.device)[:, None]).double()
        return pool, pool.sum(dim=-1), weight / weight.sum(dim=0).clamp(min=1)

    most = observed.sum(dim=1)  # (B)
    size = most[None]
    if family == "powerset":
        size = torch.arange(1, modalities + 1, device=observed.device)[:, None]
        size = size.expand(-1, len(observed))
    usable = (size > 0) & (size <= most)
    k, n = size.double(), most.double()
    log_count = (n + 1).lgamma() - (k + 1).lgamma() - ((n - k).clamp(min=0) + 1).lgamma()
    alpha = torch.where(usable, log_count, -torch.inf).softmax(dim=0)
    return observed.expand(len(size), -1, -1), size, torch.where(usable, alpha, 0)


def _draw_members(pool: Tensor, size: Tensor, keys: Tensor) -> Tensor:
    """The subsets of the pools (K, B, M) that hold their smallest keys, as many as `size` says."""
    rank = torch.where(pool, keys, 2).argsort(dim=-1).argsort(dim=-1)
    return pool & (rank < size[..., None])


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"'samples' should be at least 1, but is {samples}.")
