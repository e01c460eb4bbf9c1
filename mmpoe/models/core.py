r"""The multimodal VAE that all models of the library are: encoders, latent groups, likelihoods."""

from __future__ import annotations

__all__ = ["MultimodalVAE", "Output", "UncalibratedWarning"]

import math
import os
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution
from torch.nn.parameter import UninitializedParameter

from mmpoe.distributions import DiagNormal, Draws
from mmpoe.hierarchy import (
    Context,
    Encodings,
    Experts,
    Inference,
    LatentGroup,
    Latents,
    State,
    Step,
    run,
)
from mmpoe.likelihoods import Likelihood
from mmpoe.missing import (
    Pairs,
    check_names,
    check_observed,
    collate,
    context_of,
    fill,
    valid_of,
)
from mmpoe.nn import ModalityDict, Recorded
from mmpoe.nn._asking import asks_for
from mmpoe.nn.cells import ResNetHead, can_run_together, run_heads
from mmpoe.nn.modes import evaluation
from mmpoe.posteriors import Draw

from ._inputs import (
    advice,
    check_context,
    check_entries,
    check_noise,
    check_pairs,
    check_scored_rows,
    check_weight,
    components_of,
    draw_component,
    given_mask,
)
from ._saving import explain_matched, load, save
from ._scoring import Cells, score
from .chunks import is_out_of_memory

if TYPE_CHECKING:
    from typing_extensions import Self


class UncalibratedWarning(UserWarning):
    """The spread of several samples is shown, and nothing has made it match the error."""


class Output(NamedTuple):
    """The likelihoods, divergences, latents, posteriors and priors of a batch.

    With `given` of shape (S, B, M), every batch shape gains a leading S.
    """

    likelihoods: dict[str, Distribution]
    """The distribution of each modality, p(x_m | z), with batch shape (B)."""
    kl: list[Tensor]
    """The divergence of each group, coarse to fine, in nats, each with shape (B)."""
    z: list[Tensor]
    """The sample of each group, coarse to fine, each with shape (B, \\*)."""
    posteriors: list[DiagNormal]
    """The posterior of each group given the sample of those above, coarse to fine."""
    priors: list[DiagNormal]
    """The prior of each group given the sample of those above, coarse to fine."""


