r"""How much another modality would tell about one that is missing, before it is observed."""

from __future__ import annotations

__all__ = ["Reduction", "information_gain", "variance_reduction"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmpoe.evidence import log_conditional
from mmpoe.evidence._samples import propose
from mmpoe.hierarchy import Encodings, Inference
from mmpoe.missing import Batch, check_names
from mmpoe.models import MultimodalVAE
from mmpoe.models._inputs import held, subset_mask
from mmpoe.nn.modes import evaluation

Functional = Callable[[Tensor], Tensor]


class Reduction(NamedTuple):
    """How far the variance of a functional is expected to fall once a modality is observed."""

    expected: Tensor
    r"""The expected fall, with shape (B, \*F). It is estimated without bias, so that it can be
    negative where the modality tells next to nothing; 0 where it was observed already."""
    variance: Tensor
    r"""The variance now, with shape (B, \*F)."""

    @property
    def share(self) -> Tensor:
        """The share of the variance that is expected to go, all elements together, shape (B)."""
        return _total(self.expected) / _total(self.variance).clamp(min=1e-30)


def variance_reduction(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    target: str,
    observed: Tensor | Sequence[str] | None = None,
    *,
    candidates: Sequence[str] | None = None,
    functional: Functional | None = None,
    draws: int = 64,
    samples: int = 8,
) -> dict[str, Reduction]:
    r"""Estimates by how much observing each missing modality would lower the variance of a target.

    .. math::
        \operatorname{Var}[f(x_t) \mid x_s]
        - \mathrm{E}_{x_j \mid x_s} \operatorname{Var}[f(x_t) \mid x_s, x_j]
        = \operatorname{Var}_{x_j \mid x_s} \mathrm{E}[f(x_t) \mid x_s, x_j]

    The candidate :math:`x_j` is drawn K times given what was observed, as :func:`mmpoe.impute`
    draws it. Each draw is encoded and joins the product, and S samples estimate the inner mean.
    What the inner means spread beyond their own sampling error is the reduction. What was
    observed is encoded once.

    Arguments:
        model: The model. Without matched experts (:func:`mmpoe.calibrate`) its posteriors are too
            narrow, and so are the reductions.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read.
        target: The modality to learn about.
        observed: What was observed, :math:`s`: a boolean mask of shape :math:`(B, M)`, or names.
            By default, all that `x` holds.
        candidates: The modalities that could be observed next; by default, all but the target.
        functional: What to know of the target: maps entries of shape :math:`(N, *)` to numbers of
            shape :math:`(N, *F)`, a mean over a region, say. By default, each element.
        draws: The number of draws K of a candidate, at least 2.
        samples: The number of samples S given each draw, at least 2.

    Returns:
        The reduction by each candidate.

    Raises:
        ValueError: If a name or mask does not fit the model, the target is a candidate or was
            observed in a row, a number is out of range, or `functional` returns another number of
            rows.

    References:
        | EDDI: Efficient Dynamic Discovery of High-Value Information with Partial VAE (Ma et al.,
          2019)
        | https://arxiv.org/abs/1809.11142

    Example:
        >>> from mmpoe.oracles import LinearGaussian
        >>> oracle = LinearGaussian.random(["a", "b", "c"], latent_dim=2, data_dim=3)
        >>> x, _ = oracle.sample(5)
        >>> gain = variance_reduction(oracle.model(), x, "c", ["a"], draws=8)
        >>> list(gain), gain["b"].expected.shape, gain["b"].share.shape
        (['a', 'b'], torch.Size([5, 3]), torch.Size([5]))
    """
    _check_numbers(draws=draws, samples=samples)
    query = _Query.of(model, x, target, observed, candidates)
    f = functional or (lambda values: values)
    with torch.no_grad(), evaluation(model.modules()):
        encodings = model.encode(query.x, query.given)
        values = [
            _rows(f, model.decode(q.state.flatten(), [target])[target].sample(), q.state.shape)
            for q in query.propose(encodings, draws)
        ]
        variance = torch.cat(values).var(dim=0)
        return {
            m: Reduction(query.explained(encodings, m, functional, draws, samples), variance)
            for m in query.candidates
        }


def information_gain(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    target: str,
    observed: Tensor | Sequence[str] | None = None,
    *,
    candidates: Sequence[str] | None = None,
    draws: int = 64,
    samples: int = 64,
) -> dict[str, Tensor]:
    r"""Estimates how much observing each missing modality would tell about a target, in nats.

    .. math::
        I(x_t; x_j \mid x_s) = \mathrm{E}_{x_t, x_j \mid x_s} \big[
        \log p(x_t \mid x_s, x_j) - \log p(x_t \mid x_s) \big]

    It is the expected fall of the entropy of the target. Target and candidate are drawn together K
    times, and both densities are estimated by :func:`mmpoe.evidence.log_conditional`: exactly if
    the posteriors are exact, loosely for images, where :func:`variance_reduction` is the better
    choice.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        target: The modality to learn about.
        observed: What was observed, a boolean mask of shape :math:`(B, M)`, or names; by default,
            all that `x` holds.
        candidates: The modalities that could be observed next; by default, all but the target.
        draws: The number of draws K, at least 2.
        samples: The number of samples of each estimate of a density.

    Returns:
        The gain by each candidate, in nats, with shape :math:`(B)`; 0 where it was observed
        already.

    Raises:
        ValueError: As :func:`variance_reduction`.
    """
    _check_numbers(draws=draws)
    query = _Query.of(model, x, target, observed, candidates)
    with torch.no_grad(), evaluation(model.modules()):
        encodings = model.encode(query.x, query.given)
        gains = {m: torch.zeros(len(query.given)) for m in query.candidates}
        for q in query.propose(encodings, draws):
            drawn = model.decode(q.state.flatten(), [target, *query.candidates])
            entries = {m: p.sample() for m, p in drawn.items()}
            repeats = q.state.shape[0]
            for m in query.candidates:
                pair = {target: entries[target], m: entries[m]}
                batch, given = query.filled(pair, repeats), query.given.repeat(repeats, 1)
                with_m = given | query.only(m, len(given))
                log_p = [
                    log_conditional(
                        model, batch, [target], mask, samples, experts=model.best_experts
                    )
                    for mask in (with_m, given)
                ]
                gain = (log_p[0] - log_p[1]).unflatten(0, (repeats, -1)).sum(dim=0)
                gains[m] = gains[m].to(gain) + gain / draws
    return {m: torch.where(query.seen(m), 0, gain) for m, gain in gains.items()}


class _Query(NamedTuple):
    """A question about a batch: its entries, the target and the candidates."""

    model: MultimodalVAE
    x: Batch
    given: Tensor
    target: str
    candidates: list[str]

    @classmethod
    def of(
        cls,
        model: MultimodalVAE,
        x: Mapping[str, Tensor],
        target: str,
        observed: Tensor | Sequence[str] | None,
        candidates: Sequence[str] | None,
    ) -> _Query:
        names = model.modalities
        check_names(list(x), names, argument="x")
        check_names([target], names, argument="target")
        if not x:
            raise ValueError("'x' should hold at least one modality.")
        size = len(next(iter(x.values())))
        observed = held(x, names) if observed is None else observed
        given = subset_mask(observed, names, size, "observed")
        if not size:
            raise ValueError("'x' should hold at least one row, but holds none.")
        given = given.to(next(iter(x.values())).device)
        if bool(given[:, names.index(target)].any()):
            rows = given[:, names.index(target)].nonzero()[:10, 0].tolist()
            raise ValueError(
                f"'target' should be missing in every row, but {target!r} was observed in rows "
                f"{rows}."
            )
        candidates = [m for m in names if m != target] if candidates is None else candidates
        check_names(candidates, names, argument="candidates")
        if target in candidates:
            raise ValueError(f"'candidates' should not hold the target, {target!r}.")
        return cls(model, Batch.of(x), given, target, list(candidates))

    def only(self, modality: str, rows: int) -> Tensor:
        """The mask of one modality in all rows."""
        columns = [m == modality for m in self.model.modalities]
        return torch.tensor(columns, device=self.given.device).expand(rows, -1)

    def seen(self, modality: str) -> Tensor:
        """The rows in which a modality was observed, boolean, with shape (B)."""
        return self.given[:, self.model.modalities.index(modality)]

    def propose(self, encodings: Encodings, samples: int) -> Iterator[Inference]:
        """Samples given what was observed, in portions."""
        experts = self.model.best_experts
        return propose(self.model, encodings, self.given, self.x, samples, experts=experts)

    def filled(self, drawn: Mapping[str, Tensor], repeats: int) -> Batch:
        """The batch K times over, with draws of modalities where they were not observed."""
        rows = torch.arange(len(self.given)).repeat(repeats)
        batch = self.x.take(rows)
        for m, entries in drawn.items():
            seen = self.seen(m).repeat(repeats)
            if m in batch and bool(seen.any()):
                seen = seen.reshape(-1, *(1,) * (entries.dim() - 1))
                entries = torch.where(seen, batch[m].to(entries.dtype), entries)
            batch[m] = entries
        return batch

    def explained(
        self,
        encodings: Encodings,
        candidate: str,
        functional: Functional | None,
        draws: int,
        samples: int,
    ) -> Tensor:
        r"""The variance of the mean given a candidate, over draws of it, with shape (B, \*F)."""
        inner = [
            self._moments(encodings, candidate, q, functional, samples)
            for q in self.propose(encodings, draws)
        ]
        mean, variance = (torch.cat(parts) for parts in zip(*inner, strict=True))  # (K, B, *F)
        between = mean.var(dim=0) - variance.mean(dim=0) / samples
        seen = self.seen(candidate)
        return torch.where(seen.reshape(-1, *(1,) * (between.dim() - 1)), 0, between)

    def _moments(
        self,
        encodings: Encodings,
        candidate: str,
        q: Inference,
        functional: Functional | None,
        samples: int,
    ) -> tuple[Tensor, Tensor]:
        r"""Mean and variance of the target given each draw of a candidate, (K', B, \\*F)."""
        model, repeats = self.model, q.state.shape[0]
        drawn = model.decode(q.state.flatten(), [candidate])[candidate].sample()
        batch = self.filled({candidate: drawn}, repeats)
        only = self.only(candidate, len(drawn))
        joined = _join(_repeat(encodings, repeats), model.encode(batch, only), candidate)
        given = joined.given
        values = []
        for inner in propose(model, joined, given, batch, samples, experts=model.best_experts):
            p = model.decode(inner.state.flatten(), [self.target])[self.target]
            # the mean over the noise of the likelihood, where it is known
            entries = p.mean if functional is None else p.sample()
            f = functional or (lambda v: v)
            values.append(_rows(f, entries, inner.state.shape))
        value = torch.cat(values).unflatten(1, (repeats, -1))  # (S, K', B, *F)
        return value.mean(dim=0), value.var(dim=0)


def _repeat(encodings: Encodings, times: int) -> Encodings:
    """The encodings of a batch that holds every sample K times, first all once, and so on."""
    size, device = len(encodings.given), encodings.given.device
    starts = torch.arange(times, device=device)[:, None] * size
    return encodings._replace(
        given=encodings.given.repeat(times, 1),
        rows={
            m: None if rows is None else (starts + rows).flatten()
            for m, rows in encodings.rows.items()
        },
        features={
            m: [_tile(f, times) for f in levels] for m, levels in encodings.features.items()
        },
        context={name: _tile(v, times) for name, v in encodings.context.items()},
    )


def _join(encodings: Encodings, other: Encodings, modality: str) -> Encodings:
    """Encodings of the same samples, with one modality taken from others."""
    order = [m for m in encodings.modalities if m in encodings.rows or m == modality]
    source = {m: other if m == modality else encodings for m in order}
    return encodings._replace(
        given=encodings.given | other.given,
        rows={m: source[m].rows[m] for m in order},
        features={m: source[m].features[m] for m in order},
    )


def _tile(values: Tensor, times: int) -> Tensor:
    return values.repeat(times, *(1,) * (values.dim() - 1))


def _rows(f: Functional, entries: Tensor, shape: torch.Size) -> Tensor:
    r"""A functional of entries of shape (S B, \\*), as (S, B, \\*F)."""
    value = f(entries)
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != len(entries):
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"'functional' should return one row per entry ({len(entries)}), but returns {found}."
        )
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return value.unflatten(0, shape)


def _total(values: Tensor) -> Tensor:
    return values.unsqueeze(-1).flatten(1).sum(dim=1)


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 2:
            raise ValueError(f"'{name}' should be an integer of at least 2, but is {value!r}.")
