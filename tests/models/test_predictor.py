"""Compiled and exported models: one graph for every pattern, the numbers of eager execution."""

import shutil

import pytest
import torch
from example_models import MODELS, NAMES, OBSERVED, batch, hierarchical, make, noise_for
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import mmpoe
from mmpoe.imputation import add_matched_experts
from mmpoe.likelihoods import Normal, StudentT
from mmpoe.missing import subsets
from mmpoe.models import Predictor, image_mmhvae, published_mmhvae, vector_mmhvae
from mmpoe.nn import MLP
from mmpoe.objectives import mixture_elbo, mmvae, mmvm
from mmpoe.oracles import LinearGaussian
from mmpoe.posteriors import MoE, MoPoE

COMPILED = ["flat", "hierarchical", "powers", "common noise", "published rule"]
EXPORTED = ["flat", "hierarchical", "free experts"]


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def step(model, x, observed, noise):
    return mmpoe.elbo(model(x, observed, noise=noise), x, observed)


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def check_step(model, backend, rolls=(0, 3)):
    """One graph computes what eager execution does, for several batches of patterns."""
    noise = noise_for(model)  # also shows a flat model its latent dimension
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for roll in rolls:
        observed = OBSERVED.roll(roll, dims=0)
        results = []
        for run in (compiled, step):
            model.zero_grad()
            x = batch(filler=torch.nan if run is compiled else 7.0, rows=observed)
            bound = run(model, x, observed, noise)
            bound.sum().backward()
            results.append((bound.detach(), gradients(model)))
        torch.testing.assert_close(*results)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.slow
def test_a_loss_step_is_one_graph_for_every_pattern(name):
    check_step(make(MODELS[name]), "eager")


@pytest.mark.slow
def test_a_loss_step_and_its_gradient_are_one_graph():
    check_step(make(hierarchical), "aot_eager")


@pytest.mark.parametrize("reconstruct", ["observed", "given"])
@pytest.mark.parametrize("family", ["groups", "powerset"])
@pytest.mark.slow
def test_a_mixture_of_subsets_is_one_graph_for_every_pattern(family, reconstruct):
    """The packed pairs of eager execution and all of them, those that weigh nothing included."""
    model = make(MODELS["hierarchical"])

    def bound(x, observed):
        return mixture_elbo(model, x, observed, 0.5, family=family, reconstruct=reconstruct)

    infer = model.infer  # at the means, since noise would have another shape in either
    model.infer = lambda *args, **options: infer(*args, **options, temperature=0.0)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(bound, fullgraph=True, backend=counter)
    for roll in (0, 3):
        observed = OBSERVED.roll(roll, dims=0)
        results = []
        for run, filler in ((compiled, torch.nan), (bound, 7.0)):
            model.zero_grad()
            value = run(batch(filler=filler, rows=observed), observed)
            value.sum().backward()
            results.append((value.detach(), gradients(model)))
        (got, grads), (expected, wanted) = results
        torch.testing.assert_close(got, expected)
        for a, b in zip(grads, wanted, strict=True):
            assert (a is None or not a.any()) if b is None else torch.allclose(a, b, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_the_published_model_is_one_graph():
    torch.manual_seed(0)
    model = published_mmhvae(NAMES[:2], 8, power=1, width=2, max_width=4, blocks=1, head_width=2)
    x = {m: 2 * torch.rand(3, 1, 8, 8) - 1 for m in NAMES[:2]}
    noise = [torch.randn(3, *group.shape) for group in model.groups]
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for observed in ([[1, 1], [1, 0], [0, 1]], [[0, 1], [0, 0], [0, 1]]):
        observed = torch.tensor(observed).bool()
        expected = step(model, x, observed, noise)
        torch.testing.assert_close(compiled(model, x, observed, noise), expected)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the default compiler needs g++")
def test_the_default_compiler_gives_the_same_bound():
    torch.manual_seed(0)
    model = mmpoe.MVAE(
        {"a": nn.Linear(3, 4), "b": nn.Linear(2, 4)},
        {"a": Normal(nn.Linear(2, 3)), "b": Normal(nn.Linear(2, 2))},
        latent_dim=2,
    )
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    observed = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    noise = [torch.randn(4, 2)]
    with torch.no_grad():
        got = torch.compile(step, fullgraph=True)(model, x, observed, noise)
        torch.testing.assert_close(got, step(model, x, observed, noise))


def test_a_modality_that_is_absent_compiles():
    model = make(MODELS["flat"])
    noise = noise_for(model)
    x = batch()
    del x["us"]
    observed = OBSERVED & torch.tensor([name != "us" for name in NAMES])
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(model, x, observed, noise), step(model, x, observed, noise)
    )


