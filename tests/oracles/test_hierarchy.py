"""The hierarchical oracle against numpy and scipy, and the top-down pass against it.

Exact where theory says it is; below the evidence by a known amount where experts are added that
share noise.
"""

import math

import numpy as np
import pytest
import torch
from oracle import (
    GOLDEN_CHAIN,
    NAMES,
    STEPS,
    all_subsets,
    data,
    expected_elbo,
    golden_chain,
    hide,
    likelihoods,
    log_weights,
)
from scipy.stats import multivariate_normal

import mmpoe
from mmpoe.missing import as_mask
from mmpoe.oracles import LinearGaussian, LinearGaussianHierarchy

FUSIONS = ["joint", "common_noise", "poe"]
BOTH = torch.ones(1, 2, dtype=torch.bool)
FOUR = ["a", "b", "c", "d"]
SUBSETS = all_subsets(4)
SEVERAL = SUBSETS.sum(dim=1) > 1
GAP = 0.0378305137  # of added experts, in the golden chain


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shared(seed=0, **sizes):
    sizes = {"levels": 4, "latent_dim": 2, "data_dim": 3} | sizes
    return LinearGaussianHierarchy.random(FOUR, **sizes, generator=generator(seed))


def private(seed=0, **sizes):
    return shared(seed, private=True, **sizes)


def grouped(levels=2):
    """Modalities a and b share a branch of their own, and c another."""
    weight = {"a": [[1.0, 0.0]], "b": [[-0.7, 0.0]], "c": [[0.0, 2.0]]}
    steps = [([0.8], [0.1], [0.6])] * (levels - 2)
    steps = [*steps, ([[0.9], [-1.2]], [[0.3], [-0.2]], [[0.5], [0.8]])]
    return LinearGaussianHierarchy(
        {m: torch.tensor(w) for m, w in weight.items()},
        {m: torch.tensor([b]) for m, b in zip(weight, (0.5, -0.2, 0.1), strict=True)},
        {m: torch.tensor([[v]]) for m, v in zip(weight, (1.0, 0.7, 0.5), strict=True)},
        [tuple(torch.tensor(v) for v in step) for step in steps],
    )


def batch(oracle, subsets=SUBSETS, seed=1):
    """One sample for each subset, complete, and with NaN where it is missing."""
    x, _ = oracle.sample(len(subsets), generator=generator(seed))
    return x, hide(x, subsets)


# ------------------------------------------------------------------------------ golden numbers


@pytest.mark.parametrize("fusion", ["joint", "common_noise"])
@pytest.mark.parametrize("subset", GOLDEN_CHAIN)
def test_messages_are_golden(subset, fusion):
    precisions, means, evidence = GOLDEN_CHAIN[subset]
    messages = golden_chain().messages(data(), list(subset), fusion)[::-1]
    assert [j.item() for j, _ in messages] == pytest.approx(precisions, abs=1e-9)
    assert [h.item() for _, h in messages] == pytest.approx(means, abs=1e-9)
    given = as_mask(list(subset), NAMES, 1)
    assert golden_chain().log_prob(data(), given).item() == pytest.approx(evidence, abs=1e-10)
    found = golden_chain().elbo(data(), given, given, fusion)
    assert found.item() == pytest.approx(evidence, abs=1e-10)


def test_prior_of_the_finest_level_is_golden():
    flat = golden_chain().flat
    assert flat.prior_mean.item() == pytest.approx(0.12, abs=1e-12)
    assert flat.prior_covariance.item() == pytest.approx(2.1281, abs=1e-12)


def test_experts_of_the_common_noise_product_are_golden():
    noise = [k.item() for k in golden_chain().common_noise()]
    assert noise[::-1] == pytest.approx([0, 0.6172839506, 1.1713090501], abs=1e-10)

    vae = golden_chain().model("common_noise")
    loc = {"a": (0.5, 0.2222222222, -0.3838383838), "b": (-0.375, -0.75, 0.5)}
    precision = {"a": (1, 0.81, 0.9801), "b": (8, 6.48, 7.8408)}
    for m in NAMES:
        experts = vae.encoders[m](data()[m])[::-1]
        assert [e[0, 0].item() for e in experts] == pytest.approx(loc[m], abs=1e-10)
        found = [math.exp(-2 * e[0, 1].item()) for e in experts]
        assert found == pytest.approx(precision[m], abs=1e-10)

    # relative to the variance of the conditional prior
    relative = [1.1713090501, 0.6172839506 / 0.8]
    found = [group.posterior.gamma.item() for group in list(vae.groups)[:2]]
    assert found == pytest.approx(relative, abs=1e-9)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("subset", GOLDEN_CHAIN)
