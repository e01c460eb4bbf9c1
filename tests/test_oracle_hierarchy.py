"""The top-down pass against chains whose evidence is known: exact where theory says it is."""

import itertools

import numpy as np
import pytest
import torch
from oracle import NAMES, PSI, B, W, X, data
from oracle_hierarchy import (
    CHAIN,
    GOLDEN_CHAIN,
    ChainEncoder,
    Whitened,
    chain,
    private_chains,
)
from scipy.stats import multivariate_normal

import mmpoe
from mmpoe.missing import as_mask, fill

# bounds are quadratic in the noise of each level: three Gauss-Hermite nodes a level are exact
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(3)


def grid(levels, dims=1):
    """Noise for each level, and the weight of each row, over all combinations of nodes."""
    points = list(itertools.product(range(3), repeat=levels * dims))
    noise = torch.tensor([[NODES[i] for i in point] for point in points])
    weights = torch.tensor([np.prod([WEIGHTS[i] for i in point]) for point in points])
    return noise, weights / weights.sum()


@pytest.mark.parametrize("subset", GOLDEN_CHAIN)
def test_messages_are_golden(subset):
    modality = Whitened(subset)
    pairs = ChainEncoder(modality).messages(modality.x[None])
    precisions, means, _ = GOLDEN_CHAIN[subset]
    assert [j.item() for j, _ in pairs] == pytest.approx(precisions, abs=1e-9)
    assert [h.item() for _, h in pairs] == pytest.approx(means, abs=1e-9)


@pytest.mark.parametrize("subset", GOLDEN_CHAIN)
def test_bound_of_a_chain_is_its_evidence(subset):
    modality = Whitened(subset)
    vae = chain({"x": ChainEncoder(modality)}, {"x": modality})
    noise, weights = grid(levels=3)
    x = {"x": modality.x.expand(len(noise), -1)}
    observed = torch.ones(len(noise), 1, dtype=torch.bool)
    bound = mmpoe.elbo(vae(x, noise=list(noise.split(1, dim=1))), x, observed)
    evidence = (weights * bound).sum().item() + modality.log_jacobian
    assert evidence == pytest.approx(GOLDEN_CHAIN[subset][2], abs=1e-10)


@pytest.mark.parametrize("subset", GOLDEN_CHAIN)
def test_importance_weights_of_a_chain_are_constant(subset):
    modality = Whitened(subset)
    vae = chain({"x": ChainEncoder(modality)}, {"x": modality})
    torch.manual_seed(0)
    output = vae({"x": modality.x.expand(50, -1)})
    log_w = output.likelihoods["x"].log_prob(modality.x) + modality.log_jacobian
    for z, p, q in zip(output.z, output.priors, output.posteriors, strict=True):
        log_w = log_w + p.log_prob(z) - q.log_prob(z)
    expected = torch.full((50,), GOLDEN_CHAIN[subset][2], dtype=torch.float64)
    torch.testing.assert_close(log_w, expected, rtol=0, atol=1e-10)


def test_adding_experts_over_a_shared_chain_falls_short():
    """What two modalities say above z_1 shares the noise below: adding counts it twice."""
    modalities = {m: Whitened([i]) for i, m in enumerate(NAMES)}
    vae = chain({m: ChainEncoder(v) for m, v in modalities.items()}, modalities)
    noise, weights = grid(levels=3)
    x = {m: v.x.expand(len(noise), -1) for m, v in modalities.items()}
    observed = torch.ones(len(noise), 2, dtype=torch.bool)
    bound = mmpoe.elbo(vae(x, noise=list(noise.split(1, dim=1))), x, observed)
    jacobian = sum(v.log_jacobian for v in modalities.values())
    gap = GOLDEN_CHAIN[0, 1][2] - (weights * bound).sum().item() - jacobian
    assert 0.01 < gap < 0.5


def private_evidence(subset):
    """log p(x_s) with a shared z_2 and private chains, from the joint normal."""
    slope = np.array([W[m] * CHAIN[m][0] for m in subset])
    mean = np.array([W[m] * CHAIN[m][1] + B[m] for m in subset])
    own = np.diag([W[m] ** 2 * CHAIN[m][2] + PSI[m] for m in subset])
    observed = [X[m] for m in subset]
    return multivariate_normal(mean, np.outer(slope, slope) + own).logpdf(observed)


@pytest.mark.parametrize("subset", [(0,), (1,), (0, 1)])
def test_private_chains_are_exact_for_every_subset(subset):
    names = [NAMES[m] for m in subset]
    vae, evidence = private_chains(NAMES), private_evidence(subset)
    noise, weights = grid(levels=1, dims=3)
    observed = as_mask(names, NAMES, len(noise))
    x = {m: fill(v, observed[:, i]) for i, (m, v) in enumerate(data(len(noise)).items())}

    output = vae(x, observed, noise=[noise[:, :1], noise[:, 1:]])
    bound = mmpoe.elbo(output, x, observed)
    assert (weights * bound).sum().item() == pytest.approx(evidence, abs=1e-10)

    log_w = sum(output.likelihoods[m].log_prob(x[m]) for m in names)
    for z, p, q in zip(output.z, output.priors, output.posteriors, strict=True):
        log_w = log_w + p.log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(log_w, torch.full_like(log_w, evidence), rtol=0, atol=1e-10)
