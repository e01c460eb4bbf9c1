r"""The adversarial terms of a model's output: one number per row, never averaged."""

from __future__ import annotations

__all__ = ["Discriminators", "adversarial_loss", "discriminator_loss"]

from collections.abc import Mapping
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from mmpoe.likelihoods.scoring import check_valid
from mmpoe.missing import check_finite, check_names, check_observed
from mmpoe.models import Output
from mmpoe.models.inputs import absent
from mmpoe.nn import ModalityDict

from .bank import ImageBank
from .losses import KINDS, Kind
from .penalties import gradient_penalty, r1_penalty

Discriminators = Mapping[str, nn.Module] | ModalityDict
"""For some modalities, a module that maps (N, \\*) to scores, (N, \\*)."""


def adversarial_loss(
    output: Output,
    discriminators: Discriminators,
    judged: Tensor,
    *,
    kind: Kind = "lsgan",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Charges a model for what discriminators do not take for real.

    .. math:: \frac{1}{M} \sum_{m \in J} \ell_G\big(D_m(\hat x_m)\big), \qquad
        \hat x_m = \mathrm{E}_{p(x_m \mid z)}[x_m]

    where :math:`J` is what is judged of a row. Discriminators are constants: they get no gradient.

    Arguments:
        output: The output of a model.
        discriminators: For some modalities, a module that maps :math:`(N, *)` to scores,
            :math:`(N, *)`. Modalities without one are not judged.
        judged: What is judged, boolean, with shape :math:`(B, M)`, :math:`(S, B, M)` or
            :math:`(R, M)`, see :func:`judged_targets`.
        kind: The losses: ``"lsgan"``, ``"hinge"``, ``"nonsaturating"`` or ``"wgan_gp"``.
        valid: For some modalities, which elements inside an entry are in view, boolean,
            broadcastable to :math:`(B, *)`. Discriminators see 0 in place of others.

    Returns:
        The loss, to be minimised along with minus a bound, with the batch shape of the output:
        :math:`(B)`, :math:`(S, B)` or :math:`(R)`. It is 0 for rows of which nothing is judged.

    Raises:
        ValueError: If `judged` is not boolean or does not have the shape of the output, `kind` or
            the name of a modality is unknown, or a discriminator does not return scores.

    References:
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632
    """
    _check(output, discriminators, judged, kind, valid)
    total = _zeros(output)
    for m, critic in discriminators.items():
        place, fake = _fakes(output, judged, m, valid)
        if len(place):
            constants = {name: p.detach() for name, p in critic.named_parameters()}
            scores = functional_call(critic, constants, (fake,))
            _check_scores(scores, fake, m)
            total = total.index_add(0, place, KINDS[kind].generator(scores).to(total.dtype))
    return total.unflatten(0, judged.shape[:-1]) / judged.shape[-1]


def discriminator_loss(
    output: Output,
    discriminators: Discriminators,
    x: Mapping[str, Tensor],
    observed: Tensor,
    judged: Tensor,
    *,
    kind: Kind = "lsgan",
    bank: ImageBank | None = None,
    valid: Mapping[str, Tensor] | None = None,
    gp_weight: float = 10.0,
    r1_weight: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    r"""Charges discriminators for what they do not tell from real.

    .. math:: \frac{1}{M} \sum_{m \in J}
        \ell_\mathrm{real}\big(D_m(x_m)\big) + \ell_\mathrm{fake}\big(D_m(\hat x_m)\big)

    where :math:`J` is what is judged of a row. Each :math:`\hat x_m` has a real counterpart
    :math:`x_m`: what the row itself observed of the modality or, if nothing, an image drawn from
    the bank or, if that has none, from the rows of the batch that observed it. A modality of which
    there is no real image at all is left out. The model is a constant: it gets no gradient.

    Arguments:
        output: The output of a model.
        discriminators: For some modalities, a module that maps :math:`(N, *)` to scores,
            :math:`(N, *)`. Modalities without one are not judged.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read; modalities that were observed nowhere may be absent.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        judged: What is judged, boolean, with shape :math:`(B, M)`, :math:`(S, B, M)` or
            :math:`(R, M)`, see :func:`judged_targets`. If the output is packed, `x`, `observed`
            and `valid` have one row for each of its rows as well.
        kind: The losses: ``"lsgan"``, ``"hinge"``, ``"nonsaturating"``, or ``"wgan_gp"``, to which
            :func:`gradient_penalty` belongs.
        bank: Real images of the past. Nothing is pushed here.
        valid: For some modalities, which elements inside an entry are in view, boolean,
            broadcastable to :math:`(B, *)`. Elements outside are never read: discriminators see 0.
        gp_weight: The weight of :func:`gradient_penalty`, for ``"wgan_gp"``.
        r1_weight: The weight of :func:`r1_penalty`, for any losses.
        generator: The random generator, on the CPU, for what is drawn from the batch and for
            :func:`gradient_penalty`; PyTorch's own if None. A bank draws from its own.

    Returns:
        The loss, to be minimised, with the batch shape of the output: :math:`(B)`,
        :math:`(S, B)` or :math:`(R)`. It is 0 for rows of which nothing is judged.

    Raises:
        ValueError: As :func:`adversarial_loss`, and if `observed` does not have one boolean column
            per modality, an observed entry is absent, not finite or not like what is decoded, or a
            weight is negative.

    References:
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632
    """
    _check(output, discriminators, judged, kind, valid)
    _check_batch(output, discriminators, x, observed, valid)
    for name, weight in {"gp_weight": gp_weight, "r1_weight": r1_weight}.items():
        if not weight >= 0:
            raise ValueError(f"'{name}' should be at least 0, but is {weight}.")

    total = _zeros(output)
    for m, critic in discriminators.items():
        place, fake = _fakes(output, judged, m, valid)
        seen = observed[:, _column(output, m)].to(place.device)
        real = _reals(x, m, seen, place % len(seen), fake, bank, valid, generator)
        if real is None:
            continue
        both = torch.cat([real, fake.detach()])
        scores = critic(both)
        _check_scores(scores, both, m)
        of_real, of_fake = KINDS[kind].discriminator(*scores.chunk(2))
        loss = of_real + of_fake
        if kind == "wgan_gp" and gp_weight > 0:
            loss = loss + gp_weight * gradient_penalty(critic, *both.chunk(2), generator=generator)
        if r1_weight > 0:
            loss = loss + r1_weight * r1_penalty(critic, real)
        total = total.index_add(0, place, loss.to(total.dtype))
    return total.unflatten(0, judged.shape[:-1]) / judged.shape[-1]


def _fakes(
    output: Output, judged: Tensor, modality: str, valid: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Where what is judged of a modality stands in the flat batch, (N), and its images, (N, *)."""
    p = output.likelihoods[modality]
    chosen = judged[..., _column(output, modality)]  # (B) or (S, B)
    place = chosen.flatten().nonzero()[:, 0].to(output.kl[0].device)
    images = p.mean.flatten(0, chosen.dim() - 1).index_select(0, place)
    return place, _in_view(images, modality, place % judged.shape[-2], judged.shape[-2], valid)


def _reals(
    x: Mapping[str, Tensor],
    modality: str,
    seen: Tensor,
    sample: Tensor,
    fake: Tensor,
    bank: ImageBank | None,
    valid: Mapping[str, Tensor] | None,
    generator: Generator | None,
) -> Tensor | None:
    """A real counterpart for each image of some samples (N), None if there is none."""
    own = seen[sample]  # (N)
    lacking = int((~own).sum())
    remembered = bank is not None and modality in bank.images
    pool = seen.nonzero()[:, 0]
    if lacking and not remembered and len(pool):  # others of the batch stand in
        drawn = torch.randint(len(pool), own.shape, generator=generator).to(pool.device)
        sample, own, lacking = torch.where(own, sample, pool[drawn]), torch.ones_like(own), 0
    if len(sample) == 0 or (lacking and not remembered):
        return None

    real = torch.empty_like(fake, requires_grad=False)
    if lacking < len(sample):
        rows = sample[own]
        images = x[modality].index_select(0, rows).to(real)
        real[own] = _in_view(images, modality, rows, len(seen), valid)
    if lacking:
        real[~own] = cast("ImageBank", bank).draw(modality, lacking).to(real)
    return real


def _in_view(
    images: Tensor,
    modality: str,
    sample: Tensor,
    size: int,
    valid: Mapping[str, Tensor] | None,
) -> Tensor:
    """The images of some samples (N) of a batch of some size, with 0 outside the view."""
    if valid is None or modality not in valid:
        return images
    inside = valid[modality].to(images.device).broadcast_to(size, *images.shape[1:])
    return torch.where(inside.index_select(0, sample), images, 0)


def _zeros(output: Output) -> Tensor:
    """A zero for each row, flat; a leaf, so that gradients of it exist if nothing is added."""
    kl = output.kl[0]
    options = {"dtype": kl.dtype, "device": kl.device}
    return torch.zeros(kl.numel(), **options, requires_grad=torch.is_grad_enabled())


def _column(output: Output, modality: str) -> int:
    return list(output.likelihoods).index(modality)


def _check(
    output: Output,
    discriminators: Discriminators,
    judged: Tensor,
    kind: str,
    valid: Mapping[str, Tensor] | None,
) -> None:
    modalities = list(output.likelihoods)
    if kind not in KINDS:
        raise ValueError(f"'kind' should be one of {', '.join(KINDS)}, but is {kind!r}.")
    check_names(list(discriminators), modalities, argument="discriminators")
    check_names(list(valid or {}), modalities, argument="valid")
    shape = (*output.kl[0].shape, len(modalities))
    if judged.dtype != torch.bool or judged.shape != shape:
        raise ValueError(
            f"'judged' should be boolean and have the shape of the output, {shape}, "
            f"but has dtype {judged.dtype} and shape {tuple(judged.shape)}."
        )
    for m, inside in (valid or {}).items():
        check_valid(inside, (judged.shape[-2], *output.likelihoods[m].event_shape), m)


def _check_batch(
    output: Output,
    discriminators: Discriminators,
    x: Mapping[str, Tensor],
    observed: Tensor,
    valid: Mapping[str, Tensor] | None,
) -> None:
    modalities = list(output.likelihoods)
    check_observed(observed, modalities)
    check_names(list(x), modalities, argument="x")
    size = output.kl[0].shape[-1]
    if len(observed) != size:
        raise ValueError(
            f"'observed' should have one row per row of the output ({size}), "
            f"but has shape {tuple(observed.shape)}."
        )
    for m in discriminators:
        seen = observed[:, modalities.index(m)]
        if m not in x:
            if bool(seen.any()):
                raise absent(m, x)
            continue
        shape = (size, *output.likelihoods[m].event_shape)
        if x[m].shape != shape:
            raise ValueError(
                f"'x' should have one row per row of 'observed' and the shape of what is decoded, "
                f"{shape}, but {m!r} has shape {tuple(x[m].shape)}."
            )
        check_finite(x[m], seen.to(x[m].device), m, None if valid is None else valid.get(m))


def _check_scores(scores: object, images: Tensor, modality: str) -> None:
    if not isinstance(scores, Tensor) or scores.shape[:1] != images.shape[:1]:
        shown = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"The discriminator of {modality!r} should return scores of shape "
            f"({len(images)}, *) for as many images, but returns {shown}."
        )
