r"""The adversarial losses of a model and of its discriminators: one number per row."""

from __future__ import annotations

__all__ = ["adversarial_loss", "discriminator_loss"]

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmpoe.missing import check_finite, check_names, check_observed, check_valid
from mmpoe.models import Output
from mmpoe.models._inputs import absent
from mmpoe.nn import ModalityDict

from ._losses import KINDS, Kind, over_patches
from .bank import ImageBank
from .penalties import gradient_penalty

Discriminators = Mapping[str, nn.Module] | ModalityDict
"""For some modalities, a module that maps (N, \\*) to scores, (N, \\*)."""

Penalty = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Maps a discriminator, real samples and fake samples, (N, \\*) each, to penalties, (N)."""


def adversarial_loss(
    output: Output,
    discriminators: Discriminators,
    scored: Tensor,
    *,
    kind: Kind = "lsgan",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Returns the adversarial loss of a model, which is low where discriminators score high.

    .. math:: \frac{1}{M} \sum_{m \in J} \ell\big(D_m(\hat x_m)\big), \qquad
        \hat x_m = \mathrm{E}_{p(x_m \mid z)}[x_m]

    where :math:`J` are the scored modalities of a row. :math:`\ell(D)` is :math:`(D - 1)^2` for
    ``"lsgan"``, :math:`-\log \sigma(D)` for ``"nonsaturating"``, and :math:`-D` for ``"hinge"``
    and ``"wgan_gp"``, averaged over the patches of a sample. Discriminators are constants: they
    get no gradient.

    Arguments:
        output: The output of a model.
        discriminators: For some modalities, a module that maps :math:`(N, *)` to scores,
            :math:`(N, *)`. Modalities without one are not scored.
        scored: Which modalities of which rows are scored, boolean, with shape :math:`(B, M)`,
            :math:`(S, B, M)` or :math:`(R, M)`, see :func:`scored_targets`.
        kind: The loss: ``"lsgan"``, ``"hinge"``, ``"nonsaturating"`` or ``"wgan_gp"``.
        valid: For some modalities, which elements inside an entry are in view, boolean,
            broadcastable to :math:`(B, *)`. Discriminators see 0 in place of others.

    Returns:
        The loss, to be minimised along with minus a bound, with the batch shape of the output:
        :math:`(B)`, :math:`(S, B)` or :math:`(R)`. It is 0 for rows without scored modalities.

    Raises:
        ValueError: If `scored` is not boolean or does not have the shape of the output, `kind` or
            the name of a modality is unknown, or a discriminator does not return scores.

    References:
        | Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of
          Product-of-Experts (Dorent et al., 2026)
        | https://doi.org/10.1109/TPAMI.2025.3616632
    """
    _check(output, discriminators, scored, kind, valid)
    total = _zeros(output)
    for m, discriminator in discriminators.items():
        place, fake = _fakes(output, scored, m, valid)
        if len(place):
            constants = {name: p.detach() for name, p in discriminator.named_parameters()}
            scores = functional_call(discriminator, constants, (fake,))
            _check_scores(scores, fake, m)
            loss = over_patches(KINDS[kind].model(scores))
            total = total.index_add(0, place, loss.to(total.dtype))
    return total.unflatten(0, scored.shape[:-1]) / scored.shape[-1]


