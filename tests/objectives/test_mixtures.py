"""Bounds of mixtures against golden numbers, formulas written out, and each other."""

import math

import pytest
import torch
from example_models import (
    MODELS,
    NAMES,
    OBSERVED,
    batch,
    conditioned,
    every_model,
    flat,
    make,
)
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from oracle import GOLDEN, GOLDEN_CHAIN, data, golden, golden_chain
from quadrature import BOTH, Wrapped, expect, hierarchy, one_row
from quadrature import flat as one_dimensional
from torch import nn
from torch.distributions import Normal as Gaussian
from torch.distributions import kl_divergence

import mmpoe
from mmpoe.kernels import use_backend
from mmpoe.likelihoods import Normal
from mmpoe.missing import pack, subsets
from mmpoe.objectives import elbo, mixture_elbo, mixture_iwae, mixtures
from mmpoe.objectives._pairs import Packed, choose
from mmpoe.oracles import LinearGaussian

EVIDENCE = GOLDEN["a", "b"][2]
CONVEX, EXACT = -3.845222211, -3.654360617  # of the golden mixture over {a}, {b}, {a, b}


def seeded(objective, *args, seed=0, **options):
    torch.manual_seed(seed)
    return objective(*args, **options)


# ------------------------------------------------------------------------------ golden numbers


def test_golden_bounds_of_a_mixture():
    model, x = golden().model(), data()
    assert expect(mixture_elbo, model, x, BOTH, nodes=3).item() == pytest.approx(CONVEX, abs=1e-9)
    sampled = expect(mixture_iwae, model, x, BOTH, density="component", nodes=3)
    assert sampled.item() == pytest.approx(CONVEX, abs=1e-9)
    exact = expect(mixture_iwae, model, x, BOTH, nodes=200)
    assert exact.item() == pytest.approx(EXACT, abs=1e-9)


def test_gain_of_the_mixture_is_the_jensen_shannon_divergence():
    # by numerical integration of the densities themselves
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    parts = [Gaussian(mean, variance**0.5) for s, (mean, variance, *_) in GOLDEN.items() if s]
    log_q = torch.stack([p.log_prob(z) for p in parts])
    mixture = log_q.logsumexp(dim=0) - math.log(3)
    divergence = torch.trapezoid((log_q.exp() * (log_q - mixture)).mean(dim=0), z)
    assert divergence.item() == pytest.approx(EXACT - CONVEX, abs=2e-9)


@pytest.mark.parametrize("subset", GOLDEN_CHAIN)
def test_bound_of_an_exact_hierarchy_is_its_evidence(subset):
    # of one modality, the hierarchy is a ladder VAE; of both, experts are fused exactly
    model = golden_chain().model("joint")
    observed = torch.tensor([[m in subset for m in "ab"]])
    found = expect(mixture_elbo, model, data(), observed, family="full", nodes=3)
    assert found.item() == pytest.approx(GOLDEN_CHAIN[subset][2], abs=1e-9)
    importance = expect(mixture_iwae, model, data(), observed, family="full", nodes=2)
    assert importance.item() == pytest.approx(GOLDEN_CHAIN[subset][2], abs=1e-9)
    for family in ("singletons", "powerset"):
        bound = expect(mixture_elbo, model, data(), observed, family=family, nodes=3).item()
        assert (bound < found.item() - 0.1) == (len(subset) > 1)


# --------------------------------------------------------------------------- formulas, by hand


