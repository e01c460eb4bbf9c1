"""The named objectives against their formulas, written out."""

import math

import pytest
import torch
from example_models import (
    NAMES,
    OBSERVED,
    batch,
    conditioned,
    every_model,
    flat,
    hierarchical,
    make,
)
from oracle import GOLDEN, PSI, B, W, X, data, golden
from quadrature import BOTH, expect, layer, one_row
from quadrature import flat as one_dimensional
from quadrature import hierarchy as two_levels
from torch.distributions import Normal as Gaussian
from torch.distributions import kl_divergence

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.kernels import use_backend
from mmpoe.likelihoods import Normal
from mmpoe.missing import subsets
from mmpoe.nn import Concatenate, OwnBlock, PrivateExpert
from mmpoe.objectives import (
    _pairs,
    elbo,
    mhvae,
    mixture_elbo,
    mixture_iwae,
    mmhvae,
    mmvae,
    mmvae_plus,
    mmvm,
    mopoe,
    mvae,
    mvtcae,
)
from mmpoe.posteriors import MoE, PoE

PRESETS = [mvae, mmvae, mmvm, mopoe, mvtcae, mhvae, mmhvae]
every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)


def seeded(objective, *args, **options):
    torch.manual_seed(0)
    return objective(*args, **options)


def self_bound(model, x, subset):
    """The expectation of the bound of a subset on itself."""
    observed = torch.tensor([[m in subset for m in "ab"]])
    return expect(mixture_elbo, model, x, observed, 0.7, family="full", nodes=20).item()


def cross_bound(model, x, subset):
    """The expectation of the bound of a subset on both modalities."""
    family = torch.tensor([[m in subset for m in "ab"]])
    return expect(mixture_elbo, model, x, BOTH, 0.7, family=family, nodes=20).item()


# ----------------------------------------------------------------------------- the six formulas


@pytest.mark.parametrize("build", [one_dimensional, two_levels])
def test_presets_are_the_sums_of_their_papers(build):
    model, x = build(), one_row()
    own = {s: self_bound(model, x, s) for s in ("a", "b", "ab")}
    cross = {s: cross_bound(model, x, s) for s in ("a", "b", "ab")}
    assert own["ab"] == pytest.approx(cross["ab"])

    def value(preset, **options):
        return expect(preset, model, x, BOTH, 0.7, nodes=20, **options).item()

    third = sum(cross.values()) / 3
    assert value(mvae) == pytest.approx(sum(own.values()), abs=1e-10)
    assert value(mopoe, decode="all") == pytest.approx(third, abs=1e-10)
    assert value(mhvae) == pytest.approx(third, abs=1e-10)
    assert value(mmhvae) == pytest.approx(third, abs=1e-10)
    mixture = expect(mixture_iwae, model, x, BOTH, 0.7, nodes=20, family="singletons").item()
    assert value(mmvae) == pytest.approx(mixture, abs=1e-12)
    assert mixture > (cross["a"] + cross["b"]) / 2 + 0.01

    alone = torch.tensor([[True, False]])
    for preset in (mvae, mopoe, mhvae, mmhvae):
        found = expect(preset, model, x, alone, 0.7, nodes=20).item()
        assert found == pytest.approx(own["a"], abs=1e-10)


def test_golden_presets():
    model, x = golden().model(), data()
    own = sum(evidence for s, (_, _, evidence, _, _) in GOLDEN.items() if s)
    assert expect(mvae, model, x, BOTH, nodes=3).item() == pytest.approx(own, abs=1e-10)
    for preset in (mhvae, mmhvae, mopoe):
        options = {"decode": "all"} if preset is mopoe else {}
        found = expect(preset, model, x, BOTH, nodes=3, **options).item()
        assert found == pytest.approx(-3.845222211, abs=1e-9)


