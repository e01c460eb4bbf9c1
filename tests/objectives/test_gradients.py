"""Gradients of importance-weighted bounds: their expectations, by quadrature."""

import pytest
import torch
from quadrature import BOTH, expect, flat, gradients, hierarchy, one_row

import mmpoe
from mmpoe.objectives import mixture_elbo, mixture_iwae, mixtures
from mmpoe.oracles import LinearGaussian, LinearGaussianHierarchy

MODELS = {
    "flat": flat,
    "mixture of experts": lambda: flat(mmpoe.MMVAE),
    "hierarchical": hierarchy,
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())


def both(model, beta=1.0, gradient="stl", nodes=40, **options):
    """The expectations of the pathwise gradient and of another."""
    pair = [
        gradients(
            mixture_iwae, model, one_row(), BOTH, beta, nodes=nodes, gradient=kind, **options
        )
        for kind in ("pathwise", gradient)
    ]
    assert pair[0].abs().max() > 0.1
    return pair


@every_model
@pytest.mark.parametrize("family", ["full", "singletons", "powerset"])
@pytest.mark.parametrize("density", ["component", "mixture"])
@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_gradients_of_one_sample_have_the_same_expectation(build, family, density, gradient):
    model = build()
    nodes = 40 if len(model.groups) == 1 else 20
    options = {"family": family, "density": density, "gradient": gradient, "nodes": nodes}
    pathwise, found = both(model, beta=0.7, **options)
    torch.testing.assert_close(found, pathwise, atol=1e-6, rtol=0)


@every_model
def test_pathwise_gradient_of_one_sample_is_that_of_the_closed_form(build):
    model = build()
    nodes = 40 if len(model.groups) == 1 else 20
    closed = gradients(mixture_elbo, model, one_row(), BOTH, 0.7, nodes=nodes)
    options = {"density": "component", "nodes": nodes}
    found = gradients(mixture_iwae, model, one_row(), BOTH, 0.7, **options)
    torch.testing.assert_close(found, closed, atol=1e-8, rtol=0)


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("family", ["full", "powerset"])
def test_dreg_is_unbiased_for_components(beta, family):
    options = {"family": family, "samples": 2, "density": "component"}
    pathwise, found = both(flat(), beta, "dreg", **options)
    torch.testing.assert_close(found, pathwise, atol=2e-6, rtol=0)


@pytest.mark.parametrize("density", ["component", "mixture"])
@pytest.mark.parametrize(("beta", "rounding"), [(1.0, 1e-4), (0.4, 1e-7)])
def test_dreg_is_unbiased_for_a_component_of_a_hierarchy(beta, rounding, density):
    options = {"family": "full", "samples": 2, "nodes": 12, "density": density}
    pathwise, found = both(hierarchy(scale=2.0), beta, "dreg", **options)
    torch.testing.assert_close(found, pathwise, atol=rounding, rtol=0)


@pytest.mark.parametrize(
    ("gradient", "options", "least"),
    [
        ("dreg", {"samples": 2}, 0.002),
        ("dreg", {"stratified": True, "apart": True}, 0.1),
        ("stl", {"samples": 2}, 0.1),
        ("stl", {"samples": 2, "family": "full"}, 0.1),
        ("stl", {"samples": 2, "family": "full", "density": "component"}, 0.1),
        ("stl", {"stratified": True, "apart": True}, 0.1),
        ("stl", {"stratified": True, "apart": True, "density": "component"}, 0.1),
        ("dreg", {"stratified": True, "apart": True, "density": "component"}, 0.01),
    ],
)
def test_biased_gradients_are_refused_and_are_biased(monkeypatch, gradient, options, least):
    options = {"family": "singletons", **options}
    accepted = {k: v for k, v in options.items() if k != "apart"}
    model = flat(mmpoe.MMVAE)
    with pytest.raises(ValueError, match=r"'gradient' should be pathwise"):
        mixture_iwae(model, one_row(), BOTH, gradient=gradient, **accepted)
    monkeypatch.setattr(mixtures, "_check_gradient", lambda *args, **options: None)
    pathwise, found = both(model, gradient=gradient, **options)
    assert (found - pathwise).abs().max() > least


def test_dreg_of_a_mixture_is_accepted_where_a_row_has_one_component():
    model, alone = flat(mmpoe.MMVAE), torch.tensor([[True, False]])
    options = {"family": "singletons", "samples": 3, "gradient": "dreg"}
    assert mixture_iwae(model, one_row(), alone, **options).isfinite().all()
    assert mixture_iwae(model, one_row(), alone, stratified=True, **options).isfinite().all()


@pytest.mark.parametrize("density", ["component", "mixture"])
@pytest.mark.parametrize(("gradient", "samples"), [("stl", 1), ("dreg", 1), ("dreg", 3)])
@pytest.mark.parametrize("levels", [1, 3])
def test_no_gradient_is_left_where_the_posterior_is_exact(levels, gradient, samples, density):
    # densities of finer groups depend on the latents above them: those terms cancel as well
    torch.manual_seed(0)
    if levels == 1:
        oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=3)
        model = oracle.model()
    else:
        oracle = LinearGaussianHierarchy.random(["a", "b"], levels, latent_dim=2, data_dim=3)
        model = oracle.model("joint")
    x, _ = oracle.sample(4)
    observed = torch.ones(4, 2, dtype=torch.bool)

    def of_encoders(kind):
        options = {"family": "full", "samples": samples, "gradient": kind, "density": density}
        bound = mixture_iwae(model, x, observed, **options).sum()
        found = torch.autograd.grad(bound, list(model.encoders.parameters()), allow_unused=True)
        return max(g.abs().max().item() for g in found if g is not None)

    assert of_encoders(gradient) < 1e-11
    assert of_encoders("pathwise") > 0.1


def test_values_do_not_depend_on_the_gradient():
    model, x = hierarchy(), one_row()
    for family, samples in (("full", 3), ("powerset", 1)):
        found = []
        for gradient in ("pathwise", "stl", "dreg"):
            if gradient == "stl" and samples > 1:
                continue
            options = {"family": family, "samples": samples, "gradient": gradient}
            found.append(expect(mixture_iwae, model, x, BOTH, nodes=4, **options).item())
        assert found == pytest.approx([found[0]] * len(found), abs=1e-12)


def test_nothing_to_learn_needs_no_gradient():
    model = flat().requires_grad_(False)
    bound = mixture_iwae(model, one_row(), BOTH, family="full", samples=2, gradient="dreg")
    assert not bound.requires_grad