def test_bound_of_the_golden_chain(subset, fusion):
    given = as_mask(list(subset), NAMES, 1)
    vae = golden_chain().model(fusion)
    bound = expected_elbo(mmpoe.elbo, vae, data(), given, given, [1, 1, 1])
    added = fusion == "poe" and len(subset) > 1
    expected = GOLDEN_CHAIN[subset][2] - (GAP if added else 0)
    assert bound.item() == pytest.approx(expected, abs=1e-9)
    found = golden_chain().elbo(data(), given, given, fusion)
    assert found.item() == pytest.approx(bound.item(), abs=1e-10)


# ----------------------------------------------------------------- the oracle, by other means


def joint_normal(oracle):
    """The mean and covariance of all data, from what each unit of noise adds to it."""
    steps = [tuple(v.numpy() for v in step) for step in oracle.steps]
    sizes = [steps[0][0].shape[1], *(a.size for a, _, _ in steps)]

    def run(noise):
        parts = np.split(noise, np.cumsum(sizes)[:-1])
        z = parts[0]
        for (a, c, q), e in zip(steps, parts[1:], strict=True):
            z = np.concatenate([row * z + shift for row, shift in zip(a, c, strict=True)])
            z = z + np.sqrt(q.ravel()) * e
        flat = oracle.flat
        return {m: flat.weight[m].numpy() @ z + flat.bias[m].numpy() for m in flat.weight}

    mean = run(np.zeros(sum(sizes)))
    units = [run(unit) for unit in np.eye(sum(sizes))]
    effects = {m: np.stack([unit[m] - mean[m] for unit in units]) for m in mean}  # (noise, D_m)
    return mean, effects, {m: v.numpy() for m, v in oracle.flat.covariance.items()}


def direct_sum(blocks):
    return torch.block_diag(*map(torch.as_tensor, blocks)).numpy()


@pytest.mark.parametrize("make", [shared, private])
def test_evidence_against_scipy(make):
    oracle = make()
    x, hidden = batch(oracle)
    found = oracle.log_prob(hidden, SUBSETS)
    mean, effects, noise = joint_normal(oracle)
    for row in range(1, len(SUBSETS)):
        names = [m for m, seen in zip(FOUR, SUBSETS[row], strict=True) if seen]
        effect = np.concatenate([effects[m] for m in names], axis=1)
        covariance = effect.T @ effect + direct_sum([noise[m] for m in names])
        values = np.concatenate([x[m][row].numpy() for m in names])
        normal = multivariate_normal(np.concatenate([mean[m] for m in names]), covariance)
        assert found[row].item() == pytest.approx(normal.logpdf(values), abs=1e-9)


@pytest.mark.parametrize("make", [shared, private])
def test_samples_have_the_moments_of_the_joint_normal(make):
    oracle, n = make(levels=3, latent_dim=1, data_dim=1), 100_000
    x, z = oracle.sample(n, generator=generator())
    assert [v.shape for v in z] == [(n, size) for size in oracle.latent_dims]
    found = torch.cat(list(x.values()), dim=1).numpy()
    mean, effects, noise = joint_normal(oracle)
    mean = np.concatenate(list(mean.values()))
    effect = np.concatenate(list(effects.values()), axis=1)
    covariance = effect.T @ effect + direct_sum(noise.values())
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - mean), 5 * spread / math.sqrt(n))
    error = np.abs(np.cov(found.T) - covariance)
    np.testing.assert_array_less(error, 5 * np.outer(spread, spread) * math.sqrt(2 / n))
    assert z[0].var().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("make", [shared, private])
