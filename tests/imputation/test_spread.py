"""A spread is that of what is missing, leaves predictions alone, and is saved with a model."""

import math
import warnings

import pytest
import torch
from torch import nn

import mmpoe
from mmpoe.imputation import HeldOut, Spread, fit_spread, impute
from mmpoe.imputation._heads import GridHead, VectorHead, make_head
from mmpoe.imputation.spread import predict_point
from mmpoe.likelihoods import Bernoulli, Normal
from mmpoe.metrics import coverage
from mmpoe.missing import as_mask
from mmpoe.models import (
    MMHVAE,
    MultimodalVAE,
    UncalibratedWarning,
    image_mmhvae,
    sequence_mmhvae,
    vector_mmhvae,
    volume_mmhvae,
)
from mmpoe.nn import MLP
from mmpoe.oracles import LinearGaussian

NAMES = ["a", "b", "c"]
pytestmark = pytest.mark.filterwarnings("ignore::mmpoe.models.UncalibratedWarning")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(number, side=16):
    """Images whose halves are shifted by levels that nothing tells, beside white noise."""
    common = torch.randn(number, 1, side, side)
    shift = torch.zeros(number, 1, side, side)
    shift[..., : side // 2] = 0.5 * torch.randn(number, 1, 1, 1)
    shift[..., side // 2 :] = 0.5 * torch.randn(number, 1, 1, 1)
    other = shift + 0.2 * torch.randn(number, 1, side, side)
    return {"a": common, "b": other}


MODELS = {
    "vectors": (lambda: vector_mmhvae({"a": 3, "b": 5}), (3,), (5,)),
    "sequences": (
        lambda: sequence_mmhvae(["a", "b"], 16, channels={"a": 2, "b": 1}),
        (2, 16),
        (1, 16),
    ),
    "images": (
        lambda: image_mmhvae(["a", "b"], (16, 8), widths=[8, 4], latents=[3, 2]),
        (1, 16, 8),
        (1, 16, 8),
    ),
    "volumes": (
        lambda: volume_mmhvae(["a", "b"], (8, 4, 4), widths=[4], latents=[2]),
        (1, 8, 4, 4),
        (1, 8, 4, 4),
    ),
    "mixture": (
        lambda: mmpoe.MMVAE(
            {"a": MLP(3, 8), "b": MLP(5, 8)},
            {"a": Normal(MLP(4, 3)), "b": Normal(MLP(4, 5))},
            latent_dim=4,
        ),
        (3,),
        (5,),
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name, rows=12):
    build, *shapes = MODELS[name]
    x = {m: torch.randn(rows, *shape) for m, shape in zip("ab", shapes, strict=True)}
    observed = torch.ones(rows, 2, dtype=torch.bool)
    observed[0, 1] = observed[1, 0] = False
    return build(), x, observed


@every_model
def test_predictions_stay_and_draws_come_from_the_spread(name):
    model, x, observed = made(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    options = {"given": ["a"], "temperature": 0.0}
    point = model.predict(x, **options)["b"].mean
    fit = fit_spread(model, (x, observed), HeldOut(x, observed), rank=3, steps=3, batch_size=4)
    assert len(fit.losses) == 3
    assert all(math.isfinite(v) for v in fit.losses)
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in before.items())
    assert torch.equal(model.predict(x, **options)["b"].mean, point)
    assert not any(p.requires_grad for p in model.spread.parameters())

    spread, given = model.spread, as_mask(["a"], ["a", "b"], 12)
    h = predict_point(model.eval(), x, given, ["b"]).h
    p = spread(h, given, {"b": point})["b"]
    drawn = impute(model, x, ["a"], draws=4000)
    assert torch.equal(drawn["a"].draws, x["a"].expand(4000, *x["a"].shape))
    error = (drawn["b"].mean - point) / p.stddev
    assert error.abs().max() < 5.5 / math.sqrt(4000)
    torch.testing.assert_close(drawn["b"].stddev, p.stddev, rtol=0.08, atol=0)


@every_model
def test_missing_slots_are_never_read(name):
    results = []
    for filler in (0.0, math.nan):
        torch.manual_seed(0)
        model, x, observed = made(name)
        for column, m in enumerate("ab"):
            x[m][~observed[:, column]] = filler
        held_out = HeldOut(x, observed)
        fit = fit_spread(model, (x, observed), held_out, rank=2, steps=2)
        torch.manual_seed(1)
        drawn = impute(model, x, observed, draws=3)
        results.append((fit.losses, *(v.draws for v in drawn.values())))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1:], results[1][1:], strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


@every_model
def test_a_model_is_saved_with_its_spread(name, tmp_path):
    model, x, observed = made(name)
    fit_spread(model, (x, observed), HeldOut(x, observed), rank=2, steps=1)
    model.save_pretrained(tmp_path)
    again = MultimodalVAE.from_pretrained(tmp_path)
    assert isinstance(again.spread, Spread)
    drawn = []
    for each in (model, again):
        torch.manual_seed(2)
        drawn.append(impute(each, x, ["a"], draws=2)["b"].draws)
    assert torch.equal(*drawn)
    with pytest.raises(RuntimeError, match=r"state of a model with a spread .* from_pretrained"):
        made(name)[0].load_state_dict(model.state_dict())


@pytest.mark.long
def test_it_learns_the_covariance_of_the_conditional():
    """In a linear-Gaussian model, for every pattern, all missing modalities together."""
    oracle = LinearGaussian.random(NAMES, latent_dim=2, data_dim=3)
    model = oracle.model()
    x, _ = oracle.sample(4000)
    every = torch.ones(4000, 3, dtype=torch.bool)
    held_out = HeldOut(oracle.sample(2000)[0])
    fit_spread(model, (x, every), held_out, rank=6, steps=1200, batch_size=128, lr=5e-3)
    test = oracle.sample(2000)[0]
    assert not model.spread.off()
    for given in (["a"], ["b", "c"]):
        targets = [m for m in NAMES if m not in given]
        mean, covariance = oracle.conditional(test, given, targets)
        drawn = impute(model, test, given, draws=99)
        draws = torch.cat([drawn[m].draws for m in targets], dim=2).double()
        truth = torch.cat([test[m] for m in targets], dim=1)
        assert (draws.mean(dim=0) - mean).abs().mean() < 0.15
        deviation = (draws - mean)[:, :400].flatten(0, 1)
        found = deviation.T @ deviation / len(deviation)
        size = covariance.reshape(-1, *covariance.shape[-2:])[0].double()
        assert (found - size).norm() < 0.1 * size.norm()
        for level in (0.5, 0.9):
            _, directions = torch.linalg.eigh(size)
            for values in (lambda v: v, lambda v, d=directions: v @ d):
                held = coverage(values(draws), values(truth.double()), level).mean().item()
                assert held == pytest.approx(level, abs=0.02)


@pytest.mark.long
def test_images_vary_together_as_they_should():
    train, held, test = images(400), images(200), images(200)
    model = image_mmhvae(["a", "b"], 16, widths=[8, 8], latents=[2, 2])
    every = torch.ones(400, 2, dtype=torch.bool)
    fit = fit_spread(model, (train, every), HeldOut(held), rank=6, steps=150, batch_size=16)
    assert all(abs(v - 0.9) < 0.04 for v in fit.coverage["b"])
    draws = impute(model, test, ["a"], draws=49)["b"].draws
    half = lambda v: v[..., :8].mean(dim=(-1, -2, -3))
    assert coverage(half(draws), half(test["b"])).mean().item() == pytest.approx(0.9, abs=0.08)
    p = half(draws).std(dim=0).mean().item()
    assert p == pytest.approx(half(test["b"]).std().item(), rel=0.3)


def test_what_is_not_valid_teaches_nothing():
    results = []
    for filler in (0.0, 9.0):
        torch.manual_seed(0)
        model, x = image_mmhvae(["a", "b"], 16, widths=[8, 4], latents=[3, 2]), images(12)
        valid = torch.rand(12, 1, 16, 16) < 0.7
        x["b"] = torch.where(valid, x["b"], filler)
        observed = torch.ones(12, 2, dtype=torch.bool)
        case = predict_point(model.eval(), x, as_mask(["a"], ["a", "b"], 12), ["b"])
        assert case.mean["b"].shape == (12, 1, 16, 16)
        masks = {"b": valid}
        only_b = torch.tensor([[False, True]]).expand(12, 2)
        data = [({"b": x["b"]}, only_b, masks)]
        fit = fit_spread(model, data, HeldOut(x, observed, valid=masks), rank=2, steps=2)
        results.append((fit.losses, model.spread.coverage[1].nan_to_num().tolist()))
    assert results[0][0] == results[1][0]


class First(nn.Module):
    """An encoder that reads the first channel of images alone."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        return self.encoder(x[:, :1])


def test_what_to_predict_may_be_other_than_what_is_seen():
    """Channels that encoders pass over, and that no entry to predict has, change nothing."""
    results = []
    for wide in (False, True):
        torch.manual_seed(0)
        model, truth, observed = made("images")
        x = truth
        if wide:
            x = {m: torch.cat([v, torch.randn_like(v)], dim=1) for m, v in truth.items()}
            for m in x:
                model.encoders[m] = First(model.encoders[m])
        torch.manual_seed(1)
        valid = {"b": torch.rand(12, 1, 16, 8) < 0.7}
        held_out = HeldOut(x, observed, valid=valid, truth=truth)
        fit = fit_spread(model, [(x, observed, valid, truth)], held_out, rank=2, steps=2)
        drawn = impute(model, {"a": x["a"]}, ["a"], 5, targets=["b"], held_out=held_out)["b"]
        results.append((fit.losses, fit.coverage, [v.tolist() for v in drawn.interval(0.5)]))
    assert results[0] == results[1]
    with pytest.raises(ValueError, match=r"'truth' should have one row per sample \(12\)"):
        HeldOut(x, truth={"a": truth["a"][:3]})


def test_elements_that_lack_are_drawn_as_before():
    """A modality that was observed in part is given: its other elements are no missing entry."""
    model, x, observed = made("vectors")
    fit_spread(model, (x, observed), HeldOut(x, observed), rank=2, steps=1)
    valid = torch.ones(12, 5, dtype=torch.bool)
    valid[3, 2] = False
    batch = mmpoe.missing.Batch(x, valid={"b": valid})
    drawn = impute(model, batch, observed, draws=5)["b"].draws
    assert (drawn[:, 0].std(dim=0) > 0).all()  # which lacks it
    assert torch.equal(drawn[:, 3][:, valid[3]], x["b"][3][valid[3]].expand(5, -1))
    assert drawn[:, 3, 2].std() > 0
    assert torch.equal(drawn[:, 4:], x["b"][4:].expand(5, -1, -1))


def test_only_real_numbers_are_learned():
    model = mmpoe.MVAE(
        {"a": nn.Linear(2, 4), "b": nn.Linear(3, 4)},
        {"a": Bernoulli(nn.Linear(2, 2)), "b": Normal(nn.Linear(2, 3))},
        latent_dim=2,
    )
    x = {"a": torch.zeros(6, 2), "b": torch.randn(6, 3)}
    every = torch.ones(6, 2, dtype=torch.bool)
    fit = fit_spread(model, (x, every), HeldOut(x), rank=2, steps=1)
    assert list(fit.coverage) == ["b"]
    drawn = impute(model, x, [], draws=4)
    assert set(drawn["a"].draws.unique().tolist()) <= {0.0, 1.0}
    only = mmpoe.MVAE({"a": nn.Linear(2, 4)}, {"a": Bernoulli(nn.Linear(2, 2))}, latent_dim=2)
    with pytest.raises(ValueError, match=r"'model' should have .* real numbers.* has Bernoulli"):
        fit_spread(only, ({"a": x["a"]}, every[:, :1]), HeldOut({"a": x["a"]}))


@pytest.mark.parametrize("rank", [1, 5, 7])
@pytest.mark.parametrize("event", [(1, 8, 8), (3, 16, 16)])
def test_factors_of_a_level_are_orthogonal(rank, event):
    state = (4, 8, 8)
    head = make_head(state, {"a": event, "b": (2, *event[1:])}, 3, rank)
    assert isinstance(head, GridHead)
    parts = head(torch.randn(2, *state), torch.ones(2, 3).bool())
    assert {m: f.shape for m, (f, _) in parts.items()} == {
        "a": (2, rank, *event),
        "b": (2, rank, 2, *event[1:]),
    }
    assert {m: s.shape for m, (_, s) in parts.items()} == {
        "a": (2, *event),
        "b": (2, 2, *event[1:]),
    }
    flat = make_head((4,), {"a": (6,), "b": (3,)}, 2, rank)
    assert isinstance(flat, VectorHead)
    found = flat(torch.randn(5, 4), torch.ones(5, 2).bool())
    joint = torch.cat([f for f, _ in found.values()], dim=2)
    gram = joint @ joint.mT
    torch.testing.assert_close(gram, 0.09 * torch.eye(rank).expand(5, -1, -1))


def test_heads_fit_states_and_entries():
    for state, event, kind in (
        ((4, 8), (1, 16), GridHead),
        ((4, 8), (16,), VectorHead),
        ((4, 8, 8), (1, 12, 16), VectorHead),
        ((4, 1, 1), (1, 8, 8), VectorHead),
        ((4, 2, 2, 2), (1, 4, 4, 4), GridHead),
    ):
        head = make_head(state, {"a": event}, 2, rank=20)
        assert type(head) is kind
        factors, log_scale = head(torch.randn(3, *state), torch.ones(3, 2).bool())["a"]
        assert factors.shape[2:] == log_scale.shape[1:] == event
        assert factors.isfinite().all()


def test_the_warning_goes_by_what_was_measured():
    model, x, observed = made("vectors")
    fit_spread(model, (x, observed), HeldOut(x, observed), rank=2, steps=1)
    model.spread.coverage[:] = torch.tensor([[0.93, 0.87], [0.9, 0.9]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        impute(model, x, ["a"], draws=2)
    model.spread.coverage[1, 1] = 0.62
    wanted = r"held-out rows, intervals of 90 % held 62 % of means over windows of 'b'\."
    with pytest.warns(UncalibratedWarning, match=wanted) as caught:
        impute(model, x, ["a"], draws=2)
    assert caught[0].filename == __file__
    nothing = HeldOut({"a": x["a"]})  # nothing to hide
    fit_spread(model, (x, observed), nothing, rank=2, steps=1)
    with pytest.warns(UncalibratedWarning, match=r"held an unknown share of elements of 'a'"):
        impute(model, x, ["a"], draws=2)


def test_bad_input_is_named():
    model, x, observed = made("vectors")
    held_out = HeldOut(x, observed)
    for name in ("rank", "steps", "batch_size"):
        with pytest.raises(ValueError, match=rf"'{name}' should be an integer of at least 1"):
            fit_spread(model, (x, observed), held_out, **{name: 0})
    with pytest.raises(ValueError, match=r"'lr' should be positive and finite, but is 0"):
        fit_spread(model, (x, observed), held_out, lr=0)
    for nothing in ([], ({m: v[:0] for m, v in x.items()}, observed[:0])):
        with pytest.raises(ValueError, match=r"'data' should hold a batch that has a row"):
            fit_spread(model, nothing, held_out)
    assert isinstance(model, MMHVAE)
    assert model.spread is None
