"""Golden numbers: two linear-Gaussian models, and what is exactly true of one observation.

The flat one has one latent dimension, z ~ N(0, 1), and modalities x_m | z ~ N(w_m z + b_m, psi_m).
The chain puts z_3 ~ N(0, 1), z_2 | z_3 ~ N(-1.1 z_3 - 0.2, 0.8), z_1 | z_2 ~ N(0.9 z_2 + 0.3, 0.5)
above the same modalities, which see z_1.
"""

import itertools

import numpy as np
import torch

from mmpoe.oracles import LinearGaussian, LinearGaussianHierarchy

NAMES = ["a", "b"]
W, B, PSI, X = (1.0, 2.0), (0.5, -0.25), (1.0, 0.5), (1.0, -1.0)
STEPS = [(-1.1, -0.2, 0.8), (0.9, 0.3, 0.5)]  # slope, intercept, variance, coarse to fine

# subset -> posterior mean and variance, log p(x_s), KL(q_s || p), L_s with both reconstructed
GOLDEN = {
    (): (0.0, 1.0, 0.0, 0.0, -6.678803476129),
    ("a",): (0.25, 0.5, -1.328012123485, 0.127823590280, -5.462877066409),
    ("b",): (-1 / 3, 1 / 9, -1.733477231593, 0.709723399779, -3.055193542575),
    ("a", "b"): (-0.25, 0.1, -3.017596022626, 0.732542546497, -3.017596022626),
}

# subset -> precision and natural mean of what it says, fine to coarse, and log p(x_s)
GOLDEN_CHAIN = {
    ("a",): ((1, 0.54, 0.4562849162), (0.5, 0.12, -0.1751396648), -1.512232532491),
    ("b",): ((8, 1.296, 0.7699135899), (-3, -0.972, 0.384956795), -2.072614319848),
    ("a", "b"): (
        (9, 1.3254545455, 0.7784062831),
        (-2.5, -0.8509090909, 0.3127603247),
        -3.368586358797,
    ),
}


def likelihoods():
    """The arguments of an oracle that say how modalities see a latent of one dimension."""
    rows = zip(NAMES, W, B, PSI, strict=True)
    parts = {m: (torch.tensor([[w]]), torch.tensor([b]), psi) for m, w, b, psi in rows}
    return (
        {m: w for m, (w, _, _) in parts.items()},
        {m: b for m, (_, b, _) in parts.items()},
        {m: torch.tensor([[psi]]) for m, (_, _, psi) in parts.items()},
    )


def golden():
    return LinearGaussian(*likelihoods())


def golden_chain():
    steps = [tuple(torch.tensor([v], dtype=torch.float64) for v in step) for step in STEPS]
    return LinearGaussianHierarchy(*likelihoods(), steps)


def data(rows=1):
    """The golden observation, repeated."""
    return {
        m: torch.full((rows, 1), v, dtype=torch.float64) for m, v in zip(NAMES, X, strict=True)
    }


def all_subsets(modalities):
    """All subsets of M modalities, the empty one first, as a mask of shape (2^M, M)."""
    members = list(itertools.product([False, True], repeat=modalities))
    return torch.tensor(sorted(members, key=sum))


def grid(*dims, nodes=3):
    """Noise for groups of some sizes at all combinations of Gauss-Hermite nodes, and weights.

    Bounds of linear-Gaussian models are quadratic in the noise: three nodes integrate them.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    size = sum(dims)
    noise = np.array(list(itertools.product(points, repeat=size))).reshape(-1, size)
    weight = np.array([np.prod(w) for w in itertools.product(weights, repeat=size)])
    weight = torch.as_tensor(weight / weight.sum())
    return list(torch.as_tensor(noise).split(list(dims), dim=1)), weight


def expected_elbo(elbo, vae, x, observed, given, dims):
    """The mean of a bound over the noise of a model, exactly: x has one row per row of a mask."""
    noise, weight = grid(*dims)
    points, rows = len(weight), len(observed)
    repeated = {m: v.repeat_interleave(points, dim=0) for m, v in x.items()}
    output = vae(
        repeated,
        given.repeat_interleave(points, dim=0),
        noise=[n.repeat(rows, 1) for n in noise],
    )
    bound = elbo(output, repeated, observed.repeat_interleave(points, dim=0))
    return bound.unflatten(0, (rows, points)) @ weight


def log_weights(output, x, observed):
    """log p(x_r, z) - log q(z | x_s) at the samples of a model."""
    log_w = torch.zeros(observed.shape[0], dtype=torch.float64)
    for column, (m, p) in enumerate(output.likelihoods.items()):
        seen = observed[:, column]
        log_p = p.log_prob(torch.where(seen[:, None], x[m], 0))
        log_w = log_w + torch.where(seen, log_p, 0)
    for z, p, q in zip(output.z, output.priors, output.posteriors, strict=True):
        log_w = log_w + p.log_prob(z) - q.log_prob(z)
    return log_w


def hide(x, observed):
    """The same data, with NaN wherever it was not observed."""
    return {
        m: torch.where(observed[:, i, None], v, torch.nan) for i, (m, v) in enumerate(x.items())
    }
