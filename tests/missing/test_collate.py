"""Collation, masks and what other libraries hold."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import mmpoe
from mmpoe.likelihoods import Normal
from mmpoe.missing import as_mask, collate, from_multivae, from_nan
from mmpoe.missing.masks import fill
from mmpoe.nn import MLP


def test_collate_keeps_what_is_there():
    samples = [
        {"image": np.ones((1, 2, 2), dtype=np.float32)},
        {"table": torch.ones(3), "image": None},
        {},
    ]
    x, observed = collate(samples, ["table", "image", "sound"])
    assert observed.tolist() == [[False, True, False], [True, False, False], [False] * 3]
    assert x["image"].shape == (3, 1, 2, 2)
    assert x["table"][1].tolist() == [1, 1, 1]
    assert x["table"][[0, 2]].isnan().all()
    assert "sound" not in x


def test_collate_orders_as_the_most_complete_sample():
    _, observed = collate([{"b": 1.0}, {"a": 2.0, "b": 3.0}, {"c": 4.0}])
    assert observed.tolist() == [[False, True, False], [True, True, False], [False, False, True]]


def test_collate_of_nothing():
    x, observed = collate([], ["a"])
    assert x == {}
    assert observed.shape == (0, 1)


def test_collate_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"'samples' .* among us, flair, .*'flare' .*'flair'\?"):
        collate([{"flare": torch.zeros(1)}], ["us", "flair"])
    with pytest.raises(ValueError, match=r"'us' has shapes \(1,\), \(2,\)"):
        collate([{"us": torch.zeros(1)}, {"us": torch.zeros(2)}])
    for wrong in ("us", ["us", "us"], []):
        with pytest.raises(ValueError, match="'modalities' should be a list of distinct names"):
            collate([{"us": torch.zeros(1)}], wrong)
    with pytest.raises(ValueError, match=r"'samples' should hold mappings .* but holds a Tensor"):
        collate([torch.zeros(1)])
    with pytest.raises(ValueError, match=r"tensors, arrays or numbers, but 'us' is 'file.png'"):
        collate([{"us": "file.png"}])


def test_collate_finds_one_dtype_for_all_entries():
    x, _ = collate([{"a": 1}, {}, {"a": 2.5}])
    assert x["a"].dtype == torch.float32
    assert x["a"][1].isnan()
    x, _ = collate([{"a": 1}, {}])
    assert x["a"].tolist() == [1, 0]


def test_as_mask():
    names = ["us", "t2", "cet1"]
    assert as_mask(["t2"], names).tolist() == [False, True, False]
    assert as_mask(["us"], names).tolist() == [True, False, False]
    assert as_mask(["t2"], names, 2).tolist() == [[False, True, False]] * 2
    mask = torch.ones(4, 2, 3, dtype=torch.bool)
    assert as_mask(mask, names, 2) is not None
    assert as_mask(np.array([True, False, True]), names, 1).tolist() == [[True, False, True]]
    with pytest.raises(ValueError, match="'given' should be boolean"):
        as_mask(torch.ones(2, 3), names)
    with pytest.raises(ValueError, match=r"one column per modality \(3\), .* \(2, 4\)"):
        as_mask(torch.ones(2, 4, dtype=torch.bool), names)
    with pytest.raises(ValueError, match=r"one row per sample \(5\), .* \(2, 3\)"):
        as_mask(torch.ones(2, 3, dtype=torch.bool), names, 5)
    with pytest.raises(ValueError, match="modalities among us, t2, cet1, but holds 'T2'"):
        as_mask(["T2"], names)
    with pytest.raises(ValueError, match="should be a list of names, but is the string 'us'"):
        as_mask("us", names)


def test_fill_selects():
    x = torch.tensor([[1.0, 2.0], [float("nan"), 3.0]])
    assert fill(x, torch.tensor([True, False])).tolist() == [[1, 2], [0, 0]]


class Items:
    """Like MultiVae's datasets: items that hold the data, the masks and the label of a sample."""

    def __init__(self, data, masks=None, labels=None):
        self.data, self.masks, self.labels = data, masks, labels

    def __len__(self):
        return len(next(iter(self.data.values())))

    def __getitem__(self, i):
        item = {"data": {m: v[i] for m, v in self.data.items()}}
        if self.masks is not None:
            item["masks"] = {m: v[i] for m, v in self.masks.items()}
        if self.labels is not None:
            item["labels"] = self.labels[i]
        return item


DATA = {"a": torch.arange(6.0).reshape(3, 2), "b": torch.arange(3.0), "c": torch.ones(3, 1)}
MASKS = {
    "a": torch.tensor([True, False, True]),
    "b": torch.tensor([False, False, True]),
    "c": torch.tensor([True, True, True]),
}
LABELS = torch.arange(3)


@pytest.mark.parametrize("kind", [Items, SimpleNamespace])
def test_multivae_masks_become_absent_entries(kind):
    samples = from_multivae(kind(data=DATA, masks=MASKS, labels=LABELS))
    assert [list(sample) for sample in samples] == [["a", "c"], ["c"], ["a", "b", "c"]]
    x, observed = collate(samples, ["a", "b", "c"])
    for column, m in enumerate("abc"):
        assert observed[:, column].equal(MASKS[m])
        assert x[m][MASKS[m]].equal(DATA[m][MASKS[m]])
        assert x[m][~MASKS[m]].isnan().all()  # the filler is gone


