"""Discriminators that are trained against a model, as the published MMHVAE was."""

from __future__ import annotations

__all__ = ["Critics", "Judge"]

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpoe.adversarial import ImageBank, adversarial_loss, discriminator_loss, scored_targets
from mmpoe.models import Output
from mmpoe.nn import ModalityDict, PatchDiscriminator
from mmpoe.training import Adversary

from .checks import check_integer, check_number, check_positive


@dataclass(frozen=True)
class Critics:
    """One discriminator of patches for each modality; none unless they have a weight."""

    weight: float = 0.0
    """The weight of the generator loss, in nats per pixel in view. 0 trains without
    discriminators; the published weight, 0.025 of half the mean absolute error, is 100 for a
    Laplace scale of 0.002 and four modalities."""
    width: int = 64
    """The number of channels after their first convolution."""
    lr: float = 2e-4
    """Their learning rate."""
    start: float = 0.79
    """The share of training from which on they are trained."""
    charge: float = 0.8
    """The share of training from which on the generator loss counts."""
    bank: int = 0
    """The number of real images to remember of each modality. With them, discriminators also learn
    from what was never observed; 0 is the published code, whose own bank has no effect."""

    def check(self) -> None:
        """Raises a ValueError that names the setting, if there is one that cannot be used."""
        check_number("weight", self.weight, 0)
        check_integer("width", self.width, 1)
        check_positive("lr", self.lr)
        check_number("start", self.start, 0, 1)
        check_number("charge", self.charge, self.start, 1)
        check_integer("bank", self.bank, 0)


class Judge:
    """The discriminators: their loss for the model, and their own training.

    As in the published code, every modality of the model is scored, but not where all that was
    observed was given, and discriminators learn from what was hidden although it was observed.
    With a bank, they learn from all that was hidden.

    Arguments:
        critics: How to train them.
        modalities: The names of the modalities.
        size: The height and width of the slices, in pixels.
    """

    def __init__(self, critics: Critics, modalities: Sequence[str], size: int) -> None:
        self.critics = critics
        with torch.random.fork_rng(devices=[]):  # the model's training draws what it would have
            self.networks = ModalityDict(
                {m: PatchDiscriminator(1, size, width=critics.width) for m in modalities}
            )
        self.bank = ImageBank(modalities, critics.bank) if critics.bank else None
        self.shown: tuple[Output, Tensor] | None = None

    @property
    def adversary(self) -> Adversary:
        """The adversary for `mmpoe.training.fit`."""
        return Adversary(self.networks, self._loss, self.critics.lr, self.critics.start)

    def loss(
        self, output: Output, given: Tensor, observed: Tensor, fov: Tensor, done: float
    ) -> Tensor | float:
        """Returns the generator loss of each slice, and keeps the output for the discriminators.

        Arguments:
            output: The output of the model.
            given: What it was given, (B, M).
            observed: What was observed, (B, M).
            fov: The fields of view, (B, 1, H, W).
            done: The share of training done.
        """
        self.shown = (output, given)
        if done < self.critics.charge:
            return 0.0
        scored = scored_targets(given, observed, "all")
        scored &= (given != observed).any(dim=-1, keepdim=True)
        valid = dict.fromkeys(output.likelihoods, fov)
        return self.critics.weight * adversarial_loss(output, self.networks, scored, valid=valid)

    def _loss(
        self,
        networks: ModalityDict,
        batch: tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor],
        done: float,
    ) -> Tensor:
        _, targets, observed, fov = batch
        assert self.shown is not None
        output, given = self.shown
        scored = scored_targets(given, observed)
        valid = dict.fromkeys(output.likelihoods, fov)
        if self.bank is None:
            scored &= observed
        else:
            self.bank.push(targets, observed, valid=valid)
        return discriminator_loss(
            output, networks, targets, observed, scored, bank=self.bank, valid=valid
        )
