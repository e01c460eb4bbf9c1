"""A linear-Gaussian model whose posterior and evidence are known exactly.

One latent dimension, z ~ N(0, 1), and modalities x_m | z ~ N(w_m z + b_m, psi_m). The product of
experts with precision w^2 / psi and mean (x - b) / w is the exact posterior given any subset.
"""

import torch
from torch import nn

import mmpoe
from mmpoe.likelihoods import Normal

NAMES = ["a", "b"]
W, B, PSI, X = (1.0, 2.0), (0.5, -0.25), (1.0, 0.5), (1.0, -1.0)

# subset -> posterior mean and variance, log p(x_s), KL(q_s || p), L_s with both reconstructed
GOLDEN = {
    (): (0.0, 1.0, 0.0, 0.0, -6.678803476129),
    ("a",): (0.25, 0.5, -1.328012123485, 0.127823590280, -5.462877066409),
    ("b",): (-1 / 3, 1 / 9, -1.733477231593, 0.709723399779, -3.055193542575),
    ("a", "b"): (-0.25, 0.1, -3.017596022626, 0.732542546497, -3.017596022626),
}


class ExactExpert(nn.Module):
    """The likelihood of one modality, read as a Gaussian in z."""

    def __init__(self, w, b, psi):
        super().__init__()
        self.w, self.b = w, b
        self.log_scale = 0.5 * torch.log(torch.tensor(psi / w**2, dtype=torch.float64))

    def forward(self, x):
        loc = (x - self.b) / self.w
        return torch.cat([loc, self.log_scale.expand_as(loc)], dim=1)


def affine(w, b):
    layer = nn.Linear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(w)
        layer.bias.fill_(b)
    return layer


def linear_gaussian():
    """The model as an MVAE, in float64."""
    vae = mmpoe.MVAE(
        encoders={m: ExactExpert(*p) for m, *p in zip(NAMES, W, B, PSI, strict=True)},
        decoders={
            m: Normal(affine(w, b), scale=psi**0.5)
            for m, w, b, psi in zip(NAMES, W, B, PSI, strict=True)
        },
    )
    return vae.double()


def data(rows=1):
    """The golden observation, repeated."""
    return {
        m: torch.full((rows, 1), v, dtype=torch.float64) for m, v in zip(NAMES, X, strict=True)
    }
