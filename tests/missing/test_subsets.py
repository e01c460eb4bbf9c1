"""Families of subsets, and the pairs that are left to compute."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpoe.missing import pack, subsets

PATTERNS = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6)


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


@pytest.mark.parametrize("family", ["full", "singletons", "powerset", "groups"])
@given(patterns=PATTERNS)
def test_no_subset_holds_what_was_not_observed_whatever_it_weighs(family, patterns):
    """Subsets that weigh nothing are computed too if shapes cannot depend on data."""
    observed = torch.tensor(patterns, dtype=torch.bool)
    members, _ = subsets(observed, family)
    assert not bool((members & ~observed).any())


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
    with pytest.raises(ValueError, match=r"at most 12 modalities in each row .* has 13"):
        subsets(torch.ones(1, 13, dtype=torch.bool))


def nonempty_subsets(row):
    seen = [m for m, r in enumerate(row) if r]
    for size in range(1, len(seen) + 1):
        for members in itertools.combinations(seen, size):
            yield tuple(m in members for m in range(len(row)))


@given(patterns=PATTERNS, special=st.integers(0, 3))
def test_groups_are_what_their_definition_says(patterns, special):
    for row, weights in zip(patterns, mixture(patterns, "groups", special=special), strict=True):
        groups = [
            [tuple(row)] if any(row) else [],
            [s for s in nonempty_subsets(row) if s[special] and sum(s) == 1],
            [s for s in nonempty_subsets(row) if not s[special]],
        ]
        usable = [group for group in groups if group]
        expected = {}
        for group in usable:
            for s in group:
                expected[s] = expected.get(s, 0) + 1 / len(usable) / len(group)
        assert weights == pytest.approx(expected)


@given(patterns=PATTERNS, family=PATTERNS)
def test_patterns_are_weighed_by_how_often_they_stand(patterns, family):
    inside = [
        [tuple(s) for s in family if any(s) and tuple(s) in set(nonempty_subsets(row))]
        for row in patterns
    ]
    if any(any(row) and not left for row, left in zip(patterns, inside, strict=True)):
        with pytest.raises(ValueError, match="'family' should leave a subset"):
            mixture(patterns, torch.tensor(family))
        return
    for left, weights in zip(inside, mixture(patterns, torch.tensor(family)), strict=True):
        assert weights == pytest.approx({s: left.count(s) / len(left) for s in left})


def test_patterns_can_be_any_family():
    patterns = [[True, True, False, True], [False, False, True, False], [False] * 4]
    every = torch.tensor(list(nonempty_subsets([True] * 4)))
    assert mixture(patterns, every) == mixture(patterns, "powerset")
    assert mixture(patterns, torch.eye(4).bool()) == mixture(patterns, "singletons")


def test_patterns_of_more_modalities_than_an_integer_has_bits():
    family = torch.eye(100).bool() | torch.eye(100).bool().roll(1, dims=1)
    observed = torch.ones(1, 100, dtype=torch.bool)
    observed[0, 50] = False
    given_, weight = subsets(observed, family)
    assert (weight > 0).sum() == 98
    assert not (given_ & ~observed).any()
    packed, rows, merged = pack(torch.cat([given_, given_]), torch.cat([weight, weight]) / 2)
    assert len(packed) == len(packed.unique(dim=0)) == len(rows) == 98
    assert merged.tolist() == pytest.approx([1 / 98] * 98)


def test_families_name_what_is_wrong():
    observed = torch.tensor([[True, True, False], [False, False, True], [False] * 3])
    with pytest.raises(ValueError, match=r"'family' .* leaves none for row 1 \(\[2\]\), with"):
        subsets(observed, torch.tensor([[True, False, False]]))
    with pytest.raises(ValueError, match=r"none for row 0 .*, row 4 .* and 2 more, with"):
        subsets(torch.ones(7, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"boolean patterns with shape \(S, 3\), .* \(3,\)"):
        subsets(observed, observed[0])
    with pytest.raises(
        ValueError, match=r"boolean patterns with shape .*, but has dtype torch.float32"
    ):
        subsets(observed, torch.ones(2, 3))


def counted(given_, weight):
    """What `pack` should list: the weight of each distinct non-empty pair, with a dictionary."""
    pairs = {}
    for s in range(given_.shape[0]):
        for b in range(given_.shape[1]):
            key = (b, tuple(given_[s, b].tolist()))
            if weight[s, b] > 0 and any(key[1]):
                pairs[key] = pairs.get(key, 0) + weight[s, b].item()
    return pairs


@given(st.integers(0, 6), st.integers(0, 5), st.sampled_from([0, 1, 3, 62, 63, 64]), st.data())
def test_pack_lists_each_pair_once(s, b, modalities, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    share = torch.rand(modalities, generator=generator) < 0.1  # few columns vary: many repeat
    given_ = (torch.rand(s, b, modalities, generator=generator) < 0.5) & share
    weight = torch.rand(s, b, generator=generator, dtype=torch.float64)
    weight = torch.where(weight < 0.2, 0, weight)
    packed, rows, merged = pack(given_, weight)
    pairs = zip(rows.tolist(), map(tuple, packed.tolist()), merged.tolist(), strict=True)
    pairs = {(b, s): w for b, s, w in pairs}
    assert len(pairs) == len(rows)
    assert pairs == pytest.approx(counted(given_, weight))
    assert rows.tolist() == sorted(rows.tolist())
    assert packed.dtype == torch.bool
    assert packed.shape == (len(rows), modalities)
    assert merged.dtype == torch.float64


@pytest.mark.parametrize("family", ["full", "singletons", "powerset", "groups"])
def test_packed_sums_are_sums_over_the_family(family):
    observed = torch.rand(64, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    given_, weight = subsets(observed, family, dtype=torch.float64)
    values = torch.randn(2**5, 64, dtype=torch.float64)
    bits = 2 ** torch.arange(5)
    column = torch.arange(64)
    expected = (weight * values[(given_ * bits).sum(dim=-1), column]).sum(dim=0)
    packed, rows, merged = pack(given_, weight)
    terms = merged * values[(packed * bits).sum(dim=-1), rows]
    total = torch.zeros(64, dtype=torch.float64).index_add(0, rows, terms)
    torch.testing.assert_close(total, expected)


def test_most_pairs_of_a_full_sweep_repeat_or_are_empty():
    # 4 modalities, 32 rows, 30 % missing, intersected with all 15 subsets
    observed = torch.rand(32, 4, generator=torch.Generator().manual_seed(27)) >= 0.3
    assert observed.any(dim=1).all()
    every = torch.tensor(list(nonempty_subsets([True] * 4)))
    swept = every[:, None] & observed  # (15, 32, 4)
    packed, rows, _ = pack(swept, torch.ones(15, 32))
    distinct = {
        (b, frozenset(s & {m for m in range(4) if observed[b, m]}))
        for b in range(32)
        for s in (set(c) for size in range(1, 5) for c in itertools.combinations(range(4), size))
    }
    distinct = {(b, s) for b, s in distinct if s}
    assert len(packed) == len(rows) == len(distinct) == 206
    assert swept[..., 0].numel() / len(rows) == pytest.approx(2.33, abs=0.005)


def test_pack_names_what_is_wrong():
    given_ = torch.ones(2, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"'given' should be boolean and have shape \(S, B, M\)"):
        pack(given_.float(), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"'given' should be boolean .* shape \(3, 4\)"):
        pack(given_[0], torch.ones(3))
    with pytest.raises(ValueError, match=r"'weight' .* with shape \(2, 3\), but has shape \(3,"):
        pack(given_, torch.ones(3, 2))
    for wrong in (-1.0, torch.nan):
        with pytest.raises(
            ValueError, match="'weight' should hold one weight per subset, at least"
        ):
            pack(given_, torch.full((2, 3), wrong))


@pytest.mark.parametrize("special", [0, 3])
@pytest.mark.parametrize("family", ["powerset", "groups"])
def test_many_modalities_of_which_rows_have_few_are_enumerated(family, special):
    few = (torch.arange(32)[:, None] >> torch.arange(5) & 1).bool()  # every pattern
    columns = [2, 4, 9, 16, 19]
    many = torch.zeros(32, 20, dtype=torch.bool)
    many[:, columns] = few

    assert len(subsets(many, family, special=columns[special])[0]) <= 2**5 + 2
    found = mixture(many.tolist(), family, special=columns[special])
    wanted = mixture(few.tolist(), family, special=special)
    for b in range(32):
        same = {tuple(s[c] for c in columns): w for s, w in found[b].items()}
        assert same == pytest.approx(wanted[b])
        assert all(sum(s) == sum(s[c] for c in columns) for s in found[b])
