"""Errors that name the modality, and say what its networks should take or return."""

import pytest
import torch
from torch import Tensor, nn

import mmpoe
from mmpoe.likelihoods import Categorical, Normal

X = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
OBSERVED = torch.ones(4, 2, dtype=torch.bool)


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


def model(encoder=None, decoder=None, **options):
    """A model whose modality "a" has other networks."""
    encoder = nn.Linear(3, 4) if encoder is None else encoder
    decoder = nn.Linear(2, 3) if decoder is None else decoder
    return mmpoe.MVAE(
        {"a": encoder, "b": nn.Linear(2, 4)},
        {"a": Normal(decoder), "b": Normal(nn.Linear(2, 2))},
        **options,
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"z": torch.zeros(4, 4)}, r"encoder of 'a' should return a tensor, .* returns a dict"),
        ((torch.zeros(4, 4), None), r"encoder of 'a' .* returns a tuple of NoneType"),
        (torch.zeros(4, 3), r"encoder of 'a' should return a mean and a log standard deviation"),
    ],
)
def test_what_an_encoder_returns(value, message):
    with pytest.raises(ValueError, match=message):
        model(Returns(value))(X)


def test_a_decoder_of_another_width():
    with pytest.raises(ValueError, match=r"decoder of 'a' should take states of shape \(N, 2\)"):
        model(decoder=nn.Linear(5, 3))(X)


def test_a_decoder_that_returns_too_few_numbers():
    vae = model()
    vae.decoders["a"] = Categorical(nn.Linear(2, 4), classes=3)
    with pytest.raises(ValueError, match=r"decoder of 'a' fails: The network of Categorical"):
        vae(X)


def test_encoders_that_forget_the_deviation():
    vae = mmpoe.MVAE({"a": nn.Linear(3, 2)}, {"a": Normal(nn.Linear(2, 3))})
    with pytest.raises(ValueError, match=r"shape \(N, 1\).* half as many numbers as its experts"):
        vae({"a": X["a"]})


def test_batch_normalisation_of_a_single_row():
    vae = model(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    given = OBSERVED.clone()
    given[1:, 0] = False
    with pytest.raises(ValueError, match=r"that of 'a', .* Batch normalisation needs two rows"):
        vae(X, given)
    vae.eval()(X, given)


def test_lazy_encoders_learn_their_width():
    vae = model(nn.LazyLinear(4), nn.LazyLinear(3))
    assert vae(X).likelihoods["a"].mean.shape == (4, 3)
    assert vae.encoders["a"].in_features == 3


def nested(x):
    """Made in the test: PyTorch imports its compiler for it, which changes global settings."""
    return torch.nested.nested_tensor(list(x), layout=torch.jagged)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (Tensor.to_sparse, "dense tensors, but 'a' is of layout torch.sparse_coo"),
        (nested, "'a' is nested"),
        (lambda x: x.to("meta"), "device of the model, cpu, but 'a' is on meta"),
    ],
)
def test_tensors_that_no_encoder_takes(convert, message):
    with pytest.raises(ValueError, match=message):
        model()({"b": X["b"], "a": convert(X["a"])}, OBSERVED)


def test_a_model_without_numbers():
    with pytest.raises(ValueError, match="device of the model, meta, but 'a' is on cpu"):
        model().to("meta")(X)
    with pytest.raises(ValueError, match="'x' should hold numbers, but is on the device 'meta'"):
        model().to("meta")({m: v.to("meta") for m, v in X.items()})


def test_nothing_given_is_generated_from_the_prior():
    p = model(latent_dim=2).predict({}, torch.zeros(16, 2).bool())
    assert {m: q.mean.shape for m, q in p.items()} == {"a": (16, 3), "b": (16, 2)}


def test_a_bound_of_another_batch():
    output = model()(X)
    x = {m: v[:2] for m, v in X.items()}
    with pytest.raises(ValueError, match=r"one row per row of 'output' \(4\), but has shape \(2"):
        mmpoe.elbo(output, x, OBSERVED[:2])
