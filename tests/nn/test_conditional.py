"""Covariates reach a network beside its input."""

import pytest
import torch
from torch import nn

from mmpoe.nn import Conditional
from mmpoe.nn._asking import asks_for

CONTEXT = {
    "age": torch.tensor([1.0, 2.0, 3.0]),
    "doses": torch.tensor([[0, 1], [2, 3], [4, 5]]),
    "site": torch.tensor([2, 0, 1]),
    "map": torch.arange(24.0).reshape(3, 1, 2, 4),
}


def test_covariates_are_stacked_in_order():
    network = Conditional(nn.Identity(), {"site": 3, "age": None, "doses": None})
    x = torch.randn(3, 2, dtype=torch.float64)
    expected = [[0, 0, 1, 1, 0, 1], [1, 0, 0, 2, 2, 3], [0, 1, 0, 3, 4, 5]]
    stacked = network(x, CONTEXT)
    assert stacked.dtype == torch.float64
    assert torch.equal(stacked, torch.cat([x, torch.tensor(expected).double()], dim=1))
    column = {**CONTEXT, "site": CONTEXT["site"][:, None].double()}
    assert torch.equal(network(x, column), stacked)


def test_covariates_of_images_are_the_same_everywhere():
    network = Conditional(nn.Identity(), ["age", "doses", "map"])
    x = torch.randn(3, 1, 2, 4)
    stacked = network(x, CONTEXT)
    assert torch.equal(stacked[:, :1], x)
    assert torch.equal(stacked[:, 1], CONTEXT["age"][:, None, None].expand(3, 2, 4))
    assert torch.equal(stacked[:, 2:4, 1, 3], CONTEXT["doses"].float())
    assert torch.equal(stacked[:, 4:], CONTEXT["map"])


def test_it_asks_and_passes_covariates_on():
    network = Conditional(Conditional(nn.Identity(), ["age"]), ["age"])
    assert asks_for(network, "context")
    assert network(torch.zeros(3, 1), CONTEXT).tolist() == [[0, 1, 1], [0, 2, 2], [0, 3, 3]]


def test_no_rows_and_compiled():
    network = Conditional(nn.Linear(3, 2), {"site": 2})
    assert network(torch.zeros(0, 1), {"site": torch.zeros(0).long()}).shape == (0, 2)
    x, context = torch.randn(3, 1), {"site": torch.tensor([0, 1, 1])}
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, context), network(x, context))


@pytest.mark.parametrize(
    ("covariates", "context", "message"),
    [
        (["sex"], CONTEXT, r"the covariate 'sex', but holds 'age', 'doses', 'site', 'map'"),
        (["sex"], None, r"the covariate 'sex', but holds nothing"),
        (["age"], {"age": torch.zeros(2)}, r"'age' with .* input of shape \(3, 2\), .* \(2,\)"),
        (["map"], CONTEXT, r"'map' with shape \(N\), \(N, D\) or .* is \(3, 1, 2, 4\)"),
        ({"doses": 6}, CONTEXT, r"'doses' with shape \(N\) or \(N, 1\) for .* is \(3, 2\)"),
        ({"site": 2}, CONTEXT, r"integers from 0 to 1 for 'site', but it holds 2"),
        ({"age": 4}, {"age": torch.tensor([0, 0.5, 1])}, r"integers .* 'age', but it holds 0.5"),
        (["age"], {"age": torch.tensor([0, 1, torch.nan])}, r"finite .* 'age', .* holds nan"),
    ],
)
def test_bad_covariates_are_named(covariates, context, message):
    with pytest.raises(ValueError, match=rf"'context' should hold {message}"):
        Conditional(nn.Identity(), covariates)(torch.zeros(3, 2), context)


def test_bad_arguments_are_named():
    for covariates in ([], {}, "age"):
        with pytest.raises(ValueError, match=r"'covariates' should be names of covariates"):
            Conditional(nn.Identity(), covariates)
    for number in (1, 2.5):
        with pytest.raises(ValueError, match=rf"'covariates' .* has {number} for 'site'"):
            Conditional(nn.Identity(), {"site": number})
