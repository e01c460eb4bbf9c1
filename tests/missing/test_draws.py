"""Draws by weight: as often as the weights say, and never what has none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpoe.missing._draws import draw_at, draw_systematically

WEIGHTS = st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(weight=WEIGHTS, point=st.floats(0, 1))
def test_a_point_falls_where_the_cumulative_weight_passes_it(dtype, weight, point):
    index = draw_at(torch.tensor(weight).to(dtype), torch.tensor([point]).to(dtype)).item()
    assert weight[index] > 0
    total, below = sum(weight), sum(weight[:index])
    assert below / total - 1e-6 <= point <= (below + weight[index]) / total + 1e-6


@given(weight=WEIGHTS, samples=st.integers(1, 20), offset=st.floats(0, 1, exclude_max=True))
def test_even_steps_draw_each_index_as_often_as_it_weighs(weight, samples, offset):
    weight = torch.tensor(weight).double()
    drawn = draw_systematically(weight, torch.tensor(offset).double(), samples)
    assert drawn.shape == (samples,)
    counts = drawn.bincount(minlength=len(weight))
    assert ((counts - samples * weight / weight.sum()).abs() < 1 + 1e-6).all()
    assert not counts[weight == 0].any()


def test_columns_are_drawn_apart():
    weight = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 1.0]])  # (G, B)
    drawn = draw_systematically(weight, torch.tensor([0.9, 0.1, 0.5]), samples=4)
    assert drawn.t().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]
    assert draw_at(weight, torch.tensor([[0.0, 1.0, 0.75]])).tolist() == [[0, 1, 1]]
