"""Schedules, free bits and balance."""

import pytest
import torch
from example_models import OBSERVED, batch, hierarchical, make
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from mmpoe.missing import subsets
from mmpoe.objectives import (
    balanced,
    collapsed,
    elbo,
    free_bits,
    group_kl,
    mixture_elbo,
    warmup,
)


@hypothesis_given(st.integers(0, 50), st.integers(0, 20), st.floats(0, 1))
def test_warmup_is_linear_between_its_ends(step, steps, start):
    found = warmup(step, steps, start=start)
    assert warmup(0, steps, start=start) == pytest.approx(1.0 if steps == 0 else start)
    assert found == pytest.approx(1.0 if step >= steps else start + (1 - start) * step / steps)


def test_bad_schedules_are_named():
    with pytest.raises(ValueError, match=r"'step' and 'steps' should be at least 0, .* -1 and 5"):
        warmup(-1, 5)


def divergences():
    torch.manual_seed(0)
    return torch.rand(3, 2, 5, dtype=torch.float64) * torch.tensor([[[0.1]], [[1.0]], [[9.0]]])


def test_free_bits_are_the_larger_of_floor_and_mean():
    kl = divergences().requires_grad_()
    kept = kl.detach().clone()
    floor = [0.06, 0.5, 1.0]
    found = free_bits(kl, floor)
    expected = torch.maximum(kl.mean(dim=-1), torch.tensor(floor, dtype=kl.dtype)[:, None])
    torch.testing.assert_close(found.mean(dim=-1), expected)
    (gradient,) = torch.autograd.grad(found.sum(), kl)
    above = kl.mean(dim=-1, keepdim=True) > torch.tensor(floor)[:, None, None]
    assert torch.equal(gradient, above.expand_as(kl).to(kl.dtype))  # of each group and subset
    assert 0 < above.sum() < above.numel()
    assert torch.equal(kl, kept)
    assert torch.equal(free_bits(kl, 0.0), kl)


def test_balance_charges_groups_by_what_they_hold():
    kl = divergences().requires_grad_()
    found = balanced(kl)
    content = kl.detach().mean(dim=(1, 2))
    factor = content / content.mean()
    assert factor.mean().item() == pytest.approx(1)
    torch.testing.assert_close(found, factor[:, None, None] * kl)
    (gradient,) = torch.autograd.grad(found.sum(), kl)  # factors are constants
    torch.testing.assert_close(gradient, factor[:, None, None].expand_as(kl))
    equal = torch.ones(3, 5)
    assert torch.equal(balanced(equal), equal)
    assert torch.equal(balanced(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_bad_floors_are_named():
    kl = divergences()
    with pytest.raises(
        ValueError, match=r"'floor' should be .* each group \(3\), .* \[0.1, 0.2\]"
    ):
        free_bits(kl, [0.1, 0.2])
    with pytest.raises(ValueError, match=r"'floor' should be at least 0, but is -1"):
        free_bits(kl, -1.0)


def test_costs_are_betas_of_objectives():
    model, x = make(hierarchical), batch()
    output = model(x, OBSERVED)
    floors, likelihood = [100.0, 0.0], elbo(output, x, OBSERVED, 0.0)
    found = elbo(output, x, OBSERVED, lambda kl: free_bits(kl, floors))
    torch.testing.assert_close(found, likelihood - 100 - output.kl[1])

    several = model(x, subsets(OBSERVED)[0])
    kl = torch.stack(several.kl)  # (L, S, B)
    found = elbo(several, x, OBSERVED, lambda kl: 0.5 * balanced(kl))
    torch.testing.assert_close(found, elbo(several, x, OBSERVED, 0.0) - 0.5 * balanced(kl).sum(0))

    shapes = []
    mixture_elbo(model, x, OBSERVED, lambda kl: shapes.append(kl.shape) or balanced(kl))
    assert shapes == [(2, 19)]  # of all pairs together


def test_groups_that_hold_nothing_are_reported():
    model, x = make(hierarchical), batch()
    output = model(x, OBSERVED)
    assert torch.equal(group_kl(output), torch.stack([kl.mean() for kl in output.kl]))
    assert not group_kl(output).requires_grad
    silent = output._replace(kl=[output.kl[0] * 0 + 0.031, output.kl[1] * 0 + 0.019])
    assert collapsed(silent).tolist() == [False, True]  # of 3 and 2 dimensions, 0.01 nats each
