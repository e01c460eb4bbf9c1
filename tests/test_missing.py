"""Collation, masks and subsets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpoe.missing import as_mask, collate, fill, random_subsets, subsets

PATTERNS = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6)


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


def mixture(observed, family, **options):
    """For each row, the weight of each distinct subset, as the two tensors say it."""
    given_, weight = subsets(torch.tensor(observed), family, **options)
    rows = []
    for b in range(len(observed)):
        weights = {}
        for s in range(len(given_)):
            if weight[s, b] > 0:
                key = tuple(given_[s, b].tolist())
                assert key not in weights  # coinciding subsets were merged
                weights[key] = weight[s, b].item()
        rows.append(weights)
    return rows


@pytest.mark.parametrize("family", ["full", "singletons", "powerset", "groups"])
@given(patterns=PATTERNS)
def test_weights_form_a_mixture_over_what_was_observed(family, patterns):
    for row, weights in zip(patterns, mixture(patterns, family), strict=True):
        assert sum(weights.values()) == pytest.approx(1.0 if any(row) else 0.0)
        for subset in weights:
            assert any(subset)
            assert all(r or not s for s, r in zip(subset, row, strict=True))
        if family == "powerset" and any(row):
            assert len(weights) == 2 ** sum(row) - 1
            assert max(weights.values()) == pytest.approx(min(weights.values()))


def test_published_groups():
    full, only_us, no_us, us_t2 = mixture(
        [
            [True] * 4,
            [True, False, False, False],
            [False, True, True, False],
            [True, True, False, False],
        ],
        "groups",
    )
    assert full[True, True, True, True] == pytest.approx(1 / 3)
    assert full[True, False, False, False] == pytest.approx(1 / 3)
    assert full[False, True, False, True] == pytest.approx(1 / 3 / 7)
    assert len(full) == 1 + 1 + 7
    assert only_us == {(True, False, False, False): pytest.approx(1.0)}  # both groups merge
    assert no_us[False, True, True, False] == pytest.approx(1 / 2 + 1 / 2 / 3)  # {us} is empty
    assert no_us[False, True, False, False] == pytest.approx(1 / 2 / 3)
    assert us_t2 == {
        (True, True, False, False): pytest.approx(1 / 3),
        (True, False, False, False): pytest.approx(1 / 3),
        (False, True, False, False): pytest.approx(1 / 3),
    }


def test_special_modality_is_any_column():
    first, last = mixture([[True] * 3], "groups"), mixture([[True] * 3], "groups", special=2)
    flipped = {key[::-1]: value for key, value in first[0].items()}
    assert flipped == pytest.approx(last[0])


def test_subsets_name_what_is_wrong():
    observed = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"'family' should be one of .* but is 'all'"):
        subsets(observed, "all")
    with pytest.raises(ValueError, match="'special' should be a column of 'observed', 0 to 2"):
        subsets(observed, "groups", special=3)
    with pytest.raises(ValueError, match="'observed' should be boolean"):
        subsets(observed.float())
    with pytest.raises(ValueError, match="'observed' should have at most 12 columns"):
        subsets(torch.ones(1, 13, dtype=torch.bool))


@pytest.mark.parametrize("proper", [False, True])
def test_random_subsets_are_uniform(proper):
    generator = torch.Generator().manual_seed(0)
    observed = torch.tensor([[True, False, True, True], [True, False, False, False], [False] * 4])
    given_ = random_subsets(observed, samples=14_000, proper=proper, generator=generator)
    assert given_.shape == (14_000, 3, 4)
    assert not (given_ & ~observed).any()
    codes = (given_[:, 0].int() * torch.tensor([1, 0, 2, 4])).sum(dim=1)
    counts = torch.bincount(codes, minlength=8)
    expected = 14_000 / (6 if proper else 7)
    possible = counts[1:-1] if proper else counts[1:]
    assert counts[0] == 0
    assert ((possible - expected).abs() < 5 * expected**0.5).all()
    if proper:
        assert counts[-1] == 0
    assert given_[:, 1, 0].all()  # the only non-empty subset, proper or not
    assert not given_[:, 2].any()


def test_random_subsets_name_what_is_wrong():
    with pytest.raises(ValueError, match="'observed' should have one column per modality"):
        random_subsets(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at most 62 columns"):
        random_subsets(torch.ones(1, 63, dtype=torch.bool))
    with pytest.raises(ValueError, match="'samples' should be at least 1"):
        random_subsets(torch.ones(1, 2, dtype=torch.bool), samples=0)
    with pytest.raises(ValueError, match="'observed' should be boolean, but is list"):
        subsets([[True]])


def test_random_subsets_of_many_modalities():
    observed = torch.ones(1, 62, dtype=torch.bool)
    share = random_subsets(observed, samples=2000).float().mean(dim=(0, 1))
    assert ((share - 0.5).abs() < 0.1).all()


def test_fill_selects():
    x = torch.tensor([[1.0, 2.0], [float("nan"), 3.0]])
    assert fill(x, torch.tensor([True, False])).tolist() == [[1, 2], [0, 0]]
