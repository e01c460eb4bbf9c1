"""Adversarial terms: losses by hand, slopes in closed form, what is judged, and against what."""

import math
import re
from pathlib import Path

import pytest
import torch
from example_models import NAMES, OBSERVED, SIZES, batch, flat, hierarchical, make, noise_for
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Independent, Normal

import mmpoe
from mmpoe import likelihoods
from mmpoe.adversarial import (
    PUBLISHED,
    ImageBank,
    Schedule,
    adversarial_loss,
    discriminator_loss,
    gradient_penalty,
    judged_targets,
    r1_penalty,
)
from mmpoe.adversarial.losses import KINDS
from mmpoe.missing import pack, subsets
from mmpoe.nn import MLP, ModalityDict, PatchDiscriminator

every_kind = pytest.mark.parametrize("kind", KINDS)


# losses


def by_hand(kind, score):
    """The losses of one score, of a real sample, a fake one, and for the generator."""
    sigmoid = 1 / (1 + math.exp(-score))
    return {
        "lsgan": ((score - 1) ** 2, score**2, (score - 1) ** 2),
        "hinge": (max(0, 1 - score), max(0, 1 + score), -score),
        "nonsaturating": (-math.log(sigmoid), -math.log(1 - sigmoid), -math.log(sigmoid)),
        "wgan_gp": (-score, score, -score),
    }[kind]


@every_kind
def test_losses_by_hand(kind):
    scores = [-2.5, -1.0, -0.3, 0.0, 0.5, 1.0, 1.7]
    expected = torch.tensor([by_hand(kind, s) for s in scores], dtype=torch.float64)  # (N, 3)
    x = torch.tensor(scores, dtype=torch.float64)
    real, fake = KINDS[kind].discriminator(x, x)
    torch.testing.assert_close(torch.stack([real, fake, KINDS[kind].generator(x)], 1), expected)

    patches = torch.stack([x, x.flip(0)]).reshape(2, 1, 7)  # averaged in a sample, not over them
    real, fake = KINDS[kind].discriminator(patches, patches[:1])
    torch.testing.assert_close(real, expected[:, 0].mean().expand(2))
    torch.testing.assert_close(fake, expected[:, 1].mean().expand(1))
    torch.testing.assert_close(KINDS[kind].generator(patches), expected[:, 2].mean().expand(2))
    assert KINDS[kind].generator(x[:0]).shape == (0,)
    assert KINDS[kind].generator(torch.zeros(0, 1, 3, 3)).shape == (0,)


@every_kind
def test_signs(kind):
    """Reals are pushed up and fakes down by a discriminator, and fakes up by a model."""
    x = torch.full((3,), 0.25, requires_grad=True)
    real, fake = KINDS[kind].discriminator(x, x)
    for loss, sign in ((real, -1), (fake, 1), (KINDS[kind].generator(x), -1)):
        (slope,) = torch.autograd.grad(loss.sum(), x)
        assert torch.equal(slope.sign(), torch.full((3,), float(sign)))


@pytest.mark.parametrize(
    ("kind", "score", "both", "model"),
    [
        ("lsgan", 0.5, 0.5, 0.25),
        ("hinge", 0.0, 2.0, 0.0),
        ("nonsaturating", 0.0, 2 * math.log(2), math.log(2)),
        ("wgan_gp", 0.3, 0.0, -0.3),
    ],
)
def test_equilibrium(kind, score, both, model):
    """Where reals and fakes are alike, the best score and what is lost are known."""
    x = torch.tensor([score], dtype=torch.float64, requires_grad=True)
    loss = sum(KINDS[kind].discriminator(x, x))
    assert loss.item() == pytest.approx(both)
    assert KINDS[kind].generator(x).item() == pytest.approx(model)
    (slope,) = torch.autograd.grad(loss, x)
    assert slope.item() == pytest.approx(0)
    others = x.detach() + torch.linspace(-3, 3, 25, dtype=torch.float64)
    assert (sum(KINDS[kind].discriminator(others, others)) >= both - 1e-12).all()


@every_kind
def test_large_scores_are_finite(kind):
    x = torch.tensor([-1e9, -1e4, 1e4, 1e9], requires_grad=True)
    parts = [*KINDS[kind].discriminator(x, x), KINDS[kind].generator(x)]
    (slope,) = torch.autograd.grad(torch.stack(parts).sum(), x)
    assert torch.stack(parts).isfinite().all()
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0


# penalties


def linear(weight):
    return lambda x: x.flatten(1) @ weight.flatten()


@hypothesis_given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 1000))
def test_penalties_of_linear_critics(rows, features, seed):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    weight = torch.randn(features, 3, **options)
    real, fake = torch.randn(2, rows, features, 3, **options)
    norm = weight.norm()
    torch.testing.assert_close(
        gradient_penalty(linear(weight), real, fake), (norm - 1).square().expand(rows)
    )
    torch.testing.assert_close(r1_penalty(linear(weight), real), norm.square().expand(rows) / 2)
    # scores of two patches: the slope is that of their mean
    patches = lambda x: torch.stack([linear(weight)(x), linear(3 * weight)(x)], 1)[:, None]
    torch.testing.assert_close(
        gradient_penalty(patches, real, fake), (2 * norm - 1).square().expand(rows)
    )


