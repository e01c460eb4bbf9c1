"""Draws of what is missing, pooled estimates, and a model of why it is missing."""

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
from oracle import golden
from scipy.stats import t
from torch import nn

import mmpoe
from mmpoe.evidence import _samples as samples
from mmpoe.evidence import log_marginal
from mmpoe.imputation import Imputation, add_matched_experts, impute, rubin_pool
from mmpoe.likelihoods import Bernoulli, Normal
from mmpoe.models import UncalibratedWarning
from mmpoe.objectives import not_miwae
from mmpoe.oracles import LinearGaussian, LinearGaussianHierarchy

ALL = torch.ones(8, 3, dtype=torch.bool)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def matched_model(build):
    model = make(build)
    model.fix_shapes(batch())
    add_matched_experts(model)
    return model


@every_model
def test_observed_entries_stay_and_missing_slots_are_never_read(build):
    results = []
    for filler in (0.0, 7.0, math.inf, math.nan):
        model, x = matched_model(build), batch(filler)
        torch.manual_seed(3)
        results.append(impute(model, x, OBSERVED, draws=4))
    for column, m in enumerate(NAMES):
        draws = results[0][m].draws
        assert draws.shape == (4, 8, *x[m].shape[1:])
        assert draws.isfinite().all()
        seen = OBSERVED[:, column]
        assert torch.equal(draws[:, seen], batch()[m][seen].expand(4, -1, -1))
        assert (results[0][m].stddev[seen] == 0).all()
        assert (results[0][m].stddev[~seen].amax(dim=1) > 0).all()
        assert all(torch.equal(draws, other[m].draws) for other in results[1:])


def test_draws_are_those_of_the_conditional():
    oracle = LinearGaussianHierarchy.random(NAMES, levels=2, latent_dim=2, data_dim=2)
    model = oracle.model("common_noise")
    add_matched_experts(model)
    x, _ = oracle.sample(4)
    mean, covariance = oracle.flat.conditional(x, NAMES[:1], NAMES[1:])
    given = torch.tensor([[True, False, False]]).expand(4, 3)
    filled = impute(model, x, given, draws=20_000, targets=NAMES[1:])
    draws = torch.cat([filled[m].draws for m in NAMES[1:]], dim=2)  # both of a draw together
    deviation = draws - draws.mean(dim=0)
    found = torch.einsum("kbi,kbj->bij", deviation, deviation) / len(draws)
    assert (draws.mean(dim=0) - mean).abs().max() < 0.05
    assert (found - covariance).abs().max() < 0.15


def test_models_without_matched_experts_warn():
    model = make(flat)
    with pytest.warns(UncalibratedWarning, match=r"'mmpoe.calibrate' makes it match") as caught:
        impute(model, batch(), OBSERVED, draws=2)
    assert caught[0].filename == __file__


def test_matched_experts_are_used(recwarn):
    model = matched_model(flat)
    with torch.no_grad():
        for p in model.groups[0].matched.parameters():
            p.normal_(std=0.5)
    given = OBSERVED[1:2].expand(8, 3)
    filled = impute(model, batch(rows=ALL), given, 4000, targets=NAMES[1:2])[NAMES[1]]
    q = [
        conditioned(model, batch(rows=ALL), given, experts="matched" if matched else "trained")
        for matched in (True, False)
    ]
    z = torch.stack([part.posteriors[0].rsample((4000,)) for part in q])
    means = [
        model.decoders[NAMES[1]](v.flatten(0, 1)).mean.unflatten(0, (4000, 8)).mean(0) for v in z
    ]
    assert (filled.mean - means[0]).abs().mean() < 0.02
    assert (means[0] - means[1]).abs().mean() > 0.03
    assert not recwarn.list
    predicted = model.predict(batch(rows=ALL), given, targets=NAMES[1:2], samples=4000)
    assert (predicted[NAMES[1]].mean - means[0]).abs().mean() < 0.02