@pytest.mark.parametrize("kind", [Items, SimpleNamespace])
def test_multivae_data_without_masks_are_complete(kind):
    samples = from_multivae(kind(data=DATA, masks=None, labels=None), ["c", "a"])
    x, observed = collate(samples, ["c", "a"])
    assert observed.all()
    assert set(x) == {"a", "c"}
    assert x["a"].equal(DATA["a"])


def test_multivae_items_are_read_as_their_class_makes_them():
    class Doubled(Items):
        def __getitem__(self, i):
            item = super().__getitem__(i)
            item["data"]["a"] = 2 * item["data"]["a"]
            return SimpleNamespace(**item)

    assert from_multivae(Doubled(DATA, MASKS))[2]["a"].tolist() == [8, 10]


def test_multivae_samples_load_in_batches():
    loader = DataLoader(from_multivae(Items(DATA, MASKS)), batch_size=2, collate_fn=collate)
    assert [len(observed) for _, observed in loader] == [2, 1]


def test_multivae_datasets_of_the_library_itself():
    datasets = pytest.importorskip("multivae.data.datasets")
    incomplete = datasets.IncompleteDataset(data=DATA, masks=MASKS, labels=LABELS)
    theirs, ours = from_multivae(incomplete), from_multivae(Items(DATA, MASKS))
    assert [list(sample) for sample in theirs] == [list(sample) for sample in ours]
    assert all(
        one[m].equal(other[m]) for one, other in zip(theirs, ours, strict=True) for m in one
    )
    complete = from_multivae(datasets.MultimodalBaseDataset(data=DATA, labels=LABELS))
    assert [list(sample) for sample in complete] == [["a", "b", "c"]] * 3


def test_multivae_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"'dataset' should hold 'data', .* holds a list and"):
        from_multivae(SimpleNamespace(data=[1, 2]))
    with pytest.raises(ValueError, match=r"'dataset' should hold 'data', .* a NoneType and"):
        from_multivae([(1, 2)])
    with pytest.raises(ValueError, match=r"a mask for each modality, but has none for \['b'\]"):
        from_multivae(Items(DATA, {"a": MASKS["a"], "c": MASKS["c"]}))
    with pytest.raises(ValueError, match=r"'modalities' should hold .* a, b, c, but holds 'd'"):
        from_multivae(Items(DATA, MASKS), ["d"])
    with pytest.raises(ValueError, match=r"one truth value per sample, .* 'a' .* shape \(2,\)"):
        from_multivae(Items(DATA, {**MASKS, "a": torch.ones(3, 2, dtype=torch.bool)}))
    with pytest.raises(ValueError, match=r"one truth value per sample, .* dtype torch.float32"):
        from_multivae(Items(DATA, {**MASKS, "a": torch.ones(3)}))


def test_arrays_with_nan_say_what_is_missing():
    nan = np.nan
    arrays = {
        "whole": np.array([[1.0, 2.0], [nan, nan], [3.0, 4.0]], dtype=np.float32),
        "part": torch.tensor([[[nan], [1.0]], [[nan], [nan]], [[2.0], [3.0]]]),
        "number": [nan, 1.0, 2.0],
        "code": np.array([[0], [1], [2]]),
    }
    x, observed = from_nan(arrays)
    assert list(x) == list(arrays)
    assert observed.tolist() == [
        [True, True, False, True],
        [False, False, True, True],
        [True, True, True, True],
    ]
    assert list(x.valid) == ["part"]
    assert x.valid["part"].squeeze(2).tolist() == [[False, True], [False, False], [True, True]]
    assert x["whole"].dtype == torch.float32
    assert x["code"].dtype == torch.int64
    torch.testing.assert_close(x["number"], torch.tensor([nan, 1.0, 2.0]), equal_nan=True)


def test_a_model_scores_what_arrays_with_nan_hold():
    vae = mmpoe.MVAE({"a": MLP(3, 4)}, {"a": Normal(MLP(2, 3))}).eval()
    x, observed = from_nan({"a": [[1.0, torch.nan, 2.0], [torch.nan] * 3, [1.0, 2.0, 3.0]]})
    torch.manual_seed(0)
    bound = mmpoe.elbo(vae(x, observed), x, observed)
    assert bound.isfinite().all()
    assert bound[1] == 0
    zero = {"a": x["a"].nan_to_num(0)}
    torch.manual_seed(0)
    wanted = mmpoe.elbo(vae(zero, observed), zero, observed, valid=x.valid)
    torch.testing.assert_close(bound, wanted)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "'arrays' should map names of modalities to arrays, but is empty"),
        (np.ones((2, 1)), "'arrays' should map names .* but is a ndarray"),
        ({"a": np.ones((2, 1)), "b": np.ones((3, 1))}, r"one row for each sample.*\(3, 1\)"),
        ({"a": 1.0}, r"one row for each sample, but have shapes \{'a': \(\)\}"),
        ({1: np.ones((2, 1))}, "'modalities' should name modalities by strings"),
        ({"a": ["x", "y"]}, "'arrays' should hold tensors, arrays or numbers, but 'a'"),
    ],
)
def test_arrays_that_are_no_batch_are_told(arrays, message):
    with pytest.raises(ValueError, match=message):
        from_nan(arrays)
