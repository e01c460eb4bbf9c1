r"""The product of experts of a linear-Gaussian model: exact, with full covariances."""

from __future__ import annotations

__all__ = ["LinearPoE", "LinearPosterior"]

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pyro.distributions import LowRankMultivariateNormal
from torch import Tensor

CHUNK = 2**22
"""How many numbers the covariances may hold that are in memory at once during a fit."""


class LinearPosterior(NamedTuple):
    """Gaussian posteriors of n rows; rows with the same cells share a covariance."""

    loc: Tensor
    """The means, with shape (n, K)."""
    covariance: Tensor
    """The covariance of each of P patterns of observed cells, with shape (P, K, K)."""
    pattern: Tensor
    """The pattern of each row, with shape (n)."""


class LinearPoE:
    r"""Multiplies the experts of groups of columns in a linear-Gaussian model.

    .. math::
        z \sim \mathcal{N}(0, I_K), \qquad
        x_m \mid z \sim \mathcal{N}(\mu_m + W_m z, \operatorname{diag} \psi_m)

    Each group of columns is an expert on z. The posterior given the cells that a row has is the
    product of prior and experts, each raised to a power :math:`\tau_m`, its temper:

    .. math::
        q(z \mid x_s) = \mathcal{N}\Big(V \sum_{m \in s}
        \tau_m W_m^\top \Psi_m^{-1} (x_m - \mu_m), V\Big), \qquad
        V^{-1} = I + \sum_{m \in s} \tau_m W_m^\top \Psi_m^{-1} W_m

    With all :math:`\tau_m = 1` it is exact. A temper below 1 discounts columns that say the same
    beyond what z explains. A missing cell takes no part, in a group that others of its cells are
    given of too.

    Parameters are fitted by expectation maximisation, under the prior
    :math:`W_{jk} \sim \mathcal{N}(0, \psi_j / \lambda)`. With one group, or tempers of 1, the
    model is factor analysis. Given a row, :math:`z` is the ridge regression of its cells on their
    loadings; given z, each column of W is a ridge regression on z with penalty :math:`\lambda`.

    Arguments:
        factors: The number of factors K; a fit takes fewer where it has fewer columns, or no more
            rows.
        shrinkage: The penalty :math:`\lambda` on loadings, in rows: the larger, the smaller.
        steps: The number of steps of expectation maximisation, from principal components.
        floor: The least :math:`\psi_j`, as a share of the variance of the column.

    Attributes:
        loc: The means :math:`\mu_m` of each group, with shape (d).
        loadings: The loadings :math:`W_m` of each group, with shape (d, K).
        variances: The variances :math:`\psi_m` of each group, with shape (d).

    Raises:
        ValueError: If a number is outside its range.

    References:
        | EM algorithms for ML factor analysis (Rubin & Thayer, 1982)
        | https://doi.org/10.1007/BF02293851

    Example:
        >>> z = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
        >>> x = {"a": z * torch.ones(3), "b": z * torch.tensor([1.0, -1.0])}
        >>> poe = LinearPoE(factors=1, shrinkage=1e-3).fit(x)
        >>> poe.conditional({"a": torch.full((1, 3), 2.0)}, "b").mean.round(decimals=1)
        tensor([[ 2., -2.]], dtype=torch.float64)
    """

    loc: dict[str, Tensor]
    loadings: dict[str, Tensor]
    variances: dict[str, Tensor]

    def __init__(
        self, factors: int, shrinkage: float = 1.0, *, steps: int = 12, floor: float = 0.02
    ) -> None:
        for name, value in (("factors", factors), ("steps", steps)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"'{name}' should be an integer of at least 1, but is {value!r}.")
        for name, value in (("shrinkage", shrinkage), ("floor", floor)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"'{name}' should be positive and finite, but is {value!r}.")
        self.factors, self.shrinkage = factors, shrinkage
        self.steps, self.floor = steps, floor

    def fit(self, groups: Mapping[str, Tensor | np.ndarray]) -> LinearPoE:
        """Fits the parameters to rows that may lack groups, and cells of groups.

        Memory grows with the number of columns that are missing in different rows, times
        :math:`K^2`.

        Arguments:
            groups: The columns of each group, with shape (n, d), NaN where cells are missing.

        Raises:
            ValueError: If there is no group, row or column, groups differ in their number of rows,
                or a cell is infinite.
        """
        if not groups:
            raise ValueError("'groups' should have at least one group, but is empty.")
        arrays = {name: _matrix(x, name) for name, x in groups.items()}
        rows = {name: len(x) for name, x in arrays.items()}
        if len(set(rows.values())) > 1 or 0 in rows.values():
            raise ValueError(
                "'groups' should have as many rows each, and at least one, "
                f"but their numbers are {rows}."
            )
        table = torch.cat(list(arrays.values()), dim=1)
        observed = ~table.isnan()
        count = observed.sum(dim=0)
        x = torch.where(observed, table, 0)
        centre = x.sum(dim=0) / count.clamp(min=1)
        x = torch.where(observed, x - centre, 0)
        scale = (x.square().sum(dim=0) / count.clamp(min=1)).sqrt()
        scale = torch.where(scale > 1e-12 * (1 + centre.abs()), scale, 1.0)
        loc, loadings, variances = self._maximise(x / scale, observed)

        sizes = [x.shape[1] for x in arrays.values()]
        parts = zip(
            arrays,
            (loc * scale + centre).split(sizes),
            (loadings * scale[:, None]).split(sizes),
            (variances * scale.square()).split(sizes),
            strict=True,
        )
        self.loc, self.loadings, self.variances = {}, {}, {}
        for name, mu, W, psi in parts:
            self.loc[name], self.loadings[name], self.variances[name] = mu, W, psi
        return self

    def posterior(
        self,
        groups: Mapping[str, Tensor | np.ndarray],
        given: Iterable[str] | None = None,
        tempers: Mapping[str, float] | None = None,
    ) -> LinearPosterior:
        """Computes the posterior of z given some groups.

        Arguments:
            groups: The columns of the groups that are given, with shape (n, d), NaN where cells
                are missing. Others are not read.
            given: The names of the groups that are given; all of `groups` if None.
            tempers: The temper of each expert, positive; 1 where it has none.

        Raises:
            ValueError: If the model is not fitted, there are no groups, they are unknown or have
                other shapes than were fitted, a cell is infinite, or a temper is not positive.
        """
        names = self._known(groups if given is None else given, "given")
        tempers = dict(tempers or {})
        self._known(tempers, "tempers")
        if bad := {k: t for k, t in tempers.items() if not (t > 0 and math.isfinite(t))}:
            raise ValueError(f"'tempers' should be positive and finite, but has {bad}.")
        if not groups:
            raise ValueError("'groups' should have at least one group, but is empty.")
        if unknown := [name for name in names if name not in groups]:
            raise ValueError(
                f"'given' should be among 'groups' ({', '.join(groups)}), but has {unknown[0]!r}."
            )
        if not names:
            n = len(next(iter(groups.values())))
            return self._prior(n)

        tables, powers = [], []
        for name in names:
            x, mu = _matrix(groups[name], name), self.loc[name]
            if x.shape[1] != len(mu):
                raise ValueError(
                    f"'groups[{name!r}]' should have {len(mu)} columns, but has {x.shape[1]}."
                )
            tables.append(x - mu)
            powers.append(tempers.get(name, 1.0) / self.variances[name])
        if len({len(x) for x in tables}) > 1:
            rows = dict(zip(names, map(len, tables), strict=True))
            raise ValueError(f"'groups' should have as many rows each, but has {rows}.")
        table = torch.cat(tables, dim=1)
        observed = ~table.isnan()
        loadings = torch.cat([self.loadings[name] for name in names])
        layout = _Layout.of(observed)
        pieces = list(_posteriors(table.nan_to_num(), layout, loadings, torch.cat(powers)))
        loc = loadings.new_empty(len(table), loadings.shape[1])
        pattern = torch.empty(len(table), dtype=torch.long)
        done = 0
        for piece in pieces:
            loc[piece.rows], pattern[piece.rows] = piece.loc, piece.pattern + done
            done += len(piece.covariance)
        covariance = torch.cat([piece.covariance for piece in pieces])
        return LinearPosterior(loc, covariance, pattern)

    def conditional(
        self,
        groups: Mapping[str, Tensor | np.ndarray],
        target: str | Sequence[str],
        given: Iterable[str] | None = None,
        tempers: Mapping[str, float] | None = None,
    ) -> LowRankMultivariateNormal:
        r"""Computes the distribution of columns given some groups.

        .. math:: x_t \mid x_s \sim \mathcal{N}(\mu_t + W_t \bar{z}, \; W_t V W_t^\top + \Psi_t)

        Arguments:
            groups: As in :meth:`posterior`.
            target: The group whose columns are asked for, or several, next to each other.
            given: As in :meth:`posterior`; all of `groups` but the target if None.
            tempers: As in :meth:`posterior`.

        Returns:
            The distribution, with batch shape (n) and as many dimensions as the target has
            columns. It holds n times columns times factors numbers: ask for few rows at once.

        Raises:
            ValueError: As :meth:`posterior`, and if a target is unknown or given.
        """
        targets = self._known([target] if isinstance(target, str) else target, "target")
        if not targets:
            raise ValueError("'target' should name at least one group, but is empty.")
        given = [k for k in groups if k not in targets] if given is None else list(given)
        if both := [name for name in targets if name in given]:
            raise ValueError(f"'target' should not be given, but {both[0]!r} is.")
        z, V, pattern = self.posterior(groups, given, tempers)
        W = torch.cat([self.loadings[name] for name in targets])
        mu = torch.cat([self.loc[name] for name in targets])
        psi = torch.cat([self.variances[name] for name in targets])
        factor = W @ torch.linalg.cholesky(V)  # (P, d, K)
        return LowRankMultivariateNormal(
            mu + z @ W.T, factor[pattern], psi.expand(len(z), -1), validate_args=False
        )

    def _prior(self, rows: int) -> LinearPosterior:
        K = next(iter(self.loadings.values())).shape[1]
        eye = torch.eye(K, dtype=torch.float64)
        return LinearPosterior(eye.new_zeros(rows, K), eye[None], torch.zeros(rows).long())

    def _known(self, names: Iterable[str], argument: str) -> list[str]:
        if not hasattr(self, "loadings"):
            raise ValueError("'LinearPoE' should be fitted first: call 'fit'.")
        names = list(names)
        if unknown := [name for name in names if name not in self.loadings]:
            raise ValueError(
                f"'{argument}' should have groups that were fitted "
                f"({', '.join(self.loadings)}), but has {unknown[0]!r}."
            )
        return names

    def _maximise(self, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs expectation maximisation on standardised columns, 0 where they are missing."""
        n, columns = x.shape
        K = max(1, min(self.factors, n - 1, columns))
        loadings = _principal(x, K)
        loc, variances = x.new_zeros(columns), x.new_full((columns,), 0.5)
        layout, count = _Layout.of(observed), observed.sum(dim=0)
        for _ in range(self.steps):
            moments = _expect(x - loc * observed, layout, loadings, variances)
            regression, variances = _regress(x, count, layout.columns, moments, self.shrinkage)
            variances = variances.clamp(min=self.floor)
            loadings, loc = _whitened(regression, moments.total / n)
        return loc, loadings, variances


def _principal(x: Tensor, components: int) -> Tensor:
    """The loadings (D, K) of principal components, from the smaller of two Gram matrices."""
    n, columns = x.shape
    if columns <= n:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        return vectors[:, -components:].flip(1) * values[-components:].flip(0).clamp(min=0).sqrt()
    _, vectors = torch.linalg.eigh(x @ x.T / n)
    return x.T @ vectors[:, -components:].flip(1) / math.sqrt(n)


class _Layout(NamedTuple):
    """The observed cells: rows by pattern, and columns by the patterns that have them."""

    patterns: Tensor
    """The distinct rows of the mask, with shape (P, D)."""
    pattern: Tensor
    """The pattern of each row, with shape (n)."""
    order: Tensor
    """The rows, pattern by pattern."""
    ends: list[int]
    """The end of the rows of each pattern in that order."""
    columns: list[Tensor]
    """The columns of each of B blocks, which are observed in the same patterns."""
    share: Tensor
    """The blocks that each pattern has, 0 or 1, with shape (P, B)."""

    @classmethod
    def of(cls, observed: Tensor) -> _Layout:
        patterns, pattern = _distinct(observed)
        blocks, block = _distinct(patterns.T)
        counts = pattern.bincount(minlength=len(patterns))
        columns = [(block == b).nonzero()[:, 0] for b in range(len(blocks))]
        return cls(
            patterns,
            pattern,
            pattern.argsort(stable=True),
            counts.cumsum(0).tolist(),
            columns,
            blocks.T.double(),
        )


class _Piece(NamedTuple):
    """Posteriors of the rows of some patterns."""

    rows: Tensor
    loc: Tensor
    covariance: Tensor
    pattern: Tensor
    """The pattern of each row, among those of the piece; rows of a pattern are adjacent."""
    share: Tensor
    """The blocks that each pattern has."""


def _posteriors(x: Tensor, layout: _Layout, loadings: Tensor, powers: Tensor) -> Iterator[_Piece]:
    """Yields posteriors of centred rows, 0 where they are missing, a few patterns at a time.

    Columns that are missing in the same rows are added up once, for all patterns.
    """
    K = loadings.shape[1]
    experts = loadings * powers[:, None]
    precisions = torch.stack([experts[c].T @ loadings[c] for c in layout.columns])  # (B, K, K)
    score = x @ experts  # (n, K)
    eye = torch.eye(K, dtype=x.dtype)
    step = max(1, CHUNK // K**2)
    for start in range(0, len(layout.patterns), step):
        share = layout.share[start : start + step]
        stop = start + len(share)
        precision = eye + (share @ precisions.flatten(1)).view(-1, K, K)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        first = layout.ends[start - 1] if start else 0
        rows = layout.order[first : layout.ends[stop - 1]]
        pattern = layout.pattern[rows] - start
        yield _Piece(rows, _times(score[rows], covariance, pattern), covariance, pattern, share)


def _times(x: Tensor, matrices: Tensor, which: Tensor) -> Tensor:
    """Multiplies each row by one of several symmetric matrices; rows of a matrix are adjacent."""
    counts = which.bincount(minlength=len(matrices)).tolist()
    if len(matrices) * 4 < len(x):
        parts = zip(x.split(counts), matrices, strict=True)
        return torch.cat([part @ matrix for part, matrix in parts])
    step = max(1, CHUNK // matrices.shape[1] ** 2)
    parts = zip(x.split(step), which.split(step), strict=True)
    return torch.cat([torch.einsum("nk,nkl->nl", part, matrices[i]) for part, i in parts])


class _Moments(NamedTuple):
    """Second moments of (z, 1), summed over rows."""

    blocks: Tensor
    """Over the rows in which the columns of a block are observed, with shape (B, K+1, K+1)."""
    total: Tensor
    """Over all rows, with shape (K+1, K+1)."""
    z: Tensor
    """The means of (z, 1), with shape (n, K+1)."""


def _expect(x: Tensor, layout: _Layout, loadings: Tensor, variances: Tensor) -> _Moments:
    """Computes what the next step of expectation maximisation needs to know of z."""
    K = loadings.shape[1]
    z = x.new_ones(len(x), K + 1)
    sums = x.new_zeros(len(layout.columns), (K + 1) ** 2)
    total = x.new_zeros((K + 1) ** 2)
    for piece in _posteriors(x, layout, loadings, 1 / variances):
        z[piece.rows, :K] = piece.loc
        moments = _second_moments(z[piece.rows], piece.pattern, len(piece.covariance))
        counts = piece.pattern.bincount(minlength=len(moments)).to(x)
        moments[:, :K, :K] += counts[:, None, None] * piece.covariance
        sums += piece.share.T @ moments.flatten(1)
        total += moments.sum(dim=0).flatten()
    return _Moments(sums.view(-1, K + 1, K + 1), total.view(K + 1, K + 1), z)


def _second_moments(z: Tensor, which: Tensor, parts: int) -> Tensor:
    """Sums the outer products of the rows of each part, which are adjacent."""
    if parts * 4 < len(z):
        counts = which.bincount(minlength=parts).tolist()
        return torch.stack([rows.T @ rows for rows in z.split(counts)])
    sums = z.new_zeros(parts, z.shape[1], z.shape[1])
    step = max(1, CHUNK // z.shape[1] ** 2)
    for rows, i in zip(z.split(step), which.split(step), strict=True):
        sums.index_add_(0, i, rows[:, :, None] * rows[:, None])
    return sums


def _regress(
    x: Tensor, count: Tensor, columns: list[Tensor], moments: _Moments, shrinkage: float
) -> tuple[Tensor, Tensor]:
    r"""Regresses each column on (z, 1), with a penalty on all coefficients but the last.

    .. math:: (S_j + \lambda I) \, w_j = c_j, \qquad n_j \psi_j = \sum_r x_{rj}^2 - w_j^\top c_j
    """
    cross = moments.z.T @ x  # (K + 1, D)
    penalty = torch.full((len(cross),), shrinkage, dtype=x.dtype)
    penalty[-1] = 1e-9  # a column may have no cell in some fold of the rows
    regression = torch.empty_like(cross)
    for block, moment in zip(columns, moments.blocks + penalty.diag(), strict=True):
        factor = torch.linalg.cholesky(moment)
        regression[:, block] = torch.cholesky_solve(cross[:, block], factor)
    rest = x.square().sum(dim=0) - (regression * cross).sum(dim=0)
    return regression, torch.where(count > 0, rest / count.clamp(min=1), 1.0)


def _whitened(regression: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Changes coordinates so that z has mean 0 and covariance I over rows.

    The model is the same; expectation maximisation converges in a dozen steps instead of hundreds.
    """
    W, loc, mean = regression[:-1].T, regression[-1], moment[-1, :-1]
    covariance = moment[:-1, :-1] - mean[:, None] * mean
    return W @ torch.linalg.cholesky(covariance), loc + W @ mean


def _distinct(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct rows of a boolean matrix, and which of them each row is."""
    bits = np.packbits(mask.numpy(), axis=1)
    if bits.shape[1] == 0:
        return mask[:1], torch.zeros(len(mask), dtype=torch.long)
    keys = np.ascontiguousarray(bits).view(np.dtype((np.void, bits.shape[1]))).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return mask[torch.from_numpy(first)], torch.from_numpy(which.ravel())


def _matrix(x: Tensor | np.ndarray, name: str) -> Tensor:
    table = torch.as_tensor(x, dtype=torch.float64).detach().cpu()
    if table.dim() != 2 or table.shape[1] == 0:
        raise ValueError(
            f"'groups[{name!r}]' should have shape (n, d) with at least one column, "
            f"but has shape {tuple(table.shape)}."
        )
    if table.isinf().any():
        raise ValueError(
            f"'groups[{name!r}]' should hold finite numbers, NaN where they are missing, "
            "but holds infinity."
        )
    return table