def test_only_missing_targets_are_decoded(monkeypatch):
    model, rows = matched_model(hierarchical), {}
    for m in NAMES:
        model.decoders[m].network.register_forward_hook(
            lambda module, inputs, output, m=m: rows.setdefault(m, []).append(len(inputs[0]))
        )
    impute(model, batch(), OBSERVED, draws=5, targets=NAMES[:2])
    assert {m: sum(n) for m, n in rows.items()} == dict.fromkeys(NAMES[:2], 4 * 5)
    rows.clear()
    monkeypatch.setattr(samples, "ELEMENTS", 1)
    filled = impute(model, batch(), OBSERVED, draws=5, targets=NAMES[:1])
    assert filled[NAMES[0]].draws.shape == (5, 8, 5)
    assert rows[NAMES[0]].count(4) >= 5  # one draw at a time


@pytest.mark.parametrize("draws", [1, 3])
def test_absent_modalities_and_modes(draws):
    model = matched_model(flat).train()
    x = {NAMES[0]: batch(rows=ALL)[NAMES[0]]}
    filled = impute(model, x, draws=draws)
    assert torch.equal(filled[NAMES[0]].draws, x[NAMES[0]].expand(draws, -1, -1))
    assert filled[NAMES[2]].draws.shape == (draws, 8, 3)
    assert all(module.training for module in model.modules())
    assert not filled[NAMES[2]].draws.requires_grad


def test_batches_without_rows():
    model = matched_model(hierarchical)
    x = {m: v[:0] for m, v in batch().items()}
    for held in (x, {"us": x["us"]}):
        filled = impute(model, held, OBSERVED[:0], draws=3)
        assert {m: f.draws.shape for m, f in filled.items()} == {
            m: (3, 0, v.shape[1]) for m, v in x.items()
        }


def test_categories_and_counts_are_drawn():
    model = mmpoe.MVAE(
        {"a": nn.Linear(2, 4)},
        {"a": Bernoulli(nn.Linear(2, 2))},
        latent_dim=2,
    )
    add_matched_experts(model)
    x = {"a": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    nothing = torch.zeros(2, 1, dtype=torch.bool)
    filled = impute(model, x, nothing, draws=50)["a"]
    assert set(filled.draws.unique().tolist()) == {0.0, 1.0}
    counts = Imputation((filled.draws * 3).long())
    assert counts.mean.dtype == torch.float32
    assert counts.quantile(0.5).shape == (2, 2)


def test_intervals_cover_what_they_say():
    draws, new = torch.randn(19, 20_000, 1), torch.randn(20_000, 1)
    for level in (0.5, 0.8, 0.9):  # order statistics of 19 draws, or between two of them
        low, high = Imputation(draws).interval(level)
        inside = ((low <= new) & (new <= high)).float().mean().item()
        assert inside == pytest.approx(level, abs=0.012)
    assert torch.equal(Imputation(draws).interval(0.9)[0], draws.amin(dim=0))
    assert torch.equal(Imputation(draws).quantile(0.0), draws.amin(dim=0))
    assert torch.equal(Imputation(draws).quantile(1.0), draws.amax(dim=0))
    torch.testing.assert_close(Imputation(draws).quantile(0.5), draws.median(dim=0).values)
    with pytest.raises(ValueError, match=r"'q' should be between 0 and 1, but is 1\.5"):
        Imputation(draws).quantile(1.5)


def test_bad_arguments_of_impute():
    model, x = matched_model(flat), batch()
    with pytest.raises(ValueError, match=r"'observed' should be boolean with shape"):
        impute(model, x, OBSERVED[:2])
    with pytest.raises(ValueError, match=r"'targets'.*t1"):
        impute(model, x, OBSERVED, targets=["t1"])
    with pytest.raises(ValueError, match=r"'x' should hold at least one modality"):
        impute(model, {})
    with pytest.raises(ValueError, match=r"'draws' should be an integer of at least 1.* 0"):
        impute(model, x, OBSERVED, draws=0)
    with pytest.raises(ValueError, match=r"'us'"):
        impute(model, batch(math.nan), ALL, draws=2)


# Rubin's rules


def test_pooling_by_hand():
    pooled = rubin_pool(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.5, 2.0]))
    assert pooled.estimate == 2
    assert pooled.variance.item() == pytest.approx(1 + 4 / 3)  # within 1, between 1
    r = (4 / 3) / 1  # the relative increase of the variance
    nu = 2 * (1 + 1 / r) ** 2
    assert pooled.dof.item() == pytest.approx(nu)
    assert pooled.fraction_missing.item() == pytest.approx((r + 2 / (nu + 3)) / (r + 1))


