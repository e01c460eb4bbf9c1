"""Estimates of the evidence, against models whose evidence is known."""

import math

import pytest
import torch
from example_models import (
    NAMES,
    OBSERVED,
    SIZES,
    batch,
    conditioned,
    every_model,
    flat,
    hierarchical,
    make,
)
from torch import nn
from torch.distributions import Independent, MultivariateNormal

import mmpoe
from mmpoe import hierarchy
from mmpoe.evidence import _samples as samples_module
from mmpoe.evidence import (
    effective_sample_size,
    log_conditional,
    log_marginal,
    log_predictive,
    log_weights,
)
from mmpoe.evidence._samples import log_ratio, propose
from mmpoe.hierarchy import State
from mmpoe.likelihoods import Normal
from mmpoe.missing import subsets
from mmpoe.models import _scoring
from mmpoe.objectives import not_miwae
from mmpoe.oracles import LinearGaussian, LinearGaussianHierarchy
from mmpoe.posteriors import MoE, MoPoE

ALL = torch.ones(8, 3, dtype=torch.bool)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def flat_oracle():
    oracle = LinearGaussian.random(NAMES, latent_dim=2, data_dim=3)
    return oracle, oracle.model(), oracle.sample(8)[0]


def chain(fusion):
    oracle = LinearGaussianHierarchy.random(NAMES, levels=3, latent_dim=2, data_dim=3)
    return oracle, oracle.model(fusion), oracle.sample(8)[0]


EXACT = {
    "flat": flat_oracle,
    "joint": lambda: chain("joint"),
    "common noise": lambda: chain("common_noise"),
}
every_exact = pytest.mark.parametrize("build", EXACT.values(), ids=EXACT.keys())


@every_exact
def test_weights_of_an_exact_posterior_are_the_evidence_of_every_subset(build):
    oracle, model, x = build()
    log_w = log_weights(model, x, OBSERVED, samples=20)
    assert log_w.shape == (20, 8)
    assert (log_w - oracle.log_prob(x, OBSERVED)).abs().max() < 1e-10
    for samples in (1, 7):
        estimate = log_marginal(model, x, OBSERVED, samples=samples)
        assert (estimate - oracle.log_prob(x, OBSERVED)).abs().max() < 1e-10


@every_exact
@pytest.mark.parametrize("given", [[], NAMES[:1], NAMES[1:]])
def test_conditional_is_exact(build, given):
    oracle, model, x = build()
    targets = [m for m in NAMES if m not in given]
    mean, covariance = getattr(oracle, "flat", oracle).conditional(x, given, targets)
    truth = MultivariateNormal(mean, covariance).log_prob(torch.cat([x[m] for m in targets], 1))
    found = log_conditional(model, x, targets, given, samples=3)
    assert (found - truth).abs().max() < 1e-10


def test_conditional_of_what_is_given_is_nothing():
    _, model, x = flat_oracle()
    targets = torch.zeros(8, 3, dtype=torch.bool)
    targets[:4] = OBSERVED[1]
    found = log_conditional(model, x, targets, OBSERVED, samples=2)
    kept = (targets & ~OBSERVED).any(dim=1)
    assert kept.any()
    assert not kept.all()
    assert (found[~kept] == 0).all()
    assert (found[kept] != 0).all()


WRONG = {
    "flat": lambda: (*flat_oracle(), NAMES[:1]),
    "over-counting chain": lambda: (*chain("poe"), NAMES),
    "prior": lambda: (*flat_oracle(), []),
}


@pytest.mark.parametrize("build", WRONG.values(), ids=WRONG.keys())
def test_wrong_proposals_are_unbiased(build):
    oracle, model, x, given = build()
    with torch.no_grad():
        log_w = log_weights(model, x, ALL, given, samples=20_000)
    ratio = (log_w - oracle.log_prob(x, ALL)).exp()
    assert ratio.std(dim=0).min() > 0.05  # it is a wrong one
    z_score = (ratio.mean(dim=0) - 1) / (ratio.std(dim=0) / math.sqrt(len(ratio)))
    assert z_score.abs().max() < 4