def by_hand(model, x, observed, given, weight, beta, target):
    """The mixture bound of flat models, one pair at a time, and how many there are."""
    weights = {}
    for s, alphas in zip(given, weight, strict=True):
        for b, alpha in enumerate(alphas.tolist()):
            pair = b, tuple(s[b].tolist())
            if any(pair[1]) and alpha > 0:
                weights[pair] = weights.get(pair, 0) + alpha
    pairs = sorted(weights, key=lambda pair: (pair[0], pair[1][::-1]))
    totals, noise = [torch.zeros(())] * len(observed), torch.randn(len(pairs), 4)
    for (b, s), epsilon in zip(pairs, noise, strict=True):
        experts = [
            model.encoders[m](x[m][b : b + 1]).chunk(2, dim=1)
            for m, taken in zip(NAMES, s, strict=True)
            if taken
        ]
        precision = 1 + sum((-2 * log_scale).exp() for _, log_scale in experts)
        loc = sum((-2 * log_scale).exp() * mu for mu, log_scale in experts) / precision
        q, prior = Gaussian(loc, precision**-0.5), Gaussian(0.0, 1.0)
        z = q.loc + q.scale * epsilon
        bound = -beta * kl_divergence(q, prior).sum()
        for m, seen in zip(
            NAMES, observed[b].tolist() if target == "observed" else s, strict=True
        ):
            if seen:
                bound = bound + model.decoders[m](z).log_prob(x[m][b : b + 1])[0]
        totals[b] = totals[b] + weights[b, s] * bound
    return torch.stack(totals), len(pairs)


@pytest.mark.parametrize("target", ["observed", "given"])
@pytest.mark.parametrize("family", ["full", "singletons", "powerset", "groups"])
def test_mixture_bound_is_the_sum_over_distinct_pairs(family, target):
    model, x = make(flat), batch()
    given, weight = subsets(OBSERVED, family, special=1)
    expected, number = seeded(by_hand, model, x, OBSERVED, given, weight, 0.7, target)
    calls = []
    model.groups[0].register_forward_hook(lambda _, args, out: calls.append(len(out.z)))
    options = {"family": (given, weight), "reconstruct": target}
    with use_backend("eager"):  # whose noise is PyTorch's
        found = seeded(mixture_elbo, model, x, OBSERVED, 0.7, **options)
        torch.testing.assert_close(found, expected)
        assert calls == [number]
        if family != "groups":
            options["family"] = family
            assert torch.equal(seeded(mixture_elbo, model, x, OBSERVED, 0.7, **options), found)


def test_only_what_is_scored_is_decoded():
    model, x, rows = make(flat), batch(), {}
    for m in NAMES:
        model.decoders[m].register_forward_hook(
            lambda _, args, out, m=m: rows.setdefault(m, []).append(len(args[0]))
        )
    mixture_elbo(model, x, OBSERVED, family="singletons")
    assert rows == {m: [1 + 2 + 2 + 3] for m in NAMES}  # subsets of the rows that observed it
    rows.clear()
    mixture_elbo(model, x, OBSERVED, family="singletons", reconstruct="given")
    assert rows == {m: [4] for m in NAMES}
    rows.clear()
    mixture_elbo(model, x, OBSERVED, decode="drawn")
    assert rows == {m: [4] for m in NAMES}


@pytest.mark.fault(52)
@pytest.mark.parametrize("weighted", [False, True])
def test_names_that_join_alike_are_different_modalities(weighted):
    names = ["a", "b", "a_b"]
    torch.manual_seed(0)
    model = mmpoe.MoPoEVAE(
        {m: nn.Linear(2, 4) for m in names}, {m: Normal(nn.Linear(2, 2)) for m in names}
    )
    x, sizes = {m: torch.randn(5, 2) for m in names}, []
    model.groups[0].register_forward_hook(lambda _, args, out: sizes.append(len(out.z)))
    observed = torch.ones(5, 3, dtype=torch.bool)
    family = subsets(observed) if weighted else "powerset"
    mixture_elbo(model, x, observed, family=family)
    assert sizes == [5 * 7]


THREE = torch.tensor([[True, False], [False, True], [True, True]])


