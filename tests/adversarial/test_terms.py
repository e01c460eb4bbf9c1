"""Terms of an output: scored targets, and their real counterparts."""

import math

import pytest
import torch
from adversaries import by_hand, discriminators, every_kind, inferred
from example_models import NAMES, OBSERVED, batch, conditioned, flat, hierarchical, make, noise_for
from torch import nn
from torch.distributions import Independent, Normal

from mmpoe.adversarial import (
    ImageBank,
    adversarial_loss,
    discriminator_loss,
    gradient_penalty,
    r1_penalty,
    scored_targets,
)
from mmpoe.missing import pack, subsets
from mmpoe.nn import ModalityDict, PatchDiscriminator


def none(discriminator, real, fake):
    return torch.zeros(len(real))


def r1(discriminator, real, fake):
    return r1_penalty(discriminator, real)


def both(discriminator, real, fake):
    """The terms that a kind may have, weighted."""
    return 10 * gradient_penalty(discriminator, real, fake) + 0.5 * r1_penalty(discriminator, real)


def term_by_term(output, networks, x, scored, kind):
    """Both losses from one sample and modality at a time, in which everything was observed."""
    of_model, of_discriminators = (torch.zeros(scored.shape[:-1]) for _ in range(2))
    for index in scored.nonzero().tolist():
        *place, row, column = index
        m = NAMES[column]
        if m not in networks:
            continue
        fake = networks[m](output.likelihoods[m].mean[(*place, row)])
        real = networks[m](x[m][row])
        each = lambda scores, which: sum(by_hand(kind, s)[which] for s in scores.tolist()) / 2
        of_model[(*place, row)] += each(fake, 2) / 3
        of_discriminators[(*place, row)] += (each(real, 0) + each(fake, 1)) / 3
    return of_model, of_discriminators


@every_kind
@pytest.mark.parametrize("names", [NAMES, ["t2.space"]])
def test_terms_are_sums_over_what_is_scored(kind, names):
    model, x = make(hierarchical), batch(rows=torch.ones_like(OBSERVED))
    everything = torch.ones_like(OBSERVED)
    given, _ = subsets(everything)  # (7, 8, 3)
    networks = discriminators(names)
    for chosen in (given, given[2]):
        output = inferred(model, x, chosen)
        scored = scored_targets(chosen, everything)
        of_model = adversarial_loss(output, networks, scored, kind=kind)
        of_discriminators = discriminator_loss(
            output, ModalityDict(networks), x, everything, scored, kind=kind, penalty=none
        )
        expected = term_by_term(output, networks, x, scored, kind)
        assert of_model.shape == of_discriminators.shape == chosen.shape[:-1]
        torch.testing.assert_close(of_model, expected[0])
        torch.testing.assert_close(of_discriminators, expected[1])


def test_published_terms():
    """The model is scored in every modality, discriminators learn from observed targets."""
    model, x = make(hierarchical), batch()
    given, _ = subsets(OBSERVED)
    output, networks = inferred(model, x, given), discriminators()
    partial = (given != OBSERVED).any(dim=-1, keepdim=True)
    scored = scored_targets(given, OBSERVED, "all") & partial
    found = adversarial_loss(output, networks, scored)
    for s, b in (given.any(-1) & partial[..., 0]).nonzero().tolist():
        scores = [networks[m](output.likelihoods[m].mean[s, b]) for m in NAMES]
        expected = sum((score - 1).square().mean() for score in scores) / 3
        torch.testing.assert_close(found[s, b], expected)
    assert (found[~partial[..., 0]] == 0).all()
    hidden = scored_targets(given, OBSERVED) & OBSERVED
    found = discriminator_loss(output, networks, x, OBSERVED, hidden)
    torch.testing.assert_close(found, term_by_term(output, networks, x, hidden, "lsgan")[1])


