r"""Adversarial regularisers: critics that judge what a model shows of missing modalities."""

__all__ = [
    "PUBLISHED",
    "ImageBank",
    "Schedule",
    "Weights",
    "adversarial_loss",
    "discriminator_loss",
    "gradient_penalty",
    "hinge_discriminator",
    "hinge_generator",
    "judged_targets",
    "lsgan_discriminator",
    "lsgan_generator",
    "nonsaturating_discriminator",
    "nonsaturating_generator",
    "r1_penalty",
    "wasserstein_discriminator",
    "wasserstein_generator",
]

from .bank import ImageBank
from .losses import (
    hinge_discriminator,
    hinge_generator,
    lsgan_discriminator,
    lsgan_generator,
    nonsaturating_discriminator,
    nonsaturating_generator,
    wasserstein_discriminator,
    wasserstein_generator,
)
from .penalties import gradient_penalty, r1_penalty
from .schedule import PUBLISHED, Schedule, Weights
from .targets import judged_targets
from .terms import adversarial_loss, discriminator_loss