def test_estimate_rises_with_the_number_of_samples():
    oracle, model, x = flat_oracle()
    with torch.no_grad():
        log_w = log_weights(model, x, ALL, NAMES[:1], samples=32_000)
    levels = []
    for samples in (1, 4, 16):
        estimate = log_w.unflatten(0, (-1, samples)).logsumexp(dim=1) - math.log(samples)
        levels.append(estimate.mean(dim=0))
    levels = torch.stack([*levels, oracle.log_prob(x, ALL)])
    assert (levels.diff(dim=0) > 0).all()


def test_predictive_is_the_density_of_predictions():
    oracle, model, x = flat_oracle()
    target = NAMES[2:]
    mean, covariance = oracle.conditional(x, NAMES[:2], target)
    truth = MultivariateNormal(mean, covariance).log_prob(x[NAMES[2]])
    with torch.no_grad():
        found = log_predictive(model, x, target, NAMES[:2], samples=20_000)
    assert (found - truth).abs().max() < 0.1
    assert (found - truth).abs().mean() < 0.03


@pytest.mark.parametrize(("rho", "size"), [(0.8, 1), (0.8, 16), (0.9, 16)])
def test_effective_sample_size_of_a_narrow_proposal(rho, size):
    # the target is the prior; the proposal is N(0, rho): its expert has precision 1 / rho - 1
    constant = nn.Linear(1, 2 * size)
    with torch.no_grad():
        constant.weight.zero_()
        constant.bias[:size] = 0
        constant.bias[size:] = -0.5 * math.log(1 / rho - 1)
    vae = mmpoe.MVAE({"a": constant}, {"a": Normal(nn.Linear(size, 1))}, latent_dim=size)
    nothing = torch.zeros(1, 1, dtype=torch.bool)
    with torch.no_grad():
        log_w = log_weights(vae, {"a": torch.zeros(1, 1)}, nothing, ["a"], samples=50_000)
    share = effective_sample_size(log_w).item() / len(log_w)
    assert share == pytest.approx((math.sqrt(2 * rho - 1) / rho) ** size, rel=0.08)


def test_effective_sample_sizes_of_the_design():
    shares = [(math.sqrt(0.6) / 0.8) ** size for size in (1, 16, 64)]
    assert shares == pytest.approx([0.968, 0.60, 0.13], abs=5e-3)


def test_effective_sample_size_is_between_one_and_all():
    log_w = torch.tensor([[0.0, 3e4], [0.0, 0.0], [0.0, -3e4]])
    assert effective_sample_size(log_w).tolist() == pytest.approx([3, 1])


# a mixture with exact experts is a wrong proposal for the same evidence
def mixture(rule):
    oracle = LinearGaussian.random(NAMES, latent_dim=2, data_dim=3)
    model = oracle.model()
    model.groups[0].posterior = rule
    model.family = rule.family
    return oracle, model, oracle.sample(8)[0]


def chain_mixture():
    oracle, model, x = chain("poe")
    for group in model.groups:
        group.posterior = MoPoE()
    model.family = "powerset"
    return oracle, model, x


MIXTURES = {
    "experts": lambda: mixture(MoE()),
    "products": lambda: mixture(MoPoE()),
    "hierarchical products": chain_mixture,
}


@pytest.mark.parametrize("build", MIXTURES.values(), ids=MIXTURES.keys())
def test_mixtures_are_unbiased(build):
    oracle, model, x = build()
    with torch.no_grad():
        log_w = log_weights(model, x, OBSERVED, samples=10_000)
    ratio = (log_w - oracle.log_prob(x, OBSERVED)).exp()
    z_score = (ratio.mean(dim=0) - 1) / (ratio.std(dim=0) / 100 + 1e-12)
    assert z_score.abs().max() < 4
    assert (log_w[:, 0] == 0).all()


