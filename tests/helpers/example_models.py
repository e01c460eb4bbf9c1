"""Small models of vectors, and batches with every pattern of missing modalities."""

import pytest
import torch
from torch import nn

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Bernoulli, Laplace, Normal
from mmpoe.missing import Pairs
from mmpoe.models import Output
from mmpoe.models._inputs import given_mask
from mmpoe.nn import MLP, Recorded
from mmpoe.posteriors import CommonNoisePoE, GPoE, MoPoE, PoE, SumPooling, WassersteinBarycenter

NAMES = ["us", "t2.space", "type"]
SIZES = dict(zip(NAMES, [5, 4, 3], strict=True))


def flat(kind=mmpoe.MVAE, **options):
    return kind(
        {m: MLP(SIZES[m], 8, hidden=[16]) for m in NAMES},
        {m: Normal(MLP(4, SIZES[m], hidden=[16])) for m in NAMES},
        **options,
    )


class Features(Recorded, nn.Module):
    """Features of a vector for two groups, coarse to fine."""

    def __init__(self, size):
        super().__init__()
        self.fine, self.coarse = nn.Linear(size, 6), nn.Linear(6, 6)

    def forward(self, x):
        fine = self.fine(x).tanh()
        return [self.coarse(fine), fine]


class Merge(Recorded, nn.Module):
    def __init__(self, latent):
        super().__init__()
        self.network = nn.Linear(latent, 7)

    def forward(self, h, z):
        return self.network(z).tanh() + (0 if h is None else h)


def clamped(channels):
    return PoE(clamp=5.0)


def hierarchical(expert_sees_state=True, shared=True, rule=clamped):
    def expert(features, latent):
        if shared:
            return nn.Linear(features, 2 * latent)
        return {m: nn.Linear(features, 2 * latent) for m in NAMES}

    seen = 6 + 7 * expert_sees_state
    options = {"expert_sees_state": expert_sees_state}
    groups = [
        LatentGroup((3,), expert(6, 3), Merge(3), posterior=rule(3), **options),
        LatentGroup(
            (2,), expert(seen, 2), Merge(2), prior=nn.Linear(7, 4), posterior=rule(2), **options
        ),
    ]
    decoders = {
        "us": Laplace(nn.Linear(7, 5), scale=0.5, learn_scale=True),
        "t2.space": Normal(nn.Linear(7, 4)),
        "type": Bernoulli(nn.Linear(7, 3)),
    }
    decoders = {m: decoders[m] for m in NAMES}
    return mmpoe.MMHVAE({m: Features(SIZES[m]) for m in NAMES}, groups, decoders)


MODELS = {
    "flat": flat,
    "hierarchical": hierarchical,
    "free experts": lambda: hierarchical(expert_sees_state=False),
    "own experts": lambda: hierarchical(shared=False),
    "published rule": lambda: hierarchical(rule=lambda channels: PoE(power=1, clamp=5.0)),
    "mixture of experts": lambda: flat(mmpoe.MMVAE),
    "mixture of products": lambda: flat(mmpoe.MoPoEVAE),
    "published mixture of products": lambda: flat(mmpoe.MoPoEVAE, prior_in="full"),
    "hierarchical mixture": lambda: hierarchical(rule=lambda channels: MoPoE(clamp=5.0)),
    "powers": lambda: flat(posterior=GPoE(len(NAMES))),
    "hierarchical powers": lambda: hierarchical(rule=lambda channels: GPoE(len(NAMES), clamp=5.0)),
    "common noise": lambda: flat(posterior=CommonNoisePoE(4)),
    "barycentre": lambda: flat(posterior=WassersteinBarycenter()),
    "sum of features": lambda: flat(posterior=SumPooling(MLP(8, 8, hidden=[16]))),
    "hierarchical sum of features": lambda: hierarchical(
        rule=lambda channels: SumPooling(nn.Linear(2 * channels, 2 * channels))
    ),
    "hierarchical common noise": lambda: hierarchical(
        rule=lambda channels: CommonNoisePoE(channels, gamma=0.5, clamp=5.0)
    ),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())

# every pattern of three modalities, the empty one included
OBSERVED = torch.tensor([[b >> m & 1 for m in range(3)] for b in range(8)]).bool()


def batch(filler=0.0, rows=OBSERVED, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = {}
    for column, (m, size) in enumerate(SIZES.items()):
        values = torch.rand(len(OBSERVED), size, generator=generator).round()
        x[m] = torch.where(rows[:, column, None], values, filler)
    return x


def make(build):
    torch.manual_seed(1)
    return build()


def noise_for(model, rows=8, subsets=()):
    generator = torch.Generator().manual_seed(2)
    shapes = [z.shape[1:] for z in model(batch(), OBSERVED).z]
    return [torch.randn(*subsets, rows, *shape, generator=generator) for shape in shapes]


def conditioned(model, x, given=None, *, rows=None, **options):
    """The verbs of a model in a row: like a call of it, with all that inference takes.

    A mixture takes what is given as the component to use.
    """
    if rows is None:
        given = given_mask(x, given, model.modalities, torch.zeros(()))
    needed = Pairs.of(given, rows).needed(len(next(iter(x.values()), given)))
    q = model.infer(model.encode(x, needed), given, rows=rows, **options)
    return Output(model.decode(q.state), q.kl, q.z, q.posteriors, q.priors)
