"""Linear-Gaussian chains whose posterior and evidence are known at every level.

z_3 ~ N(0, 1), z_2 | z_3 ~ N(a_2 z_3 + c_2, q_2), z_1 | z_2 ~ N(a_1 z_2 + c_1, q_1), and modalities
x_m | z_1 ~ N(w_m z_1 + b_m, psi_m) as in `oracle`. What x says about z_l has precision j_l and
natural mean h_l; both follow from those of the level below.
"""

import torch
from oracle import PSI, B, W, X, affine
from torch import nn

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Normal

CHAIN = [(0.9, 0.3, 0.5), (-1.1, -0.2, 0.8)]  # a_l, c_l, q_l, fine to coarse

# what was observed -> j and h, fine to coarse, and log p(x_s)
GOLDEN_CHAIN = {
    (0,): ((1, 0.54, 0.4562849162), (0.5, 0.12, -0.1751396648), -1.512232532491),
    (1,): ((8, 1.296, 0.7699135899), (-3, -0.972, 0.384956795), -2.072614319848),
    (0, 1): (
        (9, 1.3254545455, 0.7784062831),
        (-2.5, -0.8509090909, 0.3127603247),
        -3.368586358797,
    ),
}


class Whitened:
    """The modalities of a subset as one, with unit noise: x / sqrt(psi)."""

    def __init__(self, subset):
        scale = torch.tensor([PSI[m] for m in subset], dtype=torch.float64).sqrt()
        self.w, self.b, self.x = (
            torch.tensor([v[m] for m in subset], dtype=torch.float64) / scale for v in (W, B, X)
        )
        self.log_jacobian = -scale.log().sum().item()  # from x / sqrt(psi) back to x


class ChainEncoder(nn.Module):
    """The exact experts of all levels, coarse to fine, from one whitened modality."""

    def __init__(self, modality):
        super().__init__()
        self.modality = modality

    def messages(self, x):
        """The precisions j and natural means h, fine to coarse."""
        w, b = self.modality.w, self.modality.b
        j, h = (w**2).sum().expand(len(x), 1), ((x - b) * w).sum(dim=1, keepdim=True)
        pairs = [(j, h)]
        for a, c, q in CHAIN:
            k = 1 + q * j
            j, h = a**2 * j / k, a * (h - j * c) / k
            pairs.append((j, h))
        return pairs

    def forward(self, x):
        experts = [torch.cat([h / j, -0.5 * j.log()], dim=1) for j, h in self.messages(x)]
        return experts[::-1]


class Transition(nn.Module):
    """p(z_l | z_{l+1}), with one block of z_l for each step given."""

    def __init__(self, *steps):
        super().__init__()
        self.a, self.c, self.q = torch.tensor(steps, dtype=torch.float64).T

    def forward(self, h):
        loc = self.a * h + self.c
        return torch.cat([loc, (0.5 * self.q.log()).expand_as(loc)], dim=1)


def chain(encoders, modalities):
    """A three-level model of one shared chain, with some encoders and whitened modalities."""
    priors = [None, *(Transition(step) for step in reversed(CHAIN))]
    groups = [
        LatentGroup((1,), nn.Identity(), prior=prior, expert_sees_state=False) for prior in priors
    ]
    decoders = {}
    for name, modality in modalities.items():
        layer = nn.Linear(1, len(modality.w), dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(modality.w[:, None])
            layer.bias.copy_(modality.b)
        decoders[name] = Normal(layer)
    return mmpoe.MMHVAE(encoders, groups, decoders).double()


class PrivateEncoder(nn.Module):
    """The exact experts of modality m on a shared top and a private block of the level below.

    Its expert says nothing about the block of the other modality: an infinite scale.
    """

    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, x):
        a, c, q = CHAIN[self.m]
        j = torch.full_like(x, W[self.m] ** 2 / PSI[self.m])
        h = W[self.m] * (x - B[self.m]) / PSI[self.m]
        loc, log_scale = torch.zeros(len(x), 2).to(x), torch.full((len(x), 2), torch.inf).to(x)
        loc[:, self.m], log_scale[:, self.m] = (h / j)[:, 0], (-0.5 * j.log())[:, 0]
        fine = torch.cat([loc, log_scale], dim=1)
        k = 1 + q * j
        j, h = a**2 * j / k, a * (h - j * c) / k
        return [torch.cat([h / j, -0.5 * j.log()], dim=1), fine]


class Block(nn.Module):
    """One block of the latent vector, seen through the likelihood of its modality."""

    def __init__(self, m):
        super().__init__()
        self.m, self.layer = m, affine(W[m], B[m])

    def forward(self, z):
        return self.layer(z[:, self.m, None])


def private_chains(names):
    """Two levels: a shared z_2, and z_1 with one private block for each modality."""
    groups = [
        LatentGroup((1,), nn.Identity(), expert_sees_state=False),
        LatentGroup((2,), nn.Identity(), prior=Transition(*CHAIN), expert_sees_state=False),
    ]
    return mmpoe.MMHVAE(
        {m: PrivateEncoder(i) for i, m in enumerate(names)},
        groups,
        {m: Normal(Block(i), scale=PSI[i] ** 0.5) for i, m in enumerate(names)},
    ).double()