@pytest.mark.parametrize("rule", [MoE(), MoPoE()], ids=["experts", "products"])
def test_density_of_a_mixture_is_that_of_all_components(rule):
    _, model, x = mixture(rule)
    rows = OBSERVED[1:]  # all but the empty one
    x = {m: v[1:] for m, v in x.items()}
    encodings = model.encode(x, rows)
    (drawn,) = propose(model, encodings, rows, x, samples=50)

    given, weight = subsets(rows, rule.family, dtype=torch.float64)
    components = conditioned(model, x, given).posteriors[0]
    q = mmpoe.distributions.MixtureOfProducts(components, weight)
    expected = drawn.priors[0].log_prob(drawn.z[0]) - q.log_prob(drawn.z[0])
    found = log_ratio(model, encodings, rows, drawn)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_components_are_drawn_as_often_as_they_weigh():
    _, model, x = mixture(MoE())
    x = {m: v[7:] for m, v in x.items()}
    encodings = model.encode(x, ALL[:1])
    (drawn,) = propose(model, encodings, ALL[:1], x, samples=30)
    counts = drawn.posteriors[0].loc[:, 0, 0].unique(return_counts=True)[1]
    assert counts.tolist() == [10, 10, 10]


def test_gradient_is_that_of_the_evidence():
    oracle, model, x = flat_oracle()
    bias = model.decoders[NAMES[0]].network.bias
    (found,) = torch.autograd.grad(log_marginal(model, x, OBSERVED, samples=20_000).sum(), bias)

    joint = torch.cat([oracle.weight[m] for m in NAMES])
    noise = torch.block_diag(*(oracle.covariance[m] for m in NAMES))
    covariance = joint @ joint.T + noise
    residual = torch.cat([x[m] - oracle.bias[m] for m in NAMES], dim=1)
    expected = torch.zeros(3, dtype=torch.float64)
    for r, seen in zip(residual, OBSERVED.repeat_interleave(3, dim=1), strict=True):
        if seen[:3].any():
            expected += torch.linalg.solve(covariance[seen][:, seen], r[seen])[:3]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_importance_weighted_bound_trains():
    oracle, _, _ = flat_oracle()
    x, _ = oracle.sample(256)
    x = {m: v.float() for m, v in x.items()}
    observed = OBSERVED[1:].repeat(37, 1)[:256]
    vae = mmpoe.MVAE(
        {m: nn.Linear(3, 4) for m in NAMES},
        {m: Normal(nn.Linear(2, 3), learn_scale=True) for m in NAMES},
    )
    start = log_marginal(vae, x, observed, samples=5).mean()
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-2)
    for _ in range(100):
        bound = log_marginal(vae, x, observed, samples=5).mean()
        optimizer.zero_grad()
        (-bound).backward()
        assert all(p.grad is not None for p in vae.parameters())
        optimizer.step()
    evidence = oracle.log_prob({m: v.double() for m, v in x.items()}, observed).mean()
    assert bound > start + 1
    assert bound > evidence - 0.5


@every_model
def test_missing_slots_are_never_read(build):
    results = []
    for filler in (0.0, 7.0, math.inf, math.nan):
        model, x = make(build), batch(filler)
        model(x, OBSERVED)
        torch.manual_seed(3)
        estimate = log_marginal(model, x, OBSERVED, samples=4)
        estimate.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([estimate, *gradients])
    assert results[0][0].isfinite().all()
    assert results[0][0][0] == 0
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def count_rows(module, counts, name):
    def hook(module, inputs, output):
        counts.setdefault(name, []).append(len(inputs[0]))

    module.register_forward_hook(hook)


