"""The Pyro programs describe the same model."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from test_models import NAMES, OBSERVED, batch, flat, hierarchical, make

import mmpoe


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()


@pytest.mark.parametrize("build", [flat, hierarchical], ids=["flat", "hierarchical"])
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


def test_training_with_svi_improves_the_bound():
    vae = make(flat)
    x = batch()
    svi = SVI(
        mmpoe.pyro.model(vae),
        mmpoe.pyro.guide(vae),
        pyro.optim.Adam({"lr": 1e-2}),
        TraceMeanField_ELBO(),
    )
    losses = [svi.step(x, OBSERVED) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_bad_mask_is_named():
    vae = make(flat)
    with pytest.raises(ValueError, match="'observed' should have one column per modality"):
        mmpoe.pyro.model(vae)(batch(), OBSERVED[:, :2])
    with pytest.raises(ValueError, match="'observed' should be boolean"):
        mmpoe.pyro.guide(vae)(batch(), OBSERVED.float())
