"""Objectives with every sample at a node of a grid, so that expectations are sums."""

import itertools

import numpy as np
import torch
from torch import nn

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Normal
from mmpoe.objectives._pairs import places

NAMES = ["a", "b"]


class Wrapped:
    """A model whose inference is another one."""

    def __init__(self, model, infer):
        self.model, self.infer = model, infer

    def __getattr__(self, name):
        return getattr(self.model, name)


class Quadrature:
    """A model, one sample of which is repeated at every node of a grid of noise.

    Noise differs between groups and the K samples of a component. It is the same for all
    components of a row, unless they are `apart`, as the expectation of what mixes them needs.
    """

    def __init__(self, model, *, nodes=40, samples=1, components=1, apart=False):
        self.model, self.samples = model, samples
        self.components = components if apart else 1
        self.sizes = [group.shape[0] for group in model.groups]
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        dims = sum(self.sizes) * samples * self.components
        grid = np.array(list(itertools.product(points, repeat=dims)))
        products = np.array([np.prod(w) for w in itertools.product(weights, repeat=dims)])
        self.weight = torch.as_tensor(products / products.sum())
        self.grid = torch.as_tensor(grid).reshape(len(grid), samples, self.components, -1)

    def __getattr__(self, name):
        return getattr(self.model, name)

    def infer(self, encodings, given, *, rows=None, z=None, **options):
        if z is not None:
            return self.model.infer(encodings, given, rows=rows, z=z, **options)
        pairs = len(given) // self.samples
        column = places(rows[:pairs])[2].repeat(self.samples) % self.components
        sample = torch.arange(len(given)) // pairs
        noise = self.grid[rows, sample, column].split(self.sizes, dim=1)
        return self.model.infer(encodings, given, rows=rows, noise=list(noise), **options)

    def expect(self, objective, x, observed, *args, **options):
        """The expectation of an objective for the one row of a batch."""
        size = len(self.weight)
        x = {m: v.expand(size, *v.shape[1:]) for m, v in x.items()}
        return objective(self, x, observed.expand(size, -1), *args, **options) @ self.weight


def expect(objective, model, x, observed, *args, nodes=40, apart=False, **options):
    """The expectation of an objective, exactly, for one row of two modalities or fewer."""
    samples = options.get("samples", 1)
    model = Quadrature(model, nodes=nodes, samples=samples, components=2, apart=apart)
    return model.expect(objective, x, observed, *args, **options)


def gradients(objective, model, *args, **options):
    """The gradient of the expectation, as one vector."""
    parameters = list(model.parameters())
    value = expect(objective, model, *args, **options)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    filled = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    ]
    return torch.cat([g.flatten() for g in filled])


def layer(size, out, *weights):
    """A linear layer with some weights and biases, in order."""
    module = nn.Linear(size, out, dtype=torch.float64)
    values = torch.tensor(weights, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(values[: size * out].reshape(out, size))
        module.bias.copy_(values[size * out :])
    return module


def decoders(scale=1.0):
    return {
        "a": Normal(layer(1, 1, 1.0, 0.5), scale=scale, learn_scale=True),
        "b": Normal(layer(1, 1, -1.5, 0.2), scale=0.8 * scale),
    }


def flat(kind=mmpoe.MVAE, **options):
    """One latent of one dimension, and encoders that are not those of the posterior."""
    encoders = {"a": layer(1, 2, 0.6, 0.1, 0.3, -0.4), "b": layer(1, 2, -0.5, 0.2, -0.3, -0.2)}
    model = kind(encoders, decoders(), latent_dim=1, **options)
    return model.double()


class Features(nn.Module):
    """The same features for two groups."""

    def forward(self, x):
        return [x, x]


def hierarchy(scale=1.0):
    """Two latents of one dimension; the prior and experts of the second see the first."""
    groups = [
        LatentGroup(
            (1,), {"a": layer(1, 2, 0.6, 0.1, 0.3, -0.4), "b": layer(1, 2, -0.5, 0.2, 0, -0.2)}
        ),
        LatentGroup(
            (1,),
            {
                "a": layer(2, 2, 0.3, 0.5, 0.1, 0.2, 0.1, -0.1),
                "b": layer(2, 2, -0.2, 0.4, 0.2, -0.1, 0.3, 0.1),
            },
            prior=layer(1, 2, 0.8, 0.3, 0.1, -0.2),
        ),
    ]
    return mmpoe.MMHVAE({m: Features() for m in NAMES}, groups, decoders(scale)).double()


def one_row():
    return {
        "a": torch.tensor([[0.7]], dtype=torch.float64),
        "b": torch.tensor([[-1.1]], dtype=torch.float64),
    }


BOTH = torch.ones(1, 2, dtype=torch.bool)