def reference_iwae(model, x, alpha, samples, density, stratified, beta=1.0):
    """Importance-weighted bounds of one complete row, from densities of whole hierarchies."""
    given = THREE
    noise = [torch.randn(samples * len(given), 1, dtype=torch.float64) for _ in model.groups]

    logs = torch.zeros(samples, len(given), dtype=torch.float64)
    for k in range(samples):
        for i, s in enumerate(given):
            output = conditioned(
                model, x, s[None], noise=[n[k * len(given) + i, None] for n in noise]
            )
            log_q = []
            for other in given:
                at = conditioned(model, x, other[None], z=output.z).posteriors
                log_q.append(sum(q.log_prob(z) for q, z in zip(at, output.z, strict=True)))
            log_q = torch.cat(log_q)
            q = (alpha.log() + log_q).logsumexp(dim=0) if density == "mixture" else log_q[i]
            log_p = sum(p.log_prob(x[m]) for m, p in output.likelihoods.items())
            prior = sum(p.log_prob(z) for p, z in zip(output.priors, output.z, strict=True))
            logs[k, i] = (log_p + beta * (prior - q)).squeeze()
    inside = logs.logsumexp(dim=0) - math.log(samples)
    return (inside + alpha.log()).logsumexp(dim=0) if stratified else alpha @ inside


@pytest.mark.parametrize("build", [one_dimensional, hierarchy])
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("density", ["mixture", "component"])
@pytest.mark.parametrize("samples", [1, 3])
def test_importance_weights_have_densities_of_whole_hierarchies(
    build, stratified, density, samples
):
    model, x = build(), one_row()
    alpha = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    family = (THREE[:, None], alpha[:, None])
    options = {"stratified": stratified, "density": density, "samples": samples}
    expected = seeded(reference_iwae, model, x, alpha, beta=0.8, **options)

    def infer(encodings, given, **others):  # all noise drawn in the order of the reference
        noise = None
        if others.get("z") is None:
            noise = [torch.randn(len(given), 1, dtype=torch.float64) for _ in model.groups]
        return model.infer(encodings, given, noise=noise, **others)

    ordered = Wrapped(model, infer)
    found = seeded(mixture_iwae, ordered, x, BOTH, 0.8, family=family, **options)
    torch.testing.assert_close(found[0], expected)


# -------------------------------------------------------------------------------- inequalities


@pytest.mark.parametrize("build", [one_dimensional, lambda: golden().model()])
def test_bounds_are_ordered(build):
    model, x = build(), one_row()
    options = {"nodes": 60, "family": "singletons"}
    convex = expect(mixture_elbo, model, x, BOTH, **options).item()
    loose = [expect(mixture_iwae, model, x, BOTH, samples=k, **options).item() for k in (1, 2)]
    tight = expect(mixture_iwae, model, x, BOTH, stratified=True, apart=True, **options).item()
    evidence = exact_evidence(model, x)
    assert convex < loose[0] < loose[1] < evidence
    assert loose[0] < tight < evidence


def exact_evidence(model, x):
    """By numerical integration over the latent of one dimension."""
    z = torch.linspace(-12, 12, 40001, dtype=torch.float64)[:, None]
    log_p = Gaussian(0.0, 1.0).log_prob(z)[:, 0]
    for m, decoder in model.decoders.items():
        log_p = log_p + decoder(z).log_prob(x[m].expand(len(z), 1))
    return torch.trapezoid(log_p.exp(), z[:, 0]).log().item()


def test_more_samples_tighten_the_bound_and_change_nothing_where_it_is_tight():
    x, options = one_row(), {"family": "full", "nodes": 30}
    found = [
        expect(mixture_iwae, one_dimensional(), x, BOTH, samples=k, **options).item()
        for k in (1, 2, 3)
    ]
    evidence = exact_evidence(one_dimensional(), x)
    assert found[0] < found[1] < found[2] < evidence
    for k in (1, 2, 5):
        bound = mixture_iwae(golden().model(), data(), BOTH, family="full", samples=k)
        assert bound.item() == pytest.approx(EVIDENCE, abs=1e-11)


# -------------------------------------------------------------------------- what may not matter


