"""Losses by hand, and slopes in closed form."""

import math

import pytest
import torch
from adversaries import by_hand, every_kind, losses
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from torch import nn

from mmpoe.adversarial import gradient_penalty, r1_penalty
from mmpoe.nn import MLP, PatchDiscriminator


@every_kind
def test_losses_by_hand(kind):
    scores = [-2.5, -1.0, -0.3, 0.0, 0.5, 1.0, 1.7]
    expected = torch.tensor([by_hand(kind, s) for s in scores], dtype=torch.float64)  # (N, 3)
    x = torch.tensor(scores, dtype=torch.float64)
    torch.testing.assert_close(torch.stack(losses(kind, x, x), 1), expected)

    patches = torch.stack([x, x.flip(0)]).reshape(2, 1, 7)  # averaged in a sample, not over them
    real, fake, _ = losses(kind, patches, patches[:1])
    torch.testing.assert_close(real, expected[:, 0].mean().expand(2))
    torch.testing.assert_close(fake, expected[:, 1].mean().expand(1))
    *_, of_model = losses(kind, patches, patches)
    torch.testing.assert_close(of_model, expected[:, 2].mean().expand(2))
    for none in (x[:0], torch.zeros(0, 1, 3, 3)):
        assert all(loss.shape == (0,) for loss in losses(kind, none, none))


@every_kind
def test_signs(kind):
    """Reals are pushed up and fakes down by a discriminator, and fakes up by a model."""
    x = torch.full((3,), 0.25, requires_grad=True)
    for loss, sign in zip(losses(kind, x, x), (-1, 1, -1), strict=True):
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
    real, fake, of_model = losses(kind, x, x)
    loss = real + fake
    assert loss.item() == pytest.approx(both)
    assert of_model.item() == pytest.approx(model)
    (slope,) = torch.autograd.grad(loss, x)
    assert slope.item() == pytest.approx(0)
    others = x.detach() + torch.linspace(-3, 3, 25, dtype=torch.float64)
    assert (sum(losses(kind, others, others)[:2]) >= both - 1e-12).all()


@every_kind
def test_large_scores_are_finite(kind):
    x = torch.tensor([-1e9, -1e4, 1e4, 1e9], requires_grad=True)
    parts = torch.stack(losses(kind, x, x))
    (slope,) = torch.autograd.grad(parts.sum(), x)
    assert parts.isfinite().all()
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0


# penalties


def linear(weight):
    return lambda x: x.flatten(1) @ weight.flatten()


@hypothesis_given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 1000))
def test_penalties_of_linear_discriminators(rows, features, seed):
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


def test_penalties_of_quadratic_discriminators():
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
    discriminator = PatchDiscriminator(1, 9, 3).double().eval()
    real, fake = torch.randn(2, 2, 1, 9, 9, dtype=torch.float64)
    step = 1e-5
    slope = torch.zeros(2, 81, dtype=torch.float64)
    for pixel in range(81):
        shift = torch.zeros(81, dtype=torch.float64).index_fill(0, torch.tensor(pixel), step)
        up, down = (
            discriminator(real + shift.reshape(9, 9)),
            discriminator(real - shift.reshape(9, 9)),
        )
        slope[:, pixel] = (up - down).mean(dim=(1, 2, 3)) / (2 * step)
    torch.testing.assert_close(r1_penalty(discriminator, real), slope.square().sum(dim=1) / 2)
    found = gradient_penalty(discriminator, real, real)
    torch.testing.assert_close(found, (slope.norm(dim=1) - 1).square())

    # and so do their gradients
    smooth = nn.Sequential(nn.Flatten(), MLP(81, 1, hidden=[6])).double()
    parameter = smooth[1].get_parameter("0.bias")

    def penalties(bias):
        state = {**dict(smooth.named_parameters()), "1.0.bias": bias}
        discriminator = lambda x: torch.func.functional_call(smooth, state, (x,))
        of_slope = gradient_penalty(
            discriminator, real, fake, generator=torch.Generator().manual_seed(0)
        )
        return of_slope, r1_penalty(discriminator, real)

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
