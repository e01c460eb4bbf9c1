"""What every model promises: rows are independent, missing slots are never read, shapes hold."""

import math

import pytest
import torch
from torch import nn

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Bernoulli, Laplace, Normal
from mmpoe.missing import as_mask
from mmpoe.models import UncalibratedWarning
from mmpoe.nn import MLP
from mmpoe.objectives import mixture_elbo
from mmpoe.posteriors import PoE

NAMES = ["us", "t2.space", "type"]
SIZES = dict(zip(NAMES, [5, 4, 3], strict=True))


def flat():
    return mmpoe.MVAE(
        {m: MLP(SIZES[m], 8, hidden=[16]) for m in NAMES},
        {m: Normal(MLP(4, SIZES[m], hidden=[16])) for m in NAMES},
    )


class Features(nn.Module):
    """Features of a vector for two groups, coarse to fine."""

    def __init__(self, size):
        super().__init__()
        self.fine, self.coarse = nn.Linear(size, 6), nn.Linear(6, 6)

    def forward(self, x):
        fine = self.fine(x).tanh()
        return [self.coarse(fine), fine]


class Merge(nn.Module):
    def __init__(self, latent):
        super().__init__()
        self.network = nn.Linear(latent, 7)

    def forward(self, h, z):
        return self.network(z).tanh() + (0 if h is None else h)


def hierarchical(expert_sees_state=True, shared=True, power=2):
    def expert(features, latent):
        if shared:
            return nn.Linear(features, 2 * latent)
        return {m: nn.Linear(features, 2 * latent) for m in NAMES}

    seen = 6 + 7 * expert_sees_state
    options = {"expert_sees_state": expert_sees_state, "posterior": PoE(power=power, clamp=5.0)}
    groups = [
        LatentGroup((3,), expert(6, 3), Merge(3), **options),
        LatentGroup((2,), expert(seen, 2), Merge(2), prior=nn.Linear(7, 4), **options),
    ]
    decoders = {
        "us": Laplace(nn.Linear(7, 5), scale=0.5, learn_scale=True),
        "t2.space": Normal(nn.Linear(7, 4)),
        "type": Bernoulli(nn.Linear(7, 3)),
    }
    return mmpoe.MMHVAE({m: Features(SIZES[m]) for m in NAMES}, groups, decoders)


MODELS = {
    "flat": flat,
    "hierarchical": hierarchical,
    "free experts": lambda: hierarchical(expert_sees_state=False),
    "own experts": lambda: hierarchical(shared=False),
    "published rule": lambda: hierarchical(power=1),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())

# every pattern of three modalities, the empty one included
OBSERVED = torch.tensor([[b >> m & 1 for m in range(3)] for b in range(8)]).bool()


