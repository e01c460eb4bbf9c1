"""Models whose data and latents are shifted by covariates, and equal to plain ones but for that.

With the data shifted by a covariate, and each latent by another, every density is that of the
plain model at what is not shifted. So every row has to meet its own covariates in every network.
"""

import torch
from example_models import NAMES, SIZES, batch
from torch import nn

from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Normal
from mmpoe.missing import Batch
from mmpoe.models import MultimodalVAE
from mmpoe.nn import MLP
from mmpoe.posteriors import MoPoE, PoE


class Around(nn.Module):
    """A network of inputs less a covariate, plus another on the first of its parameters."""

    def __init__(self, network, before=None, after=None):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x, context):
        x = x if self.before is None else x - context[self.before]
        out = self.network(x)
        if self.after is None:
            return out
        loc, log_scale = out.chunk(2, dim=1)
        return torch.cat([loc + context[self.after], log_scale], dim=1)


class ShiftedData(nn.Module):
    def __init__(self, network, latent=None):
        super().__init__()
        self.network, self.latent = network, latent

    def forward(self, z, context):
        z = z if self.latent is None else z - context[self.latent]
        return self.network(z) + context["data"]


class ShiftedPrior(nn.Module):
    """The prior of the first group: it has no state to see."""

    def forward(self, h, context):
        assert h is None
        loc = context["coarse"].expand(-1, 3)
        return torch.cat([loc, torch.zeros_like(loc)], dim=1)


class Features(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.network = MLP(size, 10, hidden=[8])

    def forward(self, x, context):
        coarse, fine = self.network(x - context["data"]).tanh().split([6, 4], dim=1)
        return [coarse, fine]


class Merge(nn.Module):
    def __init__(self, latent, covariate):
        super().__init__()
        self.network, self.covariate = nn.Linear(latent, 7), covariate

    def forward(self, h, z, context):
        return self.network(z - context[self.covariate]).tanh() + (0 if h is None else h)


def shifted_flat(rule=None):
    encoders = {m: Around(MLP(SIZES[m], 6, hidden=[8]), "data", "coarse") for m in NAMES}
    decoders = {m: Normal(ShiftedData(MLP(3, SIZES[m], hidden=[8]), "coarse")) for m in NAMES}
    group = LatentGroup((3,), nn.Identity(), prior=ShiftedPrior(), posterior=rule)
    return MultimodalVAE(encoders, [group], decoders)


def shifted_hierarchical(*, sees_state=True, rule=PoE):
    seen = 4 + 7 * sees_state
    groups = [
        LatentGroup(
            (3,),
            Around(nn.Linear(6, 6), after="coarse"),
            Merge(3, "coarse"),
            prior=ShiftedPrior(),
            posterior=rule(),
        ),
        LatentGroup(
            (2,),
            {m: Around(nn.Linear(seen, 4), after="fine") for m in NAMES},
            Merge(2, "fine"),
            prior=Around(nn.Linear(7, 4), after="fine"),
            expert_sees_state=sees_state,
            posterior=rule(),
        ),
    ]
    decoders = {m: Normal(ShiftedData(nn.Linear(7, SIZES[m]))) for m in NAMES}
    return MultimodalVAE({m: Features(SIZES[m]) for m in NAMES}, groups, decoders)


SHIFTED = {
    "flat": shifted_flat,
    "mixture": lambda: shifted_flat(MoPoE()),
    "hierarchical": shifted_hierarchical,
    "free experts": lambda: shifted_hierarchical(sees_state=False),
    "hierarchical mixture": lambda: shifted_hierarchical(rule=MoPoE),
}


def shifted_batches(filler=torch.nan):
    """The same batch without and with shifts, in float64; missing entries hold `filler`."""
    x = {m: v.double() for m, v in batch(filler).items()}
    rows = len(next(iter(x.values())))
    generator = torch.Generator().manual_seed(3)
    shifts = {
        name: torch.randn(rows, 1, dtype=torch.float64, generator=generator)
        for name in ("data", "coarse", "fine")
    }
    none = {name: torch.zeros_like(v) for name, v in shifts.items()}
    moved = {m: v + shifts["data"] for m, v in x.items()}
    return Batch(x, context=none), Batch(moved, context=shifts)
