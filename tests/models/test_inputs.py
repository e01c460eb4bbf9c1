"""What goes into a model or an objective and cannot be used is named."""

import math

import pytest
import torch
from example_models import (
    NAMES,
    OBSERVED,
    batch,
    flat,
    make,
)
from torch import nn

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Normal
from mmpoe.objectives import mixture_elbo, mmhvae
from mmpoe.posteriors import PoE


@pytest.mark.fault(49)
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


def test_names_on_an_incomplete_batch_are_an_error_not_a_wrong_answer():
    x, observed = mmpoe.missing.collate(
        [{"us": torch.ones(5)}, {"t2.space": torch.ones(4)}], NAMES
    )
    model = make(flat)
    assert model(x, observed).z[0].isfinite().all()
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[1\]"):
        model.predict(x, ["us"])


@pytest.mark.fault(51)
def test_nan_where_it_is_given_is_an_error():
    model = make(flat)
    x = batch(math.nan)
    with pytest.raises(ValueError, match=r"'x' should be finite .* 'us' .* rows \[0, 2, 4, 6\]"):
        model(x)
    model.validate = False
    assert model(x).z[0].isnan().any()


@pytest.mark.fault(51)
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
        mmhvae(model, x, OBSERVED, special="flair")
    with pytest.raises(ValueError, match=r"'weight' should broadcast .* \(8, 3\), but has shape"):
        mmpoe.elbo(output, x, OBSERVED, weight=torch.ones(8))
    with pytest.raises(ValueError, match=r"'weight' should be finite and at least 0, but .* -1"):
        mixture_elbo(model, x, OBSERVED, weight=torch.tensor([1.0, -1.0, 1.0]))


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


def test_names_must_be_in_the_batch():
    model = make(flat)
    with pytest.raises(ValueError, match=r"'x' holds \(us\), but names type"):
        model.predict({"us": batch()["us"]}, ["type"])


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


def test_entries_that_an_encoder_rejects_are_named():
    x = batch()
    x["type"] = x["type"][:, :2]
    wanted = r"that of 'type', given entries of shape \(4, 2\) .* \(4x2 and 3x16\)"
    with pytest.raises(ValueError, match=wanted) as caught:
        make(flat)(x, OBSERVED)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_other_errors_of_an_encoder_are_its_own():
    model = make(flat)
    model.encoders["us"].forward = lambda x: torch.empty(0).no_such_method
    with pytest.raises(AttributeError, match="no_such_method"):
        model(batch(), OBSERVED)
