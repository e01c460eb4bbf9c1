"""The contract of objectives: each encoder runs once, on the rows that have its modality."""

import pytest
import torch
from context_models import SHIFTED, shifted_batches
from example_models import MODELS, NAMES, OBSERVED, batch, make

import mmpoe
from mmpoe import kernels, objectives
from mmpoe.evidence import log_conditional, log_predictive, log_weights
from mmpoe.imputation import add_matched_experts, impute
from mmpoe.missing import Batch
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
@pytest.mark.parametrize("build", MODELS)
def test_every_latent_group_is_fused_by_the_operation(name, build, monkeypatch):
    model, calls, operation = make(MODELS[build]), [], kernels.gaussian_poe
    if name == "mmvae_plus" and len(model.groups) == 1:
        pytest.skip("private latents need a group of their own")
    model.fix_shapes(batch())
    add_matched_experts(model)

    def counting(*args, **kwargs):
        calls.append(args)
        return operation(*args, **kwargs)

    monkeypatch.setattr(kernels, "gaussian_poe", counting)
    OBJECTIVES[name](model, batch(), OBSERVED)
    assert len(calls) >= len(model.groups)


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


@every_objective
@pytest.mark.parametrize("kind", SHIFTED)
def test_every_row_meets_its_own_covariates(name, kind):
    """Data and latents that are shifted by covariates have the densities of those that are not."""
    if name == "mmvae_plus" and "hierarchical" not in kind and kind != "free experts":
        pytest.skip("private latents need a group of their own")
    if name == "not_miwae":
        pytest.skip("the missingness of this test sees the shifts")
    model = make(SHIFTED[kind]).double()
    add_matched_experts(model)
    values = []
    for x in shifted_batches():
        torch.manual_seed(0)
        values.append(OBJECTIVES[name](model, x, OBSERVED))
    if name == "posterior_matching":  # matched experts start from the posterior that they match
        assert values[0].abs().max() > 0.1
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-9)


@every_objective
@pytest.mark.parametrize("build", ["flat", "hierarchical", "hierarchical mixture"])
def test_elements_that_are_not_valid_are_never_read(name, build):
    if (name, build) == ("mmvae_plus", "flat"):
        pytest.skip("private latents need a group of their own")
    model = make(MODELS[build])
    model.fix_shapes(batch())
    add_matched_experts(model)
    inside = {m: torch.rand(v.shape) < 0.7 for m, v in batch().items()}
    values = []
    for filler in (torch.nan, 1e30):
        torch.manual_seed(0)
        x = {m: torch.where(inside[m], v, filler) for m, v in batch(filler=torch.nan).items()}
        value = OBJECTIVES[name](model, Batch(x, valid=inside), OBSERVED)
        value.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        values.append((value, torch.cat([g.flatten() for g in gradients])))
    assert values[0][0].isfinite().all()
    assert torch.equal(values[0][0], values[1][0])
    assert torch.equal(values[0][1], values[1][1])