def test_groups_of_mmhvae_weigh_a_third_each():
    model, x = make(hierarchical), batch()
    for special in (None, *NAMES):
        column = NAMES.index(special or NAMES[0])
        found = seeded(mmhvae, model, x, OBSERVED, 0.5, special=special)
        family = subsets(OBSERVED, "groups", special=column)
        expected = seeded(mixture_elbo, model, x, OBSERVED, 0.5, family=family)
        assert torch.equal(found, expected)
    weight = dict(zip(map(tuple, family[0][:, 7].tolist()), family[1][:, 7].tolist(), strict=True))
    assert weight[True, True, True] == pytest.approx(1 / 3)
    assert weight[False, False, True] == pytest.approx(1 / 3)
    assert weight[True, False, False] == pytest.approx(1 / 9)


def test_mhvae_averages_what_was_observed_and_single_modalities():
    model, x = make(hierarchical), batch()
    full, single = subsets(OBSERVED, "full")[0], subsets(OBSERVED, "singletons")[0]
    given, size = torch.cat([full, single]), OBSERVED.sum(dim=1)
    count = torch.where(size > 1, size + 1, size)
    weight = given.any(dim=-1) / count.clamp(min=1)
    weight[1:] *= (size > 1) | (weight[0] == 0)  # a single observed modality is its own full set
    expected = seeded(mixture_elbo, model, x, OBSERVED, family=(given, weight))
    torch.testing.assert_close(seeded(mhvae, model, x, OBSERVED), expected)


@pytest.mark.parametrize("samples", [1, 5])
def test_random_subsets_of_mvae_count_once(monkeypatch, samples):
    model, x, pattern = make(flat), batch(), torch.tensor([True, True, False])
    drawn = OBSERVED & pattern
    monkeypatch.setattr(
        _pairs, "random_subsets", lambda observed, samples: drawn.expand(samples, 8, 3)
    )
    found = seeded(mvae, model, x, OBSERVED, samples=samples)
    given = torch.cat([OBSERVED[None], subsets(OBSERVED, "singletons")[0], drawn[None]])
    weight = torch.zeros(5, 8)
    for b in range(8):
        members = given[:, b].tolist()
        for s, member in enumerate(members):
            weight[s, b] = any(member) and member not in members[:s]
    expected = seeded(
        mixture_elbo, model, x, OBSERVED, family=(given, weight), reconstruct="given"
    )
    torch.testing.assert_close(found, expected)
    assert weight.sum(dim=0).tolist() == [0, 1, 1, 3, 1, 3, 3, 5]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_mvtcae_is_its_formula(alpha):
    model = make(lambda: flat(posterior=PoE(prior_in="never")))
    x = batch()
    with use_backend("eager"):  # whose noise is PyTorch's
        found = seeded(mvtcae, model, x, OBSERVED, 0.6, alpha=alpha)

    torch.manual_seed(0)
    noise, drawn = torch.randn(7, 4), 0  # of the joint posterior of each row that has one
    for b in range(8):
        seen = [m for m, o in zip(NAMES, OBSERVED[b].tolist(), strict=True) if o]
        if not seen:
            assert found[b].item() == 0
            continue
        q = {}
        for m in seen:
            loc, log_scale = model.encoders[m](x[m][b]).chunk(2)
            q[m] = Gaussian(loc, log_scale.exp())
        precision = sum(q[m].scale ** -2 for m in seen)
        loc = sum(q[m].loc / q[m].scale ** 2 for m in seen) / precision
        joint, prior = Gaussian(loc, precision**-0.5), Gaussian(0.0, 1.0)
        number = len(seen)
        z, drawn = joint.loc + joint.scale * noise[drawn], drawn + 1
        log_p = sum(model.decoders[m](z[None]).log_prob(x[m][b : b + 1])[0] for m in seen)
        apart = sum(kl_divergence(joint, q[m]).sum() for m in seen) / number
        cost = (1 - alpha) * kl_divergence(joint, prior).sum() + alpha * apart
        expected = (number - alpha) / number * log_p - 0.6 * cost
        torch.testing.assert_close(found[b], expected)