def test_penalties_of_quadratic_critics():
    """D(x) = |x|^2 / 2 has the slope |x|, wherever that is taken."""
    torch.manual_seed(0)
    real, fake = torch.randn(2, 6, 5, dtype=torch.float64)
    square = lambda x: x.square().sum(dim=1) / 2
    torch.testing.assert_close(r1_penalty(square, real), real.square().sum(dim=1) / 2)
    found = gradient_penalty(square, real, fake, generator=torch.Generator().manual_seed(3))
    share = torch.rand(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)[:, None]
    between = share * real + (1 - share) * fake
    torch.testing.assert_close(found, (between.norm(dim=1) - 1).square())
    assert share.unique().numel() == 6  # another point for each pair
    # a single point, whatever is drawn
    torch.testing.assert_close(
        gradient_penalty(square, real, real), (real.norm(dim=1) - 1).square()
    )


def test_penalties_agree_with_finite_differences():
    torch.manual_seed(0)
    critic = PatchDiscriminator(1, 9, 3).double().eval()
    real, fake = torch.randn(2, 2, 1, 9, 9, dtype=torch.float64)
    step = 1e-5
    slope = torch.zeros(2, 81, dtype=torch.float64)
    for pixel in range(81):
        shift = torch.zeros(81, dtype=torch.float64).index_fill(0, torch.tensor(pixel), step)
        up, down = critic(real + shift.reshape(9, 9)), critic(real - shift.reshape(9, 9))
        slope[:, pixel] = (up - down).mean(dim=(1, 2, 3)) / (2 * step)
    torch.testing.assert_close(r1_penalty(critic, real), slope.square().sum(dim=1) / 2)
    found = gradient_penalty(critic, real, real)
    torch.testing.assert_close(found, (slope.norm(dim=1) - 1).square())

    # and so do their gradients
    smooth = nn.Sequential(nn.Flatten(), MLP(81, 1, hidden=[6])).double()
    parameter = smooth[1].get_parameter("0.bias")

    def penalties(bias):
        state = {**dict(smooth.named_parameters()), "1.0.bias": bias}
        critic = lambda x: torch.func.functional_call(smooth, state, (x,))
        of_slope = gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(0))
        return of_slope, r1_penalty(critic, real)

    assert torch.autograd.gradcheck(penalties, (parameter.detach().requires_grad_(),))


def test_penalties_where_nothing_slopes_and_where_nothing_is_recorded():
    weight = torch.zeros(3, requires_grad=True)
    real, fake = torch.randn(2, 4, 3)
    found = gradient_penalty(linear(weight), real, fake)
    assert torch.equal(found, torch.ones(4))
    (slope,) = torch.autograd.grad(found.sum(), weight)
    assert torch.equal(slope, torch.zeros(3))  # not NaN
    with torch.no_grad():
        found = gradient_penalty(linear(torch.ones(3)), real, fake)
    torch.testing.assert_close(found, torch.full((4,), (3**0.5 - 1) ** 2))
    assert not found.requires_grad
    fake.requires_grad_()
    assert gradient_penalty(linear(weight), real, fake).requires_grad
    gradient_penalty(linear(weight), real, fake).sum().backward()
    assert fake.grad is None  # a constant
    with pytest.raises(ValueError, match=r"same shape, but have \(4, 3\) and \(2, 3\)"):
        gradient_penalty(linear(weight), real, fake[:2])


# what is judged


@hypothesis_given(st.data())
def test_rules_target_by_target(data):
    size, rows, number = (data.draw(st.integers(1, 4)) for _ in range(3))
    bits = data.draw(st.lists(st.booleans(), min_size=rows * size, max_size=rows * size))
    observed = torch.tensor(bits).reshape(rows, size)
    more = rows * size * number
    bits = data.draw(st.lists(st.booleans(), min_size=more, max_size=more))
    given = torch.tensor(bits).reshape(number, rows, size) & observed
    for rule, expected in {
        "hidden": lambda g, r: not g,
        "unobserved": lambda g, r: not r,
        "all": lambda g, r: True,
    }.items():
        found = judged_targets(given, observed, rule)
        assert found.shape == given.shape
        for s in range(number):
            for b in range(rows):
                for m in range(size):
                    g, r = given[s, b, m], observed[b, m]
                    assert found[s, b, m] == (bool(given[s, b].any()) and expected(g, r))
        assert torch.equal(judged_targets(given[0], observed, rule), found[0])
        order = torch.randperm(size)
        assert torch.equal(
            judged_targets(given[..., order], observed[:, order], rule), found[..., order]
        )
    assert torch.equal(judged_targets(given, observed), judged_targets(given, observed, "hidden"))


def test_bad_targets_are_named():
    observed = torch.tensor([[True, False]])
    with pytest.raises(
        ValueError, match=r"'rule' should be one of hidden, unobserved, all, but i"
    ):
        judged_targets(observed, observed, "missing")
    with pytest.raises(ValueError, match=r"'given' .* \(B, M\) is \(1, 2\), .* shape \(1, 3\)"):
        judged_targets(torch.ones(1, 3, dtype=torch.bool), observed)
    with pytest.raises(ValueError, match=r"'given' should be boolean .* dtype torch.float32"):
        judged_targets(torch.ones(1, 2), observed)
    with pytest.raises(ValueError, match=r"'given' should hold subsets of .* but holds 1 that"):
        judged_targets(~observed, observed)
    with pytest.raises(ValueError, match=r"'observed' should be boolean"):
        judged_targets(observed, observed.float())