class MultimodalVAE(Recorded, nn.Module):
    r"""A VAE over several modalities, any of which may be missing, with one or more latent groups.

    .. math::
        p(x, z) = p(z_L) \prod_{l < L} p(z_l \mid z_{>l}) \prod_m p(x_m \mid z), \qquad
        q(z \mid x_s) = \prod_l q(z_l \mid z_{>l}, x_s)

    Arguments:
        encoders: For each modality, a module that maps :math:`(N, *)` to its features: one tensor
            per latent group in a list, coarse to fine, or a single tensor if there is one group.
            Any network of the model may ask for covariates, and encoders for element masks, see
            :class:`mmpoe.missing.Batch`.
        groups: The latent groups, coarse to fine.
        decoders: For each modality, a likelihood that maps the last state to :math:`p(x_m \mid
            z)`.
        trunk: A module that all modalities share, between encoders and latent groups: encoders
            then return a single tensor, and the trunk maps the entries of all modalities at once,
            :math:`(N, *)`, to features.

    Attributes:
        modalities: The names of the modalities, in the order of the columns of all masks.
        family: The subsets of what is given that are components of the posterior, ``"full"`` for a
            product; that of the groups' rules.
        gather: Whether to encode only the rows in which a modality was observed. If not, missing
            entries are encoded as zeros, which are then masked: shapes do not depend on the mask,
            as compilation needs. None gathers unless compiled or exported. Results are the same,
            but for layers that mix rows, as batch normalisation does.
        spread: What deviates from predictions at temperature 0; None if it was not learned, see
            :func:`mmpoe.imputation.fit_spread`.
        validate: Whether to reject NaN and infinity in entries that are given. The check waits for
            the device; set it to False to save that time. Nothing is checked when compiled.

    Raises:
        ValueError: If `encoders` and `decoders` do not have the same keys, there is no group, or
            groups have posteriors of different families.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        groups: Sequence[LatentGroup],
        decoders: Mapping[str, nn.Module],
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("'encoders' should have at least one modality.")
        if set(encoders) != set(decoders):
            raise ValueError(
                "'encoders' and 'decoders' should have the same keys, "
                f"but have {sorted(encoders)} and {sorted(decoders)}."
            )
        if not groups:
            raise ValueError("'groups' should hold at least one latent group.")
        if groups[0].prior is not None and not asks_for(groups[0].prior, "context"):
            raise ValueError(
                "'groups' should start with a group whose 'prior' is None, the standard normal, "
                "or asks for 'context': there is no state above it."
            )
        for level, group in enumerate(groups):
            if isinstance(group.expert, ModalityDict):
                absent = [m for m in encoders if m not in group.expert]
                if absent:
                    raise ValueError(
                        f"'groups[{level}]' should have an expert for each modality, but has none "
                        f"for {', '.join(absent)}."
                    )
        self.modalities = list(encoders)
        self.encoders = ModalityDict(encoders)
        self.trunk = trunk
        # a ModuleList, whose items type checkers would take for any modules
        self.groups: Sequence[LatentGroup] = nn.ModuleList(groups)  # pyright: ignore
        self.decoders = ModalityDict({m: decoders[m] for m in self.modalities})
        families = list(dict.fromkeys(group.posterior.family for group in groups))
        if len(families) > 1:
            raise ValueError(
                "'groups' should have posteriors of one family, since one subset holds for all "
                f"groups, but have {', '.join(families)}."
            )
        self.family = families[0]
        self.gather: bool | None = None
        self.validate = True
        self.spread: nn.Module | None = None  # not registered: no keys of what is absent

    def forward(
        self,
        x: Mapping[str, Tensor],
        given: Tensor | Sequence[str] | None = None,
        *,
        noise: Sequence[Tensor] | None = None,
        temperature: float = 1.0,
    ) -> Output:
        r"""Infers the latents from what is given and decodes every modality.

        It is :meth:`encode`, :meth:`infer` and :meth:`decode` in a row. If the posterior is a
        mixture, one component is drawn for each row.

        Arguments:
            x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Entries
                that are not given are never read; a modality that is absent is not given.
            given: What to condition on: a boolean mask of shape :math:`(B, M)`, or
                :math:`(S, B, M)` for S subsets at once, or the names of some modalities, which
                every row must then have. By default, all that `x` holds.
            noise: Standard normal noise for each group, coarse to fine, each with the shape of its
                z; drawn if None.
            temperature: The temperature of the posterior samples; 0 passes means down. Divergences
                are always those of temperature 1.

        Raises:
            ValueError: If a modality is unknown, shapes do not agree, or a given entry is not
                finite.
        """
        mask = given_mask(x, given, self.modalities, self._like())
        encodings = self.encode(x, mask)
        component = draw_component(mask, self.family)
        q = self.infer(encodings, component, noise=noise, temperature=temperature)
        return Output(self.decode(q.state), q.kl, q.z, q.posteriors, q.priors)

    def encode(self, x: Mapping[str, Tensor], given: Tensor) -> Encodings:
        r"""Runs each encoder once, only on the rows in which its modality is given.

        Arguments:
            x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. A
                :class:`mmpoe.missing.Batch` also carries covariates, for all networks that ask for
                them, and element masks.
            given: The entries that some inference will condition on, boolean, with shape
                :math:`(B, M)`, or :math:`(S, B, M)` for S subsets.

        Returns:
            The features, from which :meth:`infer` infers any subset of what is given.

        Raises:
            ValueError: If a given entry is absent, of another dtype than the model, not finite or
                of a shape that its encoder rejects, a covariate or an element mask does not fit,
                or an encoder does not return one tensor per group.
        """
        if not isinstance(given, Tensor) or given.dtype != torch.bool:
            kind = given.dtype if isinstance(given, Tensor) else f"a {type(given).__name__}"
            raise ValueError(f"'given' should be a boolean tensor, but is {kind}.")
        check_names(list(x), self.modalities, argument="x")
        needed = given.any(dim=0) if given.dim() == 3 else given
        check_observed(needed, self.modalities, argument="given")
        context, valid = Context(context_of(x)), valid_of(x)
        check_names(list(valid), self.modalities, argument="valid")
        check_context(context.values, needed, self._like(), finite=self.validate)
        compiling = torch.compiler.is_compiling()
        gather = not compiling if self.gather is None else self.gather
        if gather and needed.is_meta:
            raise ValueError(
                "'x' should hold numbers, but is on the device 'meta'. A model there gets memory "
                "by 'to_empty', and its weights by 'load_state_dict'."
            )
        rows: dict[str, Tensor | None] = {}
        outputs: dict[str, Tensor | Sequence[Tensor]] = {}
        for column, m in enumerate(self.modalities):
            seen = needed[:, column]
            present = seen.nonzero()[:, 0] if gather else None
            if present is not None and len(present) == 0:
                continue
            if m not in x and (compiling or not bool(seen.any())):
                continue
            finite = self.validate and not compiling
            inside = valid.get(m)
            check_entries(x, m, seen, self._parameter(m), inside, finite=finite)
            entries = fill(x[m], seen) if present is None else x[m][present]
            if inside is not None:
                inside = inside.broadcast_to(x[m].shape)
                inside = inside if present is None else inside[present]
                entries = torch.where(inside, entries, 0)
            rows[m] = present
            outputs[m] = self._encode(m, entries, context.take(present), inside)

        if not outputs and x and self.groups[0].shape is None:
            m = next(iter(x))  # encode no rows of it, to learn the shape of the latents
            rows[m] = torch.zeros(0, dtype=torch.long, device=needed.device)
            outputs[m] = self._encode(m, x[m][:0], context.take(rows[m]))

        features = self._features(outputs, rows, context)
        like = self._like().new_zeros((), device=needed.device)
        return Encodings(self.modalities, needed, rows, features, like, context.values)

    def infer(
        self,
        encodings: Encodings,
        given: Tensor,
        *,
        rows: Tensor | None = None,
        z: Latents | None = None,
        noise: Sequence[Tensor] | None = None,
        temperature: float = 1.0,
        experts: Experts = "trained",
    ) -> Inference:
        r"""Infers the latents of all groups, coarse to fine, in one pass.

        .. math:: q(z \mid x_s) = \prod_l q(z_l \mid z_{>l}, x_s)

        It takes each subset as it is: of a posterior that is a mixture, it is the component to
        use, see :attr:`family`. Where nothing is given, the posterior is the prior.

        Arguments:
            encodings: The encodings of a batch.
            given: The subset :math:`s` to condition on, boolean: one for each sample, with shape
                :math:`(B, M)`; S for each, with shape :math:`(S, B, M)`; or, with `rows`, any R
                pairs of a sample and a subset, with shape :math:`(R, M)`.
            rows: The sample of each pair, with shape :math:`(R)`, see :func:`mmpoe.missing.pack`.
            z: The latents of each group, coarse to fine, to pass down in place of samples; they
                are returned as they are, with the posteriors and priors of each group given them.
                Or a function that is called with the level of a group (0 for the coarsest) and its
                posterior, of batch shape :math:`(N)`, and returns them.
            noise: Standard normal noise for each group, coarse to fine, each with the shape of its
                z; drawn if None.
            temperature: The temperature of the posterior samples; 0 passes means down. Divergences
                are always those of temperature 1.
            experts: The experts to infer with: those that were ``"trained"`` with the model, or
                the ``"matched"`` ones, see :func:`mmpoe.calibrate`.

        Returns:
            The latents, with batch shape :math:`(B)`, :math:`(S, B)` or :math:`(R)`.

        Raises:
            ValueError: If shapes do not agree, a pair is given what was not encoded, or there are
                no matched experts.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(
                f"'temperature' should be finite and at least 0, but is {temperature!r}."
            )
        if experts not in ("trained", "matched"):
            raise ValueError(f"'experts' should be trained or matched, but is {experts!r}.")
        check_pairs(given, rows, encodings, values=self.validate)
        pairs = Pairs.of(given, rows)
        shape = tuple(given.shape[:-1])
        if noise is not None:
            check_noise(noise, len(self.groups), shape)
            noise = [n.flatten(0, len(shape) - 1) for n in noise]
        if z is not None and not callable(z):
            check_noise(z, len(self.groups), shape, argument="z")
            z = [v.flatten(0, len(shape) - 1) for v in z]

        h: Tensor | None = None
        steps: list[Step] = []  # as torch.compile has it, which knows no list[Step]()
        for level, group in enumerate(self.groups):
            draw = Draw(None if noise is None else noise[level], temperature)
            latents = z if z is None or callable(z) else z[level]
            step = group(h, level, encodings, pairs, draw, latents, experts)
            h = run(group.merge, h, step.z, context=Context(encodings.context, pairs.rows))
            steps.append(step)
        assert h is not None  # there is at least one group
        return Inference(
            kl=[step.kl.unflatten(0, shape) for step in steps],
            z=[step.z.unflatten(0, shape) for step in steps],
            posteriors=[_unflatten(step.posterior, shape) for step in steps],
            priors=[_unflatten(step.prior, shape) for step in steps],
            state=State(h, Size(shape), Context(encodings.context, rows)),
        )

    def decode(
        self, state: State, targets: Sequence[str] | None = None
    ) -> dict[str, Distribution]:
        r"""Returns :math:`p(x_m \mid z)` of some modalities.

        Arguments:
            state: The state, of :meth:`infer`.
            targets: The modalities to decode; by default, all of them.

        Returns:
            The distribution of each target, with the batch shape of the state.

        Raises:
            ValueError: If a target is unknown, or a decoder returns no distribution or cannot
                decode several subsets at once.
        """
        targets = self.modalities if targets is None else targets
        check_names(targets, self.modalities, argument="targets")
        decoded = {}
        context = state.flatten().context
        computed = self._run_heads(targets, state)
        for m in targets:
            p = computed[m] if m in computed else self._decode(m, state, context)
            if not isinstance(p, Distribution):
                raise ValueError(
                    f"The decoder of {m!r} should return a distribution, as the modules in "
                    f"mmpoe.likelihoods do, but returns a {type(p).__name__}."
                )
            decoded[m] = p
        return decoded

    def log_likelihood(
        self,
        state: State,
        x: Mapping[str, Tensor],
        scored: Tensor,
        *,
        rows: Tensor | None = None,
        weight: Tensor | None = None,
        valid: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        r"""Returns the log-likelihood of entries, and decodes nothing but these.

        .. math:: \sum_{m \in r} w_m \log p(x_m \mid z)

        Arguments:
            state: The state, of :meth:`infer`, with batch shape :math:`(B)`, :math:`(S, B)` or
                :math:`(R)`.
            x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Entries
                that are not scored are never read.
            scored: The entries :math:`r` to score, boolean, with shape :math:`(B, M)`, or
                :math:`(R, M)` with `rows`.
            rows: The sample that each row of the state is about, with shape :math:`(R)`.
            weight: The weight :math:`w` of each entry, at least 0, broadcastable to the shape of
                `scored`; 1 if None. An entry of weight 0 is not scored.
            valid: For some modalities, the elements inside an entry to score, boolean,
                broadcastable to :math:`(B, *)`; those of the batch by default. Elements outside
                are never read.

        Returns:
            The log-likelihood, in nats, with the batch shape of the state.

        An optimal scale is fitted to what is scored if the state has one batch dimension. Several
        states of a row are scored with the scale that the likelihood keeps.

        Raises:
            ValueError: If shapes do not agree, a modality of `x` or `valid` is unknown, a scored
                entry is absent, not finite or outside the support of its likelihood. Values are
                checked if :attr:`validate` is set.
        """
        if not isinstance(state, State):
            raise ValueError(
                "'state' should be that of an inference, `q.state`, "
                f"but is of type {type(state).__name__}."
            )
        check_names(list(x), self.modalities, argument="x")
        valid = valid_of(x) if valid is None else valid
        check_names(list(valid), self.modalities, argument="valid")
        check_observed(scored, self.modalities, argument="scored")
        if state.shape[-1] != len(scored):
            raise ValueError(
                f"'scored' should have a row for each row of 'state' ({state.shape[-1]}), "
                f"but has shape {tuple(scored.shape)}."
            )
        check_scored_rows(x, scored, rows, values=self.validate)
        scored = scored.to(state.h.device)
        if weight is not None:
            weight = check_weight(weight, scored).to(state.h.device)
            scored = scored & (weight > 0)
        return score(self, state, x, Cells(scored, rows, weight), valid)

    @property
    def collate(
        self,
    ) -> Callable[[Sequence[Mapping[str, Any]]], tuple[MutableMapping[str, Tensor], Tensor]]:
        """Makes a batch of incomplete samples, columns in the order of this model's modalities.

        It is :func:`mmpoe.missing.collate` with the names of the modalities, and fits the argument
        `collate_fn` of a :class:`torch.utils.data.DataLoader`. It does not hold the model, which
        workers have no use for.
        """
        return partial(collate, modalities=list(self.modalities))

    @torch.no_grad()
    def predict(
        self,
        x: Mapping[str, Tensor],
        given: Tensor | Sequence[str] | None = None,
        *,
        targets: Sequence[str] | None = None,
        temperature: float = 1.0,
        samples: int = 1,
        experts: Experts | None = None,
        product: bool = False,
    ) -> dict[str, Distribution | Draws]:
        r"""Predicts modalities from those that are given.

        Nothing is recorded for gradients, and the model is in evaluation mode meanwhile. A row
        that is given nothing is generated from the prior: ``predict({}, torch.zeros(16,
        M).bool())`` generates 16 samples.

        Arguments:
            x: The batch, as for :meth:`forward`.
            given: What to condition on: a boolean mask of shape :math:`(B, M)`, or names of
                modalities that every row has.
            targets: The modalities to predict; by default, all of them. Only these are decoded.
            temperature: The temperature of the posterior samples; 0 is the prediction at the mean,
                and no draw takes part in it. That of a mixture is the mixture of the predictions
                at the means of all its components.
            samples: The number of latent samples K to draw for each row. With more than one, each
                prediction is a mixture of K likelihoods.
            experts: The experts to infer with, ``"trained"`` or ``"matched"``. By default the
                matched ones, if the model has any. If not, the spread of several samples is not
                calibrated, since posteriors trained to reconstruct unseen modalities are too
                narrow, and a warning says so.
            product: Whether to condition on the product of all that is given if the posterior is a
                mixture. That of :class:`~mmpoe.models.MoPoEVAE` never has a larger error with more
                given if experts are exact; that of the mixture may, since components that are
                given less take part.

        Returns:
            For each target, a distribution with ``mean`` and ``stddev`` of shape :math:`(B, *)`;
            the latter includes the noise of the likelihood.

        Raises:
            ValueError: As :meth:`forward`, and if a target is unknown or `samples` is not
                positive.
        """
        targets = self.modalities if targets is None else targets
        check_names(targets, self.modalities, argument="targets")
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"'samples' should be an integer of at least 1, but is {samples!r}.")
        mask = given_mask(x, given, self.modalities, self._like())
        experts = self.best_experts if experts is None else experts
        family = "full" if product else self.family_of(experts)
        whole = temperature == 0 and family != "full"  # all components, and none at random
        if samples > 1 and not whole:
            if mask.dim() != 2:
                raise ValueError(
                    f"'given' should have shape (B, M) to draw several samples, "
                    f"but has shape {tuple(mask.shape)}."
                )
            if experts != "matched":
                warnings.warn(
                    "The spread of these samples is not calibrated: it understates how far "
                    "predictions are from the truth. 'mmpoe.calibrate' makes it match.",
                    UncalibratedWarning,
                    stacklevel=3,
                )
            mask = mask.expand(samples, *mask.shape)
        with evaluation(self.modules()):
            encodings = self.encode(x, mask)
            weight = None
            if whole:
                component, weight = components_of(mask, family)
            else:
                component = draw_component(mask, family)
            q = self.infer(encodings, component, temperature=temperature, experts=experts)
            decoded = self.decode(q.state, targets)
        several = samples > 1 or weight is not None
        return {m: Draws(p, weight) if several else p for m, p in decoded.items()}

    @torch.no_grad()
    def fix_shapes(self, x: Mapping[str, Tensor]) -> None:
        """Fixes the shapes of latents that were left to the encoders.

        Groups without a `shape` take it from what the encoders return, in every call. What has to
        know it without a batch, such as :func:`mmpoe.imputation.add_matched_experts`, needs it
        fixed.

        Arguments:
            x: A batch that holds a modality or more, of any number of rows.
        """
        if all(group.shape is not None for group in self.groups):
            return
        with evaluation(self.modules()):
            none = given_mask(x, [], self.modalities, self._like())
            q = self.infer(self.encode(x, none), none)
        for group, z in zip(self.groups, q.z, strict=True):
            group.shape = tuple(z.shape[1:])

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        make: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the model to a folder: how it is built, its weights, and a model card.

        The folder holds ``config.json``, ``model.safetensors`` and ``README.md``, which is not
        replaced; no pickle. Matched experts, shapes that were fixed, :attr:`gather`,
        :attr:`validate` and the dtype are kept. Networks are built again from the arguments of
        their constructors: those of PyTorch and of this library tell them, networks of your own
        if they derive from :class:`mmpoe.nn.Recorded` or keep arguments as attributes of the same
        name.

        Arguments:
            folder: The folder; made if need be.
            make: A function that builds the model, as ``"package.module:function"``, for networks
                that cannot tell how they are built.
            arguments: The arguments of that function: numbers, strings, and lists and dictionaries
                of them.

        Raises:
            ValueError: If what would be built differs from this model in anything but its
                weights; nothing is written then.
        """
        save(self, folder, make, arguments)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, trust: Sequence[str] = ()) -> Self:
        """Reads a model that :meth:`save_pretrained` wrote, in evaluation mode.

        A folder names the classes of its networks, and loading imports and calls them: no others
        than modules of :mod:`mmpoe` and :mod:`torch.nn`, unless you trust more. Trust a package
        only if you would run its code whatever arguments the folder passes.

        Arguments:
            folder: The folder, or ``"hf://owner/name"`` or ``"hf://owner/name@revision"`` for one
                of the Hugging Face hub (extra ``mmpoe[hub]``).
            trust: More packages and modules whose classes and functions may be called, such as
                ``["my_package.networks"]``.

        Raises:
            ValueError: If the folder is damaged or of another format, holds another class of
                models, names code that is not trusted, or its weights do not fit.
        """
        return cast("Self", load(cls, folder, trust))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if strict:
            error_msgs += explain_matched(self, state_dict, prefix)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    @property
    def is_matched(self) -> bool:
        """Whether every group has matched experts, see :func:`mmpoe.calibrate`."""
        return all(group.matched is not None for group in self.groups)

    @property
    def best_experts(self) -> Experts:
        """The experts whose samples spread best: the matched ones, if there are any."""
        return "matched" if self.is_matched else "trained"

    def family_of(self, experts: Experts) -> str:
        """Returns the subsets that are components of a posterior: matched experts are a product.

        Arguments:
            experts: The experts that infer.
        """
        return "full" if experts == "matched" else self.family

    def _encode(
        self, modality: str, entries: Tensor, context: Context, valid: Tensor | None = None
    ) -> Tensor | Sequence[Tensor]:
        r"""Runs one encoder, and says whose entries they are if it cannot take them.

        Arguments:
            modality: The modality.
            entries: The entries to encode, with shape (n, \*).
            context: Their covariates.
            valid: Their elements that were observed, of the same shape; all if None.
        """
        encoder = self.encoders[modality]
        if valid is None and asks_for(encoder, "valid"):
            valid = torch.ones_like(entries, dtype=torch.bool)
        if torch.compiler.is_compiling():
            return run(encoder, entries, context=context, valid=valid)
        try:
            return run(encoder, entries, context=context, valid=valid)
        except (RuntimeError, ValueError) as error:
            if type(error) not in (RuntimeError, ValueError) or is_out_of_memory(error):
                raise
            raise ValueError(
                f"'x' should hold what the encoders take, but that of {modality!r}, given entries "
                f"of shape {tuple(entries.shape)} and {entries.dtype}, fails: "
                f"{error}{advice(error)}"
            ) from error

    def _run_heads(self, targets: Sequence[str], state: State) -> dict[str, Distribution]:
        """Runs the decoders that are image heads of one kind together."""
        decoders, heads = {}, []
        for m in targets:
            decoder = self.decoders[m]
            if not isinstance(decoder, Likelihood) or not isinstance(decoder.network, ResNetHead):
                continue
            if asks_for(decoder, "phi") and not decoder.asks_for_context:
                decoders[m] = decoder
                heads.append(decoder.network)
        if len(heads) < 2 or not can_run_together(heads, state.h):
            return {}
        z, dims = state.h.unflatten(0, state.shape), len(state.shape)
        computed = zip(decoders.items(), run_heads(heads, state.h), strict=True)
        return {m: decoder(z, dims, phi=phi) for (m, decoder), phi in computed}

    def _decode(self, modality: str, state: State, context: Context) -> Distribution:
        """Runs one decoder, and names the modality if it cannot take the state.

        Arguments:
            modality: The modality.
            state: The state.
            context: The covariates of its N rows.
        """
        decoder, dims = self.decoders[modality], len(state.shape)
        if dims > 1 and not isinstance(decoder, Likelihood):
            raise ValueError(
                f"The decoder of {modality!r} should be a mmpoe.likelihoods.Likelihood to decode "
                f"several subsets at once, but is a {type(decoder).__name__}."
            )
        if torch.compiler.is_compiling():
            return _run_decoder(decoder, state, context)
        try:
            return _run_decoder(decoder, state, context)
        except (RuntimeError, ValueError) as error:
            if type(error) not in (RuntimeError, ValueError) or is_out_of_memory(error):
                raise
            if isinstance(error, ValueError):
                raise ValueError(f"The decoder of {modality!r} fails: {error}") from error
            shape = tuple(state.h.shape[1:])
            raise ValueError(
                f"The decoder of {modality!r} should take states of shape (N, "
                f"{', '.join(map(str, shape))}), but fails: {error}. Without a merge, a state is "
                "the latents of the last group, half as many numbers as its experts return: a "
                "mean and a log standard deviation for each."
            ) from error

    def _like(self) -> Tensor:
        """A tensor with the dtype and device of the model."""
        parameter = _first_parameter(self)
        return torch.zeros(()) if parameter is None else parameter.detach()

    def _parameter(self, modality: str) -> Tensor | None:
        """A parameter with the dtype and device of what an encoder takes, None if any will do."""
        return _first_parameter(self.encoders[modality])

    def _features(
        self,
        outputs: dict[str, Tensor | Sequence[Tensor]],
        rows: Mapping[str, Tensor | None],
        context: Context,
    ) -> dict[str, list[Tensor]]:
        """The features of each modality, one tensor per group, from the outputs of encoders.

        Arguments:
            outputs: The outputs.
            rows: The rows of the batch that each was encoded in, None for all.
            context: The covariates of the batch.
        """
        for m, out in outputs.items():
            levels = out if isinstance(out, (list, tuple)) else [out]
            if wrong := [type(v).__name__ for v in levels if not isinstance(v, Tensor)]:
                raise ValueError(
                    f"The encoder of {m!r} should return a tensor, or a list with one per latent "
                    f"group, but returns a {type(out).__name__}"
                    + (f" of {wrong[0]}." if isinstance(out, (list, tuple)) else ".")
                )
        if self.trunk is not None and outputs:
            parts = cast("list[Tensor]", list(outputs.values()))
            if context.values:
                size = next(iter(context.values.values())).shape[0]
                every = torch.arange(size, device=parts[0].device)
                index = [every if rows[m] is None else rows[m] for m in outputs]
                context = context.take(torch.cat(cast("list[Tensor]", index)))
            joined = run(self.trunk, torch.cat(parts), context=context)
            joined = [joined] if isinstance(joined, Tensor) else list(joined)
            split = [level.split([part.shape[0] for part in parts]) for level in joined]
            outputs = dict(zip(outputs, zip(*split, strict=True), strict=True))

        features = {}
        for m, out in outputs.items():
            features[m] = [out] if isinstance(out, Tensor) else list(out)
            if len(features[m]) != len(self.groups):
                raise ValueError(
                    f"The encoder of {m!r} should return one tensor per latent group "
                    f"({len(self.groups)}), coarse to fine, but returns {len(features[m])}."
                )
        return features


def _first_parameter(network: nn.Module) -> Tensor | None:
    """The first parameter that has a shape already: those of lazy modules have none yet."""
    for p in network.parameters():
        if not isinstance(p, UninitializedParameter):
            return p
    return None


def _run_decoder(decoder: nn.Module, state: State, context: Context) -> Distribution:
    if isinstance(decoder, Likelihood) and not decoder.asks_for_context:
        context = Context({})  # which costs nothing to gather
    if len(state.shape) == 1:
        return run(decoder, state.h, context=context)
    return run(decoder, state.h.unflatten(0, state.shape), len(state.shape), context=context)


def _unflatten(q: DiagNormal, shape: tuple[int, ...]) -> DiagNormal:
    if len(shape) == 1:
        return q
    return DiagNormal(
        q.loc.unflatten(0, shape), q.log_scale.unflatten(0, shape), len(q.event_shape)
    )