def test_mvtcae_of_a_hierarchy_compares_posteriors_at_the_joint_sample():
    model, x = two_levels(), one_row()
    found = seeded(mvtcae, model, x, BOTH, [0.6, 0.2], alpha=0.4)
    z = model_latents(model, x)
    joint = conditioned(model, x, BOTH, z=z)
    cost = 0.6 * 0.6 * joint.kl[0] + 0.2 * 0.6 * joint.kl[1]
    for m in "ab":
        alone = conditioned(model, x, [m], z=z)
        for beta, q, q_m in zip((0.6, 0.2), joint.posteriors, alone.posteriors, strict=True):
            cost = cost + beta * 0.4 / 2 * kl_divergence(q, q_m)
    log_p = elbo(joint, x, BOTH, 0.0)
    torch.testing.assert_close(found, 0.8 * log_p - cost)


def model_latents(model, x):
    """The latents that both modalities together have, from the first noise of a seed."""
    torch.manual_seed(0)
    return conditioned(model, x, BOTH).z


# ------------------------------------------------------------ a prior that depends on the data


def test_golden_mmvm():
    # by integration over the densities of the golden posteriors of a and b
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    single = [v[:2] for s, v in GOLDEN.items() if len(s) == 1]
    mean, variance, w, bias, psi, value = torch.tensor(
        [*zip(*single, strict=True), W, B, PSI, X], dtype=torch.float64
    )[..., None]
    log_q = Gaussian(mean, variance.sqrt()).log_prob(z)  # (2, N)
    log_h = log_q.logsumexp(dim=0) - math.log(2)
    apart = torch.trapezoid(log_q.exp() * (log_q - log_h), z).sum().item()
    scores = Gaussian(w * z + bias, psi.sqrt()).log_prob(value)
    log_p = torch.trapezoid(log_q.exp() * scores, z).sum().item()
    assert (log_p, apart) == pytest.approx((-2.223942365, 0.394544511), abs=1e-9)
    parts = [Gaussian(m[0], v[0].sqrt()) for m, v in zip(mean, variance, strict=True)]
    pairs = (kl_divergence(*parts) + kl_divergence(*parts[::-1])).item() / 2
    assert pairs == pytest.approx(1.616319444, abs=1e-9)
    model, x = golden().model(), data()
    for beta in (0.0, 0.3, 1.0):
        found = expect(mmvm, model, x, BOTH, beta, density="mixture", nodes=200).item()
        assert found == pytest.approx(log_p - beta * apart, abs=1e-9)
        found = expect(mmvm, model, x, BOTH, beta, nodes=3).item()
        assert found == pytest.approx(log_p - beta * pairs, abs=1e-9)


every_density = pytest.mark.parametrize("density", ["component", "mixture"])


@every_density
def test_one_modality_reconstructs_itself_at_no_cost_of_mmvm(density):
    model, x, alone = one_dimensional(), one_row(), torch.tensor([[True, False]])
    free = expect(mixture_elbo, model, x, alone, 0.0, family="full", nodes=20).item()
    for beta in (0.0, 1.0, 50.0):
        found = expect(mmvm, model, x, alone, beta, density=density, nodes=20).item()
        assert found == pytest.approx(free, abs=1e-10)


@every_density
def test_modalities_that_agree_cost_nothing_in_mmvm(density):
    model = one_dimensional(mmpoe.MMVAE)
    model.encoders["b"].load_state_dict(model.encoders["a"].state_dict())
    x = {m: torch.full((1, 1), 0.7, dtype=torch.float64) for m in "ab"}
    found = [seeded(mmvm, model, x, BOTH, beta, density=density).item() for beta in (0.0, 9.0)]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_what_modalities_that_are_far_apart_cost_in_mmvm():
    model, x = one_dimensional(mmpoe.MMVAE), one_row()
    with torch.no_grad():
        model.encoders["b"].bias[0] += 1000

    def cost_and_gradient(**options):
        total = seeded(mmvm, model, x, BOTH, 0.0) - seeded(mmvm, model, x, BOTH, **options)
        return total.item(), torch.autograd.grad(total, model.encoders["b"].bias)[0][0].item()

    cost, gradient = cost_and_gradient(density="mixture")  # nothing draws them together
    assert cost == pytest.approx(2 * math.log(2), rel=1e-6)
    assert gradient == 0
    cost, gradient = cost_and_gradient()
    assert cost > 1e5
    assert gradient > 1e2