# the bank


def images(*values, fill=0.0):
    x = {"us": torch.full((len(values), 2, 2), fill), "t2": torch.zeros(len(values), 3)}
    for row, value in enumerate(values):
        x["us"][row] = value
    return x


def seen(*us):
    return torch.tensor([[u, False] for u in us])


def test_bank_keeps_the_last_images():
    bank = ImageBank(["us", "t2"], size=3)
    nan = float("nan")
    bank.push(images(1, nan, 2), seen(True, False, True))
    assert bank.images["us"][:, 0, 0].tolist() == [1, 2]
    bank.push(images(nan, nan), seen(False, False))
    bank.push(images(3, 4), seen(True, True))
    assert bank.images["us"][:, 0, 0].tolist() == [2, 3, 4]
    bank.push(images(5, 6, 7, 8), seen(True, True, True, True))
    assert bank.images["us"][:, 0, 0].tolist() == [6, 7, 8]
    assert list(bank.images) == ["us"]  # the other was never observed
    assert bank.images["us"].untyped_storage().nbytes() == 3 * 4 * 4


@pytest.mark.parametrize("filler", [7.0, math.nan, math.inf, -math.inf])
def test_fillers_never_enter_the_bank(filler):
    bank, other = ImageBank(NAMES, size=5), ImageBank(NAMES, size=5)
    bank.push(batch(filler), OBSERVED)
    other.push(batch(), OBSERVED)
    assert list(bank.images) == NAMES
    for m in NAMES:
        assert torch.equal(bank.images[m], other.images[m])
    x = batch(filler)
    del x["us"]  # as it was observed nowhere
    bank.push(x, OBSERVED & torch.tensor([False, True, True]))


def test_bank_holds_copies():
    bank, x = ImageBank(["us", "t2"]), images(1, 2)
    x["us"].requires_grad_()
    bank.push(x, seen(True, True))
    with torch.no_grad():
        x["us"].zero_()
    assert bank.images["us"].sum() == 12
    assert not bank.images["us"].requires_grad
    bank.draw("us", 2).zero_()
    state = bank.state_dict()
    state["images.us"].zero_()
    assert bank.images["us"].sum() == 12


def test_bank_remembers_zero_outside_the_view():
    bank, x = ImageBank(["us", "t2"]), images(1, 2)
    x["us"][:, 0, 1] = math.nan
    inside = torch.tensor([[True, False], [True, True]])
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[0, 1\]"):
        bank.push(x, seen(True, True))
    with pytest.raises(ValueError, match=r"'valid' .* 'us', \(2, 2, 2\), but has shape \(3,\)"):
        bank.push(x, seen(True, True), valid={"us": inside.new_ones(3)})
    assert bank.images == {}
    bank.push(x, seen(False, True), valid={"us": inside})
    assert bank.images["us"].tolist() == [[[2, 0], [2, 2]]]


def test_bank_draws_evenly_and_from_its_own_generator():
    bank = ImageBank(["us", "t2"], size=4, seed=5)
    bank.push(images(0, 1, 2, 3), seen(*[True] * 4))
    state = torch.get_rng_state()
    drawn = bank.draw("us", 4000)
    assert torch.equal(torch.get_rng_state(), state)
    counts = drawn[:, 0, 0].long().bincount()
    assert ((counts - 1000).abs() < 4 * (4000 * 3 / 16) ** 0.5).all()  # 4 standard deviations
    twin = ImageBank(["us", "t2"], size=4, seed=5)
    twin.push(images(0, 1, 2, 3), seen(*[True] * 4))
    assert torch.equal(twin.draw("us", 4000), drawn)
    assert not torch.equal(bank.draw("us", 4000), drawn)


def test_bank_resumes_bit_exactly(tmp_path):
    names = ["us", "t2.space", "generator", "images.us"]  # any names
    bank = ImageBank(names, size=3, seed=1)
    x = {m: torch.randn(5, 2) for m in names[:3]}
    observed = torch.tensor([[True, b % 2 == 0, True, False] for b in range(5)])
    bank.push(x, observed)
    bank.draw("us", 7)
    assert all(isinstance(value, torch.Tensor) for value in bank.state_dict().values())
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    twin = ImageBank(names, size=3, seed=99)
    twin.push({"us": torch.zeros(1, 2)}, torch.tensor([[True, False, False, False]]))
    twin.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    for _ in range(2):
        for m in names[:3]:
            assert torch.equal(bank.images[m], twin.images[m])
            assert torch.equal(bank.draw(m, 6), twin.draw(m, 6))
        for one in (bank, twin):
            one.push(x, observed)
    assert "images.us" not in twin.images


