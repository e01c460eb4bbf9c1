"""The Pyro programs describe the same model."""

import math

import pyro
import pytest
import torch
from example_models import NAMES, OBSERVED, SIZES, batch, conditioned, flat, hierarchical, make
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn

import mmpoe
from mmpoe.likelihoods import Normal, Poisson
from mmpoe.missing import Batch


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()


@pytest.mark.parametrize("build", [flat, hierarchical], ids=["flat", "hierarchical"])
@pytest.mark.slow
def test_bound_is_the_one_of_pyro(build):
    """The two estimators agree in the mean; in each sample they differ by their noise alone."""
    vae = make(build)
    model, guide = mmpoe.pyro.model(vae), mmpoe.pyro.guide(vae)
    x = batch(math.nan)
    ours, theirs = [], []
    with torch.no_grad():
        for _ in range(600):
            bound = mmpoe.elbo(vae(x, OBSERVED), x, OBSERVED)
            ours.append(bound.sum().item())
            theirs.append(-TraceMeanField_ELBO().loss(model, guide, x, OBSERVED))
    ours, theirs = torch.tensor(ours), torch.tensor(theirs)
    error = ((ours.var() + theirs.var()) / len(ours)).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert error < 0.02 * abs(ours.mean())


def test_bound_is_the_one_of_pyro_with_the_same_noise():
    vae = make(hierarchical)
    x = batch(math.nan)
    trace = poutine.trace(mmpoe.pyro.guide(vae)).get_trace(x, OBSERVED)
    noise = []
    for level in (2, 1):
        site = trace.nodes[f"z_{level}"]
        noise.append((site["value"] - site["fn"].loc) / site["fn"].scale)
    replayed = poutine.trace(poutine.replay(mmpoe.pyro.model(vae), trace)).get_trace(x, OBSERVED)
    replayed.compute_log_prob()
    scored = sum(replayed.nodes[f"x_{m}"]["log_prob"] for m in NAMES)
    output = vae(x, OBSERVED, noise=noise)
    bound = mmpoe.elbo(output, x, OBSERVED)
    torch.testing.assert_close(scored - sum(output.kl), bound)


@pytest.mark.parametrize("kind", [mmpoe.MMVAE, mmpoe.MoPoEVAE])
def test_bound_of_a_mixture_draws_its_components_too(kind):
    vae, x, repeats = make(lambda: flat(kind)), batch(), 400
    # many rows of each pattern: each draws a component of its own
    x = {m: v.repeat(repeats, 1) for m, v in x.items()}
    observed = OBSERVED.repeat(repeats, 1)
    with torch.no_grad():
        ours = mmpoe.elbo(vae(x, observed), x, observed).reshape(repeats, 8)
        trace = poutine.trace(mmpoe.pyro.guide(vae)).get_trace(x, observed)
        replayed = poutine.replay(mmpoe.pyro.model(vae), trace)
        replayed = poutine.trace(replayed).get_trace(x, observed)
        replayed.compute_log_prob()
        trace.compute_log_prob()
        log_q, log_p = trace.nodes["z_1"]["log_prob"], replayed.nodes["z_1"]["log_prob"]
        scored = sum(replayed.nodes[f"x_{m}"]["log_prob"] for m in NAMES)
    theirs = (scored + log_p - log_q).reshape(repeats, 8)
    error = ((ours.var(dim=0) + theirs.var(dim=0)) / repeats).sqrt()
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() <= 4.5 * error).all()


def test_elements_that_are_not_valid_are_not_scored():
    vae, x = make(hierarchical), batch()
    valid = {"us": torch.tensor([True, False, True, False, True])}
    junk = {**x, "us": torch.where(valid["us"], x["us"], math.nan)}
    trace = poutine.trace(mmpoe.pyro.guide(vae)).get_trace(junk, OBSERVED, valid)
    noise = [
        (trace.nodes[s]["value"] - trace.nodes[s]["fn"].loc) / trace.nodes[s]["fn"].scale
        for s in ("z_2", "z_1")
    ]
    program = poutine.replay(mmpoe.pyro.model(vae), trace)
    replayed = poutine.trace(program).get_trace(junk, OBSERVED, valid)
    replayed.compute_log_prob()
    scored = sum(replayed.nodes[f"x_{m}"]["log_prob"] for m in NAMES)
    output = vae(Batch(junk, valid=valid), OBSERVED, noise=noise)
    bound = mmpoe.elbo(output, x, OBSERVED, valid=valid)
    torch.testing.assert_close(scored - sum(output.kl), bound)
    with pytest.raises(ValueError, match=r"'x' should be finite .* 'us' holds NaN"):
        mmpoe.pyro.model(vae)(junk, OBSERVED)


def test_optimal_scales_are_fitted_and_supports_checked():
    def build():
        return mmpoe.MVAE(
            {"a": nn.Linear(3, 4), "count": nn.Linear(2, 4)},
            {"a": Normal(nn.Linear(2, 3), scale="optimal"), "count": Poisson(nn.Linear(2, 2))},
            latent_dim=2,
        )

    vae, other = make(build), make(build)
    x = {"a": torch.randn(8, 3), "count": torch.ones(8, 2)}
    observed = OBSERVED[:, :2]
    trace = poutine.trace(mmpoe.pyro.guide(vae)).get_trace(x, observed)
    replayed = poutine.trace(poutine.replay(mmpoe.pyro.model(vae), trace)).get_trace(x, observed)
    replayed.compute_log_prob()
    z = trace.nodes["z_1"]["value"]
    output = conditioned(other, x, observed, z=[z])
    scored = sum(replayed.nodes[f"x_{m}"]["log_prob"] for m in x)
    bound = mmpoe.elbo(output, x, observed)
    torch.testing.assert_close(scored - output.kl[0], bound)
    with pytest.raises(ValueError, match=r"'x' should hold .*integers.* 'count' holds -1"):
        mmpoe.pyro.model(vae)({**x, "count": -x["count"]}, observed)


