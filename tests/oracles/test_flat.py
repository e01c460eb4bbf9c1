"""The flat oracle against scipy and numpy, and the library's models and bounds against it."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from oracle import (
    GOLDEN,
    NAMES,
    all_subsets,
    data,
    expected_elbo,
    golden,
    grid,
    hide,
    log_weights,
)
from quadrature import Wrapped
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm
from torch.distributions import MultivariateNormal, kl_divergence

import mmpoe
from mmpoe.missing import as_mask
from mmpoe.objectives import mixture_elbo
from mmpoe.oracles import LinearGaussian

BOTH = torch.ones(1, 2, dtype=torch.bool)
SUBSETS = all_subsets(3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def diagonal():
    """Three modalities that an MVAE can represent."""
    return LinearGaussian.random(["a", "b", "c"], latent_dim=2, data_dim=3, generator=generator())


def general():
    """Modalities of different sizes, correlated noise, full information matrices, any prior."""
    rng = np.random.default_rng(1)

    def covariance(size):
        root = rng.normal(size=(size, size))
        return torch.tensor(root @ root.T + 0.3 * np.eye(size))

    sizes = {"a": 1, "b": 2, "c": 4}
    return LinearGaussian(
        {m: torch.tensor(rng.normal(size=(n, 3))) for m, n in sizes.items()},
        {m: torch.tensor(rng.normal(size=n)) for m, n in sizes.items()},
        {m: covariance(n) for m, n in sizes.items()},
        torch.tensor(rng.normal(size=3)),
        covariance(3),
    )


def joint(oracle):
    """The mean and covariance of (z, x_a, x_b, ...), and the positions of each of them."""
    w, b = (np.concatenate([v.numpy() for v in p.values()]) for p in (oracle.weight, oracle.bias))
    m, s = oracle.prior_mean.numpy(), oracle.prior_covariance.numpy()
    psi = np.zeros((len(b), len(b)))
    places, start = {}, 0
    for name, block in oracle.covariance.items():
        stop = start + len(block)
        psi[start:stop, start:stop] = block
        places[name] = np.arange(start, stop) + len(m)
        start = stop
    mean = np.concatenate([m, w @ m + b])
    covariance = np.block([[s, s @ w.T], [w @ s, w @ s @ w.T + psi]])
    return mean, covariance, places


def conditioned(oracle, wanted, x, row, names):
    """The mean and covariance of some positions given the entries of one row."""
    mean, covariance, places = joint(oracle)
    known = np.concatenate([places[m] for m in names]) if names else np.arange(0)
    values = np.concatenate([x[m][row].numpy() for m in names]) if names else np.zeros(0)
    gain = covariance[np.ix_(wanted, known)] @ np.linalg.inv(covariance[np.ix_(known, known)])
    return (
        mean[wanted] + gain @ (values - mean[known]),
        covariance[np.ix_(wanted, wanted)] - gain @ covariance[np.ix_(known, wanted)],
    )


# ------------------------------------------------------------------------------ golden numbers


@pytest.mark.parametrize("subset", GOLDEN)
def test_golden_numbers_of_the_oracle(subset):
    mean, variance, evidence, kl, bound = GOLDEN[subset]
    x, given = data(), as_mask(list(subset), NAMES, 1)
    found = golden().posterior(x, given)
    assert found[0].item() == pytest.approx(mean, abs=1e-12)
    assert found[1].item() == pytest.approx(variance, abs=1e-12)
    assert golden().log_prob(x, given).item() == pytest.approx(evidence, abs=1e-11)
    assert golden().elbo(x, given, given).item() == pytest.approx(evidence, abs=1e-11)
    assert golden().elbo(x, BOTH, given).item() == pytest.approx(bound, abs=1e-11)
    divergence = 0.5 * (variance - 1 - math.log(variance) + mean**2)
    assert kl == pytest.approx(divergence, abs=1e-11)


@pytest.mark.parametrize("subset", GOLDEN)
def test_golden_numbers_of_the_model(subset):
    mean, variance, evidence, kl, bound = GOLDEN[subset]
    vae, x, given = golden().model(), data(), as_mask(list(subset), NAMES, 1)
    output = vae(x, given)
    assert output.posteriors[0].loc.item() == pytest.approx(mean, abs=1e-11)
    assert output.posteriors[0].scale.square().item() == pytest.approx(variance, abs=1e-11)
    assert output.kl[0].item() == pytest.approx(kl, abs=1e-11)
    for observed, expected in ((given, evidence), (BOTH, bound)):
        found = expected_elbo(mmpoe.elbo, vae, x, observed, given, [1])
        assert found.item() == pytest.approx(expected, abs=1e-10)


def with_node(vae, node, encodings, given, **options):
    """Infers with the same noise in all rows."""
    return vae.infer(encodings, given, noise=[node.expand(len(given), 1)], **options)


def test_mixture_bound_is_golden():
    # uniform over {a}, {b}, {a, b}; one noise node per row, the same for all three subsets
    (nodes,), weights = grid(1)
    vae, x = golden().model(), data(len(nodes))
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        infer = partial(with_node, vae, node)
        fixed = Wrapped(vae, infer)
        total += weight.item() * mixture_elbo(fixed, x, BOTH.expand(len(nodes), 2))[0].item()
    assert total == pytest.approx(-3.845222211, abs=1e-9)

    each = [golden().elbo(data(), BOTH, list(s)).item() for s in GOLDEN if s]
    assert total == pytest.approx(sum(each) / 3, abs=1e-10)


def test_bound_of_the_mixture_is_golden():
    # ELBO_mix = log p(x) - KL(q_mix || p(z | x)), by numerical integration
    posteriors = [golden().posterior(data(), list(s)) for s in GOLDEN if s]
    parts = [norm(mean.item(), variance.sqrt().item()) for mean, variance in posteriors]
    whole = parts[-1]

    def integrand(z):
        density = sum(p.pdf(z) for p in parts) / 3
        return density * (math.log(density) - whole.logpdf(z))

    divergence = quad(integrand, -8, 8, points=[-1, -0.25, 0.25], limit=200)[0]
    found = GOLDEN["a", "b"][2] - divergence
    assert found == pytest.approx(-3.654360617, abs=1e-9)


def test_best_cross_posterior_is_too_narrow_to_cover():
    # central 90 % intervals for the other modality, whose true conditional is wider
    quantile = norm.ppf(0.95)

    def coverage(variance, truth):
        return 2 * norm.cdf(quantile * math.sqrt(variance / truth)) - 1

    for given, target, expected in ((["a"], "b", 0.6763143), (["b"], "a", 0.8982877)):
        oracle, x = golden(), data()
        _, truth = oracle.conditional(x, given, [target])
        _, narrow = oracle.cross_posterior(x, BOTH, given)
        assert narrow.item() == pytest.approx(0.1, abs=1e-12)
        w, psi = oracle.weight[target].item(), oracle.covariance[target].item()
        predicted = w**2 * narrow.item() + psi
        assert coverage(predicted, truth.item()) == pytest.approx(expected, abs=1e-6)
    _, variance = golden().posterior(data(), ["a"])
    assert coverage(0.1, variance.item()) == pytest.approx(0.5380264, abs=1e-6)
    _, truth = golden().conditional(data(), ["a"], ["b"])
    assert coverage(0.4, truth.item()) == pytest.approx(0.4894243, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "target", "information", "slope"),
    [("a", "b", 0.8047189562, 0.5), ("b", "a", 0.0526802578, 4 / 9)],
)
def test_posterior_of_a_part_is_the_closest_to_those_of_the_whole(
    given, target, information, slope
):
    # E KL(p(z | x) || p(z | x_s)) over what x_s leaves open is the information left
    oracle = golden()
    mean, variance = oracle.conditional(data(), [given], [target])
    (nodes,), weights = grid(1)
    x = data(len(nodes)) | {target: mean + variance.sqrt()[0] * nodes}
    whole, part = oracle.posterior(x, NAMES), oracle.posterior(x, [given])
    kl = kl_divergence(MultivariateNormal(*whole), MultivariateNormal(*part))
    assert (kl @ weights).item() == pytest.approx(information, abs=1e-9)

    moved = oracle.posterior({given: data()[given] + 1}, [given])[0] - part[0][:1]
    assert moved.item() == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "share", "variance"),
    [
        ("a", 0.5, 1 / 6),
        ("a", 0.9, 0.3571428571),
        ("b", 0.5, 0.1052631579),
        ("b", 0.9, 0.1098901099),
    ],
)
def test_mixing_bounds_does_not_calibrate(given, share, variance):
    # the variance at which w L_s(x_s) + (1 - w) L_s(x) has no slope
    oracle, x = golden(), data()
    spread = torch.tensor([[[variance]]], dtype=torch.float64, requires_grad=True)
    mean, _ = oracle.posterior(x, [given])
    prior = MultivariateNormal(oracle.prior_mean, oracle.prior_covariance)
    kl = kl_divergence(MultivariateNormal(mean, spread), prior)
    own = oracle.expected_log_likelihood(x, as_mask([given], NAMES, 1), mean, spread)
    cross = oracle.expected_log_likelihood(x, BOTH, mean, spread)
    (share * own + (1 - share) * cross - kl).sum().backward()
    assert spread.grad.item() == pytest.approx(0, abs=1e-7)


def test_published_fusion_rule_falls_short_of_the_evidence():
    # a test of the tests: a wrong product must be noticed
    vae = golden().model()
    vae.groups[0].posterior.power = 1
    assert expected_elbo(mmpoe.elbo, vae, data(), BOTH, BOTH, [1]) < GOLDEN["a", "b"][2] - 0.01


# ----------------------------------------------------------------- the oracle, by other means


@pytest.mark.parametrize("make", [diagonal, general])
def test_evidence_against_scipy(make):
    oracle = make()
    x, _ = oracle.sample(len(SUBSETS), generator=generator(2))
    found = oracle.log_prob(hide(x, SUBSETS), SUBSETS)
    mean, covariance, places = joint(oracle)
    assert found[0] == 0
    for row, subset in list(enumerate(SUBSETS))[1:]:
        names = [m for m, seen in zip(oracle.modalities, subset, strict=True) if seen]
        at = np.concatenate([places[m] for m in names])
        values = np.concatenate([x[m][row].numpy() for m in names])
        expected = multivariate_normal(mean[at], covariance[np.ix_(at, at)]).logpdf(values)
        assert found[row].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("make", [diagonal, general])
def test_posteriors_and_conditionals_against_the_joint_normal(make):
    oracle = make()
    x, _ = oracle.sample(len(SUBSETS), generator=generator(2))
    mean, covariance = oracle.posterior(hide(x, SUBSETS), SUBSETS)
    places = joint(oracle)[2]
    for row, subset in enumerate(SUBSETS):
        names = [m for m, seen in zip(oracle.modalities, subset, strict=True) if seen]
        expected = conditioned(oracle, np.arange(oracle.latent_dim), x, row, names)
        np.testing.assert_allclose(mean[row], expected[0], atol=1e-9)
        np.testing.assert_allclose(covariance[row], expected[1], atol=1e-9)

        rest = [m for m in reversed(oracle.modalities) if m not in names]
        if rest:
            found = oracle.conditional(x, names, rest)
            wanted = np.concatenate([places[m] for m in rest])
            expected = conditioned(oracle, wanted, x, row, names)
            np.testing.assert_allclose(found[0][row], expected[0], atol=1e-9)
            np.testing.assert_allclose(found[1][row], expected[1], atol=1e-9)


@pytest.mark.parametrize("make", [diagonal, general])
def test_bound_is_below_the_evidence_by_the_divergence_of_posteriors(make):
    oracle = make()
    x, _ = oracle.sample(len(SUBSETS), generator=generator(2))
    whole = torch.ones_like(SUBSETS)
    q, p = (MultivariateNormal(*oracle.posterior(x, s)) for s in (SUBSETS, whole))
    expected = oracle.log_prob(x, whole) - kl_divergence(q, p)
    torch.testing.assert_close(oracle.elbo(x, whole, SUBSETS), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        oracle.elbo(x, SUBSETS, SUBSETS), oracle.log_prob(x, SUBSETS), rtol=0, atol=1e-9
    )


def test_samples_have_the_moments_of_the_joint_normal():
    oracle, n = general(), 100_000
    x, z = oracle.sample(n, generator=generator())
    found = torch.cat([z, *x.values()], dim=1).numpy()
    mean, covariance, _ = joint(oracle)
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - mean), 5 * spread / math.sqrt(n))
    error = np.abs(np.cov(found.T) - covariance)
    np.testing.assert_array_less(error, 5 * np.outer(spread, spread) * math.sqrt(2 / n))


@pytest.mark.parametrize("subset", [[], ["a"], ["b", "c"], ["a", "b", "c"]])
@pytest.mark.parametrize("best", [False, True])
def test_expected_gap_against_simulation(subset, best):
    oracle, n = general(), 20_000
    x, _ = oracle.sample(n, generator=generator(3))
    observed, given = torch.ones(n, 3, dtype=torch.bool), as_mask(subset, oracle.modalities, n)
    posterior = oracle.cross_posterior(x, observed, given) if best else oracle.posterior(x, given)
    whole = MultivariateNormal(*oracle.posterior(x, observed))
    gap = kl_divergence(MultivariateNormal(*posterior), whole)
    expected = oracle.expected_gap(observed[:1], given[:1], best=best).item()
    error = gap.std().item() / math.sqrt(n)
    assert gap.mean().item() == pytest.approx(expected, abs=5 * error + 1e-9)
    if len(subset) == 3:
        assert expected == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("change", [0.8, 1.25])
def test_no_other_covariance_is_better_across_modalities(change):
    oracle, n = general(), 2000
    x, _ = oracle.sample(n, generator=generator(4))
    observed = torch.ones(n, 3, dtype=torch.bool)
    mean, covariance = oracle.cross_posterior(x, observed, ["a"])
    whole = MultivariateNormal(*oracle.posterior(x, observed))
    best, other = (
        kl_divergence(MultivariateNormal(mean, c), whole).mean()
        for c in (covariance, change * covariance)
    )
    assert other > best


# ------------------------------------------------------------------ the library on the oracle


def correlated():
    """Correlated noise, for which information matrices are diagonal all the same."""
    whitened = diagonal()
    roots = {m: v + torch.full((3, 3), 0.4).tril(-1) for m, v in whitened.covariance.items()}
    scale = {m: v.diagonal().sqrt() for m, v in whitened.covariance.items()}
    return LinearGaussian(
        {m: roots[m] @ (w / scale[m][:, None]) for m, w in whitened.weight.items()},
        whitened.bias,
        {m: root @ root.T for m, root in roots.items()},
    )


@pytest.mark.parametrize("make", [diagonal, correlated])
def test_bound_of_the_model_is_the_evidence_for_every_subset(make):
    oracle = make()
    complete, _ = oracle.sample(len(SUBSETS), generator=generator(5))
    x, vae = hide(complete, SUBSETS), oracle.model()
    bound = expected_elbo(mmpoe.elbo, vae, x, SUBSETS, SUBSETS, [2])
    torch.testing.assert_close(bound, oracle.log_prob(x, SUBSETS), rtol=0, atol=1e-9)

    whole = torch.ones_like(SUBSETS)
    bound = expected_elbo(mmpoe.elbo, vae, complete, whole, SUBSETS, [2])
    expected = oracle.elbo(complete, whole, SUBSETS)
    torch.testing.assert_close(bound, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [diagonal, correlated])
def test_importance_weights_are_constant_for_every_subset(make):
    # log p(x, z) - log q(z | x) is log p(x), whatever z: bounds of K samples do not depend on K
    oracle, samples = make(), 50
    x, _ = oracle.sample(1, generator=generator(6))
    torch.manual_seed(0)
    for observed in SUBSETS:
        observed = observed.expand(samples, -1)
        repeated = hide({m: v.expand(samples, -1) for m, v in x.items()}, observed)
        log_w = log_weights(oracle.model()(repeated, observed), repeated, observed)
        assert log_w.max() - log_w.min() < 1e-10
        evidence = oracle.log_prob(repeated, observed)[0].item()
        for k in (1, 2, 10, samples):
            bound = torch.logsumexp(log_w[:k], dim=0) - math.log(k)
            assert bound.item() == pytest.approx(evidence, abs=1e-10)


def test_predictions_of_the_model_have_the_exact_mean():
    oracle = diagonal()
    x, _ = oracle.sample(4, generator=generator(7))
    prediction = oracle.model().predict(x, ["a"], targets=["b"], temperature=0.0)
    torch.testing.assert_close(prediction["b"].mean, oracle.conditional(x, ["a"], ["b"])[0])


def test_exact_experts_are_where_the_bound_has_no_slope():
    oracle, given = diagonal(), SUBSETS[1:]
    x, _ = oracle.sample(len(given), generator=generator(8))
    vae = oracle.model()
    expected_elbo(mmpoe.elbo, vae, x, given, given, [2]).sum().backward()
    gradients = [p.grad for p in vae.encoders.parameters()]
    assert gradients
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    decoder = next(vae.decoders.parameters()).grad
    assert decoder.abs().max() > 0.01  # and the bound did reach the parameters


def test_expert_of_a_modality_that_sees_part_of_the_latent():
    # private dimensions: an infinite scale where the modality says nothing
    weight = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 2.0]])}
    oracle = LinearGaussian(
        weight, {m: torch.zeros(1) for m in weight}, {m: torch.eye(1) for m in weight}
    )
    x, _ = oracle.sample(4, generator=generator())
    masks = all_subsets(2)
    vae = oracle.model()
    bound = expected_elbo(mmpoe.elbo, vae, x, masks, masks, [2])
    torch.testing.assert_close(bound, oracle.log_prob(x, masks), rtol=0, atol=1e-9)
    bound.sum().backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters())


# ------------------------------------------------------------------------------------- inputs


def test_missing_entries_are_never_read():
    oracle = diagonal()
    x, _ = oracle.sample(len(SUBSETS), generator=generator(9))
    hidden = hide(x, SUBSETS)
    for method in (oracle.message, oracle.posterior, oracle.log_prob):
        first, second = method(x, SUBSETS), method(hidden, SUBSETS)
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)
    assert torch.equal(oracle.elbo(x, SUBSETS, SUBSETS), oracle.elbo(hidden, SUBSETS, SUBSETS))

    mean = torch.zeros(len(SUBSETS), 2, dtype=torch.float64, requires_grad=True)
    spread = torch.eye(2, dtype=torch.float64).expand(len(SUBSETS), 2, 2)
    oracle.expected_log_likelihood(hidden, SUBSETS, mean, spread).sum().backward()
    assert mean.grad.isfinite().all()

    without = {"b": x["b"]}
    found = oracle.posterior(without, ["b"])[0]
    assert torch.equal(found, oracle.posterior(x, ["b"])[0])


def test_several_subsets_at_once():
    oracle = diagonal()
    x, _ = oracle.sample(4, generator=generator(10))
    stacked, whole = SUBSETS[:, None].expand(-1, 4, -1), torch.ones(4, 3, dtype=torch.bool)
    mean, covariance = oracle.posterior(x, stacked)
    bounds, gaps = oracle.elbo(x, whole, stacked), oracle.expected_gap(whole, stacked)
    for s, subset in enumerate(SUBSETS):
        given = subset.expand(4, -1)
        expected = oracle.posterior(x, given)
        assert torch.equal(mean[s], expected[0])
        assert torch.equal(covariance[s], expected[1])
        torch.testing.assert_close(bounds[s], oracle.elbo(x, whole, given))
        torch.testing.assert_close(gaps[s], oracle.expected_gap(whole, given))


def test_single_precision_and_empty_batches():
    x = {m: v.float() for m, v in data(3).items()}
    mean, _ = golden().posterior(x, NAMES)
    assert mean.dtype == torch.float64
    nothing = torch.zeros(0, 2, dtype=torch.bool)
    assert golden().log_prob(data(0), nothing).shape == (0,)
    assert golden().elbo(data(0), nothing, nothing).shape == (0,)
    assert golden().log_prob({}, torch.zeros(2, 2, dtype=torch.bool)).tolist() == [0, 0]


def test_random_models_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first, second = diagonal(), diagonal()
    first.model()
    x, z = first.sample(3, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    for m in first.modalities:
        assert torch.equal(first.weight[m], second.weight[m])
        off = first.information[m] - first.information[m].diagonal().diag()
        assert off.abs().max() < 1e-14
    assert z.shape == (3, 2)
    assert {v.shape for v in x.values()} == {(3, 3)}


def test_bad_parts_are_refused():
    one, eye = torch.ones(1, 1), torch.eye(1)
    with pytest.raises(ValueError, match=r"'bias' should have the keys of 'weight', \['a'\]"):
        LinearGaussian({"a": one}, {"b": torch.zeros(1)}, {"a": eye})
    with pytest.raises(ValueError, match=r"'bias\['a'\]' should have shape \(1,\)"):
        LinearGaussian({"a": one}, {"a": torch.zeros(2)}, {"a": eye})
    with pytest.raises(ValueError, match=r"'weight\['a'\]' should have shape \(D_m, D\)"):
        LinearGaussian({"a": torch.ones(())}, {"a": torch.zeros(1)}, {"a": eye})
    with pytest.raises(ValueError, match=r"'weight\['b'\]' should have shape \(1, 1\)"):
        LinearGaussian(
            {"a": one, "b": torch.ones(1, 2)},
            {m: torch.zeros(1) for m in NAMES},
            dict.fromkeys(NAMES, eye),
        )
    with pytest.raises(ValueError, match=r"'covariance\['a'\]' should be symmetric and positive"):
        LinearGaussian({"a": one}, {"a": torch.zeros(1)}, {"a": -eye})
    with pytest.raises(ValueError, match=r"'prior_mean' should have shape \(1,\)"):
        LinearGaussian({"a": one}, {"a": torch.zeros(1)}, {"a": eye}, torch.zeros(2))
    with pytest.raises(ValueError, match=r"'prior_covariance' should be symmetric and positive"):
        LinearGaussian({"a": one}, {"a": torch.zeros(1)}, {"a": eye}, None, 0 * eye)
    with pytest.raises(ValueError, match=r"'data_dim' should be at least 'latent_dim'.* 1 and 2"):
        LinearGaussian.random(["a"], latent_dim=2, data_dim=1)


def test_bad_questions_are_refused():
    oracle, x = golden(), data()
    with pytest.raises(ValueError, match=r"'given' should have one column per modality \(2\)"):
        oracle.posterior(x, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"'observed' should have one column per modality"):
        oracle.log_prob(x, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"'x' should hold 'b', which is asked about, but holds"):
        oracle.posterior({"a": x["a"]}, ["b"])
    with pytest.raises(ValueError, match=r"'x\['a'\]' should have shape \(1, 1\)"):
        oracle.posterior({"a": torch.ones(1, 2)}, ["a"])
    with pytest.raises(ValueError, match=r"'x' should be finite .* 'a' holds NaN"):
        oracle.log_prob({"a": torch.tensor([[math.nan]]), "b": x["b"]}, BOTH)
    with pytest.raises(ValueError, match=r"'target' should name modalities not given.* 'a'"):
        oracle.conditional(x, ["a"], ["b", "a"])
    with pytest.raises(ValueError, match=r"'target' should hold modalities among a, b"):
        oracle.conditional(x, ["a"], ["c"])


def test_models_that_an_mvae_cannot_represent_are_refused():
    with pytest.raises(ValueError, match=r"'prior_mean' and 'prior_covariance' should be those"):
        general().model()
    oblique = LinearGaussian(
        {"a": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}, {"a": torch.zeros(2)}, {"a": torch.eye(2)}
    )
    with pytest.raises(ValueError, match=r"should make W' Psi\^-1 W diagonal.* 'a' is \[\[2"):
        oblique.model()