def test_bad_banks_are_named():
    with pytest.raises(ValueError, match=r"'size' should be at least 1, but is 0"):
        ImageBank(["us"], size=0)
    with pytest.raises(ValueError, match=r"'modalities' should be a list of distinct names"):
        ImageBank(["us", "us"])
    bank = ImageBank(["us", "t2"], size=2)
    with pytest.raises(ValueError, match=r"'modality' .* pushed, none so far, but is 'us'"):
        bank.draw("us", 1)
    with pytest.raises(ValueError, match=r"'modality' should hold modalities among us, t2"):
        bank.draw("ut", 1)
    with pytest.raises(ValueError, match=r"'x' .* \(2\) of 'us', .* but it is absent"):
        bank.push({"t2": torch.zeros(2, 3)}, seen(True, False))
    with pytest.raises(ValueError, match=r"'x' .* \(2\) of 'us', .* has shape \(3, 2, 2\)"):
        bank.push(images(1, 2, 3), seen(True, False))
    with pytest.raises(ValueError, match=r"'observed' .* shape \(B, 2\), .* \(3, 3\)"):
        bank.push(images(1, 2, 3), torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"'x' should hold modalities .* but holds 'ut'"):
        bank.push({"ut": torch.zeros(1)}, seen(True))
    bank.push(images(1), seen(True))
    with pytest.raises(ValueError, match=r"'us' as before, with shape \(2, 2\) .* has \(3,\)"):
        bank.push({"us": torch.zeros(1, 3)}, seen(True))
    with pytest.raises(ValueError, match=r"torch.float32, but has \(2, 2\) and torch.float64"):
        bank.push({"us": torch.zeros(1, 2, 2).double()}, seen(True))
    state = bank.state_dict()
    with pytest.raises(ValueError, match=r"'state' should hold 'generator', but holds images.us"):
        bank.load_state_dict({"images.us": state["images.us"]})
    with pytest.raises(ValueError, match=r"'state' should hold modalities among t1, but .* 'us'"):
        ImageBank(["t1"]).load_state_dict(state)
    state["images.us"] = torch.zeros(3, 2, 2)
    with pytest.raises(ValueError, match=r"'state' should hold 1 to 2 images .* 3 of 'us'"):
        bank.load_state_dict(state)


# terms of an output


def critics(names=NAMES):
    torch.manual_seed(4)
    return {m: MLP(SIZES[m], 2, hidden=[6]) for m in names}


def inferred(model, x, given):
    """The output without chance."""
    subsets = given.shape[:1] if given.dim() == 3 else ()
    return model(x, given, noise=noise_for(model, subsets=subsets))


def term_by_term(output, networks, x, judged, kind):
    """Both losses from one sample and modality at a time, in which everything was observed."""
    of_model, of_critics = (torch.zeros(judged.shape[:-1]) for _ in range(2))
    for index in judged.nonzero().tolist():
        *place, row, column = index
        m = NAMES[column]
        if m not in networks:
            continue
        fake = networks[m](output.likelihoods[m].mean[(*place, row)])
        real = networks[m](x[m][row])
        each = lambda scores, which: sum(by_hand(kind, s)[which] for s in scores.tolist()) / 2
        of_model[(*place, row)] += each(fake, 2) / 3
        of_critics[(*place, row)] += (each(real, 0) + each(fake, 1)) / 3
    return of_model, of_critics


@every_kind
@pytest.mark.parametrize("names", [NAMES, ["t2.space"]])
def test_terms_are_sums_over_what_is_judged(kind, names):
    model, x = make(hierarchical), batch(rows=torch.ones_like(OBSERVED))
    everything = torch.ones_like(OBSERVED)
    given, _ = subsets(everything)  # (7, 8, 3)
    networks = critics(names)
    for chosen in (given, given[2]):
        output = inferred(model, x, chosen)
        judged = judged_targets(chosen, everything)
        of_model = adversarial_loss(output, networks, judged, kind=kind)
        of_critics = discriminator_loss(
            output, ModalityDict(networks), x, everything, judged, kind=kind, gp_weight=0
        )
        expected = term_by_term(output, networks, x, judged, kind)
        assert of_model.shape == of_critics.shape == chosen.shape[:-1]
        torch.testing.assert_close(of_model, expected[0])
        torch.testing.assert_close(of_critics, expected[1])


def test_published_terms():
    """Partial passes are judged in every modality, critics see what was hidden but observed."""
    model, x = make(hierarchical), batch()
    given, _ = subsets(OBSERVED)
    output, networks = inferred(model, x, given), critics()
    partial = (given != OBSERVED).any(dim=-1, keepdim=True)
    judged = judged_targets(given, OBSERVED, "all") & partial
    found = adversarial_loss(output, networks, judged)
    for s, b in (given.any(-1) & partial[..., 0]).nonzero().tolist():
        scores = [networks[m](output.likelihoods[m].mean[s, b]) for m in NAMES]
        expected = sum((score - 1).square().mean() for score in scores) / 3
        torch.testing.assert_close(found[s, b], expected)
    assert (found[~partial[..., 0]] == 0).all()
    hidden = judged_targets(given, OBSERVED) & OBSERVED
    found = discriminator_loss(output, networks, x, OBSERVED, hidden)
    torch.testing.assert_close(found, term_by_term(output, networks, x, hidden, "lsgan")[1])


@every_kind
def test_the_two_sides_leave_each_other_alone(kind):
    model, x, networks = make(hierarchical), batch(), critics()
    output = model(x, OBSERVED)
    judged = judged_targets(OBSERVED, OBSERVED)
    adversarial_loss(output, networks, judged, kind=kind).sum().backward(retain_graph=True)
    assert all(p.grad is None for m in NAMES for p in networks[m].parameters())
    assert all(p.requires_grad for m in NAMES for p in networks[m].parameters())
    decoders = [p.grad for m in NAMES for p in model.decoders[m].network.parameters()]
    assert all(bool(grad.any()) for grad in decoders)

    model.zero_grad()
    loss = discriminator_loss(output, networks, x, OBSERVED, judged, kind=kind, r1_weight=1.0)
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
    judged = judged_targets(OBSERVED, OBSERVED)
    found = adversarial_loss(output, {"us": network}, judged)
    network.eval()
    expected = torch.zeros(8)
    places = judged[:, 0]
    scores = network(output.likelihoods["us"].mean[places]).flatten(1)
    expected[places] = (scores - 1).square().mean(dim=1) / 3
    assert places.any()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-2)  # one power iteration apart
    found.sum().backward()
    assert all(p.grad is None for p in network.parameters())


