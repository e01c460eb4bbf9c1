r"""Latent groups and the top-down pass through them, the same for flat and hierarchical models.

A hierarchy :math:`p(z) = p(z_L) \prod_{l < L} p(z_l \mid z_{>l})` is a list of
:class:`LatentGroup`, coarse to fine. The *state* :math:`h` carries :math:`z_{>l}` from one group
to the next; the state after the last group is what decoders see.
"""

from __future__ import annotations

__all__ = ["Encodings", "Inference", "LatentGroup", "MatchedExperts", "latent_groups", "top_down"]

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import kernels
from .distributions import DiagNormal
from .nn import ModalityDict, ProjectionCell
from .posteriors import PoE, Posterior


class Encodings(NamedTuple):
    """What the encoders made of a batch, computed once and shared by all groups and subsets."""

    modalities: list[str]
    batch_size: int
    rows: dict[str, Tensor | None]
    """The rows of the batch in which each modality was encoded, each of shape (n); None for all of
    them, with zeros encoded where the modality is missing."""
    features: dict[str, list[Tensor]]
    """The features of those rows, one tensor per group, coarse to fine, each of shape (n, \\*)."""
    like: Tensor
    """A scalar with the dtype and device of the model."""

    def of(self, level: int) -> list[tuple[str, Tensor | None]]:
        """The features of every modality for one group, None where nothing was encoded."""
        return [
            (m, self.features[m][level] if m in self.features else None) for m in self.modalities
        ]

    def detach(self) -> Encodings:
        """Returns the same encodings without their history."""
        features = {m: [f.detach() for f in levels] for m, levels in self.features.items()}
        return self._replace(features=features)


class Inference(NamedTuple):
    """The posterior and prior of one group, over R rows."""

    z: Tensor
    posterior: DiagNormal
    prior: DiagNormal
    kl: Tensor