@every_density
def test_mmvm_of_a_hierarchy_takes_all_groups(density):
    model, x = two_levels(), one_row()
    found = seeded(mmvm, model, x, BOTH, 0.7, density=density)
    torch.manual_seed(0)
    single = torch.tensor([[True, False], [False, True]])
    drawn = conditioned(model, x, single, rows=torch.zeros(2, dtype=torch.long))
    expected = torch.zeros(1, dtype=torch.float64)
    for row, m in enumerate("ab"):
        z = [v[row : row + 1] for v in drawn.z]
        q = {n: conditioned(model, x, [n], z=z).posteriors for n in "ab"}
        if density == "component":
            levels = [
                kl_divergence(*level) for n in "ab" for level in zip(q[m], q[n], strict=True)
            ]
            cost = sum(levels) / 2
        else:
            log_q = {n: sum(p.log_prob(v) for p, v in zip(q[n], z, strict=True)) for n in "ab"}
            log_h = torch.stack(list(log_q.values())).logsumexp(dim=0) - math.log(2)
            cost = log_q[m] - log_h
        log_p = drawn.likelihoods[m].log_prob(x[m].expand(2, 1))[row]
        expected = expected + log_p - 0.7 * cost
    torch.testing.assert_close(found, expected)


def test_couples_of_the_same_row():
    first, second = _pairs.of_same_rows(torch.tensor([0, 2, 2, 5]))
    couples = list(zip(first.tolist(), second.tolist(), strict=True))
    assert couples == [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 3)]


# ------------------------------------------------------------------------------ private latents


def private_model():
    """One shared latent, and one private latent for each modality."""
    shared = {
        "a": layer(2, 2, 0.6, 0, 0.1, 0, 0.3, -0.4),
        "b": layer(2, 2, -0.5, 0, 0.2, 0, 0, -0.2),
    }
    private = {
        m: PrivateExpert(layer(2, 2, 0.1, 0.4 + i, -0.3, 0.1, 0.2, -0.1), i, 2)
        for i, m in enumerate("ab")
    }
    groups = [
        LatentGroup((1,), shared, posterior=MoE(prior_in="always")),
        LatentGroup(
            (2,),
            private,
            Concatenate(),
            prior=layer(1, 4, 0, 0, 0, 0, 0.3, -0.2, 0.1, -0.3),
            expert_sees_state=False,
            posterior=MoE(prior_in="always"),
        ),
    ]
    encoders = {m: Stack() for m in "ab"}
    decoders = {
        m: Normal(torch.nn.Sequential(OwnBlock(1, i, 2), layer(2, 1, 0.8, 1.0 - i, 0.1)), 1.0)
        for i, m in enumerate("ab")
    }
    return mmpoe.MMHVAE(encoders, groups, decoders).double()


class Stack(torch.nn.Module):
    def forward(self, x):
        features = torch.cat([x, x**2], dim=1)
        return [features, features]


def test_mmvae_plus_is_its_formula():
    model, x = private_model(), one_row()
    samples = 3
    found = seeded(mmvae_plus, model, x, BOTH, 0.7, samples=samples)

    torch.manual_seed(0)
    single = torch.tensor([[True, False], [False, True]])
    rows = torch.zeros(2 * samples, dtype=torch.long)
    output = conditioned(model, x, single.repeat(samples, 1), rows=rows)
    z, w = output.z
    shared = [Gaussian(q.loc, q.scale) for q in (own(model, x, m, 0) for m in "ab")]
    log_w = torch.zeros(samples, 2, dtype=torch.float64)
    for row in range(2 * samples):
        k, m = divmod(row, 2)
        block = own(model, x, "ab"[m], 1)
        prior = output.priors[1]
        log_q = torch.cat([q.log_prob(z[row])[0] for q in shared]).logsumexp(dim=0) - math.log(2)
        log_q = log_q + Gaussian(block.loc[0, m], block.scale[0, m]).log_prob(w[row, m])
        log_p = Gaussian(0.0, 1.0).log_prob(z[row, 0])
        log_p = log_p + Gaussian(prior.loc[row, m], prior.scale[row, m]).log_prob(w[row, m])
        ratio = 0.7 * (log_p - log_q)
        scores = sum(
            p.log_prob(x[n].expand(2 * samples, 1))[row] for n, p in output.likelihoods.items()
        )
        log_w[k, m] = scores + ratio
        other = 1 - m  # its private latent is drawn from the prior
        assert output.posteriors[1].loc[row, other] == prior.loc[row, other]
        assert output.posteriors[1].scale[row, other] == prior.scale[row, other]
    expected = (log_w.logsumexp(dim=0) - math.log(samples)).mean()
    torch.testing.assert_close(found[0], expected)


