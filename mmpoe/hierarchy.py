r"""Latent groups and the top-down pass through them, the same for flat and hierarchical models.

A hierarchy :math:`p(z) = p(z_L) \prod_{l < L} p(z_l \mid z_{>l})` is a list of
:class:`LatentGroup`, coarse to fine. The *state* :math:`h` carries :math:`z_{>l}` from one group
to the next; the state after the last group is what decoders see.

Everything is computed for R *pairs* of a sample of the batch and a subset of its modalities: a
plain batch is one pair for each sample, and an objective over several subsets has several.
Encodings and covariates belong to samples, and are shared by all pairs of one: a network that asks
for covariates gets those of the sample of each row.
"""

from __future__ import annotations

__all__ = ["Encodings", "Inference", "LatentGroup", "State"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Size, Tensor, nn

from . import kernels
from .distributions import DiagNormal
from .missing import Pairs, distinct_pairs
from .nn import ModalityDict, ProjectionCell
from .nn._asking import asks_for, call
from .posteriors import Draw, Factors, PoE, Posterior

Experts = Literal["trained", "matched"]
"""The experts to infer with: those that were trained with the model, or the matched ones."""

Latents = Sequence[Tensor] | Callable[[int, DiagNormal], Tensor]
r"""The latents of each group, coarse to fine, each with shape (R, \*); or a function that returns
those of a group, from its level (0 is the coarsest) and its posterior."""


class Context(NamedTuple):
    """The covariates of the rows of a network's input."""

    values: Mapping[str, Tensor]
    r"""The covariates of B samples by name, each with shape (B, \*)."""
    rows: Tensor | None = None
    """The sample of each row, with shape (N); None if row b is sample b."""

    def take(self, index: Tensor | None) -> Context:
        """Returns the covariates of some rows, all of them if None."""
        if index is None or not self.values:
            return self
        return Context(self.values, index if self.rows is None else self.rows[index])

    def repeat(self, copies: int) -> Context:
        """Returns the covariates of all rows several times over, one block after the other."""
        if not self.values:
            return self
        rows = self.rows
        if rows is None:
            first = next(iter(self.values.values()))
            rows = torch.arange(first.shape[0], device=first.device)
        return Context(self.values, rows.repeat(copies))

    def gather(self) -> dict[str, Tensor]:
        """Returns the covariates with one row for each row."""
        return {name: _take(v, self.rows) for name, v in self.values.items()}


class Encodings(NamedTuple):
    """Features of a batch, computed once and shared by all groups and subsets."""

    modalities: list[str]
    given: Tensor
    """The entries that were encoded, boolean, with shape (B, M)."""
    rows: dict[str, Tensor | None]
    """The rows of the batch in which each modality was encoded, each of shape (n); None for all of
    them, with zeros encoded where the modality is missing."""
    features: dict[str, list[Tensor]]
    """The features of those rows, one tensor per group, coarse to fine, each of shape (n, \\*)."""
    like: Tensor
    """A scalar with the dtype and device of the model."""
    context: Mapping[str, Tensor] = {}
    r"""The covariates of the batch by name, each with shape (B, \*)."""

    def detach(self) -> Encodings:
        """Returns the same encodings without their history."""
        features = {m: [f.detach() for f in levels] for m, levels in self.features.items()}
        return self._replace(features=features)


class State(NamedTuple):
    """The state after the last group: all that decoders see of the latents."""

    h: Tensor
    r"""The states, one row after the other, with shape (N, \*)."""
    shape: Size
    """The batch shape, of N elements: (B), (R), or (S, B)."""
    context: Context = Context({})
    """The covariates of the rows along the last batch dimension."""

    def take(self, index: Tensor) -> State:
        """Returns the states at some places of the last batch dimension."""
        context = self.context.take(index)
        if len(self.shape) == 1:
            return State(self.h.index_select(0, index), Size([len(index)]), context)
        h = self.h.unflatten(0, self.shape).index_select(len(self.shape) - 1, index)
        shape = Size([*self.shape[:-1], len(index)])
        return State(h.flatten(0, len(shape) - 1), shape, context)

    def flatten(self) -> State:
        """Returns the states with one batch dimension."""
        if len(self.shape) == 1:
            return self
        copies = self.h.shape[0] // max(self.shape[-1], 1)
        return State(self.h, Size([self.h.shape[0]]), self.context.repeat(copies))


class Inference(NamedTuple):
    """The latents of a batch: samples, posteriors and priors of all groups, coarse to fine."""

    kl: list[Tensor]
    """The divergence of each group, in nats, each with the batch shape."""
    z: list[Tensor]
    r"""The sample of each group, each with the batch shape and (\*)."""
    posteriors: list[DiagNormal]
    """The posterior of each group given the sample of those above."""
    priors: list[DiagNormal]
    """The prior of each group given the sample of those above."""
    state: State
    """The state after the last group."""


class Step(NamedTuple):
    """The sample, posterior and prior of one group, over R pairs."""

    z: Tensor
    posterior: DiagNormal
    prior: DiagNormal
    kl: Tensor


class LatentGroup(nn.Module):
    r"""One group :math:`z_l` of a hierarchy: its prior, its experts, its step down.

    Arguments:
        shape: The shape of the latent variable of one sample, channels first, for instance
            ``(16,)`` or ``(16, 8, 8)``. None takes it from what the experts return, in every call.
        expert: Maps the features of one modality, with shape :math:`(N, *)`, to the mean and log
            standard deviation of an expert, stacked along the first event dimension: :math:`(N,
            2C, ...)`. One module that all modalities share, or one module for each.
        merge: Maps the state :math:`h` (None above the first group) and a sample :math:`z_l` to
            the next state. By default, the next state is the sample.
        prior: Maps the state to the mean and log standard deviation of :math:`p(z_l \mid z_{>l})`,
            stacked like those of an expert. None is the standard normal. That of the first group
            is called with None and the covariates, :math:`p(z_L \mid c)`, if it asks for these.
        expert_sees_state: Whether the state is stacked before the features (along the first event
            dimension) as an expert's input. If not, experts depend on their modality alone and are
            computed once for all subsets. The first group has no state to see.
        posterior: The rule that fuses prior and experts, a plain :class:`~mmpoe.posteriors.PoE` by
            default.

    Attributes:
        matched: A second set of experts, which learns what the first would say of complete data;
            None if there is none, see :func:`mmpoe.calibrate`.

    Raises:
        ValueError: If `shape` is not a sequence of positive numbers.

    References:
        | Ladder Variational Autoencoders (Sønderby et al., 2016)
        | https://arxiv.org/abs/1602.02282
        | NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
        | https://arxiv.org/abs/2007.03898
    """

    matched: MatchedExperts | None

    def __init__(
        self,
        shape: Sequence[int] | None,
        expert: nn.Module | Mapping[str, nn.Module],
        merge: nn.Module | None = None,
        prior: nn.Module | None = None,
        *,
        expert_sees_state: bool = True,
        posterior: Posterior | None = None,
    ) -> None:
        super().__init__()
        if shape is not None and not (isinstance(shape, Sequence) and shape and min(shape) > 0):
            raise ValueError(
                f"'shape' should be a sequence of positive numbers or None, but is {shape!r}."
            )
        self.shape = None if shape is None else tuple(shape)
        self.expert = expert if isinstance(expert, nn.Module) else ModalityDict(expert)
        self.merge = Replace() if merge is None else merge
        self.prior = prior
        self.expert_sees_state = expert_sees_state
        self.posterior = PoE() if posterior is None else posterior
        self.matched = None  # not registered: keys of absent experts are unexpected, not ignored

    def forward(
        self,
        h: Tensor | None,
        level: int,
        encodings: Encodings,
        pairs: Pairs,
        draw: Draw,
        z: Tensor | Callable[[int, DiagNormal], Tensor] | None = None,
        experts: Experts = "trained",
    ) -> Step:
        r"""Infers :math:`q(z_l \mid z_{>l}, x_s)` for R pairs of a sample and a subset.

        Arguments:
            h: The state, with shape :math:`(R, *)`, or None above the first group.
            level: The index of this group, 0 for the coarsest.
            encodings: The encodings of the batch.
            pairs: The pairs.
            draw: The way in which to draw z.
            z: The latent to return in place of a sample, with shape :math:`(R, *)`, or a function
                that returns it.
            experts: The experts to infer with. Gradients reach the matched ones alone.
        """
        expert, rule = self.expert, self.posterior
        context = Context(encodings.context, pairs.rows)
        raw_prior = None if self.prior is None else run(self.prior, h, context=context)
        if experts == "matched":
            if self.matched is None:
                raise ValueError(
                    "'experts' should be \"trained\": this model has no matched experts. "
                    "'mmpoe.calibrate' makes them."
                )
            expert, rule = self.matched.expert, self.matched.posterior
            raw_prior = None if raw_prior is None else raw_prior.detach()
            h = None if h is None else h.detach()
            encodings = encodings.detach()

        # where neither prior nor experts see the state, pairs of one sample share their experts
        of_samples = self.prior is None and (h is None or not self.expert_sees_state)
        if of_samples:
            outputs = {
                m: (encodings.rows[m], self._of_features(expert, m, level, encodings))
                for m in encodings.features
            }
        else:
            outputs = self._outputs(expert, h, level, encodings, pairs)
        found = {m: out for m, (_, out) in outputs.items()}
        shape = self.shape_in(level, encodings, found, raw_prior)
        factors = self._factors(shape, outputs, raw_prior, encodings, pairs, of_samples=of_samples)
        if z is not None:  # the mean is enough
            draw = Draw(temperature=0.0)
        q = _fuse_distinct(rule, factors, draw) if of_samples else _fuse(rule, factors, draw)

        p = self.prior_distribution(shape, raw_prior, pairs.given.shape[0], q.loc)
        mean, deviation = q.loc, q.log_scale
        if rule.clamp is not None and raw_prior is not None:
            mean, deviation = _settle(pairs.given, (mean, deviation), p)
        posterior = DiagNormal(mean, deviation, len(shape))
        if callable(z):
            z = _checked(z(level, posterior), level, q.loc.shape)
        elif z is not None:
            _checked(z, level, q.loc.shape)
        return Step(q.z if z is None else z, posterior, p, q.kl)

    def prior_distribution(
        self, shape: tuple[int, ...], raw_prior: Tensor | None, size: int, like: Tensor
    ) -> DiagNormal:
        r"""Returns :math:`p(z_l \mid z_{>l})` from its network's output.

        Arguments:
            shape: The shape of the latents of one sample.
            raw_prior: The output of the prior network, with shape :math:`(R, 2C, ...)`, None for
                the standard normal.
            size: The number of rows R.
            like: A tensor with the dtype and device to use.
        """
        if raw_prior is None:
            zeros = like.new_zeros(()).expand(size, *shape)
            return DiagNormal(zeros, zeros, len(shape))
        loc, log_scale = raw_prior.to(like.dtype).chunk(2, dim=1)
        squash = self.posterior.squash
        return DiagNormal(squash(loc), squash(log_scale), len(shape))

    def shape_in(
        self,
        level: int,
        encodings: Encodings,
        outputs: Mapping[str, Tensor],
        raw_prior: Tensor | None,
    ) -> tuple[int, ...]:
        """Returns the shape of the latents of one sample: the one given, or that of an expert.

        Arguments:
            level: The index of this group, 0 for the coarsest.
            encodings: The encodings of a batch.
            outputs: The outputs of experts by modality, if any were computed.
            raw_prior: The output of the prior network, None without one.

        Raises:
            ValueError: If it was not given, and no expert can tell, or one returns no mean and log
                standard deviation.
        """
        if self.shape is not None:
            return self.shape
        if not outputs and raw_prior is not None:
            return (raw_prior.shape[1] // 2, *raw_prior.shape[2:])
        if not outputs and (level == 0 or not self.expert_sees_state):
            # an expert of no rows shows the shape too
            features = encodings.features.items()
            none = torch.zeros(0, dtype=torch.long, device=encodings.given.device)
            context = Context(encodings.context, none)
            outputs = {
                m: run(_of(self.expert, m), f[level][:0], context=context) for m, f in features
            }
        for m, out in outputs.items():
            if out.dim() < 2 or out.shape[1] % 2:
                raise ValueError(
                    f"{self._source(m)} should return a mean and a log standard deviation, "
                    f"stacked along dimension 1, but returns shape {tuple(out.shape)}."
                )
            return (out.shape[1] // 2, *out.shape[2:])
        raise ValueError(
            "'shape' should be given to the latent group: no row is given any modality "
            "that it could be taken from."
        )

    def _outputs(
        self, expert: nn.Module, h: Tensor | None, level: int, encodings: Encodings, pairs: Pairs
    ) -> dict[str, tuple[Tensor | None, Tensor]]:
        """The parameters of the expert of each modality, for the pairs that are given it.

        Returns:
            For each modality that some pair is given: the k pairs that are, with shape (k), None
            for all R; and the parameters for these, with shape (k, 2C, ...).
        """
        outputs, of_state = {}, {}
        context = Context(encodings.context, pairs.rows)
        for column, m in enumerate(encodings.modalities):
            if m not in encodings.features:
                continue
            features, network = encodings.features[m][level], _of(expert, m)
            taking = None  # the pairs that take part
            if encodings.rows[m] is not None:
                taking = pairs.given[:, column].nonzero()[:, 0]  # (k)
                if len(taking) == 0:
                    continue
                if len(taking) == pairs.given.shape[0]:
                    taking = None
            source = _rows_to_read(encodings.rows[m], pairs.rows, taking, encodings.given.shape[0])
            if h is None or not self.expert_sees_state:
                out = _take(self._of_features(expert, m, level, encodings), source)
            elif isinstance(network, ProjectionCell) and not asks_for(network, "context"):
                # a cell that begins with a convolution: its part for the state is the same for
                # all modalities, and its part for the features is the same for all subsets
                if network not in of_state:
                    of_state[network] = network.begin(h)
                of_features = network.begin(features, after=h.shape[1])
                out = network.end(_take(of_state[network], taking) + _take(of_features, source))
            else:
                seen = torch.cat([_take(h, taking), _take(features, source)], dim=1)
                out = run(network, seen, context=context.take(taking))
            outputs[m] = taking, out
        return outputs

    def _of_features(
        self, expert: nn.Module, modality: str, level: int, encodings: Encodings
    ) -> Tensor:
        """The parameters of an expert that sees its features alone, one row for each of them."""
        context = Context(encodings.context, encodings.rows[modality])
        return run(_of(expert, modality), encodings.features[modality][level], context=context)

    def _factors(
        self,
        shape: tuple[int, ...],
        outputs: Mapping[str, tuple[Tensor | None, Tensor]],
        raw_prior: Tensor | None,
        encodings: Encodings,
        pairs: Pairs,
        *,
        of_samples: bool,
    ) -> Factors:
        """Lays out the parameters of experts for a rule, one row for each pair or each sample.

        Rows of a modality that was not computed there hold 0; the rule never reads them.
        """
        wanted = (2 * shape[0], *shape[1:])
        parts = [out for _, out in outputs.values()] + ([] if raw_prior is None else [raw_prior])
        dtype = encodings.like.dtype if not parts else parts[0].dtype
        for part in parts:
            dtype = torch.promote_types(dtype, part.dtype)

        prior = None
        if raw_prior is not None:
            _check_parameters(raw_prior, wanted, "The prior")
            loc, log_scale = raw_prior.to(dtype).chunk(2, dim=1)
            prior = (loc, log_scale)

        size = (encodings.given if of_samples else pairs.given).shape[0]
        locs, log_scales = [], []
        for m in encodings.modalities:
            where, dense = outputs.get(m, (None, None))
            if dense is None:
                dense = encodings.like.new_zeros((size, *wanted), dtype=dtype)
            else:
                _check_parameters(dense, wanted, self._source(m))
                dense = dense.to(dtype)
                if where is not None:
                    blank = encodings.like.new_zeros((size, *wanted), dtype=dtype)
                    dense = blank.index_copy(0, where, dense)
            loc, log_scale = dense.chunk(2, dim=1)
            locs.append(loc)
            log_scales.append(log_scale)
        return Factors(locs, log_scales, pairs.given, prior, pairs.rows if of_samples else None)

    def _source(self, modality: str) -> str:
        """The source of the parameters of a modality, as messages call it."""
        network = _of(self.expert, modality)
        part = "encoder" if isinstance(network, nn.Identity) else "expert"
        return f"The {part} of {modality!r}"


def run(network: nn.Module, *inputs: object, context: Context, valid: Tensor | None = None) -> Any:  # noqa: ANN401
    """Runs a network, with the covariates and the element mask if it asks for them.

    Arguments:
        network: The network.
        inputs: Its inputs.
        context: The covariates of the rows of its input.
        valid: The element mask of its input.

    Raises:
        ValueError: If the batch lacks a covariate that the network reads.
    """
    held: dict[str, Tensor] | None = None
    if asks_for(network, "context"):
        held = context.gather()
        held = held if torch.compiler.is_compiling() else _Covariates(held)
    return call(network, *inputs, context=held, valid=valid)


class _Covariates(dict[str, Tensor]):
    """Covariates that say which of them a network asks for in vain."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(
            f"'x' should be a Batch whose 'context' holds {name!r}, which a network reads, "
            f"but holds {', '.join(self) or 'none'}."
        )


class MatchedExperts(nn.Module):
    """A second set of experts of a latent group, with a rule of their own.

    Arguments:
        expert: One module that all modalities share, or one for each, as in :class:`LatentGroup`.
        posterior: The rule that fuses them with the prior.
    """

    def __init__(self, expert: nn.Module | Mapping[str, nn.Module], posterior: Posterior) -> None:
        super().__init__()
        self.expert = expert if isinstance(expert, nn.Module) else ModalityDict(expert)
        self.posterior = posterior


class Replace(nn.Module):
    """A merge that forgets everything above: the next state is the sample."""

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """Returns `z`."""
        return z


def _checked(z: Tensor, level: int, shape: Size) -> Tensor:
    """Returns latents, or raises a ValueError unless they have the shape of what they replace."""
    if not isinstance(z, Tensor) or z.shape[1:] != shape[1:] or z.shape[0] != shape[0]:
        shown = tuple(z.shape) if isinstance(z, Tensor) else f"type {type(z).__name__}"
        raise ValueError(
            f"'z[{level}]' should hold latents of shape {tuple(shape[1:])}, for {shape[0]} rows, "
            f"but has {'shape ' * isinstance(z, Tensor)}{shown}."
        )
    return z


def _fuse(rule: Posterior, factors: Factors, draw: Draw) -> kernels.Product:
    loc, log_scale, given, prior, rows = factors
    noise, temperature = draw
    return rule(loc, log_scale, given, prior, rows=rows, noise=noise, temperature=temperature)


def _fuse_distinct(rule: Posterior, factors: Factors, draw: Draw) -> kernels.Product:
    """Fuses factors of samples: pairs that stand several times are fused once, and sampled apart.

    Several samples of the latents of a row are such pairs.
    """
    given, rows = factors.given, factors.rows
    if rows is None or torch.compiler.is_compiling():
        return _fuse(rule, factors, draw)
    found = distinct_pairs(rows, given)
    if found is None:
        return _fuse(rule, factors, draw)
    one, pair = found  # (n) pairs that differ, and which of them each of the R is
    given, rows = given[one], rows[one]
    if torch.equal(rows, torch.arange(len(factors.loc[0]), device=rows.device)):
        rows = None  # one subset of each sample
    q = _fuse(rule, factors._replace(given=given, rows=rows), Draw(temperature=0.0))
    loc, log_scale, kl = (v.index_select(0, pair) for v in (q.loc, q.log_scale, q.kl))
    return kernels.Product(draw.sample(loc, log_scale), loc, log_scale, kl)


def _rows_to_read(
    encoded: Tensor | None, rows: Tensor | None, taking: Tensor | None, size: int
) -> Tensor | None:
    """The row of the features that each pair reads, None if pair r reads row r.

    Arguments:
        encoded: The samples that the features belong to, with shape (n), None for all.
        rows: The sample of each pair, with shape (R), None if pair r is about sample r.
        taking: The pairs that read, with shape (k), None for all.
        size: The number of samples B.
    """
    if rows is None:
        rows = taking
    elif taking is not None:
        rows = rows[taking]
    if encoded is None or len(encoded) == size:  # features stand in the order of the batch
        return rows
    place = torch.zeros(size, dtype=torch.long, device=encoded.device)
    place[encoded] = torch.arange(len(encoded), device=encoded.device)
    if rows is None:
        return place
    return place[rows]


def _of(expert: nn.Module, modality: str) -> nn.Module:
    """The expert of a modality: its own, or the one that all share."""
    return expert[modality] if isinstance(expert, ModalityDict) else expert


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _settle(given: Tensor, q: tuple[Tensor, Tensor], p: DiagNormal) -> tuple[Tensor, Tensor]:
    """Makes rows that are given nothing equal to the prior in the last bit, soft clamps included.

    Backends compute their own hyperbolic tangent.
    """
    some = given.any(dim=1)
    # a GPU would have to be waited for, to learn whether there is anything to do
    if torch.compiler.is_compiling() or (some.device.type == "cpu" and bool(some.all())):
        return q
    some = some.reshape(-1, *(1,) * (q[0].dim() - 1))
    return torch.where(some, q[0], p.loc), torch.where(some, q[1], p.log_scale)


def _check_parameters(out: Tensor, wanted: tuple[int, ...], who: str) -> None:
    if out.shape[1:] != wanted:
        raise ValueError(
            f"{who} should return a mean and a log standard deviation stacked along dimension 1, "
            f"with event shape {wanted}, but returns event shape {tuple(out.shape[1:])}."
        )