def test_an_optimal_scale_compiles_and_takes_up_what_it_fits():
    torch.manual_seed(0)
    model = mmpoe.MVAE(
        {"a": MLP(3, 4), "b": MLP(2, 4)},
        {"a": Normal(MLP(2, 3), "optimal"), "b": StudentT(MLP(2, 2), learn_df=True)},
        latent_dim=2,
    )
    x = {"a": torch.randn(6, 3), "b": torch.randn(6, 2)}
    observed = torch.tensor([[True, False], [False, True], [True, True]]).repeat(2, 1)
    noise = [torch.randn(6, 2)]
    start = {name: value.clone() for name, value in model.state_dict().items()}

    results = []
    for run in (torch.compile(step, fullgraph=True, backend="eager"), step):
        model.load_state_dict(start)
        results.append((run(model, x, observed, noise), model.decoders["a"].scale))
    torch.testing.assert_close(*results)
    assert results[0][1] != 1  # where it starts


def export(predictor, x, given):
    size = torch.export.Dim("batch")
    shapes = ({m: {0: size} for m in x}, {0: size})
    return torch.export.export(predictor, (x, given), dynamic_shapes=shapes).module()


def check_exported(predictor, x, given):
    """A program exported for one batch serves others: size, pattern, filler of missing entries."""
    program = export(predictor, x, given)
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 3, 13):
        other = torch.rand(rows, given.shape[1], generator=generator) < 0.5
        values = {m: torch.rand(rows, *v.shape[1:], generator=generator) for m, v in x.items()}
        holes = {m: v.clone() for m, v in values.items()}
        for column, m in enumerate(x):
            holes[m][~other[:, column]] = torch.nan
        torch.testing.assert_close(program(holes, other), predictor(values, other))


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_program_predicts_as_the_model(name):
    predictor = Predictor(make(MODELS[name])).eval()
    check_exported(predictor, batch(), OBSERVED)


def test_exported_images_share_a_trunk():
    torch.manual_seed(0)
    model = image_mmhvae(["us", "t2"], 16, widths=[8, 4], latents=[3, 2])
    x = {m: torch.rand(4, 1, 16, 16) for m in model.modalities}
    check_exported(Predictor(model, ["t2"]).eval(), x, torch.eye(2).bool().repeat(2, 1))


