"""Batches that carry covariates, element masks and names."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from mmpoe.missing import Batch, collate


def carrying():
    entries = {"a": torch.arange(6.0).reshape(3, 2), "b": torch.arange(3.0)}
    return Batch(
        entries,
        context={"site": torch.tensor([0, 1, 1])},
        valid={"a": torch.tensor([True, False])},
        ids=["x", "y", "z"],
    )


def same(x, y):
    assert x.keys() == y.keys()
    assert x.context.keys() == y.context.keys()
    assert x.valid.keys() == y.valid.keys()
    for one, other in ((x, y), (x.context, y.context), (x.valid, y.valid)):
        for name in one:
            assert torch.equal(one[name], other[name])
    assert x.ids == y.ids


def test_rows_are_taken_of_all_that_it_carries():
    taken = carrying().take(torch.tensor([2, 0]))
    same(
        taken,
        Batch(
            {"a": torch.tensor([[4.0, 5.0], [0.0, 1.0]]), "b": torch.tensor([2.0, 0.0])},
            context={"site": torch.tensor([1, 0])},
            valid={"a": torch.tensor([[True, False]] * 2)},
            ids=["z", "x"],
        ),
    )


@pytest.mark.parametrize(
    "rows", [torch.tensor([2, 0]), [2, 0], slice(1, 3), torch.tensor([False, True, True])]
)
def test_rows_are_positions_or_a_mask_or_a_slice(rows):
    taken, index = carrying().take(rows), torch.arange(3)[rows]
    assert torch.equal(taken["b"], index.to(torch.float32))
    assert taken.ids == ["xyz"[row] for row in index]
    assert torch.equal(taken.context["site"], carrying().context["site"][index])


def test_a_batch_of_a_batch_carries_what_it_does_not_replace():
    same(Batch(carrying()), carrying())
    context = {"age": torch.zeros(3)}
    other = Batch(carrying(), context=context)
    assert other.context.keys() == {"age"}
    assert other.ids == ["x", "y", "z"]
    assert other.valid.keys() == {"a"}
    assert Batch(carrying(), valid={}).context.keys() == {"site"}


def test_nothing_makes_another_mapping_of_it_in_silence():
    """Distributed training rebuilds dictionaries by their type, without other attributes."""
    from torch.distributed.utils import _to_kwargs

    ((x,),), _ = _to_kwargs(
        (carrying(),), {}, torch.device("cpu"), use_side_stream_for_tensor_copies=False
    )
    same(x, carrying())
    with pytest.raises(TypeError):
        carrying() | {"c": torch.zeros(3)}


@pytest.mark.parametrize(
    "do",
    [
        lambda x: x.copy(),
        copy.copy,
        copy.deepcopy,
        lambda x: pickle.loads(pickle.dumps(x)),
        lambda x: x.to("cpu"),
    ],
)
def test_copies_carry_the_same(do):
    same(do(carrying()), carrying())


def test_it_moves_to_a_device_as_a_whole():
    from lightning_fabric.utilities.apply_func import move_data_to_device

    x, observed = move_data_to_device((carrying(), torch.ones(3, 2)), torch.device("meta"))
    assert observed.device.type == "meta"
    held = [*x.values(), *x.context.values(), *x.valid.values()]
    assert {v.device.type for v in held} == {"meta"}
    assert x.ids == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": {"site": torch.zeros(2)}}, "one row per sample .3., but 'site' has shape"),
        ({"context": {"site": torch.tensor(1)}}, "'site' is a scalar"),
        ({"context": {"site": [0, 1, 2]}}, "'site' is a list"),
        ({"valid": {"a": torch.ones(3, 2)}}, "'valid' should be boolean, but 'a' has dtype"),
        ({"valid": {"a": torch.ones(3, 4).bool()}}, "broadcast to the shape of 'a', .3, 2."),
        ({"valid": {"a": [True]}}, "'valid' should be boolean, but 'a' has type"),
        ({"ids": ["x"]}, "one name per sample .3., but holds 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Batch({"a": torch.zeros(3, 2)}, **options)


def samples():
    return [
        {"a": [1.0, 2.0], "context": {"age": 40.0, "site": 1}, "id": "x"},
        {
            "a": [3.0, 4.0],
            "b": [5.0],
            "context": {"age": 50.0, "site": 0},
            "valid": {"a": [True, False]},
            "id": "y",
        },
    ]


def test_collate_carries_covariates_masks_and_names():
    x, observed = collate(samples(), ["a", "b"])
    assert observed.tolist() == [[True, False], [True, True]]
    assert x.context["age"].tolist() == [40.0, 50.0]
    assert x.context["site"].tolist() == [1, 0]
    assert x.valid["a"].tolist() == [[True, True], [True, False]]
    assert x.ids == ["x", "y"]
    assert x["b"][0].isnan().all()


def test_collate_of_plain_samples_makes_a_plain_dictionary():
    x, _ = collate([{"a": [1.0]}, {"a": [2.0]}])
    assert type(x) is dict


def test_a_modality_with_a_name_of_these_has_to_be_named():
    with pytest.raises(ValueError, match=r"mapping under 'valid', .* name the 'modalities'"):
        collate([{"valid": torch.ones(2)}])


def test_a_modality_may_have_any_name():
    x, _ = collate([{"context": [1.0], "id": [2.0]}], ["context", "id"])
    assert type(x) is dict
    assert list(x) == ["context", "id"]


def test_sequences_of_different_lengths_are_padded():
    x, observed = collate([{"s": torch.ones(2, n)} for n in (3, 1)] + [{}], ["s"], pad={"s": 4})
    assert x["s"].shape == (3, 2, 4)
    assert torch.equal(x["s"].isfinite(), x.valid["s"])
    assert x.valid["s"].sum(dim=(1, 2)).tolist() == [6, 2, 0]
    assert observed.tolist() == [[True], [True], [False]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": {"age": 1.0}}, "same covariates .age, site., but that in row 2 lacks site"),
        ({"id": None}, "should all hold an 'id', but that in row 2 does not"),
        ({"valid": {"c": [True]}}, "'valid' should hold modalities among a, b, but holds 'c'"),
        ({"valid": {"a": [True] * 3}}, "'valid' should broadcast to the shape of 'a'"),
        ({"label": 1.0}, "'samples' should hold modalities among a, b, but holds 'label'"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        collate([*samples(), samples()[0] | change], ["a", "b"])


def test_what_is_longer_than_its_padding_is_refused():
    with pytest.raises(ValueError, match=r"'pad' should be at least .* it is 2 .* shape \(3,\)"):
        collate([{"s": torch.ones(3)}], ["s"], pad={"s": 2})
    with pytest.raises(ValueError, match="differ in length, 'pad' them"):
        collate([{"s": torch.ones(3)}, {"s": torch.ones(2)}], ["s"])


def test_batches_come_back_from_workers():
    loader = DataLoader(samples(), 2, collate_fn=collate, num_workers=1)
    ((x, observed),) = loader
    expected, mask = collate(samples())
    assert torch.equal(observed, mask)
    torch.testing.assert_close(dict(x), dict(expected), equal_nan=True)
    assert torch.equal(x.context["age"], expected.context["age"])
    assert x.ids == expected.ids