@pytest.mark.parametrize("build", [flat, hierarchical], ids=["flat", "hierarchical"])
@pytest.mark.parametrize("elements", [1, 2**22])
def test_encodes_once_and_decodes_what_is_scored(monkeypatch, build, elements):
    monkeypatch.setattr(samples_module, "ELEMENTS", elements)
    model, x = make(build), batch()
    model(x, OBSERVED)
    encoded, decoded = {}, {}
    for m in NAMES:
        count_rows(model.encoders[m], encoded, m)
        count_rows(model.decoders[m].network, decoded, m)
    scored = OBSERVED & torch.tensor([True, True, False])
    assert log_marginal(model, x, scored, samples=5).shape == (8,)
    assert encoded == {NAMES[0]: [4], NAMES[1]: [4]}
    assert set(decoded) == set(NAMES[:2])
    assert sum(decoded[NAMES[0]]) == 4 * 5  # four rows observed it
    assert len(decoded[NAMES[0]]) == (5 if elements == 1 else 1)

    encoded.clear()
    decoded.clear()
    log_conditional(model, batch(rows=ALL), NAMES[2:], NAMES[:1], samples=5)
    assert encoded == {NAMES[0]: [8], NAMES[2]: [8]}
    assert sum(decoded[NAMES[0]]) == 2 * 8 * 5

    decoded.clear()
    log_predictive(model, batch(rows=ALL), NAMES[2:], NAMES[:1], samples=5)
    assert {m: sum(rows) for m, rows in decoded.items()} == {NAMES[2]: 40}


def test_portions_change_nothing_but_the_draws(monkeypatch):
    oracle, model, x = chain("joint")
    monkeypatch.setattr(samples_module, "ELEMENTS", 1)
    log_w = log_weights(model, x, OBSERVED, samples=3)
    assert (log_w - oracle.log_prob(x, OBSERVED)).abs().max() < 1e-10
    _, model, x = mixture(MoPoE())
    assert log_weights(model, x, OBSERVED, samples=3).isfinite().all()


@pytest.mark.parametrize("build", [flat, hierarchical], ids=["flat", "hierarchical"])
def test_batches_without_rows(build):
    model = make(build)
    model(batch(), OBSERVED)
    x, observed = {m: v[:0] for m, v in batch().items()}, OBSERVED[:0]
    assert log_weights(model, x, observed, samples=3).shape == (3, 0)
    found = [
        log_marginal(model, x, observed, samples=3),
        log_conditional(model, x, NAMES[2:], NAMES[:2], samples=3),
        log_predictive(model, x, NAMES[2:], NAMES[:2], samples=3),
        not_miwae(model, x, observed, lambda x: x["us"][:, :3], samples=3),
    ]
    assert [v.shape for v in found] == [(0,)] * 4


def scored(model, h, x, observed, valid=None):
    """The log-likelihood at K states of each row, (K, B, *)."""
    return model.log_likelihood(State(h.flatten(0, 1), h.shape[:2]), x, observed, valid=valid)


class PlainDecoder(nn.Module):
    """A decoder that is no likelihood of the library."""

    def __init__(self, likelihood):
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z):
        assert z.dim() == 2
        return self.likelihood(z)


