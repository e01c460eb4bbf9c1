"""What every model promises: rows are independent, missing slots are never read, shapes hold."""

import math

import example_models
import pytest
import torch
from example_models import (
    NAMES,
    OBSERVED,
    SIZES,
    batch,
    conditioned,
    every_model,
    flat,
    hierarchical,
    make,
    noise_for,
)
from torch import nn

import mmpoe
from mmpoe.likelihoods import Laplace, Normal
from mmpoe.missing import as_mask
from mmpoe.models import UncalibratedWarning
from mmpoe.objectives import mixture_elbo


@every_model
def test_shapes_and_order(build):
    model = make(build)
    output = model(batch(), OBSERVED)
    assert list(output.likelihoods) == NAMES
    levels = len(model.groups)
    assert [len(part) for part in output[1:]] == [levels] * 4
    for m in NAMES:
        assert output.likelihoods[m].batch_shape == (8,)
        assert output.likelihoods[m].mean.shape == (8, SIZES[m])
    for kl, z, q, p in zip(*output[1:], strict=True):
        assert kl.shape == (8,)
        assert z.shape == q.loc.shape == p.loc.shape
        assert (kl >= 0).all()


@every_model
def test_divergence_is_that_of_the_distributions(build):
    output = make(build)(batch(), OBSERVED)
    for kl, q, p in zip(output.kl, output.posteriors, output.priors, strict=True):
        torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, p))


