"""Small models, objectives and training runs."""

from contextlib import contextmanager

import torch
from example_models import OBSERVED, batch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import mmpoe
from mmpoe.training import Optimizer, fit


def objective(model, data, progress):
    x, observed = data
    return mmpoe.elbo(model(x, given=observed), x, observed)


def train(model, **options):
    options = {"steps": 40, "optimizer": Optimizer(lr=1e-2), "progress": False, **options}
    return fit(model, [(batch(), OBSERVED)], options.pop("objective", objective), **options)


class Weight(nn.Module):
    """One weight or more, from 0. AdamW moves each by `lr` per step where the slope is fixed."""

    def __init__(self, *shape):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape, dtype=torch.float64))


@contextmanager
def recorded_steps():
    """Records the learning rate and the gradients of each step of an optimiser."""
    rates, gradients = [], []

    def record(optimizer, *_):
        (group,) = optimizer.param_groups
        rates.append(group["lr"])
        gradients.extend(p.grad.tolist() for p in group["params"])

    handle = register_optimizer_step_pre_hook(record)
    try:
        yield rates, gradients
    finally:
        handle.remove()


class Steep(nn.Module):
    """A model whose bound and gradient are those of a product with the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25, 2.0]))

    def forward(self, x):
        return x @ self.weight


def product(model, x, done):
    return model(x)


GOOD = torch.tensor([[0.1, 0.3, -0.2], [0.4, -0.1, 0.2]])
