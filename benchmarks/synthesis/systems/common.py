"""The interface of systems, and helpers for images of which some are missing."""

from __future__ import annotations

__all__ = [
    "Batch",
    "System",
    "against",
    "check_among",
    "mean_by_row",
    "mean_error",
    "paste",
    "planes",
    "predict_channels",
    "predict_means",
    "stack",
]

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from mmpoe.missing import as_mask
from mmpoe.models import MultimodalVAE
from mmpoe.nn import evaluation
from mmpoe.training import Adversary

Batch = tuple[dict[str, Tensor], Tensor, Tensor]
"""Images by modality (B, 1, H, W) in [-1, 1]; what was observed (B, M); fields of view
(B, 1, H, W). Images that were not observed may hold anything, and are never read."""

BACKGROUND = -1.0
"""The value of what is outside the field of view."""


class System(Protocol):
    """A system that learns from incomplete patients to synthesise missing modalities."""

    network: nn.Module
    """The network that is trained, and synthesises."""
    modalities: list[str]
    """The names of all modalities, in the order of the columns of masks."""
    handled: list[str]
    """The modalities that it can be given and asked for."""
    lr: float
    """The highest learning rate."""
    adversary: Adversary | None
    """The adversary that is trained against the network, if there is one."""

    def loss(self, batch: Batch, done: float) -> Tensor:
        """Returns the loss of each row, with shape (B); it draws what is given of each row.

        Arguments:
            batch: A batch, in which each row has its own missing modalities.
            done: The share of training done so far, from 0 to 1.
        """
        ...

    def synthesise(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        targets: Sequence[str],
        temperature: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the targets, each with shape (B, 1, H, W), in [-1, 1].

        Arguments:
            x: Images by modality (B, 1, H, W); those that are not given are never read.
            given: What to condition on, boolean, with shape (B, M), an own subset for each row.
            targets: Names of modalities that it handles.
            temperature: The temperature of the latent sample; 0 is the mean. Systems without
                latents have no use for it.
        """
        ...


def against(critic: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Adversary:
    """Returns an adversary that learns as those of the publications do: Adam, 2e-4, 0.5, 0.999.

    Arguments:
        critic: The discriminator.
        loss: Its loss of each row, about what the system made of the batch at hand.
    """
    adam = partial(torch.optim.Adam, betas=(0.5, 0.999))
    return Adversary(critic, lambda critic, batch, done: loss(critic), 2e-4, 0.0, adam)


def stack(
    x: Mapping[str, Tensor], mask: Tensor, modalities: Sequence[str], fill: float = BACKGROUND
) -> Tensor:
    """Returns images as channels (B, M, H, W), with a number in place of those outside the mask.

    Arguments:
        x: Images by modality, (B, 1, H, W).
        mask: Which to take, boolean, with shape (B, M).
        modalities: The names of the columns.
        fill: What to put in place of the others.

    Raises:
        ValueError: If the mask does not have one boolean column per modality, or what it takes is
            absent or not finite.
    """
    check_among("x", x, modalities)
    like = next(iter(x.values()))
    mask = as_mask(mask, modalities, len(like)).to(like.device)
    channels = []
    for column, m in enumerate(modalities):
        chosen = mask[:, column]
        if m in x:
            channel = torch.where(chosen[:, None, None, None], x[m], fill)
            if not bool(channel.isfinite().all()):
                raise ValueError(
                    f"'x' should be finite where the mask takes it, but {m!r} is not."
                )
            channels.append(channel)
        elif bool(chosen.any()):
            raise ValueError(f"'x' should hold {m!r}, which the mask takes, but it is absent.")
        else:
            channels.append(torch.full_like(like, fill))
    return torch.cat(channels, dim=1)


def check_among(argument: str, names: Iterable[str], modalities: Sequence[str]) -> None:
    """Raises a ValueError that lists the modalities unless all names are among them."""
    for name in names:
        if name not in modalities:
            raise ValueError(
                f"'{argument}' should be among {', '.join(modalities)}, but holds {name!r}."
            )


def planes(mask: Tensor, like: Tensor) -> Tensor:
    """Returns a mask (B, M) as one constant image per column, of the height and width of `like`.

    Arguments:
        mask: The mask, boolean.
        like: Any images (B, C, H, W).
    """
    return mask.to(like)[:, :, None, None].expand(*mask.shape, *like.shape[2:])


def mean_error(images: Tensor, truth: Tensor, scored: Tensor, fov: Tensor) -> Tensor:
    """Returns the mean absolute error of each row (B) in view, 0 for rows of which none is scored.

    Arguments:
        images: What was synthesised, with shape (B, M, H, W).
        truth: What is true, with the same shape; finite everywhere, see :func:`stack`.
        scored: Which modalities of which rows count, boolean, with shape (B, M).
        fov: The fields of view, boolean, with shape (B, 1, H, W).
    """
    where = scored[:, :, None, None].to(fov.device) & fov  # (B, M, H, W)
    error = torch.where(where, (images - truth).abs(), 0)
    return error.flatten(1).sum(dim=1) / where.flatten(1).sum(dim=1).clamp(min=1)


def mean_by_row(values: Tensor, counted: Tensor) -> Tensor:
    """Returns the mean of the values (B, M) that count in each row (B), 0 where none does."""
    return torch.where(counted, values, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def paste(images: Tensor, real: Tensor, hidden: Tensor, fov: Tensor) -> tuple[Tensor, Tensor]:
    """Returns fake and real images for a discriminator: equal but for hidden modalities.

    They are -1 outside the field of view.

    Arguments:
        images: What was synthesised, with shape (B, M, H, W).
        real: Real images, with the same shape.
        hidden: Which modalities of which rows are synthesised, boolean, with shape (B, M).
        fov: The fields of view, boolean, with shape (B, 1, H, W).
    """
    real = torch.where(fov, real, BACKGROUND)
    return torch.where(hidden[:, :, None, None] & fov, images, real), real


@torch.no_grad()
def predict_channels(
    network: nn.Module, images: Tensor, modalities: Sequence[str], targets: Sequence[str]
) -> dict[str, Tensor]:
    """Returns some output channels of a network, each with shape (B, 1, H, W).

    Arguments:
        network: Maps images (B, C, H, W) to one channel for each modality.
        images: Its input.
        modalities: The names of its output channels.
        targets: The modalities to return.
    """
    check_among("targets", targets, modalities)
    with evaluation(network.modules()):
        out = network(images)
    return {m: out[:, [modalities.index(m)]] for m in targets}


@torch.no_grad()
def predict_means(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    given: Tensor,
    targets: Sequence[str],
    temperature: float = 0.0,
) -> dict[str, Tensor]:
    """Returns the predictions of a VAE at the mean of its posterior, or at a sample.

    The posterior of a mixture is the product of all that is given.

    Arguments:
        model: The model.
        x: Images by modality; those that are not given are never read.
        given: What to condition on, boolean, with shape (B, M).
        targets: The modalities to decode.
        temperature: The temperature of the sample; 0 is the mean.
    """
    with evaluation(model.modules()):
        q = model.infer(model.encode(x, given), given, temperature=temperature)
        decoded = model.decode(q.state, targets)
    return {m: p.mean for m, p in decoded.items()}
