"""Adversarial regularisers: discriminators that score what a model decodes."""

__all__ = [
    "PUBLISHED",
    "ImageBank",
    "Schedule",
    "Weights",
    "adversarial_loss",
    "discriminator_loss",
    "gradient_penalty",
    "r1_penalty",
    "scored_targets",
]

from .bank import ImageBank
from .penalties import gradient_penalty, r1_penalty
from .schedule import PUBLISHED, Schedule, Weights
from .targets import scored_targets
from .terms import adversarial_loss, discriminator_loss