class Joint(nn.Module):
    """A decoder whose elements depend on each other, in rows of two that do not."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(4, 6)

    def forward(self, z):
        loc = self.network(z).unflatten(1, (3, 2))
        return Independent(MultivariateNormal(loc, torch.eye(2)), 1)


def test_a_decoder_may_have_events_of_its_own():
    decoder = Joint()
    model = mmpoe.MVAE({"a": nn.Linear(6, 8)}, {"a": decoder})  # which nothing is encoded with
    h, x = torch.randn(5, 8, 4), torch.randn(8, 3, 2)
    found = scored(model, h, {"a": x}, torch.ones(8, 1, dtype=torch.bool))
    squares = (x - decoder.network(h).unflatten(2, (3, 2))).square().sum(dim=(2, 3))
    assert torch.allclose(found, -squares / 2 - 3 * math.log(2 * math.pi), rtol=1e-5)


def test_any_module_that_returns_a_distribution_decodes():
    oracle, model, x = flat_oracle()
    for m in NAMES:
        model.decoders[m] = PlainDecoder(model.decoders[m])
    log_w = log_weights(model, x, OBSERVED, samples=4)
    assert (log_w - oracle.log_prob(x, OBSERVED)).abs().max() < 1e-10


@pytest.mark.parametrize("cached", [1, 60])
def test_slices_that_a_cache_holds_change_nothing(monkeypatch, cached):
    _, model, x = flat_oracle()
    model.decoders["us"] = PlainDecoder(model.decoders["us"])
    valid = {m: torch.tensor([True, False, True]) for m in NAMES[:2]}
    h, decoded = torch.randn(7, 8, 2).double(), {}
    whole = scored(model, h, x, OBSERVED, valid)
    monkeypatch.setattr(_scoring, "CACHED", cached)
    count_rows(model.decoders[NAMES[2]].network, decoded, "slices")
    with torch.no_grad():
        found = scored(model, h, x, OBSERVED, valid)
    assert torch.allclose(found, whole, rtol=1e-12)
    wanted = [4] * 7 if cached == 1 else [16, 12]  # four rows of three elements each
    assert decoded["slices"] == wanted
    scored(model, h, x, OBSERVED, valid)  # with gradients, all is kept in any case
    assert decoded["slices"] == [*wanted, 28]


def _total(q):
    """A number that depends on all that was inferred."""
    parts = zip(q.kl, q.posteriors, q.z, strict=True)
    return sum(kl.sum() + p.log_prob(z.detach() + 1).sum() for kl, p, z in parts)


@every_model
def test_the_coarsest_group_is_fused_once_for_each_subset(build, monkeypatch):
    model, fused = make(build), []
    rule = model.groups[0].posterior
    encodings = model.encode(batch(), OBSERVED)
    given = OBSERVED & (torch.rand(20, 8, 3) < 0.5)
    distinct = {(row, *flags) for k in given.tolist() for row, flags in enumerate(k)}
    fuse = rule.fuse

    def counted(factors, draw):
        fused.append(len(factors.given))
        return fuse(factors, draw)

    monkeypatch.setattr(rule, "fuse", counted)
    q = model.infer(encodings, given)
    assert fused == [len(distinct)]
    assert fused[0] < 160
    noise = (q.z[0] - q.posteriors[0].loc) / q.posteriors[0].scale
    assert len(noise.flatten().unique()) == noise.numel()  # samples have noise of their own

    # each pair for itself says the same, and so do the gradients
    once = model.infer(encodings, given, z=q.z)
    monkeypatch.setattr(hierarchy, "distinct_pairs", lambda rows, given: None)
    each = model.infer(encodings, given, z=q.z)
    assert fused[-1] == 160
    assert torch.equal(once.state.h, each.state.h)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = [
        torch.autograd.grad(_total(found), parameters, retain_graph=True, allow_unused=True)
        for found in (once, each)
    ]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(once.kl, each.kl, strict=True):
        torch.testing.assert_close(a, b)
    pairs = zip([*once.posteriors, *once.priors], [*each.posteriors, *each.priors], strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a.loc, b.loc)
        torch.testing.assert_close(a.log_scale, b.log_scale)


def test_bad_inputs():
    model, x = make(lambda: flat(latent_dim=4)), batch()
    with pytest.raises(ValueError, match=r"'samples' should be an integer of at least 1, .* 0"):
        log_weights(model, x, OBSERVED, samples=0)
    with pytest.raises(ValueError, match=r"'given' should be boolean with shape .*\(8, 3\).*2, 3"):
        log_weights(model, x, OBSERVED, OBSERVED[:2], samples=2)
    with pytest.raises(ValueError, match=r"'targets' .*unknown|'targets' .*us"):
        log_conditional(model, x, ["t1"], NAMES[:1], samples=2)
    with pytest.raises(ValueError, match=r"'x' should hold 'us'"):
        log_predictive(model, {m: x[m] for m in NAMES[1:]}, ["us"], NAMES[1:2], samples=2)
    with pytest.raises(ValueError, match=r"'x' should hold at least one modality"):
        log_predictive(model, {}, ["us"], [], samples=2)
    x["us"][7, 0] = math.nan
    with pytest.raises(ValueError, match=r"'us'"):
        log_weights(model, x, OBSERVED, NAMES[:0], samples=2)
    x["us"] = torch.zeros(8, 2 * SIZES["us"])
    message = r"'x' should have .* the shape of what is decoded.*\(8, 10"
    with pytest.raises(ValueError, match=message):
        log_weights(model, x, OBSERVED, NAMES[:0], samples=2)


@pytest.mark.parametrize("plain", [False, True])
def test_elements_that_are_not_valid_are_not_scored(plain):
    # the evidence of what is valid, from a posterior that is exact for more than that
    oracle, model, x = flat_oracle()
    if plain:
        model.decoders["us"] = PlainDecoder(model.decoders["us"])
    valid = {"us": torch.tensor([True, False, False])}
    hidden = {**x, "us": torch.where(valid["us"], x["us"], math.nan)}
    rest = NAMES[1:]
    truth = []
    for b in range(8):
        one = {m: v[b : b + 1] for m, v in x.items()}
        mean, covariance = oracle.conditional(one, rest, NAMES[:1])
        part = torch.distributions.Normal(mean[:, 0], covariance[:, 0, 0].sqrt()).log_prob(
            one["us"][:, 0]
        )
        truth.append(part + oracle.log_prob(one, torch.tensor([[False, True, True]])))
    truth = torch.cat(truth)
    with torch.no_grad():
        log_w = log_weights(model, hidden, ALL, rest, samples=20_000, valid=valid)
        part = log_predictive(model, hidden, NAMES[:1], rest, samples=20_000, valid=valid)
    ratio = (log_w - truth).exp()
    z_score = (ratio.mean(dim=0) - 1) / (ratio.std(dim=0) / math.sqrt(len(ratio)))
    assert z_score.abs().max() < 4
    evidence = oracle.log_prob(x, torch.tensor([[False, True, True]]).expand(8, 3))
    assert (part + evidence - truth).abs().max() < 0.1

    nothing = {"us": torch.zeros(8, 1, dtype=torch.bool)}
    found = log_conditional(model, x, NAMES[:1], rest, samples=3, valid=nothing)
    whole = log_conditional(model, x, NAMES[:1], rest, samples=3)
    assert (found - whole).abs().max() > 0.5
    with pytest.raises(ValueError, match=r"'valid' should hold modalities among us.*'flair'"):
        log_marginal(model, x, ALL, samples=2, valid={"flair": ALL})
    with pytest.raises(ValueError, match=r"'valid' should broadcast .*\(8, 3\).*\(8, 2\)"):
        log_marginal(model, x, ALL, samples=2, valid={"us": ALL[:, :2]})


def test_values_outside_the_support_name_their_row():
    model, x = make(hierarchical), batch()
    x["type"][6, 1] = 2
    with pytest.raises(ValueError, match=r"'type' holds 2 in row 6"):
        log_marginal(model, x, OBSERVED, samples=2)


def test_estimates_fit_no_optimal_scale():
    """Samples are no data: in training mode too, the scale is the one that is kept."""
    model, x = make(lambda: flat(latent_dim=4)), batch(rows=ALL)
    model.decoders["us"] = Normal(nn.Linear(4, SIZES["us"]), scale="optimal")
    torch.manual_seed(1)
    trained = log_marginal(model.train(), x, ALL, samples=5)
    assert model.decoders["us"].scored == 0
    torch.manual_seed(1)
    torch.testing.assert_close(log_marginal(model.eval(), x, ALL, samples=5), trained)