def test_bound_across_modalities_is_that_of_the_finest_level(make):
    # given z_1, the levels above are independent of the data: their divergences cancel
    oracle = make()
    x, _ = batch(oracle)
    whole = torch.ones_like(SUBSETS)
    expected = oracle.flat.elbo(x, whole, SUBSETS)
    torch.testing.assert_close(oracle.elbo(x, whole, SUBSETS), expected, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_common_noise_product_is_exact_over_random_chains(seed):
    oracle = shared(seed)
    _, x = batch(oracle)
    exact = oracle.messages(x, SUBSETS)
    found = oracle.messages(x, SUBSETS, "common_noise")
    for one, other in zip(exact, found, strict=True):
        for expected, value in zip(one, other, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_adding_experts_of_a_shared_chain_counts_noise_twice(seed):
    oracle = shared(seed)
    _, x = batch(oracle)
    evidence = oracle.log_prob(x, SUBSETS)
    gap = evidence - oracle.elbo(x, SUBSETS, SUBSETS, "poe")
    assert (gap[SEVERAL] > 1e-6).all()
    torch.testing.assert_close(gap[~SEVERAL], torch.zeros_like(gap[~SEVERAL]), rtol=0, atol=1e-9)

    exact, added = oracle.messages(x, SUBSETS), oracle.messages(x, SUBSETS, "poe")
    for level, ((j, _), (sum_of_j, _)) in enumerate(zip(exact, added, strict=True)):
        if level == len(exact) - 1:
            torch.testing.assert_close(sum_of_j, j)
        else:
            assert (sum_of_j[SEVERAL] > j[SEVERAL]).all()


def test_messages_do_not_depend_on_how_the_fusion_is_reached():
    oracle = private()
    _, x = batch(oracle)
    for one, other in zip(
        oracle.messages(x, SUBSETS), oracle.messages(x, SUBSETS, "poe"), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ the library on the oracle

CASES = [(shared, "joint"), (shared, "common_noise"), (private, "poe")]


@pytest.mark.parametrize(("make", "fusion"), [*CASES, (shared, "poe")])
def test_posteriors_of_the_model_are_the_messages(make, fusion):
    oracle = make()
    _, x = batch(oracle)
    output = oracle.model(fusion)(x, SUBSETS)
    messages = oracle.messages(x, SUBSETS, fusion)
    for (j, h), q, p in zip(messages, output.posteriors, output.priors, strict=True):
        precision = p.scale**-2 + j
        mean = (p.loc * p.scale**-2 + h) / precision
        torch.testing.assert_close(q.scale**-2, precision, rtol=1e-12, atol=0)
        torch.testing.assert_close(q.loc, mean, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("make", "fusion"), CASES)
def test_bound_of_the_model_is_the_evidence_for_every_subset(make, fusion):
    oracle = make(levels=2, latent_dim=1, data_dim=2)
    complete, x = batch(oracle)
    vae, dims = oracle.model(fusion), oracle.latent_dims
    bound = expected_elbo(mmpoe.elbo, vae, x, SUBSETS, SUBSETS, dims)
    torch.testing.assert_close(bound, oracle.log_prob(x, SUBSETS), rtol=0, atol=1e-9)

    whole = torch.ones_like(SUBSETS)
    bound = expected_elbo(mmpoe.elbo, vae, complete, whole, SUBSETS, dims)
    expected = oracle.elbo(complete, whole, SUBSETS)
    torch.testing.assert_close(bound, expected, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_bound_of_the_model_is_that_of_the_oracle(fusion):
    oracle = shared(levels=3, latent_dim=1, data_dim=2)
    complete, _ = batch(oracle)
    whole = torch.ones_like(SUBSETS)
    bound = expected_elbo(
        mmpoe.elbo, oracle.model(fusion), complete, whole, SUBSETS, oracle.latent_dims
    )
    expected = oracle.elbo(complete, whole, SUBSETS, fusion)
    torch.testing.assert_close(bound, expected, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize(("make", "fusion"), CASES)
def test_importance_weights_are_constant_for_every_subset(make, fusion):
    # so that bounds of K samples do not depend on K
    oracle, samples = make(), 50
    vae = oracle.model(fusion)
    one, _ = oracle.sample(1, generator=generator(2))
    torch.manual_seed(0)
    for observed in SUBSETS:
        observed = observed.expand(samples, -1)
        x = hide({m: v.expand(samples, -1) for m, v in one.items()}, observed)
        log_w = log_weights(vae(x, observed), x, observed)
        assert log_w.max() - log_w.min() < 1e-10
        evidence = oracle.log_prob(x, observed)[0].item()
        for k in (1, 2, 10, samples):
            bound = torch.logsumexp(log_w[:k], dim=0) - math.log(k)
            assert bound.item() == pytest.approx(evidence, abs=1e-10)


def test_importance_weights_of_added_experts_vary():
    oracle = shared()
    x, _ = oracle.sample(1, generator=generator(2))
    observed = torch.ones(50, 4, dtype=torch.bool)
    x = {m: v.expand(50, -1) for m, v in x.items()}
    torch.manual_seed(0)
    log_w = log_weights(oracle.model("poe")(x, observed), x, observed)
    assert log_w.max() - log_w.min() > 0.01


@pytest.mark.parametrize(("make", "fusion"), CASES)
def test_several_subsets_at_once_are_each_on_its_own(make, fusion):
    oracle = make()
    vae, x = oracle.model(fusion), batch(oracle)[0]
    stacked = SUBSETS[:, None].expand(-1, len(SUBSETS), -1)
    rng = generator(3)
    noise = [
        torch.randn(*stacked.shape[:2], size, generator=rng, dtype=torch.float64)
        for size in oracle.latent_dims
    ]
    whole = torch.ones_like(SUBSETS)
    bounds = mmpoe.elbo(vae(x, stacked, noise=noise), x, whole)
    for s in range(len(SUBSETS)):
        output = vae(x, stacked[s], noise=[n[s] for n in noise])
        torch.testing.assert_close(bounds[s], mmpoe.elbo(output, x, whole), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("make", "fusion"), CASES)
def test_gradients_are_finite_and_vanish_at_the_exact_experts(make, fusion):
    # an expert that says nothing has an infinite scale; no gradient may come out of it
    oracle = make(levels=2, latent_dim=1, data_dim=2)
    x, _ = batch(oracle)
    vae = oracle.model(fusion)
    given = SUBSETS[1:]
    x = {m: v[1:] for m, v in x.items()}
    expected_elbo(mmpoe.elbo, vae, x, given, given, oracle.latent_dims).sum().backward()
    assert vae.decoders["a"].network.weight.grad.abs().max() > 0.01
    for p in vae.parameters():
        assert p.grad is None or p.grad.isfinite().all()
    for p in vae.encoders.parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, torch.zeros_like(p), rtol=0, atol=1e-9)


# ----------------------------------------------------------------------------------- branches


@pytest.mark.parametrize("levels", [2, 3])
def test_branches_of_groups_of_modalities_are_exact(levels):
    oracle, subsets = grouped(levels), all_subsets(3)
    x, _ = oracle.sample(len(subsets), generator=generator())
    evidence = oracle.log_prob(x, subsets)
    torch.testing.assert_close(oracle.elbo(x, subsets, subsets), evidence, rtol=0, atol=1e-10)
    added = oracle.elbo(x, subsets, subsets, "poe")
    a, b, c = subsets.T
    falls_short = (a & b) if levels == 2 else (a.int() + b.int() + c.int() > 1)
    assert torch.equal(evidence - added > 1e-6, falls_short)


# ------------------------------------------------------------------------------------- inputs


def test_random_models_come_from_the_generator_alone():
    state = torch.get_rng_state()
    for fusion in FUSIONS:
        shared().model(fusion)
    private().sample(3, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert private().latent_dims == [2, 8, 8, 8]
    assert shared().latent_dims == [2, 2, 2, 2]


def make_with(**changes):
    w, b, psi = likelihoods()
    parts = {"weight": w, "bias": b, "covariance": psi, "steps": [(*torch.ones(3, 1),)]}
    return LinearGaussianHierarchy(**(parts | changes))


def test_bad_parts_are_refused():
    one = torch.ones(1)
    with pytest.raises(ValueError, match=r"'steps' should hold at least one step"):
        make_with(steps=[])
    with pytest.raises(ValueError, match=r"'steps\[1\]' should have a slope of shape \(D\)"):
        make_with(steps=[(one, one, one), (*torch.ones(3, 2),)])
    with pytest.raises(ValueError, match=r"'steps\[0\]\[2\]' should have shape \(1,\)"):
        make_with(steps=[(one, one, torch.ones(2))])
    with pytest.raises(ValueError, match=r"'steps\[0\]' should have slopes that are not 0"):
        make_with(steps=[(0 * one, one, one)])
    with pytest.raises(ValueError, match=r"'steps\[0\]' should have .* positive variances"):
        make_with(steps=[(one, one, -one)])
    with pytest.raises(ValueError, match=r"'weight\['b'\]' should have shape \(1, 1\)"):
        make_with(weight={"a": torch.ones(1, 1), "b": torch.ones(1, 2)})
    with pytest.raises(ValueError, match=r"should make W' Psi\^-1 W diagonal.* 'a' is"):
        LinearGaussianHierarchy(
            {"a": torch.tensor([[1.0, 1.0]])},
            {"a": torch.zeros(1)},
            {"a": torch.eye(1)},
            [(*torch.ones(3, 2),)],
        )
    with pytest.raises(ValueError, match=r"'levels' should be at least 2, but is 1"):
        shared(levels=1)


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match=r"'fusion' should be one of joint, .*'sum'"):
        golden_chain().model("sum")
    with pytest.raises(ValueError, match=r"'fusion' should be one of joint, .*'sum'"):
        golden_chain().messages(data(), BOTH, "sum")
    for fusion in ("joint", "common_noise"):
        with pytest.raises(ValueError, match=r"'steps' should have no branches.* \[2, 8, 8, 8\]"):
            private().model(fusion)
    with pytest.raises(ValueError, match=r"'x' should hold 'b', which is asked about"):
        golden_chain().messages({"a": data()["a"]}, BOTH, "poe")


def test_steps_of_the_golden_chain_are_those_of_its_model():
    vae = golden_chain().model("poe")
    for group, (a, c, q) in zip(list(vae.groups)[1:], STEPS, strict=True):
        prior = group.prior(torch.tensor([[2.0]], dtype=torch.float64))[0]
        assert prior.tolist() == pytest.approx([2 * a + c, math.log(q) / 2], abs=1e-12)
    assert isinstance(golden_chain().flat, LinearGaussian)
