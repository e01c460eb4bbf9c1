"""The four verbs of a model: packed, teacher-forced, masked, by component, matched."""

import copy

import pytest
import torch
from example_models import (
    NAMES,
    OBSERVED,
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
from mmpoe.hierarchy import LatentGroup, MatchedExperts
from mmpoe.likelihoods import Normal
from mmpoe.missing import pack, subsets
from mmpoe.posteriors import MoE


def outcome(output):
    """Everything an output holds, as a flat list of tensors."""
    parts = [*output.kl, *output.z]
    for q in (*output.posteriors, *output.priors):
        parts += [q.loc, q.log_scale]
    return parts + [p.mean for p in output.likelihoods.values()]


@every_model
def test_packed_pairs_equal_the_grid_they_came_from(build):
    model, x = make(build), batch()
    given, weight = subsets(OBSERVED)  # (7, 8, 3)
    noise = noise_for(model, subsets=(len(given),))
    grid = conditioned(model, x, given, noise=noise)

    packed, rows, _ = pack(given, weight)
    subset = [
        (given[:, b] == g).all(dim=1).nonzero()[0, 0] for g, b in zip(packed, rows, strict=True)
    ]
    subset = torch.stack(subset)  # (R)
    same = conditioned(model, x, packed, rows=rows, noise=[n[subset, rows] for n in noise])
    for a, b in zip(outcome(same), outcome(grid), strict=True):
        torch.testing.assert_close(a, b[subset, rows])


@every_model
def test_masked_shapes_give_the_numbers_of_gathered_rows(build):
    model = make(build)
    noise = noise_for(model)

    def run(gather, filler):
        model.gather = gather
        x = batch(filler)
        output = conditioned(model, x, OBSERVED, noise=noise)
        bound = mmpoe.elbo(output, x, OBSERVED)
        gradients = torch.autograd.grad(bound.sum(), list(model.parameters()))
        return [*outcome(output), bound, *gradients]

    for a, b in zip(run(gather=True, filler=0.0), run(gather=False, filler=0.0), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(run(gather=False, filler=torch.nan), run(gather=False, filler=7), strict=True):
        assert torch.equal(a, b)


def test_masked_shapes_encode_every_row():
    model, calls = make(hierarchical), []
    model.gather = False
    for m in NAMES:
        model.encoders[m].register_forward_hook(lambda _, x, __: calls.append(len(x[0])))
    model(batch(), OBSERVED)
    assert calls == [8, 8, 8]


@every_model
def test_gradients_reach_what_is_given_alone(build):
    model = make(build)
    x = {m: v.requires_grad_() for m, v in batch().items()}
    output = conditioned(model, x, OBSERVED)
    (sum(kl.sum() for kl in output.kl) + output.z[-1].square().sum()).backward()
    for column, m in enumerate(NAMES):
        reached = x[m].grad.abs().sum(dim=1) > 0
        assert torch.equal(reached, OBSERVED[:, column])


@every_model
def test_latents_that_are_passed_down_come_back_with_their_posteriors(build):
    model, x = make(build), batch()
    free = conditioned(model, x, OBSERVED, noise=noise_for(model))
    forced = conditioned(model, x, OBSERVED, z=free.z)
    for a, b in zip(outcome(forced), outcome(free), strict=True):
        torch.testing.assert_close(a, b)

    other = [torch.full_like(z, 0.5) for z in free.z]
    moved = conditioned(model, x, OBSERVED, z=other)
    assert all(torch.equal(a, b) for a, b in zip(moved.z, other, strict=True))
    assert torch.equal(moved.posteriors[0].loc, free.posteriors[0].loc)  # nothing is above it


@pytest.mark.parametrize(
    ("kind", "possible"),
    [(mmpoe.MMVAE, [1, 2, 4]), (mmpoe.MoPoEVAE, [1, 2, 3, 4, 5, 6, 7])],
)
def test_a_mixture_draws_one_component_evenly(kind, possible):
    torch.manual_seed(0)
    model = flat(kind)
    x = {m: v[-1:].expand(6000, -1) for m, v in batch().items()}
    complete = torch.ones(6000, 3, dtype=torch.bool)
    with torch.no_grad():
        drawn = model(x, complete).posteriors[0].loc
        patterns = OBSERVED[torch.tensor(possible)]
        one = {m: v[:1] for m, v in x.items()}
        means = conditioned(model, one, patterns[:, None]).posteriors[0].loc[:, 0]
    distance = (drawn[:, None] - means).norm(dim=-1)  # (6000, S)
    assert (distance.amin(dim=1) < 1e-5).all()
    counts = torch.bincount(distance.argmin(dim=1), minlength=len(possible))
    expected = 6000 / len(possible)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 24  # below the 99.9th percentile for 6 degrees of freedom


def test_groups_share_one_family():
    with pytest.raises(
        ValueError, match=r"'groups' should have posteriors of one family.*full, sing"
    ):
        mmpoe.MMHVAE(
            {"a": nn.Linear(2, 4)},
            [
                LatentGroup((2,), nn.Identity()),
                LatentGroup((2,), nn.Identity(), prior=nn.Linear(2, 4), posterior=MoE()),
            ],
            {"a": Normal(nn.Linear(2, 2))},
        )


def add_matched(model):
    """Matched experts that start as copies of the trained ones."""
    for group in model.groups:
        group.matched = MatchedExperts(copy.deepcopy(group.expert), copy.deepcopy(group.posterior))


def test_matched_experts_are_a_second_set_that_alone_gets_gradients():
    model, x = make(hierarchical), batch()
    assert not model.is_matched
    with pytest.raises(ValueError, match=r"'experts' should be .trained.: this model has no"):
        conditioned(model, x, OBSERVED, experts="matched")

    noise = noise_for(model)
    plain = outcome(model(x, OBSERVED, noise=noise))
    add_matched(model)
    assert model.is_matched
    for a, b in zip(plain, outcome(model(x, OBSERVED, noise=noise)), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(
        plain,
        outcome(conditioned(model, x, OBSERVED, noise=noise, experts="matched")),
        strict=True,
    ):
        assert torch.equal(a, b)

    z = [z.detach() for z in model(x, OBSERVED).z]
    output = conditioned(model, x, OBSERVED, z=z, experts="matched")
    sum(kl.sum() for kl in output.kl).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached
    assert all(".matched." in name for name in reached)


def test_predictions_of_several_samples_come_from_matched_experts():
    model, x = make(hierarchical), batch()
    add_matched(model)
    with torch.no_grad():
        for group in model.groups:
            group.matched.expert.bias[group.shape[0] :] = -4.0  # far more precise
    spread = model.predict(x, OBSERVED, samples=200)["us"].components.mean.std(dim=0)
    for group in model.groups:
        group.matched = None
    with pytest.warns(mmpoe.models.UncalibratedWarning):
        wide = model.predict(x, OBSERVED, samples=200)["us"].components.mean.std(dim=0)
    assert (spread[-1] < wide[-1]).all()


@pytest.mark.filterwarnings("ignore::mmpoe.models.UncalibratedWarning")
@pytest.mark.parametrize("experts", [None, "matched", "trained"])
def test_predictions_of_any_number_of_samples_come_from_the_same_experts(experts):
    model, x = make(hierarchical), batch()
    add_matched(model)
    with torch.no_grad():
        for group in model.groups:
            group.matched.expert.bias.add_(1.0)
    chosen = "matched" if experts is None else experts
    wanted = conditioned(model, x, OBSERVED, temperature=0.0, experts=chosen).likelihoods["us"]
    one = model.predict(x, OBSERVED, temperature=0.0, experts=experts)["us"]
    two = model.predict(x, OBSERVED, temperature=0.0, samples=2, experts=experts)["us"]
    assert torch.equal(one.mean, wanted.mean)
    torch.testing.assert_close(two.components.mean, wanted.mean.expand(2, -1, -1))
    other = conditioned(model, x, OBSERVED, temperature=0.0, experts="trained").likelihoods["us"]
    assert torch.equal(one.mean[1:], other.mean[1:]) == (experts == "trained")


@every_model
def test_saved_models_say_the_same(build, tmp_path):
    model, x = make(build), batch()
    expected = conditioned(model, x, OBSERVED, noise=noise_for(model))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(5)
    other = build()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    again = conditioned(other, x, OBSERVED, noise=noise_for(model))
    for a, b in zip(outcome(again), outcome(expected), strict=True):
        assert torch.equal(a, b)


def test_one_modality_is_enough():
    model = mmpoe.MVAE({"a": nn.Linear(3, 4)}, {"a": Normal(nn.Linear(2, 3))})
    x, observed = {"a": torch.randn(5, 3)}, torch.tensor([[1], [1], [0], [1], [0]]).bool()
    assert mmpoe.elbo(model(x, observed), x, observed).isfinite().all()


def test_one_modality_in_a_ladder_is_the_weighted_merge_of_its_factor_and_the_prior():
    model = make(hierarchical)
    given = torch.tensor([[False, True, False]]).expand(8, 3)
    x = {m: v.nan_to_num() for m, v in batch(rows=torch.ones_like(OBSERVED)).items()}
    output = model(x, given)
    h = model.groups[0].merge(None, output.z[0])
    fine = model.groups[1]
    factor = fine.expert(torch.cat([h, model.encoders["t2.space"](x["t2.space"])[1]], dim=1))
    loc, log_scale = fine.posterior.squash(factor).chunk(2, dim=1)
    prior = output.priors[1]
    precision, prior_precision = (-2 * log_scale).exp(), (-2 * prior.log_scale).exp()
    mean = (precision * loc + prior_precision * prior.loc) / (precision + prior_precision)
    torch.testing.assert_close(output.posteriors[1].loc, mean)
    torch.testing.assert_close(output.posteriors[1].scale, (precision + prior_precision).rsqrt())


@pytest.mark.parametrize(
    ("given", "rows", "message"),
    [
        (torch.ones(4, 3).bool(), torch.zeros(5).long(), r"'rows' .* shape \(4,\), but has .*5"),
        (torch.ones(4, 3).bool(), [0] * 4, r"'rows' should be integers, .* but has type list"),
        (["us"], None, r"'given' should be a boolean tensor, but is a list"),
        (torch.ones(4, 3).bool(), torch.zeros(4), r"'rows' should be integers, torch.long"),
        (torch.ones(2, 3).bool(), torch.tensor([0, 8]), r"'rows' .* positions in a batch of 8"),
        (torch.ones(2, 3).bool(), torch.tensor([-1, 0]), r"ranges from -1 to 0"),
        (torch.ones(2, 4).bool(), torch.tensor([1, 0]), r"'given' should be .* where M is 3"),
        (torch.ones(4, 3).bool(), None, r"'given' should be .*, where \(B, M\) is \(8, 3\)"),
        (torch.ones(8, 3), None, r"'given' should be boolean .* but has dtype torch.float32"),
        (torch.ones(1, 3).bool(), torch.tensor([0]), r"beyond what was encoded, but in 3 places"),
    ],
)
def test_pairs_are_checked(given, rows, message):
    model = make(flat)
    encodings = model.encode(batch(), OBSERVED)
    with pytest.raises(ValueError, match=message):
        model.infer(encodings, given, rows=rows)


def test_latents_are_checked():
    model, x = make(hierarchical), batch()
    z = model(x, OBSERVED).z
    with pytest.raises(ValueError, match=r"'z' should hold one tensor per latent group \(2\)"):
        conditioned(model, x, OBSERVED, z=z[:1])
    with pytest.raises(ValueError, match=r"'z\[1\]' should have the shape of 'z\[1\]'"):
        conditioned(model, x, OBSERVED, z=[z[0], z[1][:3]])
    with pytest.raises(ValueError, match=r"'z\[1\]' should hold latents of .*\(2,\).* \(8, 3\)"):
        conditioned(model, x, OBSERVED, z=[z[0], z[0]])


def test_log_likelihood_scores_the_rows_that_it_was_told_of():
    model, x = make(flat), batch(rows=torch.ones_like(OBSERVED))
    rows, given = torch.tensor([5, 5, 0]), torch.ones(3, 3, dtype=torch.bool)
    q = model.infer(model.encode(x, torch.ones_like(OBSERVED)), given, rows=rows)
    for wrong, message in (
        (None, r"'x' should hold one row per row of the mask \(3\), but holds {'us': 8"),
        (torch.tensor([5, 5, 0, 1]), r"'rows' should have one position per row, shape \(3,\)"),
        (torch.tensor([5, 5, 8]), r"'rows' should be positions in a batch of 8, .* from 5 to 8"),
        (
            torch.tensor([5.0, 5.0, 0.0]),
            r"'rows' should be integers, torch.long, .* torch.float32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model.log_likelihood(q.state, x, given, rows=wrong)
    short = {**x, "us": x["us"][:6]}
    with pytest.raises(ValueError, match=r"'x' should hold one batch size, but holds"):
        model.log_likelihood(q.state, short, given, rows=rows)
    with pytest.raises(ValueError, match=r"'state' should be that of an inference, .* Inference"):
        model.log_likelihood(q, x, given, rows=rows)


def test_a_function_of_latents_has_to_return_them():
    model, x = make(hierarchical), batch()
    encodings = model.encode(x, OBSERVED)
    with pytest.raises(ValueError, match=r"'z\[0\]' should .*\(3,\), for 8 rows, .* NoneType"):
        model.infer(encodings, OBSERVED, z=lambda level, q: None)
    with pytest.raises(ValueError, match=r"'z\[1\]' should .* for 8 rows, but has shape \(3, 2"):
        model.infer(encodings, OBSERVED, z=lambda level, q: q.loc[: 8 if level == 0 else 3])


def test_shapes_that_no_group_was_told_are_found_without_anything_given():
    model, x = make(hierarchical), batch()
    expected = model(x, OBSERVED, temperature=0.0)
    for group in model.groups:
        group.shape = None
    torch.testing.assert_close(model(x, OBSERVED, temperature=0.0).z[1], expected.z[1])
    assert [z.shape for z in model(x, []).z] == [(8, 3), (8, 2)]
    model.fix_shapes(x)
    assert [group.shape for group in model.groups] == [(3,), (2,)]


def test_absent_modalities_need_not_be_gathered():
    model, x = make(hierarchical), {"us": batch()["us"]}
    wanted = model(x, ["us"], temperature=0.0)
    model.gather = False
    torch.testing.assert_close(model(x, ["us"], temperature=0.0).z[1], wanted.z[1])
