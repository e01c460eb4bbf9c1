"""Covariates and element masks, from the batch to the networks that ask for them."""

import pickle

import pytest
import torch
from context_models import SHIFTED, shifted_batches
from example_models import MODELS, NAMES, OBSERVED, SIZES, batch, hierarchical, make
from pyro import poutine
from torch import nn

import mmpoe
import mmpoe.pyro
from mmpoe.evidence import log_conditional, log_predictive
from mmpoe.imputation import add_matched_experts, impute
from mmpoe.likelihoods import Normal
from mmpoe.missing import Batch
from mmpoe.models import Predictor
from mmpoe.nn import MLP, Conditional, ProjectionCell

every_kind = pytest.mark.parametrize("kind", SHIFTED)


def shifted(kind):
    return make(SHIFTED[kind]).double()


@every_kind
@pytest.mark.parametrize("gather", [True, False])
def test_predictions_follow_the_shift(kind, gather):
    model = shifted(kind)
    model.gather = gather
    plain, moved = shifted_batches()
    means = []
    for x in (plain, moved):
        torch.manual_seed(0)
        means.append({m: p.mean for m, p in model.predict(x, OBSERVED).items()})
    for m in NAMES:
        torch.testing.assert_close(means[1][m], means[0][m] + moved.context["data"])


@every_kind
def test_estimates_and_draws_follow_the_shift(kind):
    model = shifted(kind)
    add_matched_experts(model)
    plain, moved = shifted_batches(filler=0.0)
    values, draws = [], []
    for x in (plain, moved):
        torch.manual_seed(0)
        values += [log_conditional(model, x, NAMES[:1], NAMES[1:], samples=3)]
        values += [log_predictive(model, x, NAMES, NAMES[:2], samples=3)]
        draws.append(impute(model, x, NAMES[:2], draws=3)[NAMES[2]].draws)
    torch.testing.assert_close(values[2:], values[:2])
    torch.testing.assert_close(draws[1], draws[0] + moved.context["data"])


@every_kind
def test_pyro_programs_follow_the_shift(kind):
    model = shifted(kind)
    values = []
    for x in shifted_batches(filler=0.0):
        torch.manual_seed(0)
        trace = poutine.trace(mmpoe.pyro.guide(model)).get_trace(x, OBSERVED)
        replayed = poutine.replay(mmpoe.pyro.model(model), trace=trace)
        joint = poutine.trace(replayed).get_trace(x, OBSERVED)
        values.append(joint.log_prob_sum() - trace.log_prob_sum())
    torch.testing.assert_close(values[1], values[0])


def test_a_shared_trunk_meets_the_covariates_of_all_its_rows():
    class Trunk(nn.Module):
        def forward(self, x, context):
            return x + context["shift"]

    class Keep(nn.Module):
        def forward(self, x):
            return x[:, :1].expand(-1, 8)

    model = mmpoe.models.MultimodalVAE(
        {m: Keep() for m in NAMES},
        [mmpoe.hierarchy.LatentGroup((4,), nn.Identity())],
        {m: Normal(nn.Linear(4, SIZES[m])) for m in NAMES},
        trunk=Trunk(),
    )
    x, shift = batch(), torch.arange(8.0)[:, None]
    encodings = model.encode(Batch(x, context={"shift": shift}), OBSERVED)
    for m, rows in encodings.rows.items():
        expected = (x[m][:, :1] + shift)[rows].expand(-1, 8)
        assert torch.equal(encodings.features[m][0], expected)