@pytest.mark.fault(46)
@every_model
@pytest.mark.parametrize("filler", [0.0, 7.0, 1e30, math.inf, -math.inf, math.nan])
def test_missing_slots_change_no_bit_of_loss_or_gradients(build, filler):
    model = make(build)
    noise = noise_for(model)

    def run(value):
        x = batch(value)
        output = conditioned(model, x, OBSERVED, noise=noise)
        loss = -mmpoe.elbo(output, x, OBSERVED)
        gradients = torch.autograd.grad(loss.mean(), list(model.parameters()))
        return [loss, *gradients]

    for a, b in zip(run(filler), run(0.25), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@every_model
def test_mixture_objective_ignores_missing_slots(build):
    model = make(build)

    def run(value):
        torch.manual_seed(3)
        bound = mixture_elbo(model, batch(value), OBSERVED)
        return [bound, *torch.autograd.grad(bound.sum(), list(model.parameters()))]

    for a, b in zip(run(math.nan), run(0.25), strict=True):
        assert torch.equal(a, b)


@pytest.mark.fault(47)
@every_model
def test_a_row_given_nothing_is_at_the_prior(build):
    model = make(build)
    output = model(batch(), OBSERVED)
    assert [kl[0].item() for kl in output.kl] == [0.0] * len(model.groups)
    for q, p in zip(output.posteriors, output.priors, strict=True):
        assert torch.equal(q.loc[0], p.loc[0])
        assert torch.equal(q.log_scale[0], p.log_scale[0])
    assert mmpoe.elbo(output, batch(), OBSERVED)[0].item() == 0.0


@every_model
def test_rows_do_not_influence_each_other(build):
    model = make(build)
    noise, x = noise_for(model), batch()
    together = mmpoe.elbo(conditioned(model, x, OBSERVED, noise=noise), x, OBSERVED)
    for b in range(8):
        row = {m: v[b : b + 1] for m, v in x.items()}
        rows = OBSERVED[b : b + 1]
        alone = conditioned(model, row, rows, noise=[n[b : b + 1] for n in noise])
        bound = mmpoe.elbo(alone, row, OBSERVED[b : b + 1])
        torch.testing.assert_close(bound, together[b : b + 1])


@every_model
@pytest.mark.parametrize("column", range(3))
def test_gradient_of_a_missing_modality_is_zero(build, column):
    model = make(build)
    rows = OBSERVED.clone()
    rows[:, column] = False
    x = {m: v.requires_grad_() for m, v in batch(rows=rows).items()}
    (-mmpoe.elbo(model(x, rows), x, rows).mean()).backward()
    name = NAMES[column]
    unused = [x[name].grad]
    for module in (model.encoders[name], model.decoders[name]):
        unused += [p.grad for p in module.parameters()]
    assert all(g is None or not g.any() for g in unused)
    used = NAMES[column - 1]
    assert any(p.grad is not None and p.grad.any() for p in model.encoders[used].parameters())


@every_model
def test_subsets_at_once_equal_one_by_one(build):
    model = make(build)
    given = OBSERVED[torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    given = torch.stack([OBSERVED, OBSERVED & given, OBSERVED & ~given])
    noise, x = noise_for(model, subsets=(3,)), batch()
    together = conditioned(model, x, given, noise=noise)
    bounds = mmpoe.elbo(together, x, OBSERVED)
    assert bounds.shape == (3, 8)
    for s in range(3):
        alone = conditioned(model, x, given[s], noise=[n[s] for n in noise])
        torch.testing.assert_close(bounds[s], mmpoe.elbo(alone, x, OBSERVED))
        for m in NAMES:
            torch.testing.assert_close(together.likelihoods[m].mean[s], alone.likelihoods[m].mean)


def test_encoders_run_once_and_only_on_observed_rows():
    model = make(hierarchical)
    calls = []
    for m in NAMES:
        model.encoders[m].register_forward_hook(lambda _, x, __, m=m: calls.append((m, len(x[0]))))
    mixture_elbo(model, batch(), OBSERVED)
    assert sorted(calls) == sorted((m, int(OBSERVED[:, c].sum())) for c, m in enumerate(NAMES))


def test_enumeration_is_the_expectation_of_sampling():
    model, x = make(hierarchical), batch()
    given, rows, weight = mmpoe.missing.pack(*mmpoe.missing.subsets(OBSERVED, "groups", special=1))
    torch.manual_seed(0)
    family = mmpoe.missing.subsets(OBSERVED, "groups", special=1)
    expected = mixture_elbo(model, x, OBSERVED, family=family)
    torch.manual_seed(0)
    packed = {m: v[rows] for m, v in x.items()}
    bounds = mmpoe.elbo(conditioned(model, x, given, rows=rows), packed, OBSERVED[rows])
    sums = torch.zeros(8).index_add(0, rows, weight * bounds)
    torch.testing.assert_close(expected, sums)
    assert torch.equal(mixture_elbo(model, {}, OBSERVED & False), torch.zeros(8))


def test_full_family_is_the_plain_bound():
    model, x, some = make(flat), {m: v[1:] for m, v in batch().items()}, OBSERVED[1:]
    with mmpoe.kernels.use_backend("eager"):  # one generator for both
        torch.manual_seed(0)
        mixture = mixture_elbo(model, x, some, beta=0.5, family="full")
        torch.manual_seed(0)
        bound = mmpoe.elbo(model(x, some), x, some, beta=0.5)
    torch.testing.assert_close(mixture, bound)


@every_model
def test_order_of_modalities_does_not_matter(build):
    model, swapped = make(build), make(build)
    order = [2, 1, 0]  # which leaves every other modality in the group that it is in
    swapped.modalities = [NAMES[i] for i in order]
    swapped.load_state_dict(model.state_dict())
    noise, x = noise_for(model), batch()
    expected = conditioned(model, x, OBSERVED, noise=noise)
    output = conditioned(swapped, x, OBSERVED[:, order], noise=noise)
    assert list(output.likelihoods) == swapped.modalities
    for m in NAMES:
        torch.testing.assert_close(output.likelihoods[m].mean, expected.likelihoods[m].mean)
    bound = mmpoe.elbo(output, x, OBSERVED[:, order])
    torch.testing.assert_close(bound, mmpoe.elbo(expected, x, OBSERVED))


def test_prior_samples_need_no_data():
    output = make(hierarchical)({}, torch.zeros(6, 3, dtype=torch.bool))
    assert output.likelihoods["us"].mean.shape == (6, 5)
    nothing = torch.zeros(6, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="'shape' should be given to the latent group"):
        make(flat)({}, nothing)
    assert make(flat)({"us": torch.full((6, 5), math.nan)}, nothing).z[0].shape == (6, 4)
    vae = mmpoe.MVAE({"a": nn.Linear(3, 4)}, {"a": Normal(nn.Linear(2, 3))}, latent_dim=2)
    assert vae({}, torch.zeros(6, 1, dtype=torch.bool)).z[0].shape == (6, 2)


@pytest.mark.fault(48)
@every_model
@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(build, rows):
    model = make(build)
    for pattern in range(8):
        some = slice(pattern, pattern + rows)
        x = {m: v[some] for m, v in batch().items()}
        output = model(x, OBSERVED[some])
        bounds = [mmpoe.elbo(output, x, OBSERVED[some]), mixture_elbo(model, x, OBSERVED[some])]
        for bound in bounds:
            assert bound.shape == (rows,)
            assert bound.isfinite().all()
        gradients = torch.autograd.grad(
            sum(bound.sum() for bound in bounds), list(model.parameters()), allow_unused=True
        )
        assert all(g is None or g.isfinite().all() for g in gradients)


@every_model
@pytest.mark.parametrize("column", range(3))
def test_a_model_of_one_modality_is_that_of_several_given_one(build, column, monkeypatch):
    model, name = make(build), NAMES[column]
    x, noise = batch(), noise_for(model)
    alone = torch.arange(3) == column
    expected = conditioned(model, x, OBSERVED & alone, noise=noise)
    expected = [mmpoe.elbo(expected, x, OBSERVED & alone), *expected.z]

    monkeypatch.setattr(example_models, "NAMES", [name])
    single, state = build(), model.state_dict()
    fewer = {k: state[k][tuple(map(slice, v.shape))] for k, v in single.state_dict().items()}
    single.load_state_dict(fewer)
    x, observed = {name: x[name]}, OBSERVED[:, [column]]
    output = conditioned(single, x, observed, noise=noise)
    found = [mmpoe.elbo(output, x, observed), *output.z]
    if getattr(model.groups[0].posterior, "prior_in", None) != "full":  # one of one is all
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert (found[0][~observed[:, 0]] == 0).all()
    bound = mixture_elbo(single, x, observed)
    assert bound.isfinite().all()
    assert (bound[~observed[:, 0]] == 0).all()


def test_names_stand_for_masks():
    model = make(flat)
    noise = noise_for(model)
    complete = {m: v[-1:] for m, v in batch().items()}
    by_name = model(complete, ["us"], noise=[n[-1:] for n in noise])
    mask = as_mask(["us"], NAMES, 1)
    by_mask = model(complete, mask, noise=[n[-1:] for n in noise])
    absent = model({"us": complete["us"]}, noise=[n[-1:] for n in noise])
    for other in (by_mask, absent):
        assert torch.equal(by_name.z[0], other.z[0])


def test_predict_decodes_targets_only():
    model = make(hierarchical)
    model.decoders["us"].register_forward_hook(lambda *_: pytest.fail("'us' was decoded"))
    out = model.predict(batch(), OBSERVED, targets=["type"], temperature=0.0)
    assert list(out) == ["type"]
    assert not out["type"].mean.requires_grad
    again = model.predict(batch(), OBSERVED, targets=["type"], temperature=0.0)
    assert torch.equal(out["type"].mean, again["type"].mean)


def test_predict_with_samples_says_that_it_is_not_calibrated():
    model = make(hierarchical)
    with pytest.warns(UncalibratedWarning, match="not calibrated"):
        out = model.predict(batch(), OBSERVED, samples=5)
    assert out["us"].mean.shape == out["us"].stddev.shape == (8, 5)
    assert out["us"].sample().shape == (5, 8, 5)


def test_valid_elements_alone_are_scored():
    model, x = make(hierarchical), batch()
    noise = noise_for(model)
    valid = {"us": torch.tensor([True, False, True, False, True])}

    def run(value):
        changed = {**x, "us": torch.where(valid["us"], x["us"], value)}
        output = model(x, OBSERVED, noise=noise)
        return mmpoe.elbo(output, changed, OBSERVED, valid=valid)

    assert torch.equal(run(math.nan), run(3.0))
    output = model(x, OBSERVED, noise=noise)
    log_p = output.likelihoods["us"].base_dist.log_prob(x["us"])[:, 1::2].sum(dim=1)
    outside = torch.where(OBSERVED[:, 0], log_p, 0)
    torch.testing.assert_close(run(0.0) + outside, mmpoe.elbo(output, x, OBSERVED))


def test_models_collate_in_their_own_order():
    model = make(flat)
    x, observed = model.collate([{"type": torch.zeros(3)}, {"us": torch.ones(5)}])
    assert observed.tolist() == [[False, False, True], [True, False, False]]
    assert mmpoe.elbo(model(x, observed), x, observed).isfinite().all()


def test_beta_weighs_the_divergence():
    model, x = make(hierarchical), batch()
    output = model(x, OBSERVED)
    difference = mmpoe.elbo(output, x, OBSERVED, beta=3.0) - mmpoe.elbo(output, x, OBSERVED, 1.0)
    torch.testing.assert_close(difference, -2 * sum(output.kl))


def test_predict_uses_evaluation_mode_and_puts_modes_back():
    class Mode(nn.Module):
        def forward(self, x):
            seen.append(self.training)
            return torch.cat([x, x], dim=1)

    seen = []
    frozen = nn.BatchNorm1d(3).eval()
    vae = mmpoe.MVAE({"a": nn.Sequential(frozen, Mode())}, {"a": Normal(nn.Linear(3, 3))}).train()
    frozen.eval()
    vae.predict({"a": torch.zeros(2, 3)})
    vae({"a": torch.zeros(2, 3)})
    assert seen == [False, True]
    assert vae.training
    assert not frozen.training


def test_predict_passes_the_temperature_on():
    model, x = make(hierarchical), batch()
    with pytest.warns(UncalibratedWarning):
        cold = model.predict(x, OBSERVED, samples=4, temperature=0.0)["us"].components.mean
    assert torch.equal(cold[0], cold[3])
    with pytest.warns(UncalibratedWarning):
        warm = model.predict(x, OBSERVED, samples=4)["us"].components.mean
    assert not torch.equal(warm[0], warm[3])


def test_subsets_that_no_row_uses_are_not_run():
    model, calls = make(flat), []
    model.decoders["us"].register_forward_hook(lambda _, args, __: calls.append(args[0].shape[0]))
    x, rows = batch(), OBSERVED.clone()
    rows[:, 1:] = False
    mixture_elbo(model, x, rows)
    assert calls == [4]  # one subset of each row that observed something, of 7


def test_learned_scales_learn():
    fixed, learned = Normal(nn.Identity(), 0.1), Laplace(nn.Identity(), 0.1, learn_scale=True)
    assert list(fixed.parameters()) == []
    assert fixed.double()(torch.zeros(1, 1, dtype=torch.float64)).base_dist.scale.item() == 0.1
    (parameter,) = learned.parameters()
    learned(torch.zeros(2, 3)).log_prob(torch.ones(2, 3)).sum().backward()
    # d/d(log b) of -(|x| / b + log 2b), six times
    assert parameter.grad.item() == pytest.approx(6 * (1 / 0.1 - 1), rel=1e-5)


def test_bounds_of_half_precision_models_are_computed_in_float32():
    model = make(hierarchical).bfloat16()
    x = {m: v.bfloat16() for m, v in batch().items()}
    output = model(x, OBSERVED)
    bound = mmpoe.elbo(output, x, OBSERVED)
    assert bound.dtype == torch.float32
    assert output.likelihoods["us"].mean.dtype == torch.float32
    for q, p in zip(output.posteriors, output.priors, strict=True):
        assert torch.equal(q.loc[0], p.loc[0])  # row 0 is given nothing
        assert torch.equal(q.log_scale[0], p.log_scale[0])


def test_autocast_mixes_dtypes():
    model, x = make(hierarchical), batch()
    noise = noise_for(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound = mmpoe.elbo(model(x, OBSERVED, noise=noise), x, OBSERVED)
    assert bound.dtype == torch.float32
    # the noise is the same: what is left is the rounding of networks to 8 bits
    reference = mmpoe.elbo(model(x, OBSERVED, noise=noise), x, OBSERVED)
    torch.testing.assert_close(bound, reference, rtol=0.02, atol=0.02)