def batch(filler=0.0, rows=OBSERVED, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = {}
    for column, (m, size) in enumerate(SIZES.items()):
        values = torch.rand(len(OBSERVED), size, generator=generator).round()
        x[m] = torch.where(rows[:, column, None], values, filler)
    return x


def make(build):
    torch.manual_seed(1)
    return build()


def noise_for(model, rows=8, subsets=()):
    generator = torch.Generator().manual_seed(2)
    shapes = [z.shape[1:] for z in model(batch(), OBSERVED).z]
    return [torch.randn(*subsets, rows, *shape, generator=generator) for shape in shapes]


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


@every_model
@pytest.mark.parametrize("filler", [0.0, 7.0, 1e30, math.inf, -math.inf, math.nan])
def test_missing_slots_change_no_bit_of_loss_or_gradients(build, filler):
    model = make(build)
    noise = noise_for(model)

    def run(value):
        x = batch(value)
        loss = -mmpoe.elbo(model(x, OBSERVED, noise=noise), x, OBSERVED)
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
    together = mmpoe.elbo(model(x, OBSERVED, noise=noise), x, OBSERVED)
    for b in range(8):
        row = {m: v[b : b + 1] for m, v in x.items()}
        alone = model(row, OBSERVED[b : b + 1], noise=[n[b : b + 1] for n in noise])
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
    together = model(x, given, noise=noise)
    bounds = mmpoe.elbo(together, x, OBSERVED)
    assert bounds.shape == (3, 8)
    for s in range(3):
        alone = model(x, given[s], noise=[n[s] for n in noise])
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
    given, weight = mmpoe.missing.subsets(OBSERVED, "groups", special=1)
    torch.manual_seed(0)
    expected = mixture_elbo(model, x, OBSERVED, family="groups", special=NAMES[1])
    torch.manual_seed(0)
    bounds = mmpoe.elbo(model(x, given), x, OBSERVED)
    torch.testing.assert_close(expected, (weight * bounds).sum(dim=0))
    assert torch.equal(mixture_elbo(model, {}, OBSERVED & False), torch.zeros(8))


def test_full_family_is_the_plain_bound():
    model, x = make(flat), batch()
    torch.manual_seed(0)
    mixture = mixture_elbo(model, x, OBSERVED, beta=0.5, family="full")
    torch.manual_seed(0)
    torch.testing.assert_close(mixture, mmpoe.elbo(model(x, OBSERVED), x, OBSERVED, beta=0.5))


def test_order_of_modalities_does_not_matter():
    model = make(hierarchical)
    swapped = make(hierarchical)
    order = [2, 0, 1]
    names = [NAMES[i] for i in order]
    swapped.modalities = names
    swapped.load_state_dict(model.state_dict())
    noise, x = noise_for(model), batch()
    expected = model(x, OBSERVED, noise=noise)
    output = swapped(x, OBSERVED[:, order], noise=noise)
    for m in NAMES:
        torch.testing.assert_close(output.likelihoods[m].mean, expected.likelihoods[m].mean)


def test_prior_samples_need_no_data():
    output = make(hierarchical)({}, torch.zeros(6, 3, dtype=torch.bool))
    assert output.likelihoods["us"].mean.shape == (6, 5)
    nothing = torch.zeros(6, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="'shape' should be given to the latent group"):
        make(flat)({}, nothing)
    assert make(flat)({"us": torch.full((6, 5), math.nan)}, nothing).z[0].shape == (6, 4)
    vae = mmpoe.MVAE({"a": nn.Linear(3, 4)}, {"a": Normal(nn.Linear(2, 3))}, latent_dim=2)
    assert vae({}, torch.zeros(6, 1, dtype=torch.bool)).z[0].shape == (6, 2)


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    model = make(hierarchical)
    x = {m: v[-1:][:rows] for m, v in batch().items()}
    bound = mixture_elbo(model, x, OBSERVED[-1:][:rows])
    assert bound.shape == (rows,)


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


def test_bad_calls_are_named():
    model = make(flat)
    x = batch()
    with pytest.raises(ValueError, match=r"'x' .* among us, t2\.space, type, but holds 'flair'"):
        model({"flair": x["us"]})
    with pytest.raises(ValueError, match=r"'given' should have one column .*\(3\), .* \(8, 4\)"):
        model(x, torch.ones(8, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"'given' should be boolean, .*float32"):
        model(x, torch.ones(8, 3))
    with pytest.raises(ValueError, match=r"'given' should have one row per sample \(8\)"):
        model(x, torch.ones(7, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="'x' should hold one batch size"):
        model({**x, "us": x["us"][:3]})
    with pytest.raises(ValueError, match=r"'noise' should hold one tensor per latent group \(1\)"):
        model(x, noise=[])
    with pytest.raises(ValueError, match="'targets' should hold modalities"):
        model.predict(x, targets=["flair"])
    with pytest.raises(ValueError, match="'targets' should be a list of names"):
        model.predict(x, targets="us")
    for samples in (0, 2.5):
        with pytest.raises(ValueError, match="'samples' should be an integer of at least 1"):
            model.predict(x, samples=samples)
    for temperature in (-1.0, math.nan):
        with pytest.raises(ValueError, match="'temperature' should be finite and at least 0"):
            model(x, temperature=temperature)
    with pytest.raises(ValueError, match=r"the dtype of the model, torch.float32, but 'us' has"):
        model({**x, "us": x["us"].double()})
    with pytest.raises(ValueError, match=r"'x' should hold tensors .* but 'us' is a ndarray"):
        model({"us": x["us"].numpy()})
    with pytest.raises(ValueError, match=r"'x' should hold tensors .* but 'us' is a scalar"):
        model({"us": torch.tensor(1.0)})
    with pytest.raises(ValueError, match=r"'noise\[0\]' should have .* \(2, 8\), .* \(8, 2, 4\)"):
        model(x, OBSERVED.expand(2, 8, 3), noise=[torch.zeros(8, 2, 4)])
    with pytest.raises(ValueError, match="'x' should hold 'us', which 'observed' says"):
        model.encode({}, OBSERVED)


def test_models_collate_in_their_own_order():
    model = make(flat)
    x, observed = model.collate([{"type": torch.zeros(3)}, {"us": torch.ones(5)}])
    assert observed.tolist() == [[False, False, True], [True, False, False]]
    assert mmpoe.elbo(model(x, observed), x, observed).isfinite().all()


def test_names_on_an_incomplete_batch_are_an_error_not_a_wrong_answer():
    x, observed = mmpoe.missing.collate(
        [{"us": torch.ones(5)}, {"t2.space": torch.ones(4)}], NAMES
    )
    model = make(flat)
    assert model(x, observed).z[0].isfinite().all()
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[1\]"):
        model.predict(x, ["us"])


def test_nan_where_it_is_given_is_an_error():
    model = make(flat)
    x = batch(math.nan)
    with pytest.raises(ValueError, match=r"'x' should be finite .* 'us' .* rows \[0, 2, 4, 6\]"):
        model(x)
    model.validate = False
    assert model(x).z[0].isnan().any()


def test_nan_where_it_is_scored_is_an_error():
    model, x = make(flat), batch()
    output = model(x, OBSERVED)
    x["us"][3, 1] = math.inf  # observed in rows 1, 3, 5, 7
    x["us"][2, 0] = math.nan
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[3\]"):
        mmpoe.elbo(output, x, OBSERVED)
    assert not mmpoe.elbo(output, x, OBSERVED, validate=False)[3].isfinite()
    valid = {"us": torch.tensor([True, False, True, True, True])}
    assert mmpoe.elbo(output, x, OBSERVED, valid=valid).isfinite().all()


def test_bad_objectives_are_named():
    model, x = make(flat), batch()
    output = model(x, OBSERVED)
    with pytest.raises(ValueError, match=r"'observed' .* shape \(B, 3\), .* \(8, 2\)"):
        mmpoe.elbo(output, x, OBSERVED[:, :2])
    with pytest.raises(ValueError, match="'observed' should be boolean"):
        mmpoe.elbo(output, x, OBSERVED.float())
    with pytest.raises(ValueError, match="'x' should hold 'us', which 'observed' says"):
        mmpoe.elbo(output, {m: x[m] for m in NAMES[1:]}, OBSERVED)
    with pytest.raises(
        ValueError, match=r"'x' should have one row .* \(8, 5\), but 'us' has .* \(2, 5\)"
    ):
        mmpoe.elbo(output, {**x, "us": x["us"][:2]}, OBSERVED)
    with pytest.raises(ValueError, match="'valid' should hold modalities"):
        mmpoe.elbo(output, x, OBSERVED, valid={"flair": OBSERVED})
    with pytest.raises(ValueError, match="'valid' should be boolean"):
        mmpoe.elbo(output, x, OBSERVED, valid={"us": x["us"]})
    with pytest.raises(ValueError, match="'special' should hold modalities"):
        mixture_elbo(model, x, OBSERVED, special="flair")


class Plain(nn.Module):
    """A decoder that is not one of the library."""

    def forward(self, z):
        return torch.distributions.Independent(torch.distributions.Normal(z, 1.0), 1)


def test_any_module_that_returns_a_distribution_decodes():
    vae = mmpoe.MVAE({"a": nn.Linear(3, 6)}, {"a": Plain()})
    x, observed = {"a": torch.randn(5, 3)}, torch.ones(5, 1, dtype=torch.bool)
    assert mmpoe.elbo(vae(x, observed), x, observed).shape == (5,)
    with pytest.raises(ValueError, match=r"decoder of 'a' should be a .*Likelihood .* is a Plain"):
        vae(x, observed.expand(2, 5, 1))


def test_shapes_of_targets_are_compared():
    vae = mmpoe.MVAE({"a": nn.Linear(1, 4)}, {"a": Normal(nn.Linear(2, 1))})
    x, observed = {"a": torch.randn(5, 1)}, torch.ones(5, 1, dtype=torch.bool)
    output = vae(x, observed)
    for wrong in (torch.randn(5), torch.randn(5, 3)):
        with pytest.raises(ValueError, match=r"shape of what is decoded, \(5, 1\), but 'a' has"):
            mmpoe.elbo(output, {"a": wrong}, observed)
    with pytest.raises(ValueError, match=r"'valid' should broadcast .* \(5, 1\), .* \(4, 1\)"):
        mmpoe.elbo(output, x, observed, valid={"a": torch.ones(4, 1, dtype=torch.bool)})


def test_beta_weighs_the_divergence():
    model, x = make(hierarchical), batch()
    output = model(x, OBSERVED)
    difference = mmpoe.elbo(output, x, OBSERVED, beta=3.0) - mmpoe.elbo(output, x, OBSERVED, 1.0)
    torch.testing.assert_close(difference, -2 * sum(output.kl))


def test_names_must_be_in_the_batch():
    model = make(flat)
    with pytest.raises(ValueError, match=r"'x' holds \(us\), but names type"):
        model.predict({"us": batch()["us"]}, ["type"])


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
    assert calls == [1]  # of 7


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
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound = mixture_elbo(model, x, OBSERVED)
    assert bound.dtype == torch.float32
    reference = torch.stack([mixture_elbo(model, x, OBSERVED) for _ in range(20)]).mean(dim=0)
    torch.testing.assert_close(bound, reference, rtol=0.3, atol=3.0)


def test_bad_parts_are_named():
    encoder, decoder = nn.Linear(3, 4), Normal(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"same keys, but have \['a'\] and \['b'\]"):
        mmpoe.MVAE({"a": encoder}, {"b": decoder})
    with pytest.raises(ValueError, match="'encoders' should have at least one modality"):
        mmpoe.MVAE({}, {})
    with pytest.raises(ValueError, match="'groups' should hold at least one"):
        mmpoe.MMHVAE({"a": encoder}, [], {"a": decoder})
    with pytest.raises(ValueError, match=r"encoder of 'a' .* returns shape \(1, 3\)"):
        mmpoe.MVAE({"a": nn.Linear(3, 3)}, {"a": decoder})({"a": torch.zeros(1, 3)})
    wrong = mmpoe.MVAE({"a": encoder}, {"a": decoder}, latent_dim=3)
    with pytest.raises(ValueError, match=r"encoder of 'a' .* event shape \(6,\), .* \(4,\)"):
        wrong({"a": torch.zeros(1, 3)})
    group = LatentGroup((2,), nn.Identity())
    two = mmpoe.MMHVAE({"a": encoder}, [group, group], {"a": decoder})
    with pytest.raises(ValueError, match=r"encoder of 'a' .* per latent group \(2\)"):
        two({"a": torch.zeros(1, 3)})
    with pytest.raises(
        ValueError, match="'groups' should start with a group whose 'prior' is None"
    ):
        mmpoe.MMHVAE(
            {"a": encoder}, [LatentGroup((2,), encoder, prior=nn.Linear(2, 4))], {"a": decoder}
        )
    with pytest.raises(ValueError, match=r"'groups\[0\]' .* has none for b"):
        mmpoe.MMHVAE(
            {"a": encoder, "b": encoder},
            [LatentGroup((2,), {"a": encoder})],
            {"a": decoder, "b": decoder},
        )
    for shape in ((), 5, (0,)):
        with pytest.raises(ValueError, match="'shape' should be a sequence of positive numbers"):
            LatentGroup(shape, encoder)
    with pytest.raises(ValueError, match="'clamp' should be positive or None"):
        PoE(clamp=-1.0)
    tensor = mmpoe.MVAE({"a": encoder}, {"a": nn.Linear(2, 3)})
    with pytest.raises(
        ValueError, match=r"decoder of 'a' should return a distribution, .* a Tensor"
    ):
        tensor({"a": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match="'scale' should be positive and finite, but is 0"):
        Normal(nn.Identity(), scale=0)
