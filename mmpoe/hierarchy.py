r"""Latent groups and the top-down pass through them, the same for flat and hierarchical models.

A hierarchy :math:`p(z) = p(z_L) \prod_{l < L} p(z_l \mid z_{>l})` is a list of
:class:`LatentGroup`, coarse to fine. The *state* :math:`h` carries :math:`z_{>l}` from one group
to the next; the state after the last group is what decoders see.
"""

from __future__ import annotations

__all__ = ["Encodings", "Inference", "LatentGroup", "top_down"]

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .distributions import DiagNormal
from .nn import ModalityDict
from .posteriors import PoE


class Encodings(NamedTuple):
    """What the encoders made of a batch, computed once and shared by all groups and subsets."""

    modalities: list[str]
    batch_size: int
    rows: dict[str, Tensor]
    """The rows of the batch in which each modality was encoded, each of shape (n)."""
    features: dict[str, list[Tensor]]
    """The features of those rows, one tensor per group, coarse to fine, each of shape (n, \\*)."""
    like: Tensor
    """A scalar with the dtype and device of the model."""


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

    Raises:
        ValueError: If `shape` is not a sequence of positive numbers.
    """

    def __init__(
        self,
        shape: Sequence[int] | None,
        expert: nn.Module | Mapping[str, nn.Module],
        merge: nn.Module | None = None,
        prior: nn.Module | None = None,
        *,
        expert_sees_state: bool = True,
        posterior: PoE | None = None,
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

    def forward(
        self,
        h: Tensor | None,
        level: int,
        encodings: Encodings,
        given: Tensor,
        *,
        noise: Tensor | None = None,
        sample: bool = True,
        temperature: float = 1.0,
    ) -> Inference:
        r"""Infers :math:`q(z_l \mid z_{>l}, x_s)` for R rows: the batch, R / B times.

        Arguments:
            h: The state, with shape :math:`(R, *)`, or None above the first group.
            level: The index of this group, 0 for the coarsest.
            encodings: What the encoders made of the batch.
            given: What each row conditions on, boolean, with shape :math:`(R, M)`.
            noise: Standard normal noise, with the shape of z; drawn if None.
            sample: Whether to sample; if not, z is the mean.
            temperature: The temperature of the sample.
        """
        outputs = self._experts(h, level, encodings, given)
        raw_prior = None if self.prior is None else self.prior(h)

        if self.shape is None:
            self.shape = self._shape_from(outputs, level, encodings)
        wanted = (2 * self.shape[0], *self.shape[1:])
        parts = [out for _, out in outputs.values()] + ([] if raw_prior is None else [raw_prior])
        dtype = encodings.like.dtype if not parts else parts[0].dtype
        for part in parts:
            dtype = torch.promote_types(dtype, part.dtype)

        loc, log_scale = [], []
        for m in encodings.modalities:
            dense = encodings.like.new_zeros((len(given), *wanted), dtype=dtype)
            if m in outputs:
                rows, out = outputs[m]
                _check_parameters(out, wanted, self._source(m))
                dense = dense.index_copy(0, rows, out.to(dtype))
            mean, deviation = dense.chunk(2, dim=1)
            loc.append(mean)
            log_scale.append(deviation)

        prior = None
        if raw_prior is not None:
            _check_parameters(raw_prior, wanted, "The prior")
            prior_loc, prior_log_scale = raw_prior.to(dtype).chunk(2, dim=1)
            prior = (prior_loc, prior_log_scale)

        q = self.posterior(
            loc, log_scale, given, prior, noise=noise, sample=sample, temperature=temperature
        )
        event_dim = len(self.shape)
        return Inference(
            z=q.z,
            posterior=DiagNormal(q.loc, q.log_scale, event_dim),
            prior=self.prior_distribution(raw_prior, len(given), encodings.like.to(dtype)),
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

    def _experts(
        self, h: Tensor | None, level: int, encodings: Encodings, given: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The rows in which each expert takes part, and its parameters there."""
        outputs = {}
        for column, m in enumerate(encodings.modalities):
            rows = given[:, column].nonzero()[:, 0]  # (k), among R
            if len(rows) == 0:
                continue
            position = given.new_zeros(encodings.batch_size, dtype=torch.long)
            encoded = encodings.rows[m]
            position[encoded] = torch.arange(len(encoded), device=given.device)
            source = position[rows % encodings.batch_size]  # (k), among the encoded rows

            expert = self._module(m)
            features = encodings.features[m][level]
            if h is None or not self.expert_sees_state:
                out = expert(features)[source]
            else:
                out = expert(torch.cat([h[rows], features[source]], dim=1))
            outputs[m] = rows, out
        return outputs

    def _shape_from(
        self, outputs: dict[str, tuple[Tensor, Tensor]], level: int, encodings: Encodings
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


class Replace(nn.Module):
    """The step down that forgets everything above: the next state is the sample."""

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """Returns `z`."""
        return z


def top_down(
    groups: Sequence[LatentGroup],
    encodings: Encodings,
    given: Tensor,
    *,
    noise: Sequence[Tensor] | None = None,
    sample: bool = True,
    temperature: float = 1.0,
) -> tuple[Tensor, list[Inference]]:
    r"""Walks from the coarsest group to the finest.

    Arguments:
        groups: The groups, coarse to fine.
        encodings: What the encoders made of the batch of :math:`B` samples.
        given: What each row conditions on, boolean, with shape :math:`(R, M)`, R a multiple of B.
        noise: Standard normal noise for each group; drawn if None.
        sample: Whether to sample; if not, means are passed down.
        temperature: The temperature of the samples.

    Returns:
        The state after the last group, with shape :math:`(R, *)`, and the inference of each group.
    """
    h, steps = None, []
    for level, group in enumerate(groups):
        step: Inference = group(
            h,
            level,
            encodings,
            given,
            noise=None if noise is None else noise[level],
            sample=sample,
            temperature=temperature,
        )
        h = group.merge(h, step.z)
        steps.append(step)
    assert h is not None  # there is at least one group
    return h, steps


def _check_parameters(out: Tensor, wanted: tuple[int, ...], who: str) -> None:
    if out.shape[1:] != wanted:
        raise ValueError(
            f"{who} should return a mean and a log standard deviation stacked along dimension 1, "
            f"with event shape {wanted}, but returns event shape {tuple(out.shape[1:])}."
        )
