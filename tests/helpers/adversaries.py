"""Discriminators, and losses by hand."""

import math

import pytest
import torch
from example_models import NAMES, SIZES, noise_for

from mmpoe.adversarial._losses import KINDS, over_patches
from mmpoe.nn import MLP

every_kind = pytest.mark.parametrize("kind", KINDS)


def by_hand(kind, score):
    """The losses of one score: of a real sample, of a fake one, and of the model."""
    sigmoid = 1 / (1 + math.exp(-score))
    return {
        "lsgan": ((score - 1) ** 2, score**2, (score - 1) ** 2),
        "hinge": (max(0, 1 - score), max(0, 1 + score), -score),
        "nonsaturating": (-math.log(sigmoid), -math.log(1 - sigmoid), -math.log(sigmoid)),
        "wgan_gp": (-score, score, -score),
    }[kind]


def losses(kind, real, fake):
    """The losses of scores: of real samples, of fake ones, and of the model."""
    of = KINDS[kind]
    parts = of.real(real), of.fake(fake), of.model(fake)
    return tuple(map(over_patches, parts))


def discriminators(names=NAMES):
    torch.manual_seed(4)
    return {m: MLP(SIZES[m], 2, hidden=[6]) for m in names}


def inferred(model, x, given):
    """The output without chance."""
    subsets = given.shape[:1] if given.dim() == 3 else ()
    return model(x, given, noise=noise_for(model, subsets=subsets))