def test_pooling_at_the_ends():
    same = rubin_pool(torch.ones(4, 2), torch.ones(4, 2))
    assert (same.dof == math.inf).all()
    assert (same.fraction_missing == 0).all()
    assert (same.variance == 1).all()
    nothing_known = rubin_pool(torch.tensor([0.0, 1.0, 2.0]), torch.zeros(3))
    assert nothing_known.dof == 2
    assert nothing_known.fraction_missing == 1
    assert rubin_pool(torch.zeros(2), torch.zeros(2)).fraction_missing == 0
    with pytest.raises(ValueError, match=r"'estimates' and 'variances' .* \(1,\) and \(1,\)"):
        rubin_pool(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match=r"'variances' should be at least 0"):
        rubin_pool(torch.zeros(2), torch.tensor([1.0, -1.0]))


def test_pooled_intervals_cover():
    # the mean of 20 rows, half of which miss b: given the data, its pooled estimates are exactly
    # t distributed, since nothing else is uncertain
    oracle, vae = golden(), golden().model()
    add_matched_experts(vae)
    x, _ = oracle.sample(1500 * 20)
    observed = torch.ones(1500 * 20, 2, dtype=torch.bool)
    observed[::2, 1] = False
    filled = impute(vae, x, observed, draws=4, targets=["b"])["b"].draws
    estimates = filled.unflatten(1, (1500, 20)).mean(dim=(2, 3))  # (4, 1500)
    pooled = rubin_pool(estimates, torch.zeros_like(estimates))
    truth = x["b"].unflatten(0, (1500, 20)).mean(dim=(1, 2))
    half = torch.as_tensor(t.ppf(0.95, pooled.dof)) * pooled.variance.sqrt()
    inside = ((pooled.estimate - truth).abs() <= half).double().mean().item()
    assert inside == pytest.approx(0.9, abs=0.025)


# missing not at random


def test_missingness_is_part_of_the_evidence():
    oracle = LinearGaussian.random(NAMES, latent_dim=2, data_dim=3)
    model, (x, _) = oracle.model(), oracle.sample(8)
    bias = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)

    def blind(complete):
        return bias.expand(len(complete["us"]), 3)

    log_r = torch.where(OBSERVED, bias, -bias).sigmoid().log().sum(dim=1)
    bound = not_miwae(model, x, OBSERVED, blind, samples=3)
    torch.testing.assert_close(bound, oracle.log_prob(x, OBSERVED) + log_r, rtol=0, atol=1e-10)


def test_missingness_sees_entries_and_draws():
    oracle = LinearGaussian.random(NAMES, latent_dim=2, data_dim=3)
    model, seen = oracle.model(), {}
    x, _ = oracle.sample(8)

    def spy(complete):
        seen.update({m: v.unflatten(0, (-1, 8)) for m, v in complete.items()})
        return torch.stack([v.mean(dim=1) for v in complete.values()], dim=1)

    not_miwae(model, x, OBSERVED, spy, samples=20_000)
    for column, m in enumerate(NAMES):
        rows = OBSERVED[:, column]
        assert torch.equal(seen[m][:, rows], x[m][rows].expand(20_000, -1, -1))
        hidden = ~rows & OBSERVED.any(dim=1)
        for b in hidden.nonzero()[:, 0].tolist():
            given = [n for n, there in zip(NAMES, OBSERVED[b], strict=True) if there]
            mean, covariance = oracle.conditional({k: v[[b]] for k, v in x.items()}, given, [m])
            draws = seen[m][:, b]
            assert (draws.mean(dim=0) - mean[0]).abs().max() < 0.1
            assert (draws.var(dim=0) / covariance[0].diagonal() - 1).abs().max() < 0.1