class LatentGroup(nn.Module):
    r"""One group :math:`z_l` of a hierarchy: its prior, its experts, its step down.

    Arguments:
        shape: The shape of the latent variable of one sample, channels first, for instance
            ``(16,)`` or ``(16, 8, 8)``. None takes it from the first expert that is computed.
        expert: Maps the features of one modality, with shape :math:`(N, *)`, to the mean and log
            standard deviation of an expert, stacked along the first event dimension: :math:`(N,
            2C, ...)`. One module that all modalities share, or one module for each.
        merge: Maps the state :math:`h` (None above the first group) and a sample :math:`z_l` to
            the next state. By default, the next state is the sample.
        prior: Maps the state to the mean and log standard deviation of :math:`p(z_l \mid z_{>l})`,
            stacked like those of an expert. None is the standard normal.
        expert_sees_state: Whether the state is stacked before the features (along the first event
            dimension) as an expert's input. If not, experts depend on their modality alone and are
            computed once for all subsets. The first group has no state to see.
        posterior: The rule that fuses prior and experts, a plain :class:`~mmpoe.posteriors.PoE` by
            default.
        residual: Whether experts and their scales are relative to the prior,
            :math:`\mu_m = \mu_p + \Delta \mu_m` and :math:`\sigma_m = \sigma_p \Delta \sigma_m`.

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
        residual: bool = False,
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
        self.residual = residual
        self.matched = None  # not registered: keys of absent experts are unexpected, not ignored

    def forward(
        self,
        h: Tensor | None,
        level: int,
        encodings: Encodings,
        given: Tensor,
        rows: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        z: Tensor | None = None,
        sample: bool = True,
        temperature: float = 1.0,
        matched: bool = False,
    ) -> Inference:
        r"""Infers :math:`q(z_l \mid z_{>l}, x_s)` for R rows.

        Arguments:
            h: The state, with shape :math:`(R, *)`, or None above the first group.
            level: The index of this group, 0 for the coarsest.
            encodings: What the encoders made of the batch.
            given: What each row conditions on, boolean, with shape :math:`(R, M)`.
            rows: The sample of the batch that each row is about, with shape :math:`(R)`. None is
                the batch from first to last, R / B times.
            noise: Standard normal noise, with the shape of z; drawn if None.
            z: The latent to return in place of a sample, with shape :math:`(R, *)`.
            sample: Whether to sample; if not, z is the mean.
            temperature: The temperature of the sample.
            matched: Whether to use the matched experts. Gradients then reach those alone.
        """
        expert, posterior = self.expert, self.posterior
        raw_prior = None if self.prior is None else self.prior(h)
        if matched:
            if self.matched is None:
                raise ValueError(
                    "'matched' should be False: this model has no matched experts. "
                    "'mmpoe.calibrate' makes them."
                )
            expert, posterior = self.matched.expert, self.matched.posterior
            raw_prior = None if raw_prior is None else raw_prior.detach()
            h = None if h is None else h.detach()
            encodings = encodings.detach()

        # what depends on neither subset nor state is fused over all subsets at once
        at_once = self.prior is None and self._is_free(h)
        outputs = self._experts(expert, h, level, encodings, given, rows, at_once=at_once)
        if self.shape is None:
            self.shape = self._shape_from(outputs, level, encodings)
        if z is not None and z.shape[1:] != self.shape:
            raise ValueError(
                f"'z[{level}]' should hold latents of shape {self.shape}, "
                f"but has shape {tuple(z.shape)}."
            )
        wanted = (2 * self.shape[0], *self.shape[1:])
        parts = [out for _, out in outputs.values()] + ([] if raw_prior is None else [raw_prior])
        dtype = encodings.like.dtype if not parts else parts[0].dtype
        for part in parts:
            dtype = torch.promote_types(dtype, part.dtype)

        prior = None
        if raw_prior is not None:
            _check_parameters(raw_prior, wanted, "The prior")
            prior_loc, prior_log_scale = raw_prior.to(dtype).chunk(2, dim=1)
            prior = (prior_loc, prior_log_scale)

        loc, log_scale = [], []
        for m in encodings.modalities:
            size = encodings.batch_size if at_once else given.shape[0]
            if m not in outputs:
                dense = encodings.like.new_zeros((size, *wanted), dtype=dtype)
            else:
                where, out = outputs[m]
                _check_parameters(out, wanted, self._source(m))
                dense = out.to(dtype)
                if where is not None:
                    blank = encodings.like.new_zeros((size, *wanted), dtype=dtype)
                    dense = blank.index_copy(0, where, dense)
            mean, deviation = dense.chunk(2, dim=1)
            loc.append(mean)
            log_scale.append(deviation)

        if self.residual and prior is not None:
            prior = (posterior.squash(prior[0]), posterior.squash(prior[1]))
            loc = [prior[0] + posterior.squash(v) for v in loc]
            log_scale = [prior[1] + posterior.squash(v) for v in log_scale]

        options = {"sample": sample and z is None, "temperature": temperature}
        if at_once and rows is not None:
            q = posterior.pairs(loc, log_scale, given, rows, noise=noise, **options)
        else:
            grid = (given.shape[0],)
            if at_once:
                grid = (given.shape[0] // max(encodings.batch_size, 1), encodings.batch_size)
            q = posterior(
                loc,
                log_scale,
                given.unflatten(0, grid),
                prior,
                noise=None if noise is None else noise.unflatten(0, grid),
                squashed=self.residual and prior is not None,
                **options,
            )
            if at_once:
                q = kernels.Product(*(v.flatten(0, 1) for v in q))
        p = self.prior_distribution(raw_prior, given.shape[0], encodings.like.to(dtype))
        mean, deviation = q.loc, q.log_scale
        if posterior.clamp is not None and raw_prior is not None:
            mean, deviation = _settle(given, (mean, deviation), p)
        return Inference(
            z=q.z if z is None else z,
            posterior=DiagNormal(mean, deviation, len(self.shape)),
            prior=p,
            kl=q.kl,
        )

    def prior_distribution(
        self, raw_prior: Tensor | None, batch_size: int, like: Tensor
    ) -> DiagNormal:
        r"""Returns :math:`p(z_l \mid z_{>l})` from its network's output.

        Arguments:
            raw_prior: The output of the prior network, with shape :math:`(R, 2C, ...)`, None for
                the standard normal.
            batch_size: The number of rows R.
            like: A tensor with the dtype and device to use.
        """
        if self.shape is None:
            raise ValueError(
                "'shape' should be given to the latent group: nothing has been encoded yet "
                "that it could be taken from."
            )
        if raw_prior is None:
            zeros = like.new_zeros(()).expand(batch_size, *self.shape)
            return DiagNormal(zeros, zeros, len(self.shape))
        loc, log_scale = raw_prior.to(like.dtype).chunk(2, dim=1)
        squash = self.posterior.squash
        return DiagNormal(squash(loc), squash(log_scale), len(self.shape))

    def _is_free(self, h: Tensor | None) -> bool:
        """Whether experts depend on their modality alone."""
        return h is None or not self.expert_sees_state

    def _experts(
        self,
        expert: nn.Module,
        h: Tensor | None,
        level: int,
        encodings: Encodings,
        given: Tensor,
        rows: Tensor | None,
        *,
        at_once: bool,
    ) -> dict[str, tuple[Tensor | None, Tensor]]:
        """The parameters of each expert and where they belong, None for everywhere.

        They belong to rows of `given`, or, if `at_once`, to samples of the batch.
        """
        outputs, of_state = {}, {}
        for column, (m, features) in enumerate(encodings.of(level)):
            if features is None:
                continue
            network = expert[m] if isinstance(expert, ModalityDict) else expert
            encoded = encodings.rows[m]  # (n), samples of the batch
            if at_once:
                outputs[m] = encoded, network(features)
                continue

            taking = None if encoded is None else given[:, column].nonzero()[:, 0]  # (k)
            if taking is not None and len(taking) == 0:
                continue
            if taking is not None and len(taking) == len(given):
                taking = None
            source = self._rows_to_read(encodings, m, taking, given, rows)
            if h is None or not self.expert_sees_state:
                out = _take(network(features), source)
            elif isinstance(network, ProjectionCell):
                # the state's part is the same for all modalities, the features' for all subsets
                if network not in of_state:
                    of_state[network] = network.begin(h)
                of_features = network.begin(features, after=h.shape[1])
                out = network.end(_take(of_state[network], taking) + _take(of_features, source))
            else:
                out = network(torch.cat([_take(h, taking), _take(features, source)], dim=1))
            outputs[m] = taking, out
        return outputs

    def _rows_to_read(
        self,
        encodings: Encodings,
        modality: str,
        taking: Tensor | None,
        given: Tensor,
        rows: Tensor | None,
    ) -> Tensor | None:
        """Which row of the features each row that takes part reads, None for its own."""
        encoded = encodings.rows[modality]
        size = encodings.batch_size
        whole = taking is None and (encoded is None or len(encoded) == size)
        if whole and rows is None and not torch.compiler.is_compiling() and len(given) == size:
            return None
        source = taking
        if source is None:
            source = torch.arange(given.shape[0], device=given.device)
        source = source % size if rows is None else rows[source]
        if encoded is not None:  # from samples of the batch to those that were encoded
            position = given.new_zeros(size, dtype=torch.long)
            position[encoded] = torch.arange(len(encoded), device=given.device)
            source = position[source]
        return source

    def _shape_from(
        self, outputs: dict[str, tuple[Tensor | None, Tensor]], level: int, encodings: Encodings
    ) -> tuple[int, ...]:
        found = {m: out for m, (_, out) in outputs.items()}
        if not found and level == 0:  # nothing is given: an expert of no rows shows the shape too
            found = {m: self._module(m)(f[0]) for m, f in encodings.features.items()}
        for m, out in found.items():
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

    def _source(self, modality: str) -> str:
        """What the parameters of a modality come from, as messages call it."""
        part = "encoder" if isinstance(self._module(modality), nn.Identity) else "expert"
        return f"The {part} of {modality!r}"

    def _module(self, modality: str) -> nn.Module:
        return self.expert[modality] if isinstance(self.expert, ModalityDict) else self.expert


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
    """The step down that forgets everything above: the next state is the sample."""

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """Returns `z`."""
        return z


def latent_groups(modules: nn.ModuleList) -> list[LatentGroup]:
    """Returns modules that are latent groups, in a list that type checkers know to hold them."""
    return list(modules)  # pyright: ignore[reportReturnType]


def top_down(
    groups: Sequence[LatentGroup],
    encodings: Encodings,
    given: Tensor,
    rows: Tensor | None = None,
    *,
    noise: Sequence[Tensor] | None = None,
    z: Sequence[Tensor] | None = None,
    sample: bool = True,
    temperature: float = 1.0,
    matched: bool = False,
    coarsest: Inference | None = None,
) -> tuple[Tensor, list[Inference]]:
    r"""Walks from the coarsest group to the finest.

    Arguments:
        groups: The groups, coarse to fine.
        encodings: What the encoders made of the batch of :math:`B` samples.
        given: What each row conditions on, boolean, with shape :math:`(R, M)`.
        rows: The sample of the batch that each row is about, with shape :math:`(R)`. None is the
            batch from first to last, R / B times.
        noise: Standard normal noise for each group; drawn if None.
        z: The latents of each group to pass down in place of samples; each group then holds the
            posterior and prior given those above.
        sample: Whether to sample; if not, means are passed down.
        temperature: The temperature of the samples.
        matched: Whether to use the matched experts.
        coarsest: The inference of the first group for all R rows, if it is known; the other
            arguments are then about those below it.

    Returns:
        The state after the last group, with shape :math:`(R, *)`, and the inference of each group.
    """
    h: Tensor | None = None
    steps: list[Inference] = []  # as torch.compile has it, which knows no list[Inference]()
    for level, group in enumerate(groups):
        if level == 0 and coarsest is not None:
            step = coarsest
        else:
            step = group(
                h,
                level,
                encodings,
                given,
                rows,
                noise=None if noise is None else noise[level],
                z=None if z is None else z[level],
                sample=sample,
                temperature=temperature,
                matched=matched,
            )
        h = group.merge(h, step.z)
        steps.append(step)
    assert h is not None  # there is at least one group
    return h, steps


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _settle(given: Tensor, q: tuple[Tensor, Tensor], p: DiagNormal) -> tuple[Tensor, Tensor]:
    """Makes rows that are given nothing equal to the prior in the last bit, soft clamps included.

    Backends compute their own hyperbolic tangent.
    """
    some = given.any(dim=1)
    if torch.compiler.is_compiling() or bool(some.all()):
        return q
    some = some.reshape(-1, *(1,) * (q[0].dim() - 1))
    return torch.where(some, q[0], p.loc), torch.where(some, q[1], p.log_scale)


def _check_parameters(out: Tensor, wanted: tuple[int, ...], who: str) -> None:
    if out.shape[1:] != wanted:
        raise ValueError(
            f"{who} should return a mean and a log standard deviation stacked along dimension 1, "
            f"with event shape {wanted}, but returns event shape {tuple(out.shape[1:])}."
        )
