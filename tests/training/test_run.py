"""Options of a run: what they may be, and the learning rate that they make."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from mmpoe.training import Cosine, Optimizer, Run

in_folder = partial(Run, "folder")


@pytest.mark.parametrize(
    ("kind", "name", "value", "wanted"),
    [
        (Optimizer, "lr", 0.0, "positive and finite"),
        (Optimizer, "lr", math.nan, "positive and finite"),
        (Optimizer, "weight_decay", -0.1, "at least 0 and finite"),
        (Cosine, "warmup", -1, "an integer of at least 0"),
        (Cosine, "warmup", 0.5, "an integer of at least 0"),
        (Optimizer, "clip", 0, "positive"),
        (Optimizer, "average", 1.0, r"in \[0, 1\)"),
        (Optimizer, "average", -0.1, r"in \[0, 1\)"),
        (Cosine, "floor", 1.5, r"in \[0, 1\]"),
        (Optimizer, "accumulate", 0, "an integer of at least 1"),
        (Optimizer, "max_skipped", 0, "an integer of at least 1"),
        (Optimizer, "restart", -0.1, "at least 0 or None"),
        (in_folder, "save_every", 0, "an integer of at least 1"),
        (in_folder, "log_every", 0, "an integer of at least 1"),
    ],
)
def test_bad_arguments_are_named(kind, name, value, wanted):
    with pytest.raises(ValueError, match=f"'{name}' should be {wanted}, but is {value}"):
        kind(**{name: value})


def test_the_learning_rate_rises_and_falls():
    schedule = Cosine(warmup=3, floor=0.1)
    for step in range(8):
        for done in (0.0, step / 8, 0.9, 1.0):  # that of time may be larger than that of steps
            cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
            expected = 0.5 * min(1, (step + 1) / 3) * cosine
            assert schedule(0.5, step, done) == pytest.approx(expected)


def test_the_default_optimiser_is_adamw():
    optimizer = Optimizer(lr=0.1, weight_decay=0.2).build(nn.Linear(1, 1).parameters())
    assert type(optimizer) is torch.optim.AdamW
    found = optimizer.defaults
    assert (found["lr"], found["weight_decay"], found["betas"]) == (0.1, 0.2, (0.9, 0.99))
