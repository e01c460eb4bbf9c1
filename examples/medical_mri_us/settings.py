"""How to train: numbers that a command line or a configuration may change."""

from __future__ import annotations

__all__ = ["OPTIMIZERS", "Settings"]

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from .checks import check_choice, check_integer, check_number, check_positive

OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, betas=(0.9, 0.99)),
    "adamax": torch.optim.Adamax,
}
"""The optimisers, by name."""


@dataclass(frozen=True)
class Settings:
    """How to train. The defaults suit 64 x 64 slices and a few minutes on two CPU cores."""

    steps: int = 2800
    """The number of optimiser steps."""
    minutes: float | None = 6.0
    """The longest time that training may take; None for no limit."""
    batch: int = 8
    """The number of slices in a batch, from as many patients."""
    accumulate: int = 1
    """The number of batches of a step, of whose gradients the mean is taken."""
    optimizer: Literal["adamw", "adamax"] = "adamw"
    """The optimiser."""
    lr: float = 2e-3
    """The highest learning rate."""
    floor: float = 0.02
    """The last learning rate, as a share of the highest."""
    weight_decay: float = 1e-4
    """The weight decay."""
    clip: float | None = 1.0
    """The largest norm of the gradient; None for any."""
    average: float = 0.99
    """The decay of the moving average of the weights; 0 keeps the last weights."""
    beta: float = 0.01
    """The weight of the divergence."""
    warmup: float = 0.1
    """The share of training in which that weight rises from 0."""
    proper: bool = True
    """Whether something is hidden from every slice that has two modalities or more."""
    reconstruction: float = 0.3
    """The weight of reconstructing what was given; what was hidden counts 1."""
    restart: float | None = None
    """The share of training at which the optimiser starts afresh; None for never."""
    rare: float = 0.3
    """The share of draws from patients who have the rarest modality."""
    seed: int = 0
    """The seed of initial weights, batches, subsets and noise."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """The precision of training; the last one needs a GPU."""
    save_every: int = 200
    """The number of steps from one checkpoint to the next, if checkpoints are kept."""

    def check(self) -> None:
        """Raises a ValueError that names the setting, if there is one that cannot be used."""
        check_integer("steps", self.steps, 1)
        if self.minutes is not None:
            check_positive("minutes", self.minutes)
        check_integer("batch", self.batch, 1)
        check_integer("accumulate", self.accumulate, 1)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_positive("lr", self.lr)
        check_number("floor", self.floor, 0, 1)
        check_number("weight_decay", self.weight_decay, 0)
        if self.clip is not None:
            check_positive("clip", self.clip)
        check_number("average", self.average, 0, 1)
        check_number("beta", self.beta, 0)
        check_number("warmup", self.warmup, 0, 1)
        check_number("reconstruction", self.reconstruction, 0)
        if self.restart is not None:
            check_number("restart", self.restart, 0, 1)
        check_number("rare", self.rare, 0, 1)
        check_integer("seed", self.seed, 0)
        check_integer("save_every", self.save_every, 1)
