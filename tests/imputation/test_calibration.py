"""Matched experts: the exact optimum, what they leave alone, and how they are fitted."""

import copy
import itertools
import math
import signal

import numpy as np
import pytest
import torch
from example_models import NAMES, OBSERVED, batch, conditioned, every_model, flat, make
from oracle import NAMES as GOLDEN_NAMES
from oracle import B, expected_elbo, golden
from scipy.stats import norm
from torch import nn
from torch.distributions import kl_divergence

import mmpoe
from mmpoe.imputation import add_matched_experts, calibrate, calibration
from mmpoe.imputation.matched import ResidualHead
from mmpoe.likelihoods import Normal
from mmpoe.metrics import coverage
from mmpoe.nn import MLP
from mmpoe.objectives import mixture_elbo, posterior_matching
from mmpoe.oracles import LinearGaussianHierarchy
from mmpoe.posteriors import CommonNoisePoE, PoE

ALL = torch.ones(8, 3, dtype=torch.bool)
PARTS = {"a": (0.5, 0.5, 0.8047189562), "b": (4 / 9, 1 / 9, 0.0526802578)}
"""Of the golden model: slope and variance of p(z | x_m), and the loss at the optimum."""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def golden_quadrature():
    """Data whose weighted averages are those over the golden model, for anything quadratic."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = torch.tensor(list(itertools.product(nodes, repeat=2)))
    weight = torch.tensor(weights / weights.sum())
    w, psi = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 0.5]).double()
    factor = torch.linalg.cholesky(torch.outer(w, w) + psi.diag())
    values = grid @ factor.T + torch.tensor(B)
    x = {m: values[:, [column]] for column, m in enumerate(GOLDEN_NAMES)}
    return x, torch.outer(weight, weight).flatten()


def mean_loss(vae, given):
    x, weight = golden_quadrature()
    both = torch.ones(len(weight), 2, dtype=torch.bool)
    return (weight * posterior_matching(vae, x, both, given)).sum()


@pytest.mark.parametrize("given", PARTS)
def test_loss_of_the_exact_experts_is_the_information_that_is_missing(given):
    vae = golden().model()
    add_matched_experts(vae)  # equal to the exact ones, so they are the optimum
    assert mean_loss(vae, [given]).item() == pytest.approx(PARTS[given][2], abs=1e-10)


def test_optimum_has_the_slope_and_variance_of_the_posterior_of_a_part():
    vae = golden().model()
    add_matched_experts(vae)
    heads = {m: nn.Linear(2, 2, dtype=torch.float64) for m in GOLDEN_NAMES}
    vae.groups[0].matched.expert = mmpoe.nn.ModalityDict(heads)
    optimizer = torch.optim.LBFGS(
        [p for head in heads.values() for p in head.parameters()],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = sum(mean_loss(vae, [m]) for m in GOLDEN_NAMES)
        loss.backward()
        return loss

    optimizer.step(closure)
    x = {m: torch.tensor([[0.0], [1.0]]).double() for m in GOLDEN_NAMES}
    for m, (slope, variance, least) in PARTS.items():
        assert mean_loss(vae, [m]).item() == pytest.approx(least, abs=1e-9)
        q = conditioned(vae, x, [m], experts="matched").posteriors[0]
        assert q.loc.diff(dim=0).item() == pytest.approx(slope, abs=1e-4)
        assert q.variance[0].item() == pytest.approx(variance, abs=1e-4)


def cross_trained(weight=0.0):
    """The golden model with the expert of one part that is best at w self + (1 - w) cross."""
    vae = golden().model()
    encoder = vae.encoders["a"]
    x, quadrature = golden_quadrature()
    one, both = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    one, both = one.expand(9, 2), both.expand(9, 2)
    optimizer = torch.optim.LBFGS(
        encoder.parameters(), max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        self_term = expected_elbo(mmpoe.elbo, vae, x, one, one, [1]) @ quadrature
        cross_term = expected_elbo(mmpoe.elbo, vae, x, both, one, [1]) @ quadrature
        loss = -(weight * self_term + (1 - weight) * cross_term)
        loss.backward()
        return loss

    optimizer.step(closure)
    return vae


@pytest.mark.parametrize(("weight", "variance"), [(0, 0.1), (0.5, 1 / 6), (0.9, 0.3571428571)])
def test_mixing_terms_does_not_make_a_posterior_wide_enough(weight, variance):
    q = cross_trained(weight)(golden().sample(2)[0], ["a"]).posteriors[0]
    assert q.variance.flatten().tolist() == pytest.approx(
        [variance] * 2, abs=1e-5
    )  # p(z | x_a) has 0.5


def covered(vae, rows=4000):
    """How often 90 % intervals of the second modality given the first hold the truth."""
    x, _ = golden().sample(rows)
    filled = mmpoe.impute(vae, x, ["a"], targets=["b"])
    return coverage(filled["b"].draws, x["b"]).mean().item()


def test_samples_of_a_posterior_trained_across_modalities_cover_too_little():
    exact = 2 * norm.cdf(norm.ppf(0.95) * math.sqrt((4 * 0.1 + 0.5) / (4 * 0.5 + 0.5))) - 1
    assert exact == pytest.approx(0.6763143, abs=1e-7)
    vae = cross_trained()
    with pytest.warns(mmpoe.models.UncalibratedWarning):
        assert covered(vae) == pytest.approx(exact, abs=0.02)


def test_samples_of_the_optimum_of_matching_cover_as_they_should():
    vae = golden().model()
    add_matched_experts(vae)  # equal to the exact ones, so they are the optimum
    assert covered(vae) == pytest.approx(0.9, abs=0.015)


CHAINS = {"common_noise": True, "poe": False}


@pytest.mark.parametrize(("fusion", "exact"), CHAINS.items())
def test_exact_chains_lose_what_is_missing_and_no_more(fusion, exact):
    oracle = LinearGaussianHierarchy.random(NAMES, levels=3, latent_dim=2, data_dim=3)
    teacher, vae = oracle.model("joint"), oracle.model(fusion)
    x, _ = oracle.sample(4000)
    observed = torch.ones(4000, 3, dtype=torch.bool)
    given = torch.tensor([True, True, False]).expand(4000, 3)
    with torch.no_grad():
        z = teacher(x, observed).z
        q = conditioned(teacher, x, observed, z=z).posteriors
        r = conditioned(vae, x, given, z=z).posteriors
    loss = sum(kl_divergence(a, b) for a, b in zip(q, r, strict=True))
    part, whole = (oracle.flat.posterior(x, mask)[1][0] for mask in (given, observed))
    missing = 0.5 * (part.logdet() - whole.logdet())
    excess = (loss.mean() - missing) / (loss.std() / math.sqrt(4000))
    assert (excess.abs() < 4) if exact else (excess > 8)


@pytest.mark.long
@pytest.mark.parametrize(("fusion", "exact"), CHAINS.items())
def test_matching_learns_the_posterior_of_every_subset_if_the_rule_has_it(fusion, exact):
    oracle = LinearGaussianHierarchy.random(NAMES, levels=3, latent_dim=2, data_dim=3)
    vae = oracle.model("common_noise")  # whose posterior teaches, and is exact
    add_matched_experts(vae)
    for group in vae.groups:
        heads = {m: nn.Linear(4, 4, dtype=torch.float64) for m in NAMES}
        for head in heads.values():
            nn.init.eye_(head.weight)
            head.weight.data.add_(0.1 * torch.randn(4, 4))
        group.matched.expert = mmpoe.nn.ModalityDict(heads)
        if fusion == "poe":
            group.matched.posterior = PoE()
        elif isinstance(group.matched.posterior.rule, CommonNoisePoE):
            group.matched.posterior.rule.log_gamma.data.add_(0.5)

    x, _ = oracle.sample(256)

    def gap():
        """KL(p(z | x_s) || r(z | x_s)) for each subset, averaged over rows."""
        gaps = []
        for given in OBSERVED[1:, None].expand(-1, 256, -1):
            with torch.no_grad():
                q = vae(x, given)
                r = conditioned(vae, x, given, z=q.z, experts="matched")
            pairs = zip(q.posteriors, r.posteriors, strict=True)
            gaps.append(sum(kl_divergence(a, b) for a, b in pairs).mean())
        return torch.stack(gaps)

    assert gap().mean() > 0.1
    steps, complete = 800, torch.ones(128, 3, dtype=torch.bool)
    matched = [p for group in vae.groups for p in group.matched.parameters()]
    optimizer = torch.optim.Adam(matched, lr=2e-2, betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        loss = posterior_matching(vae, oracle.sample(128)[0], complete).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{fusion}: {gap().tolist()}")
    assert (gap().mean() < 2e-3) if exact else (gap().mean() > 0.02)


def test_loss_is_the_expected_log_ratio_of_teacher_and_matched():
    oracle = LinearGaussianHierarchy.random(NAMES, levels=3, latent_dim=2, data_dim=3)
    vae = oracle.model("poe")
    add_matched_experts(vae)
    for head in vae.groups[1].matched.expert.values():
        nn.init.normal_(head.network[-1].weight, std=0.3)
    x = {m: v.repeat_interleave(5000, dim=0) for m, v in oracle.sample(2)[0].items()}
    whole = torch.ones(10_000, 3, dtype=torch.bool)
    part = torch.tensor([True, False, True]).expand(10_000, 3)
    with torch.no_grad():
        q = vae(x, whole)
        r = conditioned(vae, x, part, z=q.z, experts="matched")
        ratio = sum(
            a.log_prob(z) - b.log_prob(z)
            for a, b, z in zip(q.posteriors, r.posteriors, q.z, strict=True)
        )
        loss = posterior_matching(vae, x, whole, part)
    ratio, loss = ratio.unflatten(0, (2, -1)), loss.unflatten(0, (2, -1))
    error = ((ratio.var(dim=1) + loss.var(dim=1)) / 5000).sqrt()
    assert ((ratio.mean(dim=1) - loss.mean(dim=1)).abs() < 4 * error).all()
    assert (loss.std(dim=1) < 0.5 * ratio.std(dim=1)).all()  # in closed form, it varies less


def matched_model(build):
    model = make(build)
    model.fix_shapes(batch())
    add_matched_experts(model)
    return model


def split(model):
    """The parameters of the matched experts, and all others."""
    matched = [p for group in model.groups for p in group.matched.parameters()]
    return matched, [p for p in model.parameters() if all(p is not other for other in matched)]


@every_model
def test_inference_by_matched_experts_passes_no_gradient_on(build):
    """To encoders, trained experts or priors, whoever takes it."""
    model = matched_model(build)
    q = model.infer(model.encode(batch(), OBSERVED), OBSERVED, experts="matched")
    sum(part.sum() for part in (*q.kl, *q.z)).backward()
    matched, others = split(model)
    assert all(p.grad is None for p in others)
    assert any(p.grad is not None for p in matched)


@every_model
@pytest.mark.parametrize("teacher", ["complete", "bootstrap", "all"])
def test_gradients_reach_the_matched_experts_alone(build, teacher):
    model = matched_model(build)
    loss = posterior_matching(model, batch(), OBSERVED, teacher=teacher)
    assert loss.shape == (8,)
    (loss.sum() if teacher != "bootstrap" else loss[:-1].sum()).backward()
    matched, others = split(model)
    assert all(p.grad is None for p in others)
    assert all(p.grad is None or p.grad.isfinite().all() for p in matched)


@every_model
def test_matched_experts_change_no_bit_of_the_objective(build):
    results = []
    for add in (False, True):
        model = make(build)
        model.fix_shapes(batch())
        if add:
            add_matched_experts(model)
        torch.manual_seed(3)
        bound = mixture_elbo(model, batch(), OBSERVED)
        loss = -bound.sum()
        if add:
            loss = loss + posterior_matching(model, batch(), OBSERVED).sum()
        loss.backward()
        others = split(model)[1] if add else list(model.parameters())
        results.append([bound, *(p.grad for p in others)])
    for a, b in zip(*results, strict=True):
        assert a is b is None or torch.equal(a, b)


@every_model
@pytest.mark.parametrize("teacher", ["complete", "bootstrap", "all"])
def test_only_some_rows_teach(build, teacher):
    model = matched_model(build)
    for p in split(model)[0]:
        nn.init.normal_(p, std=0.3)
    given = OBSERVED.clone()
    given[[3, 5, 6, 7], 0] = False
    given[[6, 7], 1] = False  # (0), (1), (01), (2), (02), (12), (012) lose one or two
    loss = posterior_matching(model, batch(), OBSERVED, given, teacher=teacher)
    learned = {"complete": [7], "bootstrap": [3, 5, 6, 7], "all": [1, 2, 3, 4, 5, 6, 7]}
    assert loss.nonzero()[:, 0].tolist() == learned[teacher]
    assert (loss >= 0).all()


def test_rows_that_teach_themselves_do_so_by_the_matched_experts():
    model = matched_model(flat)
    for p in split(model)[0]:
        nn.init.normal_(p, std=0.3)
    given = OBSERVED & torch.tensor([False, True, True])
    loss = posterior_matching(model, batch(), OBSERVED, given, teacher="bootstrap")
    whole, part = (
        conditioned(model, batch(), mask, experts="matched").posteriors[0]
        for mask in (OBSERVED, given)
    )
    q = model(batch(), OBSERVED).posteriors[0]
    several = [3, 5, 6]  # of what these rows have, something can be left out
    torch.testing.assert_close(loss[several], kl_divergence(whole, part)[several])
    torch.testing.assert_close(loss[7], kl_divergence(q, part)[7])


@pytest.mark.parametrize("teacher", ["complete", "bootstrap"])
def test_subsets_are_drawn_uniformly_and_proper_where_incomplete(monkeypatch, teacher):
    model, seen = matched_model(flat), []
    infer = model.infer

    def spy(encodings, given, **options):
        if "z" in options:
            seen.append(given)
        return infer(encodings, given, **options)

    monkeypatch.setattr(model, "infer", spy)
    rows = OBSERVED[7:] if teacher == "complete" else OBSERVED[3:4]
    x = {m: v[-1:].expand(7000, -1) for m, v in batch(rows=ALL).items()}
    posterior_matching(model, x, rows.expand(7000, 3), teacher=teacher)
    codes = (seen[0] * torch.tensor([1, 2, 4])).sum(dim=1)
    counts = codes.bincount(minlength=8)
    expected = [0] + [1000] * 7 if teacher == "complete" else [0, 3500, 3500, 0, 0, 0, 0, 0]
    assert counts.tolist() == pytest.approx(expected, abs=150)


@every_model
def test_missing_slots_are_never_read(build):
    results = []
    for filler in (0.0, 7.0, math.inf, math.nan):
        model, x = matched_model(build), batch(filler)
        torch.manual_seed(3)
        loss = posterior_matching(model, x, OBSERVED, teacher="all")
        loss.sum().backward()
        results.append([loss, *(p.grad for p in split(model)[0] if p.grad is not None)])
    assert results[0][0].isfinite().all()
    assert len(results[0]) > 1
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_batch_that_teaches_nothing_has_no_loss():
    model = matched_model(flat)
    loss = posterior_matching(model, batch(), OBSERVED & torch.tensor([True, True, False]))
    assert loss.tolist() == [0.0] * 8
    loss.mean().backward()
    assert all(p.grad is None for p in model.parameters())


class Noisy(nn.Module):
    """An encoder with statistics of batches and dropout."""

    def __init__(self, size, out):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), MLP(8, out)
        )

    def forward(self, x):
        return self.layers(x)


def noisy_model():
    return mmpoe.MVAE(
        {m: Noisy(3, 4) for m in NAMES}, {m: Normal(nn.Linear(2, 3)) for m in NAMES}, latent_dim=2
    )


def vectors(rows=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = {m: torch.randn(rows, 3, generator=generator) for m in NAMES}
    observed = torch.rand(rows, 3, generator=generator) < 0.8
    observed[:8] = True
    return x, observed


def test_everything_but_the_matched_experts_is_in_evaluation_mode():
    model = noisy_model()
    add_matched_experts(model)
    model.encoders[NAMES[1]].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    x, observed = vectors()
    given = observed & torch.tensor([True, False, True])
    losses = [posterior_matching(model, x, observed, given) for _ in range(2)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)  # no dropout
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bad_arguments_of_matching():
    model, x = matched_model(flat), batch()
    with pytest.raises(ValueError, match=r"'teacher' should be one of complete.*'some'"):
        posterior_matching(model, x, OBSERVED, teacher="some")
    with pytest.raises(ValueError, match=r"'given' .* beyond 'observed'.* given us, .* nothing"):
        posterior_matching(model, x, OBSERVED, ALL)
    with pytest.raises(ValueError, match=r"'given' should be boolean with shape"):
        posterior_matching(model, x, OBSERVED, ALL[:2])
    with pytest.raises(ValueError, match=r"'model' should have matched experts"):
        posterior_matching(make(flat), x, OBSERVED)
    with pytest.raises(ValueError, match=r"'experts' should be .trained."):
        conditioned(make(flat), x, OBSERVED, experts="matched")


@every_model
def test_matched_experts_start_as_the_experts(build):
    model = matched_model(build)
    assert model.is_matched
    noise = [torch.randn_like(z) for z in model(batch(), OBSERVED).z]
    q = conditioned(model, batch(), OBSERVED, noise=noise)
    r = conditioned(model, batch(), OBSERVED, noise=noise, experts="matched")
    for a, b in zip(q.z, r.z, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(q.kl, r.kl, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    parts = [p for group in model.groups for p in group.matched.parameters()]
    assert parts
    assert all(p.requires_grad for p in parts)
    before = [group.matched for group in model.groups]
    add_matched_experts(model)
    assert [group.matched for group in model.groups] == before


def test_residual_heads_act_on_channels():
    head = ResidualHead(6)
    nn.init.normal_(head.network[-1].weight)
    x = torch.randn(3, 6, 4, 5)
    assert head(x).shape == x.shape
    torch.testing.assert_close(head(x)[:, :, 1, 2], head(x[:, :, 1, 2]))


def test_widths_of_the_prior():
    vae = golden().model()
    add_matched_experts(vae)
    x, width = golden().sample(4)[0], torch.tensor(1.5).double()
    with torch.no_grad():
        vae.groups[0].matched.posterior.log_width.fill_(width.log())
    nothing, one = torch.tensor([[False, False]]), torch.tensor([[True, False]])
    q = conditioned(vae, x, nothing.expand(4, 2), experts="matched")
    torch.testing.assert_close(q.posteriors[0].scale, width.expand(4, 1))
    torch.testing.assert_close(q.priors[0].scale, torch.ones(4, 1).double())  # that of the model
    for given in (nothing, one):
        q = conditioned(vae, x, given.expand(4, 2), experts="matched")
        torch.testing.assert_close(q.kl[0], kl_divergence(q.posteriors[0], q.priors[0]))
    precision = 1 + 1 / width**2  # that of the expert of a is 1
    torch.testing.assert_close(q.posteriors[0].variance, (1 / precision).expand(4, 1))


@pytest.mark.slow
def test_posteriors_that_are_wider_than_the_prior_are_matched():
    # complete data say N(0, 4) on average, and the prior is N(0, 1)
    sharp = nn.Linear(1, 2)
    with torch.no_grad():
        sharp.weight.copy_(torch.tensor([[2.0], [0.0]]))
        sharp.bias.copy_(torch.tensor([0.0, -3.0]))
    blind = nn.Linear(1, 2)
    with torch.no_grad():
        blind.weight.zero_()
        blind.bias.copy_(torch.tensor([0.0, 3.0]))
    vae = mmpoe.MVAE(
        {"a": sharp, "b": blind}, {m: Normal(nn.Linear(1, 1)) for m in "ab"}, latent_dim=1
    )
    x = {m: torch.randn(4000, 1) for m in "ab"}
    observed = torch.ones(4000, 2, dtype=torch.bool)
    calibrate(vae, (x, observed), steps=600, lr=1e-2, held_out=0)
    with torch.no_grad():
        complete = vae(x, ["a", "b"]).posteriors[0]
        part = conditioned(vae, x, ["b"], experts="matched").posteriors[0]
    spread = complete.loc.var() + complete.variance.mean()
    assert spread > 3
    assert part.variance.mean().item() == pytest.approx(spread.item(), rel=0.05)


def test_unknown_shapes_cannot_be_matched():
    with pytest.raises(ValueError, match=r"The shape of 'groups\[0\]' should be known"):
        add_matched_experts(flat())


@every_model
def test_calibration_changes_nothing_else(build):
    model = matched_model(build)
    for group in model.groups:
        group.matched = None
    model.train()
    model.encoders[NAMES[0]].eval()
    before, modes = copy.deepcopy(model.state_dict()), {m: m.training for m in model.modules()}
    noise = [torch.randn_like(z) for z in model(batch(), OBSERVED).z]
    output = conditioned(model, batch(), OBSERVED, noise=noise)
    x = {m: v.repeat(4, 1) for m, v in batch(rows=ALL).items()}
    history = calibrate(model, (x, ALL.repeat(4, 1)), steps=30, batch_size=8)
    assert model.is_matched
    assert len(history.losses) == 30
    assert history.held_out[history.best] == min(history.held_out.values()) < history.held_out[0]
    assert all(m.training == mode for m, mode in modes.items())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert all(p.grad is None for p in split(model)[1])
    again = conditioned(model, batch(), OBSERVED, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(output.z, again.z, strict=True))


def test_calibration_reads_samples_or_a_batch():
    x, observed = vectors()
    samples = [
        {m: x[m][b] for column, m in enumerate(NAMES) if observed[b, column]} for b in range(64)
    ]
    results = []
    for data in ((x, observed), samples):
        model = make(noisy_model)
        torch.manual_seed(1)
        calibrate(model, data, steps=20, batch_size=16)
        results.append(model.state_dict())
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


def test_calibration_is_saved_and_loaded():
    model = make(noisy_model)
    calibrate(model, vectors(), steps=20)
    fresh = noisy_model()
    with pytest.raises(RuntimeError, match=r"matched"):
        fresh.load_state_dict(model.state_dict())
    add_matched_experts(fresh)
    fresh.load_state_dict(model.state_dict())
    x, observed = vectors()
    a, b = (
        conditioned(m.eval(), x, observed, experts="matched").posteriors[0] for m in (model, fresh)
    )
    assert torch.equal(a.loc, b.loc)


def test_calibration_goes_on_with_what_is_there():
    model = make(noisy_model)
    first = calibrate(model, vectors(), steps=100)
    second = calibrate(model, vectors(), steps=25)
    assert second.held_out[0] < first.held_out[0]


def test_calibration_keeps_the_best_and_stops():
    model = make(noisy_model)
    x, observed = vectors(20)
    history = calibrate(model, (x, observed), steps=2000, lr=3e-2, patience=50)
    steps = max(history.held_out)
    assert steps == history.best + 50 < 2000
    assert len(history.losses) == steps

    whole = calibrate(make(noisy_model), (x, observed), steps=40, held_out=0)
    assert whole.best == 40
    assert whole.held_out == {}


def test_steps_of_a_calibration_are_told():
    told = []
    history = calibrate(
        make(noisy_model), vectors(20), steps=3, after_step=lambda *step: told.append(step)
    )
    assert told == list(enumerate(history.losses, start=1))
    assert len(told) == 3


@pytest.mark.parametrize("at", [0, 40])
def test_interrupt_leaves_a_model_to_use(monkeypatch, at):
    model, calls = make(noisy_model), itertools.count()
    original = calibration.match

    def interrupting(*args, **kwargs):
        if next(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(calibration, "match", interrupting)
    modes = {m: m.training for m in model.modules()}
    history = calibrate(model, vectors(), steps=200)
    assert history.interrupted
    assert len(history.losses) < 41
    assert model.is_matched
    assert all(m.training == mode for m, mode in modes.items())
    x, observed = vectors()
    assert mmpoe.impute(model, x, observed, draws=3)["us"].draws.isfinite().all()


def test_errors_while_calibrating_leave_the_best_fit():
    model, (x, observed) = make(noisy_model), vectors()
    x["us"][:] = math.nan
    with pytest.raises(ValueError, match=r"'us'"):
        calibrate(model, (x, observed), steps=5)
    assert all(m.training for m in model.modules())


def test_frozen_models_can_be_calibrated():
    model = make(noisy_model).requires_grad_(False)
    history = calibrate(model, vectors(), steps=50)
    assert history.best > 0
    assert not any(p.requires_grad for p in split(model)[1])


def test_random_numbers_after_calibration_do_not_depend_on_looks():
    draws = []
    for every in (5, 25):
        calibration.CHECK_EVERY, kept = every, calibration.CHECK_EVERY
        torch.manual_seed(1)
        calibrate(make(noisy_model), vectors(), steps=20)
        calibration.CHECK_EVERY = kept
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def test_bad_arguments_of_calibration():
    model, (x, observed) = make(noisy_model), vectors()
    incomplete = observed & torch.tensor([True, True, False])
    with pytest.raises(ValueError, match=r"'data' should hold samples with all modalities.*of 64"):
        calibrate(model, (x, incomplete))
    with pytest.raises(ValueError, match=r"'data' should hold samples with all modalities"):
        calibrate(model, (x, incomplete), teacher="bootstrap")
    with pytest.raises(ValueError, match=r"'data' should hold samples with a modality"):
        calibrate(model, (x, torch.zeros_like(observed)), teacher="all")
    with pytest.raises(ValueError, match=r"none of 0 does"):
        calibrate(model, [])
    with pytest.raises(ValueError, match=r"at least two samples that teach, but holds 1"):
        calibrate(model, ({m: v[:1] for m, v in x.items()}, observed[:1]))
    with pytest.raises(ValueError, match=r"'data' should hold one row per row of its mask \(9\)"):
        calibrate(model, (x, observed[:9]))
    with pytest.raises(ValueError, match=r"'data' should hold modalities among .* 'flair'"):
        calibrate(model, ({**x, "flair": x["us"]}, observed))
    for name, value in (("steps", 0), ("lr", -1.0), ("held_out", 1.0), ("patience", 0)):
        with pytest.raises(ValueError, match=rf"'{name}' should be"):
            calibrate(model, (x, observed), **{name: value})
    assert not model.is_matched


def test_matching_can_be_trained_along_with_the_model():
    pytest.importorskip("lightning_fabric")
    x, observed = vectors(256)
    given, losses = observed & OBSERVED[3], []
    for weight in (0, 1):
        model = make(noisy_model)
        add_matched_experts(model)

        def objective(model, data, done, weight=weight):
            return mixture_elbo(model, *data) - weight * posterior_matching(model, *data)

        mmpoe.training.fit(model, [(x, observed)], objective, steps=40, progress=False)
        losses.append(posterior_matching(model, x, observed, given).sum())
    assert losses[1] < 0.8 * losses[0]