@every_kind
def test_rows_without_targets_contribute_nothing(kind):
    model, x, networks = make(hierarchical), batch(), critics()
    given, _ = subsets(OBSERVED)
    output = inferred(model, x, given)
    judged = judged_targets(given, OBSERVED, "unobserved")
    without = ~judged.any(dim=-1)
    assert without.any()
    assert not without.all()
    means = {m: p.mean.detach().requires_grad_() for m, p in output.likelihoods.items()}
    likelihoods = {m: Independent(Normal(mean, 1.0), 1) for m, mean in means.items()}
    shown = output._replace(likelihoods=likelihoods)
    found = adversarial_loss(shown, networks, judged, kind=kind)
    assert (found[without] == 0).all()
    assert (found[~without] != 0).all()
    found.sum().backward()
    for column, m in enumerate(NAMES):
        assert torch.equal(means[m].grad.any(dim=-1), judged[..., column])
    other = discriminator_loss(shown, networks, x, OBSERVED, judged, kind=kind)
    assert (other[without] == 0).all()

    nothing = torch.zeros_like(judged)
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
    model, x, networks = make(hierarchical), batch(), critics()
    noise = noise_for(model)
    judged = judged_targets(OBSERVED, OBSERVED, rule)
    seen_too = judged & OBSERVED
    for row in range(8):
        alone = model({m: v[[row]] for m, v in x.items()}, OBSERVED[[row]],
                      noise=[n[[row]] for n in noise])  # fmt: skip
        together = model(x, OBSERVED, noise=noise)
        torch.testing.assert_close(
            adversarial_loss(alone, networks, judged[[row]]),
            adversarial_loss(together, networks, judged)[[row]],
        )
        torch.testing.assert_close(
            discriminator_loss(
                alone, networks, {m: v[[row]] for m, v in x.items()}, OBSERVED[[row]],
                seen_too[[row]],
            ),
            discriminator_loss(together, networks, x, OBSERVED, seen_too)[[row]],
        )  # fmt: skip


def terms(filler, kind="lsgan", order=(0, 1, 2)):
    model, networks = make(hierarchical), critics()
    x, bank = batch(filler), ImageBank(NAMES, seed=3)
    bank.push(x, OBSERVED)
    given, _ = subsets(OBSERVED)
    output = inferred(model, x, given)
    judged = judged_targets(given, OBSERVED)
    found = []
    for memory in (bank, None):
        generator = torch.Generator().manual_seed(1)
        options = {"kind": kind, "bank": memory, "generator": generator, "r1_weight": 0.5}
        found.append(discriminator_loss(output, networks, x, OBSERVED, judged, **options))
    found.append(adversarial_loss(output, networks, judged, kind=kind))
    sum(loss.sum() for loss in found).backward()
    parameters = [*model.parameters(), *(p for m in NAMES for p in networks[m].parameters())]
    return [*found, *(p.grad for p in parameters)]