@every_kind
def test_the_two_sides_leave_each_other_alone(kind):
    model, x, networks = make(hierarchical), batch(), discriminators()
    output = model(x, OBSERVED)
    scored = scored_targets(OBSERVED, OBSERVED)
    adversarial_loss(output, networks, scored, kind=kind).sum().backward(retain_graph=True)
    assert all(p.grad is None for m in NAMES for p in networks[m].parameters())
    assert all(p.requires_grad for m in NAMES for p in networks[m].parameters())
    decoders = [p.grad for m in NAMES for p in model.decoders[m].network.parameters()]
    assert all(bool(grad.any()) for grad in decoders)

    model.zero_grad()
    loss = discriminator_loss(output, networks, x, OBSERVED, scored, kind=kind, penalty=r1)
    loss.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    for m in NAMES:
        weights = [p for p in networks[m].parameters() if p.dim() == 2]
        assert all(bool(p.grad.any()) for p in weights)


def test_spectral_norm_and_containers_pass_through():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Upsample(9), PatchDiscriminator(1, 9, 2, dims=1)
    )
    output = make(hierarchical)(batch(), OBSERVED)
    scored = scored_targets(OBSERVED, OBSERVED)
    found = adversarial_loss(output, {"us": network}, scored)
    network.eval()
    expected = torch.zeros(8)
    places = scored[:, 0]
    scores = network(output.likelihoods["us"].mean[places]).flatten(1)
    expected[places] = (scores - 1).square().mean(dim=1) / 3
    assert places.any()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-2)  # one power iteration apart
    found.sum().backward()
    assert all(p.grad is None for p in network.parameters())


@every_kind
def test_rows_without_targets_contribute_nothing(kind):
    model, x, networks = make(hierarchical), batch(), discriminators()
    given, _ = subsets(OBSERVED)
    output = inferred(model, x, given)
    scored = scored_targets(given, OBSERVED, "unobserved")
    without = ~scored.any(dim=-1)
    assert without.any()
    assert not without.all()
    means = {m: p.mean.detach().requires_grad_() for m, p in output.likelihoods.items()}
    likelihoods = {m: Independent(Normal(mean, 1.0), 1) for m, mean in means.items()}
    shown = output._replace(likelihoods=likelihoods)
    found = adversarial_loss(shown, networks, scored, kind=kind)
    assert (found[without] == 0).all()
    assert (found[~without] != 0).all()
    found.sum().backward()
    for column, m in enumerate(NAMES):
        assert torch.equal(means[m].grad.any(dim=-1), scored[..., column])
    other = discriminator_loss(shown, networks, x, OBSERVED, scored, kind=kind)
    assert (other[without] == 0).all()

    nothing = torch.zeros_like(scored)
    for loss in (
        adversarial_loss(output, networks, nothing, kind=kind),
        discriminator_loss(output, networks, x, OBSERVED, nothing, kind=kind),
    ):
        assert torch.equal(loss, torch.zeros(7, 8))
        loss.mean().backward()  # as any other loss
    assert all(p.grad is None for m in NAMES for p in networks[m].parameters())


@pytest.mark.parametrize("rule", ["hidden", "unobserved", "all"])
def test_terms_are_of_their_own_row(rule):
    """Values of a row do not depend on other rows, if its real images do not."""
    model, x, networks = make(hierarchical), batch(), discriminators()
    noise = noise_for(model)
    scored = scored_targets(OBSERVED, OBSERVED, rule)
    seen_too = scored & OBSERVED
    for row in range(8):
        alone = model({m: v[[row]] for m, v in x.items()}, OBSERVED[[row]],
                      noise=[n[[row]] for n in noise])  # fmt: skip
        together = model(x, OBSERVED, noise=noise)
        torch.testing.assert_close(
            adversarial_loss(alone, networks, scored[[row]]),
            adversarial_loss(together, networks, scored)[[row]],
        )
        torch.testing.assert_close(
            discriminator_loss(
                alone, networks, {m: v[[row]] for m, v in x.items()}, OBSERVED[[row]],
                seen_too[[row]],
            ),
            discriminator_loss(together, networks, x, OBSERVED, seen_too)[[row]],
        )  # fmt: skip