def test_training_with_svi_improves_the_bound():
    losses = train(make(flat), steps=60)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def train(vae, steps=1):
    svi = SVI(
        mmpoe.pyro.model(vae),
        mmpoe.pyro.guide(vae),
        pyro.optim.Adam({"lr": 1e-2}),
        TraceMeanField_ELBO(),
    )
    before = [p.clone() for p in vae.parameters()]
    losses = [svi.step(batch(), OBSERVED) for _ in range(steps)]
    pairs = zip(before, vae.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in pairs)
    return losses


def registered():
    return {name.split("$$$")[0] for name in pyro.get_param_store()}


def test_each_of_several_models_is_trained():
    first, second = make(flat), make(flat)
    train(first)
    assert registered() == {"mmpoe"}
    frozen = [p.clone() for p in first.parameters()]
    train(second)
    train(second)
    assert registered() == {"mmpoe", "mmpoe_2"}
    assert all(map(torch.equal, frozen, first.parameters()))
    train(first)
    train(make(hierarchical))
    pyro.clear_param_store()
    train(second)
    assert registered() == {"mmpoe"}


def test_parameters_that_pyro_would_copy_are_named():
    vae = make(flat)
    weight = vae.encoders["us"].get_parameter("0.weight")
    weight.data = weight.data.T.contiguous().T
    with pytest.raises(ValueError, match=r"'vae' .* contiguous .* 'encoders.us.0.weight'"):
        mmpoe.pyro.guide(vae)(batch(), OBSERVED)


def bound(vae):
    return lambda x, observed: mmpoe.elbo(vae(batch(), OBSERVED), x, observed)


def without(*names):
    return {m: v for m, v in batch().items() if m not in names}


@pytest.mark.parametrize(
    ("x", "observed", "message"),
    [
        (batch(), OBSERVED[:, :2], "'observed' should have one column per modality"),
        (batch(), OBSERVED.float(), "'observed' should be boolean"),
        ({**batch(), "flair": batch()["us"]}, OBSERVED, "'x' should hold modalities .* 'flair'"),
        (without("us"), OBSERVED, "'x' should hold 'us', which 'observed' says was observed"),
        ({**batch(), "us": batch()["us"][:5]}, OBSERVED, "'x' should have one row per row"),
        (batch(math.nan), OBSERVED | True, "'x' should be finite .* 'us'"),
    ],
    ids=["columns", "dtype", "unknown", "absent", "rows", "NaN"],
)
@pytest.mark.parametrize("program", [mmpoe.pyro.model, mmpoe.pyro.guide, bound])
def test_bad_batches_are_named_as_by_the_bound(program, x, observed, message):
    vae = make(flat)
    with pytest.raises(ValueError, match=message):
        program(vae)(x, observed)


def test_entries_of_another_shape_are_named():
    """One that would be broadcast is no exception."""
    x = {**batch(), "us": batch()["us"][:, :1]}
    vae = make(lambda: flat(latent_dim=4))
    for program in (mmpoe.pyro.model, bound):
        with pytest.raises(ValueError, match=r"shape of what is decoded, \(8, 5\), but 'us'"):
            program(vae)(x, OBSERVED)


def test_modalities_that_were_never_observed_may_be_absent():
    observed = OBSERVED & torch.tensor([False, True, True])
    x, vae = without("us"), make(flat)
    trace = poutine.trace(mmpoe.pyro.guide(vae)).get_trace(x, observed)
    replayed = poutine.trace(poutine.replay(mmpoe.pyro.model(vae), trace)).get_trace(x, observed)
    assert "x_us" not in replayed.nodes
    assert "x_type" in replayed.nodes


def test_particles_at_once_are_refused_with_a_way_out():
    vae = make(flat)
    loss = pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True)
    x, observed = batch(), OBSERVED
    with pytest.raises(ValueError, match=r"set 'vectorize_particles' .* to False"):
        loss.loss(mmpoe.pyro.model(vae), mmpoe.pyro.guide(vae), x, observed)


@pytest.mark.parametrize("absent", [False, True])
def test_predictive_draws_what_is_missing(absent):
    vae = make(flat)
    x, observed = batch(filler=torch.nan), OBSERVED.clone()
    valid = {"us": torch.tensor([True, True, False, True, True])}
    if absent:
        del x["type"]
        observed[:, 2] = False
    predictive = pyro.infer.Predictive(
        mmpoe.pyro.model(vae), guide=mmpoe.pyro.guide(vae), num_samples=3
    )
    draws = predictive(x, observed, valid)
    for column, m in enumerate(NAMES):
        kept = observed[:, column, None].expand(-1, SIZES[m])
        kept = kept & valid["us"] if m == "us" else kept
        found = draws[f"x_{m}"]
        assert found.isfinite().all()
        if m in x:
            assert torch.equal(found[:, kept], x[m][kept].expand(3, -1))
        assert (found.std(dim=0)[~kept] > 0).all()