def test_unconditional_predictions_take_covariates_alone():
    model = shifted("flat")
    _, moved = shifted_batches()
    x = Batch({}, context=moved.context)
    p = model.predict(x, torch.zeros(8, 3, dtype=torch.bool), temperature=0.0)
    plain = model.predict(
        Batch({}, context={k: torch.zeros_like(v) for k, v in moved.context.items()}),
        torch.zeros(8, 3, dtype=torch.bool),
        temperature=0.0,
    )
    for m in NAMES:
        torch.testing.assert_close(p[m].mean, plain[m].mean + moved.context["data"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_exported_programs_take_covariates_and_element_masks(kind):
    model = shifted(kind)
    predictor = Predictor(model).eval()
    _, x = shifted_batches(filler=0.0)
    valid = {m: torch.rand(v.shape) < 0.7 for m, v in x.items()}
    inputs = (dict(x), OBSERVED, dict(x.context), valid)
    rows = torch.export.Dim("rows")
    first = {0: rows}
    program = torch.export.export(
        predictor,
        inputs,
        dynamic_shapes=(
            dict.fromkeys(x, first),
            first,
            dict.fromkeys(x.context, first),
            dict.fromkeys(valid, first),
        ),
    )
    some = torch.tensor([6, 3, 5])
    part = Batch(x, context=x.context, valid=valid).take(some)
    expected = model.predict(part, OBSERVED[some], temperature=0.0)
    out = program.module()(dict(part), OBSERVED[some], part.context, part.valid)
    for m in NAMES:
        torch.testing.assert_close(out[m], expected[m].mean)


@pytest.mark.slow
def test_a_step_compiles_with_covariates():
    model = shifted("flat")
    model.gather = False

    def step(x, context):
        return mmpoe.elbo(model(Batch(x, context=context), OBSERVED, temperature=0.0), x, OBSERVED)

    _, x = shifted_batches(filler=0.0)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(dict(x), x.context), step(dict(x), x.context))


class Masked(nn.Module):
    """An encoder that counts the elements that it is told were observed."""

    def __init__(self, size):
        super().__init__()
        self.network, self.seen = nn.Linear(size, 8), []

    def forward(self, x, valid):
        assert valid.shape == x.shape
        assert (x[~valid] == 0).all()
        self.seen.append(valid.sum().item())
        return self.network(x)


@pytest.mark.parametrize("gather", [True, False])
def test_encoders_see_the_element_masks_that_they_ask_for(gather):
    model = mmpoe.MVAE(
        {m: Masked(SIZES[m]) for m in NAMES},
        {m: Normal(MLP(4, SIZES[m])) for m in NAMES},
        latent_dim=4,
    )
    model.gather = gather
    inside = {NAMES[0]: torch.tensor([True, False, True, True, False])}
    x = {m: v.clone() for m, v in batch(filler=torch.nan).items()}
    x[NAMES[0]][:, ~inside[NAMES[0]]] = torch.nan
    model(Batch(x, valid=inside), OBSERVED)
    rows = 4 if gather else 8
    assert [model.encoders[m].seen for m in NAMES] == [[3 * rows], [4 * rows], [3 * rows]]


@pytest.mark.parametrize("build", ["flat", "hierarchical"])
def test_imputation_keeps_observed_elements_and_draws_the_others(build):
    model = make(MODELS[build])
    model.fix_shapes(batch())
    add_matched_experts(model)
    torch.manual_seed(0)
    inside = {m: torch.rand(v.shape) < 0.6 for m, v in batch().items()}
    inside[NAMES[0]][:4] = True
    x = batch(filler=torch.nan)
    holed = {m: torch.where(inside[m], v, torch.nan) for m, v in x.items()}
    draws = impute(model, Batch(holed, valid=inside), OBSERVED, draws=4)
    for column, m in enumerate(NAMES):
        kept = inside[m] & OBSERVED[:, column, None]
        filled = draws[m].draws
        assert filled.isfinite().all()
        assert torch.equal(filled[:, kept], x[m][kept].expand(4, -1))
        assert (draws[m].stddev[kept] == 0).all()
        if m != "type":  # draws of a Bernoulli may agree
            assert (draws[m].stddev[~kept] > 0).all()


def test_calibration_takes_covariates_and_element_masks():
    model = shifted("flat")
    _, x = shifted_batches(filler=0.0)
    valid = {NAMES[0]: torch.rand(8, SIZES[NAMES[0]]) < 0.7}
    x[NAMES[0]][~valid[NAMES[0]]] = torch.nan
    x = Batch(x, context=x.context, valid=valid)
    observed = torch.ones(8, 3, dtype=torch.bool)
    history = mmpoe.calibrate(model, (x, observed), steps=3, batch_size=4)
    assert len(history.losses) == 3
    assert all(loss == loss for loss in history.losses)
    assert model.is_matched


def test_collate_of_a_model_does_not_carry_it():
    model = make(MODELS["flat"])
    assert len(pickle.dumps(model.collate)) < 300
    x, observed = model.collate([{NAMES[2]: torch.ones(3)}, {NAMES[0]: torch.ones(5)}])
    assert observed.tolist() == [[False, False, True], [True, False, False]]
    assert set(x) == {NAMES[0], NAMES[2]}


def test_a_network_that_asks_for_nothing_is_called_as_before():
    model, x = make(MODELS["hierarchical"]), batch()
    context = {"site": torch.zeros(8, dtype=torch.long)}
    noise = [torch.zeros(8, 3), torch.zeros(8, 2)]
    plain = model(x, OBSERVED, noise=noise)
    carrying = model(Batch(x, context=context), OBSERVED, noise=noise)
    for m in NAMES:
        assert torch.equal(plain.likelihoods[m].mean, carrying.likelihoods[m].mean)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({}, r"'context' holds 'data', which a network reads, but holds none"),
        ({"age": torch.zeros(8)}, r"'context' holds 'data', .* but holds age"),
        ({"data": torch.zeros(7, 1)}, r"one row per sample \(8\), but 'data' has shape \(7, 1\)"),
        ({"data": torch.zeros(8, 1).double()}, "dtype of the model, torch.float32"),
        ({"data": torch.full((8, 1), torch.nan)}, "'context' should be finite, but 'data' holds"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(context, message):
    model = make(SHIFTED["flat"])
    x = Batch(batch())
    x.context = context  # after the checks of a batch
    with pytest.raises(ValueError, match=message):
        model(x, OBSERVED)


def test_element_masks_that_do_not_fit_are_refused():
    model = make(MODELS["flat"])
    x = Batch(batch(), valid={"flair": torch.ones(8, 1).bool()})
    with pytest.raises(ValueError, match="'valid' should hold modalities among"):
        model(x, OBSERVED)
    x = Batch(batch())
    x.valid = {"us": torch.ones(8, 3).bool()}
    with pytest.raises(ValueError, match="'valid' should broadcast to the shape of 'us'"):
        model(x, OBSERVED)


def test_the_prior_of_the_first_group_has_to_ask_for_covariates():
    with pytest.raises(ValueError, match="or asks for 'context': there is no state above it"):
        mmpoe.models.MultimodalVAE(
            {"a": nn.Linear(2, 4)},
            [mmpoe.hierarchy.LatentGroup((2,), nn.Identity(), prior=nn.Linear(2, 4))],
            {"a": Normal(nn.Linear(2, 2))},
        )


def test_an_entry_without_an_observed_element_is_not_given():
    model = make(MODELS["hierarchical"])
    model.fix_shapes(batch())
    add_matched_experts(model)
    rows = OBSERVED[1:]
    x = {m: v[1:] for m, v in batch(filler=torch.nan).items()}
    valid = {m: v.isfinite() for m, v in x.items()}
    expected = model.predict(x, rows, temperature=0.0)
    found = model.predict(Batch(x, valid=valid), temperature=0.0)
    torch.manual_seed(0)
    wanted = impute(model, x, rows, draws=2)
    torch.manual_seed(0)
    draws = impute(model, Batch(x, valid=valid), draws=2)
    for m in NAMES:
        assert torch.equal(found[m].mean, expected[m].mean)
        assert torch.equal(draws[m].draws, wanted[m].draws)
    with pytest.raises(ValueError, match=r"every row has, but 'us' has no .* rows \[1, 3, 5\]"):
        model.predict(Batch(x, valid=valid), ["us"])


def test_conditional_networks_pass_the_element_mask_on():
    class Inner(nn.Module):
        def forward(self, x, valid):
            assert valid.shape == x.shape
            assert valid[:, -2:].all()
            return x[:, :8] * valid[:, :1]

    conditional = Conditional(Inner(), {"site": 2})
    valid = torch.rand(4, 8) < 0.5
    out = conditional(torch.ones(4, 8), {"site": torch.tensor([0, 1, 1, 0])}, valid)
    assert torch.equal(out, valid[:, :1].float().expand(-1, 8))


def test_a_conditional_network_is_a_prior_of_the_first_group():
    prior = Conditional(nn.Linear(1, 4), ["shift"])
    model = mmpoe.models.MultimodalVAE(
        {"a": nn.Linear(3, 4)},
        [mmpoe.hierarchy.LatentGroup((2,), nn.Identity(), prior=prior)],
        {"a": Normal(nn.Linear(2, 3))},
    )
    shift = torch.randn(5, 1)
    x = Batch({"a": torch.zeros(5, 3)}, context={"shift": shift})
    assert torch.equal(model(x, []).priors[0].loc, prior.network(shift)[:, :2])


def test_a_projection_cell_that_asks_is_called_as_a_whole():
    class Cell(ProjectionCell):
        def forward(self, x, context):
            seen.append(context["shift"].shape)
            return super().forward(x)

    seen = []
    groups = hierarchical().groups
    cell = Cell(7 + 6, 8, 4)
    groups[1].expert = cell
    model = mmpoe.MMHVAE(hierarchical().encoders, groups, hierarchical().decoders)
    with pytest.raises((ValueError, RuntimeError)):  # a convolution of vectors
        model(Batch(batch(), context={"shift": torch.zeros(8)}), OBSERVED)
    assert seen


def test_single_numbers_may_be_masked():
    model = mmpoe.MVAE(
        {"a": nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 4))},
        {"a": Normal(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))},
        latent_dim=2,
    )
    add_matched_experts(model)
    x = Batch({"a": torch.tensor([1.0, torch.nan])}, valid={"a": torch.tensor([True, False])})
    draws = impute(model, x, torch.ones(2, 1, dtype=torch.bool), draws=3)["a"].draws
    assert (draws[:, 0] == 1).all()
    assert draws[:, 1].isfinite().all()
    trace = poutine.trace(mmpoe.pyro.model(model)).get_trace(x, torch.ones(2, 1).bool())
    assert trace.log_prob_sum().isfinite()


def test_a_model_of_missingness_may_ask_for_covariates():
    def mechanism(x, context):
        assert context["data"].shape == (2 * 8, 1)
        assert torch.equal(context["data"][:8], context["data"][8:])
        return torch.zeros(16, 3, dtype=torch.float64)

    model, (_, x) = shifted("flat"), shifted_batches()
    bound = mmpoe.objectives.not_miwae(model, x, OBSERVED, mechanism, samples=2)
    assert bound.isfinite().all()