def terms(filler, kind="lsgan", order=(0, 1, 2)):
    model, networks = make(hierarchical), discriminators()
    x, bank = batch(filler), ImageBank(NAMES, seed=3)
    bank.push(x, OBSERVED)
    given, _ = subsets(OBSERVED)
    output = inferred(model, x, given)
    scored = scored_targets(given, OBSERVED)
    found = []
    for memory in (bank, None):
        torch.manual_seed(1)
        options = {"kind": kind, "bank": memory, "penalty": both}
        found.append(discriminator_loss(output, networks, x, OBSERVED, scored, **options))
    found.append(adversarial_loss(output, networks, scored, kind=kind))
    sum(loss.sum() for loss in found).backward()
    parameters = [*model.parameters(), *(p for m in NAMES for p in networks[m].parameters())]
    return [*found, *(p.grad for p in parameters)]


@pytest.mark.fault(46)
@pytest.mark.parametrize("filler", [7.0, math.nan, math.inf, -math.inf])
@every_kind
def test_missing_slots_are_never_read(filler, kind):
    for one, other in zip(terms(0.0, kind), terms(filler, kind), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
        assert one is None or one.isfinite().all()


def test_permuted_modalities_have_the_same_terms():
    model, x, networks = make(hierarchical), batch(), discriminators()
    output = model(x, OBSERVED)
    scored = scored_targets(OBSERVED, OBSERVED, "all")
    order = [2, 0, 1]
    names = [NAMES[column] for column in order]
    turned = output._replace(likelihoods={m: output.likelihoods[m] for m in names})
    torch.testing.assert_close(
        adversarial_loss(turned, networks, scored[:, order]),
        adversarial_loss(output, networks, scored),
    )
    seen_too = scored & OBSERVED
    torch.testing.assert_close(
        discriminator_loss(turned, networks, x, OBSERVED[:, order], seen_too[:, order]),
        discriminator_loss(output, networks, x, OBSERVED, seen_too),
    )


def test_packed_rows_are_rows():
    model, x, networks = make(hierarchical), batch(), discriminators()
    given, weight = subsets(OBSERVED)
    given, rows, _ = pack(given, weight)
    output = conditioned(model, x, given, rows=rows)
    scored = scored_targets(given, OBSERVED[rows]) & OBSERVED[rows]
    own = {m: v[rows] for m, v in x.items()}
    found = discriminator_loss(output, networks, own, OBSERVED[rows], scored)
    assert found.shape == adversarial_loss(output, networks, scored).shape == rows.shape
    torch.testing.assert_close(found, term_by_term(output, networks, own, scored, "lsgan")[1])


class Recorder(nn.Module):
    """A discriminator that notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.shown, self.weight = [], nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.shown.append(x.detach())
        return self.weight * x.flatten(1)


def test_a_modality_that_the_batch_lacks_is_trained_from_the_bank():
    model, x = make(flat), batch()
    bank = ImageBank(NAMES)
    bank.push(x, OBSERVED)
    lacking = OBSERVED & torch.tensor([False, True, True])
    scored = scored_targets(lacking, lacking, "unobserved")
    for absent in (False, True):
        later = {m: v for m, v in batch(math.nan, lacking).items() if not (absent and m == "us")}
        output = model(later, lacking)
        recorder = Recorder()
        options = {"bank": bank, "kind": "hinge"}
        discriminator_loss(
            output, {"us": recorder}, later, lacking, scored, **options
        ).sum().backward()
        number = int(scored[:, 0].sum())
        real, fake = recorder.shown[0].chunk(2)
        assert len(real) == len(fake) == number > 0
        known = {tuple(image) for image in bank.images["us"].tolist()}
        assert {tuple(image) for image in real.tolist()} <= known
        assert torch.equal(fake, output.likelihoods["us"].mean[scored[:, 0]])
        assert recorder.weight.grad.abs().item() > 0

        # without a bank there is nothing to compare with
        recorder = Recorder()
        loss = discriminator_loss(output, {"us": recorder}, later, lacking, scored)
        assert torch.equal(loss, torch.zeros(8))
        assert recorder.shown == []
        empty = ImageBank(NAMES)
        loss = discriminator_loss(output, {"us": recorder}, later, lacking, scored, bank=empty)
        assert torch.equal(loss, torch.zeros(8))


def test_real_images_are_those_of_the_row_if_it_has_any():
    model, x = make(flat), batch(math.nan)
    x["us"] = torch.where(OBSERVED[:, :1], torch.arange(8.0)[:, None].expand(8, 5), math.nan)
    output = model(
        {m: v for m, v in x.items() if m != "us"}, OBSERVED & torch.tensor([False, True, True])
    )
    scored = torch.zeros_like(OBSERVED)
    scored[:, 0] = True
    bank = ImageBank(NAMES)
    bank.push({"us": torch.full((4, 5), 100.0)}, torch.tensor([[True, False, False]] * 4))
    for memory in (bank, None):
        recorder = Recorder()
        torch.manual_seed(0)
        discriminator_loss(output, {"us": recorder}, x, OBSERVED, scored, bank=memory)
        real, _ = recorder.shown[0].chunk(2)
        own, real = OBSERVED[:, 0], real[:, 0]
        assert torch.equal(real[own], torch.arange(8.0)[own])
        if memory is None:  # others of the batch
            assert set(real[~own].tolist()) <= set(torch.arange(8.0)[own].tolist())
        else:
            assert (real[~own] == 100).all()


def test_elements_outside_the_view_are_seen_as_zero():
    model, x = make(flat), batch()
    inside = torch.rand(8, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    x["us"] = torch.where(inside, x["us"], math.nan)
    fine = {m: v.nan_to_num() for m, v in x.items()}
    output = model(fine, OBSERVED)
    scored = scored_targets(OBSERVED, OBSERVED, "all")
    recorder, valid = Recorder(), {"us": inside}
    adversarial_loss(output, {"us": recorder}, scored, valid=valid)
    of_us = scored[:, 0].nonzero()[:, 0]
    expected = torch.where(inside, output.likelihoods["us"].mean, 0)[of_us]
    assert torch.equal(recorder.shown.pop(), expected)
    seen_too = scored & OBSERVED
    discriminator_loss(output, {"us": recorder}, x, OBSERVED, seen_too, valid=valid)
    real, fake = recorder.shown.pop().chunk(2)
    assert torch.equal(real, fine["us"][seen_too[:, 0]])
    assert torch.equal(fake, torch.where(inside, output.likelihoods["us"].mean, 0)[seen_too[:, 0]])
    discriminator_loss(output, {"us": recorder}, x, OBSERVED, scored, valid={"us": inside[:1]} |
                       {"us": torch.zeros(5, dtype=torch.bool)})  # fmt: skip
    assert (recorder.shown.pop() == 0).all()
    with pytest.raises(ValueError, match=r"'us' holds NaN"):
        discriminator_loss(output, {"us": recorder}, x, OBSERVED, scored)


def test_penalties_are_added_with_their_weights():
    model, x, networks = make(flat), batch(), discriminators(["us"])
    output = model(x, OBSERVED & torch.tensor([False, True, True]))
    scored = torch.zeros_like(OBSERVED)
    scored[:, 0] = OBSERVED[:, 0]
    options = {"kind": "wgan_gp"}
    arguments = (output, networks, x, OBSERVED, scored)
    plain = discriminator_loss(*arguments, penalty=none, **options)
    real = x["us"][OBSERVED[:, 0]]
    fake = output.likelihoods["us"].mean[OBSERVED[:, 0]]
    drawn = lambda: torch.Generator().manual_seed(6)
    expected = torch.zeros(8)
    penalty = gradient_penalty(networks["us"], real, fake, generator=drawn())
    expected[OBSERVED[:, 0]] = (10 * penalty + 3 * r1_penalty(networks["us"], real)) / 3
    weighted = lambda d, real, fake: (
        10 * gradient_penalty(d, real, fake, generator=drawn()) + 3 * r1_penalty(d, real)
    )
    found = discriminator_loss(*arguments, penalty=weighted, **options)
    torch.testing.assert_close(found - plain, expected)
    assert (expected[OBSERVED[:, 0]] > 0).all()
    # this kind alone has a penalty of its own, ten gradient penalties
    torch.manual_seed(6)
    expected[OBSERVED[:, 0]] = 10 * penalty / 3
    torch.testing.assert_close(discriminator_loss(*arguments, **options) - plain, expected)
    found = discriminator_loss(*arguments, kind="hinge")
    expected = discriminator_loss(*arguments, penalty=none, kind="hinge")
    torch.testing.assert_close(found, expected)


def test_terms_are_in_float64_and_without_gradients_on_request():
    model, x = make(flat).double(), {m: v.double() for m, v in batch().items()}
    networks = {m: network.double() for m, network in discriminators().items()}
    output, scored = model(x, OBSERVED), scored_targets(OBSERVED, OBSERVED)
    with torch.no_grad():
        found = [
            adversarial_loss(output, networks, scored),
            discriminator_loss(output, networks, x, OBSERVED, scored, kind="wgan_gp"),
            adversarial_loss(output, networks, torch.zeros_like(scored)),
        ]
    assert all(loss.dtype == torch.float64 and not loss.requires_grad for loss in found)


def test_empty_batches_have_terms():
    model = make(flat)
    x = {m: v[:0] for m, v in batch().items()}
    output, nothing = model(x, OBSERVED[:0]), OBSERVED[:0]
    assert adversarial_loss(output, discriminators(), nothing).shape == (0,)
    assert discriminator_loss(output, discriminators(), x, nothing, nothing).shape == (0,)


def test_bad_terms_are_named():
    model, x, networks = make(flat), batch(), discriminators()
    output, scored = model(x, OBSERVED), scored_targets(OBSERVED, OBSERVED)
    with pytest.raises(ValueError, match=r"'kind' should be one of lsgan, hinge, .* but is 'gan'"):
        adversarial_loss(output, networks, scored, kind="gan")
    with pytest.raises(ValueError, match=r"'discriminators' .* 'uss' \(did you mean 'us'\?\)"):
        adversarial_loss(output, {"uss": networks["us"]}, scored)
    with pytest.raises(ValueError, match=r"'scored' .* output, \(8, 3\), .* shape \(1, 8, 3\)"):
        adversarial_loss(output, networks, scored[None])
    with pytest.raises(ValueError, match=r"'scored' should be boolean .* dtype torch.float32"):
        adversarial_loss(output, networks, scored.float())
    inside = {"us": torch.ones(8, 4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"'valid' should broad.* 'us', \(8, 5\), .* \(8, 4\)"):
        adversarial_loss(output, networks, scored, valid=inside)
    with pytest.raises(ValueError, match=r"of 'us' should return .* \(3, \*\) .* returns \(15,\)"):
        adversarial_loss(output, {"us": nn.Flatten(0)}, scored)
    several = nn.LSTM(5, 5)  # returns more than scores
    with pytest.raises(ValueError, match=r"of 'us' should return .* \(6, \*\) .* returns tuple"):
        discriminator_loss(output, {"us": several}, x, OBSERVED, scored)

    without = {m: v for m, v in x.items() if m != "us"}
    arguments = (output, networks)
    with pytest.raises(ValueError, match=r"'observed' .* of the output \(8\), .* shape \(7, 3\)"):
        discriminator_loss(*arguments, x, OBSERVED[:7], scored)
    with pytest.raises(ValueError, match=r"'x' should hold 'us', which 'observed' says"):
        discriminator_loss(*arguments, without, OBSERVED, scored)
    with pytest.raises(ValueError, match=r"decoded, \(8, 5\), but 'us' has shape \(8, 4\)"):
        discriminator_loss(*arguments, {**x, "us": x["us"][:, :4]}, OBSERVED, scored)
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[1, 3, 5, 7\]"):
        discriminator_loss(*arguments, {**x, "us": x["us"] * math.nan}, OBSERVED, scored)