def own(model, x, modality, level):
    return conditioned(model, x, [modality]).posteriors[level]


def test_mmvae_plus_is_a_bound():
    model, x = private_model(), one_row()
    loose = expect(mmvae_plus, model, x, BOTH, nodes=12).item()
    # the evidence, by importance sampling from the prior of z and w, exactly in w
    z = torch.linspace(-10, 10, 4001, dtype=torch.float64)[:, None]
    log_p = Gaussian(0.0, 1.0).log_prob(z)[:, 0]
    prior = model.groups[1].prior(z)
    for i, m in enumerate("ab"):
        weights, bias = model.decoders[m].network[1].weight[0], model.decoders[m].network[1].bias
        mean = weights[0] * z[:, 0] + weights[1] * prior[:, i] + bias
        variance = 1 + weights[1] ** 2 * (2 * prior[:, 2 + i]).exp()
        log_p = log_p + Gaussian(mean, variance.sqrt()).log_prob(x[m][0])
    evidence = torch.trapezoid(log_p.exp(), z[:, 0]).log().item()
    assert evidence - 2 < loose < evidence - 0.01


def test_mmvae_plus_works_with_products_and_missing_modalities():
    torch.manual_seed(0)
    model = mmpoe.models.vector_mmhvae(dict(zip(NAMES, (5, 4, 3), strict=True)), private=2)
    bound = mmvae_plus(model, batch(math.nan), OBSERVED)
    assert bound[0].item() == 0
    assert bound.isfinite().all()
    with pytest.raises(ValueError, match=r"'private' should be .* groups \(3\), but is 3"):
        mmvae_plus(model, batch(), OBSERVED, private=3)


# ---------------------------------------------------------------------------- all objectives


@every_preset
@every_model
def test_missing_slots_change_no_bit_of_presets(preset, build):
    model = make(build)
    found = []
    for filler in (math.nan, 0.25):
        bound = seeded(preset, model, batch(filler), OBSERVED)
        assert bound.shape == (8,)
        assert bound[0].item() == 0
        gradients = torch.autograd.grad(bound.sum(), list(model.parameters()), allow_unused=True)
        found.append([bound, *gradients])
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@every_preset
def test_batches_that_observed_nothing_are_worth_nothing(preset):
    model = make(hierarchical)
    assert preset(model, batch(), OBSERVED & False).tolist() == [0.0] * 8
    assert preset(model, {}, OBSERVED & False).tolist() == [0.0] * 8
    assert preset(model, {m: v[:0] for m, v in batch().items()}, OBSERVED[:0]).shape == (0,)


@every_preset
def test_presets_check_their_masks(preset):
    model, x = make(flat), batch()
    with pytest.raises(ValueError, match=r"'observed' .* shape \(B, 3\)"):
        preset(model, x, OBSERVED[:, :2])
    x["us"][3, 1] = math.nan
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[3\]"):
        preset(model, x, OBSERVED)


def test_bad_options_of_presets_are_named():
    model, x = make(flat), batch()
    for alpha in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"'alpha' should be in \[0, 1\], but is {alpha}"):
            mvtcae(model, x, OBSERVED, alpha=alpha)
    with pytest.raises(ValueError, match=r"'samples' should be at least 0, but is -1"):
        mvae(model, x, OBSERVED, samples=-1)
    with pytest.raises(ValueError, match=r"'gradient' should be pathwise"):
        mmvae(model, x, OBSERVED, samples=2, gradient="stl")
    with pytest.raises(ValueError, match=r"'decode' should be one of"):
        mopoe(model, x, OBSERVED, decode="none")
    with pytest.raises(ValueError, match=r"'density' should be one of component, mixture"):
        mmvm(model, x, OBSERVED, density="all")