def discriminator_loss(
    output: Output,
    discriminators: Discriminators,
    x: Mapping[str, Tensor],
    observed: Tensor,
    scored: Tensor,
    *,
    kind: Kind = "lsgan",
    penalty: Penalty | None = None,
    bank: ImageBank | None = None,
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Returns the loss of discriminators, which is low where they tell real from fake.

    .. math:: \frac{1}{M} \sum_{m \in J}
        \ell_\mathrm{real}\big(D_m(x_m)\big) + \ell_\mathrm{fake}\big(D_m(\hat x_m)\big)

    where :math:`J` are the scored modalities of a row, and the losses of a score :math:`D` are

    - ``"lsgan"``: :math:`(D - 1)^2` and :math:`D^2`;
    - ``"hinge"``: :math:`\max(0, 1 - D)` and :math:`\max(0, 1 + D)`;
    - ``"nonsaturating"``: :math:`-\log \sigma(D)` and :math:`-\log \sigma(-D)`;
    - ``"wgan_gp"``: :math:`-D` and :math:`D`, with 10 times :func:`gradient_penalty`.

    Each :math:`\hat x_m` has a real counterpart :math:`x_m`: what the row itself observed of the
    modality or, if nothing, an image drawn from the bank or, if that has none, from the rows of
    the batch that observed it. A modality without any real image is left out. The model is a
    constant: it gets no gradient.

    Arguments:
        output: The output of a model.
        discriminators: For some modalities, a module that maps :math:`(N, *)` to scores,
            :math:`(N, *)`. Modalities without one are not scored.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read; modalities that were observed nowhere may be absent.
        observed: What was observed, boolean, with shape :math:`(B, M)`.
        scored: Which modalities of which rows are scored, boolean, with shape :math:`(B, M)`,
            :math:`(S, B, M)` or :math:`(R, M)`, see :func:`scored_targets`. If the output is
            packed, `x`, `observed` and `valid` have one row for each of its rows as well.
        kind: The losses: ``"lsgan"``, ``"hinge"``, ``"nonsaturating"`` or ``"wgan_gp"``.
        penalty: Called with a discriminator, real samples and fake samples, each with shape
            :math:`(N, *)`; returns a penalty of each pair, with shape :math:`(N)`, to add to its
            loss, such as a multiple of :func:`r1_penalty`. If None, 10 times
            :func:`gradient_penalty` for ``"wgan_gp"``, and none for others.
        bank: Real images from earlier batches. Nothing is pushed here.
        valid: For some modalities, which elements inside an entry are in view, boolean,
            broadcastable to :math:`(B, *)`. Elements outside are never read: discriminators see 0.

    Returns:
        The loss, to be minimised, with the batch shape of the output: :math:`(B)`,
        :math:`(S, B)` or :math:`(R)`. It is 0 for rows without scored modalities.

    Raises:
        ValueError: As :func:`adversarial_loss`, and if `observed` does not have one boolean column
            per modality, or an observed entry is absent, not finite, or of another shape than
            what is decoded.

    References:
        | Least Squares Generative Adversarial Networks (Mao et al., 2017)
        | https://arxiv.org/abs/1611.04076
        | Geometric GAN (Lim & Ye, 2017)
        | https://arxiv.org/abs/1705.02894
        | Generative Adversarial Networks (Goodfellow et al., 2014)
        | https://arxiv.org/abs/1406.2661
        | Wasserstein GAN (Arjovsky et al., 2017)
        | https://arxiv.org/abs/1701.07875
    """
    _check(output, discriminators, scored, kind, valid)
    _check_batch(output, discriminators, x, observed, valid)
    if penalty is None and kind == "wgan_gp":
        penalty = _ten_gradient_penalties
    batch, of = _Batch(x, observed, valid, bank), KINDS[kind]
    total = _zeros(output)
    for m, discriminator in discriminators.items():
        place, fake = _fakes(output, scored, m, valid)
        real = _reals(batch, m, _column(output, m), place % len(observed), fake)
        if real is None:
            continue
        both = torch.cat([real, fake.detach()])
        scores = discriminator(both)
        _check_scores(scores, both, m)
        of_real, of_fake = scores.chunk(2)
        loss = over_patches(of.real(of_real)) + over_patches(of.fake(of_fake))
        if penalty is not None:
            loss = loss + penalty(discriminator, *both.chunk(2))
        total = total.index_add(0, place, loss.to(total.dtype))
    return total.unflatten(0, scored.shape[:-1]) / scored.shape[-1]


class _Batch(NamedTuple):
    """The real images that there are: see :func:`discriminator_loss`."""

    x: Mapping[str, Tensor]
    observed: Tensor
    valid: Mapping[str, Tensor] | None
    bank: ImageBank | None


def _fakes(
    output: Output, scored: Tensor, modality: str, valid: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """The indices of the scored rows of a modality in the flat batch, (N), and images, (N, *)."""
    p = output.likelihoods[modality]
    chosen = scored[..., _column(output, modality)]  # (B) or (S, B)
    place = chosen.flatten().nonzero()[:, 0].to(output.kl[0].device)
    images = p.mean.flatten(0, chosen.dim() - 1).index_select(0, place)
    return place, _in_view(images, modality, place % scored.shape[-2], scored.shape[-2], valid)


def _reals(
    batch: _Batch, modality: str, column: int, sample: Tensor, fake: Tensor
) -> Tensor | None:
    """A real counterpart for each fake image of some samples (N); None if there is none."""
    seen = batch.observed[:, column].to(sample.device)
    own = seen[sample]  # (N)
    lacking = int((~own).sum())
    bank = batch.bank if batch.bank is not None and modality in batch.bank.images else None
    pool = seen.nonzero()[:, 0]
    if lacking and bank is None and len(pool):  # other rows of the batch stand in
        drawn = torch.randint(len(pool), own.shape).to(pool.device)
        sample, own, lacking = torch.where(own, sample, pool[drawn]), torch.ones_like(own), 0
    if len(sample) == 0 or (lacking and bank is None):
        return None

    real = torch.empty_like(fake, requires_grad=False)
    if lacking < len(sample):
        rows = sample[own]
        images = batch.x[modality].index_select(0, rows).to(real)
        real[own] = _in_view(images, modality, rows, len(seen), batch.valid)
    if bank is not None and lacking:
        real[~own] = bank.draw(modality, lacking).to(real)
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


def _ten_gradient_penalties(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    return 10 * gradient_penalty(discriminator, real, fake)


def _check(
    output: Output,
    discriminators: Discriminators,
    scored: Tensor,
    kind: str,
    valid: Mapping[str, Tensor] | None,
) -> None:
    modalities = list(output.likelihoods)
    if kind not in KINDS:
        raise ValueError(f"'kind' should be one of {', '.join(KINDS)}, but is {kind!r}.")
    check_names(list(discriminators), modalities, argument="discriminators")
    check_names(list(valid or {}), modalities, argument="valid")
    shape = (*output.kl[0].shape, len(modalities))
    if scored.dtype != torch.bool or scored.shape != shape:
        raise ValueError(
            f"'scored' should be boolean and have the shape of the output, {shape}, "
            f"but has dtype {scored.dtype} and shape {tuple(scored.shape)}."
        )
    for m, inside in (valid or {}).items():
        check_valid(inside, (scored.shape[-2], *output.likelihoods[m].event_shape), m)


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