@pytest.mark.parametrize("filler", [7.0, math.nan, math.inf, -math.inf])
@every_kind
def test_missing_slots_are_never_read(filler, kind):
    for one, other in zip(terms(0.0, kind), terms(filler, kind), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
        assert one is None or one.isfinite().all()


def test_permuted_modalities_have_the_same_terms():
    model, x, networks = make(hierarchical), batch(), critics()
    output = model(x, OBSERVED)
    judged = judged_targets(OBSERVED, OBSERVED, "all")
    order = [2, 0, 1]
    names = [NAMES[column] for column in order]
    turned = output._replace(likelihoods={m: output.likelihoods[m] for m in names})
    torch.testing.assert_close(
        adversarial_loss(turned, networks, judged[:, order]),
        adversarial_loss(output, networks, judged),
    )
    seen_too = judged & OBSERVED
    torch.testing.assert_close(
        discriminator_loss(turned, networks, x, OBSERVED[:, order], seen_too[:, order]),
        discriminator_loss(output, networks, x, OBSERVED, seen_too),
    )


def test_packed_rows_are_rows():
    model, x, networks = make(hierarchical), batch(), critics()
    given, weight = subsets(OBSERVED)
    given, rows, _ = pack(given, weight)
    output = model(x, given, rows=rows, component=True)
    judged = judged_targets(given, OBSERVED[rows]) & OBSERVED[rows]
    own = {m: v[rows] for m, v in x.items()}
    found = discriminator_loss(output, networks, own, OBSERVED[rows], judged)
    assert found.shape == adversarial_loss(output, networks, judged).shape == rows.shape
    torch.testing.assert_close(found, term_by_term(output, networks, own, judged, "lsgan")[1])


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
    judged = judged_targets(lacking, lacking, "unobserved")
    for absent in (False, True):
        later = {m: v for m, v in batch(math.nan, lacking).items() if not (absent and m == "us")}
        output = model(later, lacking)
        recorder = Recorder()
        options = {"bank": bank, "kind": "hinge"}
        discriminator_loss(
            output, {"us": recorder}, later, lacking, judged, **options
        ).sum().backward()
        number = int(judged[:, 0].sum())
        real, fake = recorder.shown[0].chunk(2)
        assert len(real) == len(fake) == number > 0
        known = {tuple(image) for image in bank.images["us"].tolist()}
        assert {tuple(image) for image in real.tolist()} <= known
        assert torch.equal(fake, output.likelihoods["us"].mean[judged[:, 0]])
        assert recorder.weight.grad.abs().item() > 0

        # without a bank there is nothing to compare with
        recorder = Recorder()
        loss = discriminator_loss(output, {"us": recorder}, later, lacking, judged)
        assert torch.equal(loss, torch.zeros(8))
        assert recorder.shown == []
        empty = ImageBank(NAMES)
        loss = discriminator_loss(output, {"us": recorder}, later, lacking, judged, bank=empty)
        assert torch.equal(loss, torch.zeros(8))


def test_real_images_are_those_of_the_row_if_it_has_any():
    model, x = make(flat), batch(math.nan)
    x["us"] = torch.where(OBSERVED[:, :1], torch.arange(8.0)[:, None].expand(8, 5), math.nan)
    output = model(
        {m: v for m, v in x.items() if m != "us"}, OBSERVED & torch.tensor([False, True, True])
    )
    judged = torch.zeros_like(OBSERVED)
    judged[:, 0] = True
    bank = ImageBank(NAMES)
    bank.push({"us": torch.full((4, 5), 100.0)}, torch.tensor([[True, False, False]] * 4))
    for memory in (bank, None):
        recorder = Recorder()
        generator = torch.Generator().manual_seed(0)
        discriminator_loss(
            output, {"us": recorder}, x, OBSERVED, judged, bank=memory, generator=generator
        )
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
    judged = judged_targets(OBSERVED, OBSERVED, "all")
    recorder, valid = Recorder(), {"us": inside}
    adversarial_loss(output, {"us": recorder}, judged, valid=valid)
    of_us = judged[:, 0].nonzero()[:, 0]
    expected = torch.where(inside, output.likelihoods["us"].mean, 0)[of_us]
    assert torch.equal(recorder.shown.pop(), expected)
    seen_too = judged & OBSERVED
    discriminator_loss(output, {"us": recorder}, x, OBSERVED, seen_too, valid=valid)
    real, fake = recorder.shown.pop().chunk(2)
    assert torch.equal(real, fine["us"][seen_too[:, 0]])
    assert torch.equal(fake, torch.where(inside, output.likelihoods["us"].mean, 0)[seen_too[:, 0]])
    discriminator_loss(output, {"us": recorder}, x, OBSERVED, judged, valid={"us": inside[:1]} |
                       {"us": torch.zeros(5, dtype=torch.bool)})  # fmt: skip
    assert (recorder.shown.pop() == 0).all()
    with pytest.raises(ValueError, match=r"'us' holds NaN"):
        discriminator_loss(output, {"us": recorder}, x, OBSERVED, judged)


def test_penalties_are_added_with_their_weights():
    model, x, networks = make(flat), batch(), critics(["us"])
    output = model(x, OBSERVED & torch.tensor([False, True, True]))
    judged = torch.zeros_like(OBSERVED)
    judged[:, 0] = OBSERVED[:, 0]
    options = {"kind": "wgan_gp"}
    arguments = (output, networks, x, OBSERVED, judged)
    plain = discriminator_loss(*arguments, gp_weight=0, **options)
    real = x["us"][OBSERVED[:, 0]]
    fake = output.likelihoods["us"].mean[OBSERVED[:, 0]]
    drawn = lambda: torch.Generator().manual_seed(6)
    expected = torch.zeros(8)
    penalty = gradient_penalty(networks["us"], real, fake, generator=drawn())
    expected[OBSERVED[:, 0]] = (10 * penalty + 3 * r1_penalty(networks["us"], real)) / 3
    found = discriminator_loss(*arguments, r1_weight=3, generator=drawn(), **options)
    torch.testing.assert_close(found - plain, expected)
    assert (expected[OBSERVED[:, 0]] > 0).all()
    # other losses have no gradient penalty of their own
    found = discriminator_loss(*arguments, gp_weight=10, kind="hinge")
    torch.testing.assert_close(found, discriminator_loss(*arguments, gp_weight=0, kind="hinge"))


def test_terms_are_in_float64_and_without_gradients_on_request():
    model, x = make(flat).double(), {m: v.double() for m, v in batch().items()}
    networks = {m: network.double() for m, network in critics().items()}
    output, judged = model(x, OBSERVED), judged_targets(OBSERVED, OBSERVED)
    with torch.no_grad():
        found = [
            adversarial_loss(output, networks, judged),
            discriminator_loss(output, networks, x, OBSERVED, judged, kind="wgan_gp"),
            adversarial_loss(output, networks, torch.zeros_like(judged)),
        ]
    assert all(loss.dtype == torch.float64 and not loss.requires_grad for loss in found)


def test_empty_batches_have_terms():
    model = make(flat)
    x = {m: v[:0] for m, v in batch().items()}
    output, nothing = model(x, OBSERVED[:0]), OBSERVED[:0]
    assert adversarial_loss(output, critics(), nothing).shape == (0,)
    assert discriminator_loss(output, critics(), x, nothing, nothing).shape == (0,)


def test_bad_terms_are_named():
    model, x, networks = make(flat), batch(), critics()
    output, judged = model(x, OBSERVED), judged_targets(OBSERVED, OBSERVED)
    with pytest.raises(ValueError, match=r"'kind' should be one of lsgan, hinge, .* but is 'gan'"):
        adversarial_loss(output, networks, judged, kind="gan")
    with pytest.raises(ValueError, match=r"'discriminators' .* 'uss' \(did you mean 'us'\?\)"):
        adversarial_loss(output, {"uss": networks["us"]}, judged)
    with pytest.raises(ValueError, match=r"'judged' .* output, \(8, 3\), .* shape \(1, 8, 3\)"):
        adversarial_loss(output, networks, judged[None])
    with pytest.raises(ValueError, match=r"'judged' should be boolean .* dtype torch.float32"):
        adversarial_loss(output, networks, judged.float())
    inside = {"us": torch.ones(8, 4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"'valid' should broad.* 'us', \(8, 5\), .* \(8, 4\)"):
        adversarial_loss(output, networks, judged, valid=inside)
    with pytest.raises(ValueError, match=r"of 'us' should return .* \(3, \*\) .* returns \(15,\)"):
        adversarial_loss(output, {"us": nn.Flatten(0)}, judged)
    several = nn.LSTM(5, 5)  # returns more than scores
    with pytest.raises(ValueError, match=r"of 'us' should return .* \(6, \*\) .* returns tuple"):
        discriminator_loss(output, {"us": several}, x, OBSERVED, judged)

    without = {m: v for m, v in x.items() if m != "us"}
    arguments = (output, networks)
    with pytest.raises(ValueError, match=r"'observed' .* of the output \(8\), .* shape \(7, 3\)"):
        discriminator_loss(*arguments, x, OBSERVED[:7], judged)
    with pytest.raises(ValueError, match=r"'x' should hold 'us', which 'observed' says"):
        discriminator_loss(*arguments, without, OBSERVED, judged)
    with pytest.raises(ValueError, match=r"decoded, \(8, 5\), but 'us' has shape \(8, 4\)"):
        discriminator_loss(*arguments, {**x, "us": x["us"][:, :4]}, OBSERVED, judged)
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[1, 3, 5, 7\]"):
        discriminator_loss(*arguments, {**x, "us": x["us"] * math.nan}, OBSERVED, judged)
    with pytest.raises(ValueError, match=r"'r1_weight' should be at least 0, but is -1"):
        discriminator_loss(*arguments, x, OBSERVED, judged, r1_weight=-1)


# schedules


def test_published_schedule():
    """In epochs, as in the published code."""
    for epoch, beta, weight, discriminator, bank, restart in [
        (0, 0.0, 0.0, False, False, False),
        (25, 5e-4, 0.0, False, False, False),
        (50, 1e-3, 0.0, False, False, False),
        (779, 1e-3, 0.0, False, False, False),
        (780, 1e-3, 0.0, False, False, True),
        (781, 1e-3, 0.0, False, False, False),
        (788, 1e-3, 0.0, False, False, False),
        (789, 1e-3, 0.0, False, True, False),
        (790, 1e-3, 0.0, True, True, False),
        (799, 1e-3, 0.0, True, True, False),
        (800, 1e-3, 0.025, True, True, False),
        (999, 1e-3, 0.025, True, True, False),
    ]:
        found = PUBLISHED(epoch)
        assert found == (pytest.approx(beta), weight, discriminator, bank, restart)


@hypothesis_given(
    st.integers(0, 60), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20),
    st.integers(0, 20), st.floats(0, 10), st.floats(0, 10),
)  # fmt: skip
def test_schedules_rise_and_stay(step, warmup, start, lead, ramp, beta, weight):
    schedule = Schedule(beta, warmup, weight, start + lead, ramp, start)
    found, following = schedule(step), schedule(step + 1)
    assert found.beta == pytest.approx(beta * min(1, step / warmup if warmup else 1))
    share = min(1, (step - start - lead) / ramp if ramp else 1)
    assert found.generator == pytest.approx(weight * share if step >= start + lead else 0)
    assert found.discriminator == found.bank == (step >= start)
    assert not found.restart
    for now, later in zip(found, following, strict=True):
        assert now <= later
    assert found.discriminator or found.generator == 0  # a critic that knows nothing has no say


def test_bad_schedules_are_named():
    with pytest.raises(ValueError, match=r"'warmup' should be at least 0, but is -1"):
        Schedule(warmup=-1)
    with pytest.raises(ValueError, match=r"'restart' should be at least 0, but is -2"):
        Schedule(restart=-2)
    with pytest.raises(ValueError, match=r"'weight' should be at least 0, but is nan"):
        Schedule(weight=math.nan)
    with pytest.raises(ValueError, match=r"'discriminator' .* no later .* but they are 5 and 4"):
        Schedule(generator=4, discriminator=5)
    with pytest.raises(ValueError, match=r"'step' and 'steps' should be at least 0, but are -1"):
        PUBLISHED(-1)
    with pytest.raises(AttributeError):
        PUBLISHED.beta = 1.0


def test_published_weights_belong_to_a_bound():
    """The published loss is a bound, up to a constant, as the documentation says."""
    torch.manual_seed(0)
    decoder = lambda: nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4)))
    model = mmpoe.MVAE(
        {m: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)) for m in ("us", "t2")},
        {m: likelihoods.Laplace(decoder(), scale=0.002) for m in ("us", "t2")},
    ).double()
    x = {m: torch.randn(5, 1, 4, 4, dtype=torch.float64) for m in model.modalities}
    observed = torch.ones(5, 2, dtype=torch.bool)
    output = model(x, ["us"])
    for epoch in (0, 20, 300):
        weights = PUBLISHED(epoch)
        bound = mmpoe.elbo(output, x, observed, weights.beta / PUBLISHED.beta)
        found = -PUBLISHED.beta * bound / (16 * 2)
        errors = [(x[m] - output.likelihoods[m].mean).abs().mean(dim=(1, 2, 3)) for m in x]
        published = sum(errors) / 2 / 2 + weights.beta * output.kl[0] / (16 * 2)
        constant = PUBLISHED.beta * math.log(2 * 0.002)
        torch.testing.assert_close(found, published + constant)


