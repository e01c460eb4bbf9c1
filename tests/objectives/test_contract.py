"""The contract of objectives: each encoder runs once, on the rows that have its modality."""

import pytest
import torch
from example_models import MODELS, NAMES, OBSERVED, batch, make

import mmpoe
from mmpoe import objectives
from mmpoe.evidence import log_conditional, log_predictive, log_weights
from mmpoe.imputation import add_matched_experts, impute
from mmpoe.objectives import mixture_elbo, mixture_iwae


def iwae(**options):
    return lambda model, x, observed: mixture_iwae(model, x, observed, **options)


def missingness(x):
    return torch.stack([v.sum(dim=1) for v in x.values()], dim=1)


OBJECTIVES = {
    "elbo": lambda model, x, observed: mmpoe.elbo(model(x, observed), x, observed),
    "mixture_elbo": mixture_elbo,
    "mixture_elbo, drawn": lambda *args: mixture_elbo(*args, decode="drawn"),
    "mixture_iwae": iwae(samples=3),
    "mixture_iwae, component": iwae(density="component", samples=3),
    "stl": iwae(gradient="stl"),
    "dreg": iwae(gradient="dreg", density="component", samples=3),
    "mvae": lambda *args: objectives.mvae(*args, samples=2),
    "mmvae": objectives.mmvae,
    "mmvae_plus": objectives.mmvae_plus,
    "mmvm": objectives.mmvm,
    "mmvm, mixture": lambda *args: objectives.mmvm(*args, density="mixture"),
    "learned weights": lambda model, x, observed: mixture_elbo(
        model, x, observed, family=objectives.SubsetWeights(len(NAMES))(observed)
    ),
    "mopoe": objectives.mopoe,
    "mvtcae": objectives.mvtcae,
    "mhvae": objectives.mhvae,
    "mmhvae": objectives.mmhvae,
    "not_miwae": lambda *args: objectives.not_miwae(*args, missingness),
    "log_marginal": lambda *args: objectives.log_marginal(*args, samples=3),
    "log_weights": lambda *args: log_weights(*args, samples=3),
    "posterior_matching": lambda *args: objectives.posterior_matching(*args, teacher="all"),
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def encoder_runs(model):
    """Lists, for each modality, the number of rows of every run of its encoder from now on."""
    runs = {m: [] for m in NAMES}
    for m in NAMES:
        model.encoders[m].register_forward_hook(lambda _, x, __, m=m: runs[m].append(len(x[0])))
    return runs


@every_objective
@pytest.mark.parametrize("build", ["flat", "hierarchical", "hierarchical mixture"])
def test_each_encoder_runs_once_on_the_rows_that_have_its_modality(name, build):
    if (name, build) == ("mmvae_plus", "flat"):
        pytest.skip("private latents need a group of their own")
    model = make(MODELS[build])
    model.fix_shapes(batch())
    add_matched_experts(model)
    runs = encoder_runs(model)
    value = OBJECTIVES[name](model, batch(filler=torch.nan), OBSERVED)
    assert value.isfinite().all()
    assert runs == {m: [4] for m in NAMES}


@pytest.mark.parametrize(
    "estimate",
    [
        lambda model, x: log_conditional(model, x, NAMES[:1], NAMES[1:], samples=3),
        lambda model, x: log_predictive(model, x, NAMES, NAMES, samples=3),
        lambda model, x: model.predict(x, samples=3),
        lambda model, x: impute(model, x, draws=3),
        lambda model, x: model(x, torch.ones(3, 8, 3, dtype=torch.bool)),
    ],
)
def test_so_do_estimates_and_predictions(estimate):
    model = make(MODELS["hierarchical"])
    add_matched_experts(model)
    x = batch(rows=torch.ones_like(OBSERVED))
    runs = encoder_runs(model)
    estimate(model, x)
    assert runs == {m: [8] for m in NAMES}


@every_objective
def test_no_forward_pass_changes_an_attribute(name):
    """A model without a `latent_dim` learns the shape of its latents in each call."""
    model = make(MODELS["flat"])
    if name == "mmvae_plus":
        pytest.skip("private latents need a group of their own")
    if name == "posterior_matching":
        pytest.skip("matched experts need fixed shapes")
    before = {id(module): dict(vars(module)) for module in model.modules()}
    OBJECTIVES[name](model, batch(), OBSERVED)
    assert model.groups[0].shape is None
    after = {id(module): dict(vars(module)) for module in model.modules()}
    assert before == after