def test_missingness_sees_latents():
    # of one dimension: the evidence by quadrature
    oracle = golden()
    model, (x, _) = oracle.model(), oracle.sample(4)
    observed = torch.tensor([[True, True], [True, False], [False, True], [False, False]])

    def missingness(complete, z):
        assert [v.shape for v in z] == [(len(complete["a"]), 1)]
        return torch.cat([1.5 * z[0] - 0.5, -z[0]], dim=1)

    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    logits = missingness({"a": z}, [z])
    log_joint = torch.distributions.Normal(0.0, 1.0).log_prob(z).expand(-1, 4)
    for column, m in enumerate(["a", "b"]):
        seen = observed[:, column]
        log_p = model.decoders[m](z).log_prob(x[m][:, None]).T
        log_r = torch.where(seen, logits[:, [column]], -logits[:, [column]]).sigmoid().log()
        log_joint = log_joint + torch.where(seen, log_p, 0) + log_r
    truth = torch.trapezoid(log_joint.exp(), z[:, 0], dim=0).log()

    with torch.no_grad():
        bound = not_miwae(model, x, observed, missingness, samples=50_000, latents=True)
    assert (bound - truth).abs().max() < 0.02
    assert (bound - oracle.log_prob(x, observed)).abs().min() > 0.1

    deep, values = make(hierarchical), batch()
    shapes = []

    def spy(complete, z):
        shapes.extend(v.shape[1:] for v in z)
        return z[-1].new_zeros(len(z[-1]), 3)

    not_miwae(deep, values, OBSERVED, spy, samples=2, latents=True)
    assert shapes == [(3,), (2,)]  # coarse to fine


@every_model
def test_missing_slots_do_not_reach_the_missingness(build):
    results = []
    for filler in (0.0, 7.0, math.inf, math.nan):
        model, x = make(build), batch(filler)
        model(x, OBSERVED)
        network = nn.ModuleDict(
            {str(i): nn.Linear(v.shape[1], 1) for i, v in enumerate(x.values())}
        )

        def missingness(complete, network=network):
            parts = zip(network.values(), complete.values(), strict=True)
            return torch.cat([layer(v) for layer, v in parts], dim=1)

        torch.manual_seed(3)
        bound = not_miwae(model, x, OBSERVED, missingness, samples=3)
        bound.sum().backward()
        parameters = [*model.parameters(), *network.parameters()]
        results.append([bound, *(p.grad for p in parameters if p.grad is not None)])
    assert all(p.grad is not None for p in network.parameters())
    assert results[0][0].isfinite().all()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_missingness_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"'missingness' should return .* \(16, 3\), but .*\(16,"):
        not_miwae(make(flat), batch(), OBSERVED, lambda x: x["us"][:, 0], samples=2)


class SelfMasking(nn.Module):
    """Whether something is observed depends on itself."""

    def __init__(self, sizes):
        super().__init__()
        self.layers = nn.ModuleDict({m: nn.Linear(size, 1) for m, size in sizes.items()})

    def forward(self, x):
        return torch.cat([layer(x[m]) for m, layer in self.layers.items()], dim=1)


def estimated_mean(modelled):
    """The mean of b in a model of data that lack b where it is large; in truth, it is 1."""
    torch.manual_seed(0)
    z = torch.randn(1000, 1)
    x = {"a": z * torch.tensor([1.0, 0.5]), "b": 1 + z}
    x = {m: v + 0.5 * torch.randn_like(v) for m, v in x.items()}
    observed = torch.ones(1000, 2, dtype=torch.bool)
    observed[:, 1] = torch.rand(1000) < torch.sigmoid(-3 * (x["b"][:, 0] - 1))
    x["b"][~observed[:, 1]] = math.nan

    sizes = {"a": 2, "b": 1}
    vae = mmpoe.MVAE(
        {m: nn.Linear(size, 2) for m, size in sizes.items()},
        {m: Normal(nn.Linear(1, size), scale=0.5, learn_scale=True) for m, size in sizes.items()},
    )
    missingness = SelfMasking(sizes)
    parameters = [*vae.parameters(), *missingness.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-2, betas=(0.9, 0.99))
    for _ in range(300):
        if modelled:
            bound = not_miwae(vae, x, observed, missingness)
        else:
            bound = log_marginal(vae, x, observed, samples=10)
        optimizer.zero_grad()
        (-bound.mean()).backward()
        optimizer.step()
    return vae.decoders["b"].network.bias.item()  # the prior mean of z is 0


@pytest.mark.slow
def test_modelling_missingness_lowers_the_bias():
    assert abs(estimated_mean(modelled=False) - 1) > 0.25
    assert abs(estimated_mean(modelled=True) - 1) < 0.12