def test_an_exported_program_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    predictor = Predictor(vector_mmhvae({"a": 3, "b": 2}, private=2)).eval()
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    given = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    torch.export.save(torch.export.export(predictor, (x, given)), tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    torch.testing.assert_close(program(x, given), predictor(x, given))


def test_a_predictor_returns_the_means_at_temperature_zero():
    model = make(hierarchical)
    x, given = batch(filler=torch.nan), OBSERVED
    got = Predictor(model, ["type", "us"]).eval()(x, given)
    want = model.predict(x, given, temperature=0)
    assert list(got) == ["type", "us"]
    for m, mean in got.items():
        assert torch.equal(mean, want[m].mean)


def test_a_predictor_rejects_what_it_cannot_predict():
    with pytest.raises(ValueError, match=r"'targets' should hold modalities .* holds 'mri'"):
        Predictor(make(hierarchical), ["mri"])


@pytest.mark.parametrize("experts", [None, "matched", "trained"])
def test_a_predictor_is_the_prediction_at_the_mean(experts):
    model, x = make(lambda: MODELS["hierarchical"]()), batch()
    add_matched_experts(model)
    with torch.no_grad():
        for group in model.groups:
            group.matched.expert.bias.add_(0.5)
    found = Predictor(model, NAMES[:1], experts)(x, OBSERVED)
    wanted = model.predict(x, OBSERVED, temperature=0.0, experts=experts)["us"].mean
    assert found.keys() == {"us"}
    torch.testing.assert_close(found["us"], wanted)


def test_bounds_with_densities_of_mixtures_say_that_they_cannot_be_compiled():
    model, x = make(MODELS["mixture of experts"]), batch()
    for objective, name in ((mmvae, "mixture_iwae"), (mmvm, "mmvm")):
        with pytest.raises(Exception, match=rf"{name} cannot be compiled"):
            torch.compile(objective, backend="eager", fullgraph=True)(model, x, OBSERVED)
    left_out = torch.compiler.disable(mmvae)
    with torch.no_grad():
        for objective in (mmvae, lambda *args: left_out(*args) * 2):  # with breaks in the graph
            assert torch.compile(objective, backend="eager")(model, x, OBSERVED).isfinite().all()


def exact_mixture(kind=MoPoE):
    """A mixture of the exact posteriors of an oracle, one for each subset."""
    torch.manual_seed(0)
    oracle = LinearGaussian.random(["a", "b", "c"], latent_dim=2, data_dim=3)
    model = oracle.model()
    model.groups[0].posterior = kind(prior_in="always")
    model.family = kind.family
    return oracle, model


@pytest.mark.parametrize("kind", [MoE, MoPoE])
def test_the_mean_of_a_mixture_is_that_of_its_components(kind):
    oracle, model = exact_mixture(kind)
    x, _ = oracle.sample(20)
    given = torch.rand(20, 3) < 0.6
    given[0] = False
    p = model.predict(x, given, temperature=0.0)
    assert torch.equal(p["a"].mean, model.predict(x, given, temperature=0.0)["a"].mean)

    members, weight = subsets(given, kind.family)
    parts = [
        model.predict(x, member, temperature=0.0, product=True)["a"].mean for member in members
    ]
    expected = (weight[..., None] * torch.stack(parts)).sum(dim=0)
    prior = model.predict(x, torch.zeros_like(given), temperature=0.0, product=True)["a"].mean
    expected[~given.any(dim=1)] = prior[~given.any(dim=1)]
    torch.testing.assert_close(p["a"].mean, expected)
    torch.testing.assert_close(Predictor(model)(x, given)["a"], expected)


@pytest.mark.parametrize("kind", [MoE, MoPoE])
def test_the_product_of_more_is_never_worse_on_an_oracle(kind):
    oracle, model = exact_mixture(kind)
    x, _ = oracle.sample(20_000)
    errors = []
    for given in ([], ["b"], ["b", "c"]):
        mean = model.predict(x, given, temperature=0.0, product=True)["a"].mean
        errors.append(((mean - x["a"]) ** 2).mean().item())
        observed = torch.tensor([m in given for m in "abc"]).expand(20_000, 3)
        torch.testing.assert_close(Predictor(model, product=True)(x, observed)["a"], mean)
    assert errors[0] > errors[1] > errors[2]
    torch.testing.assert_close(mean, oracle.conditional(x, observed, ["a"])[0])


@pytest.mark.slow
def test_a_mixture_exports():
    _, model = exact_mixture()
    predictor = Predictor(model).eval()
    x = {m: torch.randn(4, 3, dtype=torch.float64) for m in "abc"}
    rows = torch.export.Dim("rows")
    shapes = ({m: {0: rows} for m in x}, {0: rows})
    program = torch.export.export(predictor, (x, torch.ones(4, 3).bool()), dynamic_shapes=shapes)
    x = {m: torch.randn(7, 3, dtype=torch.float64) for m in "abc"}
    given = torch.rand(7, 3) < 0.6
    torch.testing.assert_close(program.module()(x, given)["b"], predictor(x, given)["b"])