class Training:
    """All that a run of training has a state of."""

    def __init__(self):
        self.model, self.networks = make(flat), ModalityDict(critics())
        self.bank = ImageBank(NAMES, size=4)
        self.optimizers = [torch.optim.Adam(of.parameters()) for of in (self.model, self.networks)]

    def parts(self):
        return [self.model, self.networks, self.bank, *self.optimizers]

    def run(self, steps):
        for step in steps:
            observed = OBSERVED & (torch.arange(3) != step % 3)
            x = batch(math.nan, observed, seed=step)
            self.bank.push(x, observed)
            output, judged = self.model(x, observed), judged_targets(observed, observed)
            loss = adversarial_loss(output, self.networks, judged)
            loss = loss - mmpoe.elbo(output, x, observed)
            critics_loss = discriminator_loss(
                output, self.networks, x, observed, judged, kind="wgan_gp", bank=self.bank
            )
            for of, optimizer in zip((loss, critics_loss), self.optimizers, strict=True):
                optimizer.zero_grad()
                of.mean().backward()
                optimizer.step()


def test_training_resumes_bit_exactly(tmp_path):
    whole = Training()
    torch.manual_seed(0)
    whole.run(range(4))
    states = [part.state_dict() for part in whole.parts()]
    torch.save([states, torch.get_rng_state()], tmp_path / "state.pt")
    whole.run(range(4, 8))

    resumed = Training()
    states, rng_state = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, state in zip(resumed.parts(), states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(rng_state)
    resumed.run(range(4, 8))
    for part, other in zip(whole.parts()[:3], resumed.parts()[:3], strict=True):
        for name, value in part.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_documentation_runs():
    page = Path(__file__).parents[1] / "docs" / "api" / "adversarial.md"
    names = {"epoch": 900, "pixels": 32**2}
    torch.manual_seed(0)
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(code, page, "exec"), names)
    assert names["loss"].shape == (4,)
    assert names["loss"].isfinite().all()
    assert names["of_model"].shape == names["of_critics"].shape == (4, 2)