@pytest.mark.fault(46)
@every_model
def test_missing_slots_and_other_rows_change_nothing(build):
    model = make(build)
    kinds = [
        (mixture_elbo, {"decode": "drawn"}),
        (mixture_elbo, {"reconstruct": "given"}),
        (mixture_iwae, {"samples": 2}),
        (mixture_iwae, {"gradient": "stl"}),
        (mixture_iwae, {"gradient": "dreg", "density": "component", "samples": 2}),
    ]
    for objective, options in kinds:
        found = []
        for filler in (math.nan, 0.25):
            bound = seeded(objective, model, batch(filler), OBSERVED, **options)
            assert bound.shape == (8,)
            assert bound[0].item() == 0
            parameters = [p for p in model.parameters() if p.requires_grad]
            found.append([bound, *torch.autograd.grad(bound.sum(), parameters, allow_unused=True)])
        for a, b in zip(*found, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("objective", [mixture_elbo, mixture_iwae])
@pytest.mark.parametrize("build", [one_dimensional, hierarchy])
def test_a_row_is_worth_the_same_alone_and_among_others(objective, build):
    torch.manual_seed(0)
    observed = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    x = {m: torch.randn(4, 1, dtype=torch.float64) for m in "ab"}
    model = build()
    noise = torch.randn(4, 3, len(model.groups), dtype=torch.float64)

    def value(chosen):
        chosen = torch.tensor(chosen)

        def infer(encodings, given, *, rows, z=None, **options):
            """With the noise of each row and subset given in advance."""
            drawn = noise[chosen[rows], given.long() @ torch.tensor([1, 2]) - 1]
            drawn = None if z is not None else [n[:, None] for n in drawn.T]
            return model.infer(encodings, given, rows=rows, z=z, noise=drawn, **options)

        fixed = Wrapped(model, infer)
        return objective(fixed, {m: v[chosen] for m, v in x.items()}, observed[chosen])

    whole = value([0, 1, 2, 3])
    for b in range(4):
        torch.testing.assert_close(value([b]), whole[b : b + 1])
    torch.testing.assert_close(value([0, 1, 2, 3] * 4), whole.repeat(4))


@pytest.mark.parametrize("objective", [mixture_elbo, mixture_iwae])
@pytest.mark.parametrize("family", ["powerset", "groups", "singletons"])
def test_order_of_modalities_does_not_matter(objective, family):
    torch.manual_seed(0)
    oracle = LinearGaussian.random(["a", "b"], latent_dim=1, data_dim=2)
    x, _ = oracle.sample(1)
    swapped = LinearGaussian(
        *({m: v[m] for m in "ba"} for v in (oracle.weight, oracle.bias, oracle.covariance))
    )
    found = []
    for each, special in ((oracle, 1), (swapped, 0)):
        some = subsets(BOTH.expand(20, -1), family, special=special, dtype=torch.float64)
        found.append(expect(objective, each.model(), x, BOTH, family=some, nodes=20))
    torch.testing.assert_close(*found)


# ------------------------------------------------------------------------------------ sampling


def test_decoding_from_drawn_subsets_averages_to_all(monkeypatch):
    model, x = golden().model(), data()
    enumerated = expect(mixture_elbo, model, x, BOTH, 0.7, nodes=3).item()
    total = 0.0
    for chosen in range(3):

        def choose_one(pairs, chosen=chosen):
            column = torch.arange(len(pairs.rows)) % 3
            return torch.where(column == chosen, torch.ones_like(pairs.weight), 0)

        monkeypatch.setattr(mixtures, "choose", choose_one)
        drawn = expect(mixture_elbo, model, x, BOTH, 0.7, decode="drawn", nodes=3).item()
        assert abs(drawn - enumerated) > 0.1
        total += drawn / 3
    assert total == pytest.approx(enumerated, abs=1e-12)


@hypothesis_given(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_pairs_are_drawn_by_their_weights(weights):
    rows = torch.tensor([b for b, row in enumerate(weights) for _ in row])
    weight = torch.tensor([float(w) for row in weights for w in row])
    pairs = Packed(torch.ones(len(rows), 1, dtype=torch.bool), rows, weight)
    totals = torch.tensor([float(sum(row)) for row in weights])
    for b, total in enumerate(map(sum, weights)):
        # points in the middle of as many intervals of equal length as the row weighs
        middles = (torch.arange(total, dtype=torch.float64) + 0.5) / total
        shares = torch.stack([choose(pairs, point.repeat(len(weights))) for point in middles])
        torch.testing.assert_close(shares.mean(dim=0)[rows == b], weight[rows == b])
        sums = torch.zeros(total, len(weights)).index_add(1, rows, shares)
        assert torch.equal(sums, totals.expand(total, -1))
        assert ((shares > 0).sum(dim=1) == len(weights)).all()


def test_points_at_the_edges_draw_pairs_of_their_own_sample():
    rows = torch.tensor([0, 0, 2, 2, 3])
    weight = torch.tensor([1 / 3, 1 / 3, 0.1, 0.2, 0.7])
    pairs = Packed(torch.ones(5, 1, dtype=torch.bool), rows, weight)
    low = choose(pairs, torch.zeros(3, dtype=torch.float64))
    high = choose(pairs, torch.full((3,), 1 - 2**-53, dtype=torch.float64))
    assert low.nonzero()[:, 0].tolist() == [0, 2, 4]
    assert high.nonzero()[:, 0].tolist() == [1, 3, 4]


@pytest.mark.parametrize("name", ["powerset", "groups", "singletons"])
def test_enumeration_is_the_expectation_over_single_subsets(name):
    model, x = golden().model(), data()
    given, weight = subsets(BOTH, name, dtype=torch.float64)  # (S, 1, M), (S, 1)
    total = 0.0
    for s, alpha in zip(given, weight, strict=True):
        if alpha > 0:
            family = (s.expand(1, 3, 2), torch.ones(1, 3, dtype=torch.float64))
            single = expect(mixture_elbo, model, x, BOTH, family=family, nodes=3)
            total += (alpha * single).item()
    found = expect(mixture_elbo, model, x, BOTH, family=name, nodes=3)
    assert found.item() == pytest.approx(total, abs=1e-12)


# ------------------------------------------------------- log-likelihood of pairs, and weights


@pytest.mark.parametrize("name", ["flat", "hierarchical", "mixture of experts"])
def test_log_likelihood_of_pairs_is_the_sum_over_what_is_scored(name):
    model, x = make(MODELS[name]), batch()
    given, rows, _ = pack(*subsets(OBSERVED))
    q = model.infer(model.encode(x, OBSERVED), given, rows=rows)
    scored = OBSERVED[rows] & (torch.rand(len(rows), 3) < 0.7)
    weight = torch.rand(len(rows), 3)
    weight[::3, 1] = 0
    per_row = {"us": torch.rand(8, 5) > 0.5}
    found = model.log_likelihood(q.state, x, scored, rows=rows, weight=weight, valid=per_row)
    output, taken = (
        conditioned(model, x, given, rows=rows, z=q.z),
        {m: v[rows] for m, v in x.items()},
    )
    expected = torch.zeros(len(rows))
    for column, m in enumerate(NAMES):
        log_p = output.likelihoods[m].base_dist.log_prob(taken[m])
        if m == "us":
            log_p = torch.where(per_row["us"][rows], log_p, 0)
        expected += torch.where(scored[:, column], weight[:, column] * log_p.sum(dim=1), 0)
    torch.testing.assert_close(found, expected)
    bound = elbo(output, taken, scored, 0.0, weight=weight, valid={"us": per_row["us"][rows]})
    torch.testing.assert_close(bound, expected)
    nothing = model.log_likelihood(q.state, {}, torch.zeros_like(scored), rows=rows)
    assert torch.equal(nothing, torch.zeros(len(rows)))


def test_entries_of_pairs_that_are_scored_are_checked():
    model, x = make(flat), batch()
    given, rows, _ = pack(*subsets(OBSERVED))
    q = model.infer(model.encode(x, OBSERVED), given, rows=rows)
    x["us"][3, 1] = math.nan
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[3\]"):
        model.log_likelihood(q.state, x, OBSERVED[rows], rows=rows)
    for scored in (OBSERVED[:4], OBSERVED[rows].float(), OBSERVED[rows][:, :2]):
        with pytest.raises(ValueError, match=r"'scored' should (be boolean|have)"):
            model.log_likelihood(q.state, x, scored, rows=rows)
    alone = torch.tensor([[False, True, False]])
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[3\]"):
        mixture_elbo(model, x, OBSERVED | alone, family=alone)
    with pytest.raises(ValueError, match=r"'x' should hold 'us', which 'observed' says"):
        mixture_elbo(model, {m: x[m] for m in NAMES[1:]}, OBSERVED | alone, family=alone)


def test_weights_of_cells_weigh_their_log_likelihood():
    model, x = make(MODELS["hierarchical"]), batch()
    output, weight = model(x, OBSERVED), torch.tensor([2.0, 0.0, 0.5])
    whole = [elbo(output, x, OBSERVED & (torch.arange(3) == m), 0.0) for m in range(3)]
    found = elbo(output, x, OBSERVED, weight=weight)
    torch.testing.assert_close(found, 2 * whole[0] + 0.5 * whole[2] - sum(output.kl))
    hidden = {**x, "t2.space": torch.full_like(x["t2.space"], math.nan)}
    assert torch.equal(elbo(output, hidden, OBSERVED, weight=weight), found)  # 0 is not scored

    # a mixture is the sum of elbos, with weights of its own for each cell
    cells = torch.rand(8, 3)
    given, rows, alpha = pack(*subsets(OBSERVED))
    packed = seeded(conditioned, model, x, given, rows=rows)
    taken = {m: v[rows] for m, v in x.items()}
    bounds = elbo(packed, taken, OBSERVED[rows], 0.7, weight=cells[rows])
    expected = torch.zeros(8).index_add(0, rows, alpha * bounds)
    found = seeded(mixture_elbo, model, x, OBSERVED, 0.7, weight=cells)
    torch.testing.assert_close(found, expected)


def test_beta_is_a_factor_or_one_per_group_or_a_function():
    model, x = make(MODELS["hierarchical"]), batch()
    output = model(x, OBSERVED)
    before = [kl.clone() for kl in output.kl]
    likelihood = elbo(output, x, OBSERVED, 0.0)
    coarse, fine = output.kl
    torch.testing.assert_close(elbo(output, x, OBSERVED), likelihood - coarse - fine)
    expected = likelihood - 2 * coarse - 0.5 * fine
    for beta in ([2.0, 0.5], torch.tensor([2.0, 0.5]), lambda kl: kl * torch.tensor([[2], [0.5]])):
        torch.testing.assert_close(elbo(output, x, OBSERVED, beta), expected)
    packed = [
        seeded(mixture_elbo, model, x, OBSERVED, beta)
        for beta in ([2.0, 0.5], lambda kl: kl * torch.tensor([[2.0], [0.5]]))
    ]
    torch.testing.assert_close(*packed)
    assert all(torch.equal(a, b) for a, b in zip(before, output.kl, strict=True))
    with pytest.raises(ValueError, match=r"'beta' should be .* each group \(2\), .* \(3,\)"):
        elbo(output, x, OBSERVED, [1.0, 1.0, 1.0])


def test_results_share_no_memory_with_the_output():
    # a bound that is changed in place changes nothing that was reported
    model, x = make(flat), batch()
    output = model(x, OBSERVED)
    kept = [v.clone() for v in (*output.kl, *output.z, output.posteriors[0].loc)]
    with torch.no_grad():
        for beta in (1.0, [1.0], lambda kl: kl):
            elbo(output, x, OBSERVED, beta).add_(7)
    found = [*output.kl, *output.z, output.posteriors[0].loc]
    assert all(torch.equal(a, b) for a, b in zip(kept, found, strict=True))


def test_optimal_scales_fit_the_weighted_pairs():
    # two pairs of one row, with weights 3/4 and 1/4: the best scale is that of the weighted error
    encoders = {m: nn.Linear(1, 2) for m in "ab"}
    likelihood = Normal(nn.Linear(1, 1), scale="optimal")
    model = mmpoe.MVAE(encoders, {"a": likelihood, "b": Normal(nn.Linear(1, 1))}, latent_dim=1)
    x = {m: torch.randn(1, 1) for m in "ab"}
    given = torch.tensor([[[True, False]], [[False, True]]])
    family = (given, torch.tensor([[0.75], [0.25]]))
    packed, rows, weight = pack(*family)
    output = seeded(conditioned, model, x, packed, rows=rows)
    error = (output.likelihoods["a"].base_dist.loc[:, 0] - x["a"][:, 0]).square()
    seeded(mixture_elbo, model, x, BOTH, family=family)
    torch.testing.assert_close(model.decoders["a"].error, (weight * error).sum().detach())


def test_valid_elements_alone_are_scored():
    model, x = make(flat), batch()
    valid = {"us": torch.rand(8, 5) > 0.5}
    hidden = {**x, "us": torch.where(valid["us"], x["us"], math.nan)}
    model.validate = False
    alone = torch.tensor([[False, True, False]])  # not given: 'us' is only scored
    observed = OBSERVED | alone
    found = [
        seeded(mixture_elbo, model, v, observed, family=alone, valid=valid) for v in (x, hidden)
    ]
    assert torch.equal(*found)
    assert found[0].isfinite().all()
    with pytest.raises(ValueError, match=r"'valid' should hold modalities"):
        mixture_elbo(model, x, OBSERVED, valid={"flair": OBSERVED})


# -------------------------------------------------------------------------------------- errors


def test_bad_arguments_are_named():
    model, x = make(flat), batch()
    some = torch.zeros(1, 8, 3, dtype=torch.bool)
    for options, message in [
        ({"family": "all"}, r"'family' should be one of"),
        ({"family": (some[:, :2], torch.ones(1, 2))}, r"'family' .* \(8, 3\), but .* \(1, 2, 3\)"),
        (
            {"family": (~some, torch.ones(1, 8))},
            r"'family' .* beyond 'observed', but in 7 places .* row 0 is given us, t2.space, "
            r"type, and observed nothing",
        ),
        ({"reconstruct": "all"}, r"'reconstruct' should be one of observed, given, .* 'all'"),
        ({"decode": "some"}, r"'decode' should be one of all, drawn, but is 'some'"),
    ]:
        with pytest.raises(ValueError, match=message):
            mixture_elbo(model, x, OBSERVED, **options)
    for options, message in [
        ({"density": "exact"}, r"'density' should be one of mixture, component"),
        ({"gradient": "score"}, r"'gradient' should be one of pathwise, stl, dreg"),
        ({"samples": 0}, r"'samples' should be an integer of at least 1, but is 0"),
        ({"samples": 2.0}, r"'samples' should be an integer of at least 1, but is 2.0"),
        ({"private": 1}, r"'private' should be .* less than the number of groups \(1\)"),
        ({"private": -1}, r"'private' should be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            mixture_iwae(model, x, OBSERVED, **options)


@pytest.mark.fault(47)
@pytest.mark.parametrize("objective", [mixture_elbo, mixture_iwae])
def test_nothing_observed_is_worth_nothing(objective):
    model = make(MODELS["hierarchical"])
    bound = objective(model, batch(), OBSERVED & False)
    assert bound.tolist() == [0.0] * 8
    bound.sum().backward()
    assert objective(model, {}, OBSERVED & False).tolist() == [0.0] * 8
    empty = {m: v[:0] for m, v in batch().items()}
    assert objective(model, empty, OBSERVED[:0]).shape == (0,)