# what it is for


def distance_to_modes(weight, seed):
    """Trains to show a point that is (1, 1) or (-1, -1), given noise. Every other batch lacks it.

    Returns the median distance of what is shown to the closer of the two.
    """
    torch.manual_seed(seed)
    model = mmpoe.MVAE(
        {"noise": MLP(1, 4, hidden=[16]), "point": MLP(2, 4, hidden=[16])},
        {"noise": likelihoods.Normal(MLP(2, 1, hidden=[16])),
         "point": likelihoods.Normal(MLP(2, 2, hidden=[32, 32]))},
    )  # fmt: skip
    networks, bank = {"point": MLP(2, 1, hidden=[32, 32])}, ImageBank(model.modalities)
    options = {"lr": 3e-3, "betas": (0.5, 0.9)}
    optimizer = torch.optim.Adam(model.parameters(), **options)
    critic_optimizer = torch.optim.Adam(networks["point"].parameters(), **options)
    for step in range(300):
        lacking = step % 2 == 1
        x = {
            "noise": torch.randn(32, 1),
            "point": torch.randint(2, (32, 1)).expand(32, 2) * 2.0 - 1,
        }
        x["point"] = torch.full((32, 2), math.nan) if lacking else x["point"]
        observed = torch.tensor([True, not lacking]).expand(32, 2)
        bank.push(x, observed)
        given = observed & torch.tensor([True, False])
        output, judged = model(x, given), judged_targets(given, observed)

        loss = weight * adversarial_loss(output, networks, judged) - mmpoe.elbo(
            output, x, observed
        )
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()

        if weight == 0:
            continue
        loss = discriminator_loss(output, networks, x, observed, judged, bank=bank, r1_weight=0.1)
        critic_optimizer.zero_grad()
        loss.mean().backward()
        critic_optimizer.step()
    shown = model.predict({"noise": torch.randn(500, 1)}, targets=["point"])["point"].mean
    return (shown.abs() - 1).norm(dim=1).median().item()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_shown_moves_from_the_mean_to_the_modes(seed):
    assert distance_to_modes(0.0, seed) > 1.25  # the mean of both is at 1.41
    assert distance_to_modes(30.0, seed) < 0.6
