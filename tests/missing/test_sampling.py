"""Drawn subsets: on average, exactly the families that they stand for."""

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from mmpoe.missing import pack, random_subsets, sample_subsets, subsets

FAMILIES = {
    "full": ("full", {}),
    "singletons": ("singletons", {}),
    "powerset": ("powerset", {}),
    "groups": ("groups", {"special": 1}),
    "patterns": (
        torch.tensor(
            [[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1]]
        ).bool(),
        {},
    ),
}
OFFSETS = 1260
"""Strata have probabilities that are multiples of 1 / 1260 in these tests. So are the offsets at
which a draw changes, and as many offsets between them stand for all."""


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
        random_subsets([[True]])


def test_random_subsets_of_many_modalities():
    observed = torch.ones(1, 62, dtype=torch.bool)
    share = random_subsets(observed, samples=2000).float().mean(dim=(0, 1))
    assert ((share - 0.5).abs() < 0.1).all()


def enumerate_draws(monkeypatch, row, family, samples, **options):
    """Every draw for a row, each as likely as the others: subsets (K, N, M), weights (K, N)."""
    orders = list(itertools.permutations(range(len(row))))
    offset = (torch.arange(OFFSETS).double() + 0.5) / OFFSETS
    offset = offset[:, None].expand(-1, len(orders)).flatten()  # (N)
    keys = torch.tensor(orders).double().repeat(OFFSETS, 1) / len(row)  # (N, M)

    def rand(*shape, generator=None, dtype=None):
        return offset if len(shape) == 1 else keys.expand(shape)

    observed = torch.tensor([row]).expand(len(keys), -1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", rand)
        return sample_subsets(
            observed,
            family,
            samples=samples,
            dtype=torch.float64,
            **options,
        )


def by_subset(drawn, weight):
    """How much the subsets (S, B, M) weigh, on average over rows, by their codes: (2^M)."""
    codes = (drawn * 2 ** torch.arange(drawn.shape[-1])).sum(dim=-1)
    weigh = [weight[codes == code].sum() for code in range(2 ** drawn.shape[-1])]
    return torch.stack(weigh) / weight.shape[1]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("case", FAMILIES)
def test_weighted_draws_average_to_the_family_exactly(case, samples, monkeypatch):
    family, options = FAMILIES[case]
    for row in itertools.product([False, True], repeat=4):
        try:
            exact, alpha = subsets(torch.tensor([row]), family, dtype=torch.float64, **options)
        except ValueError:
            with pytest.raises(ValueError, match="leaves none for row 0"):
                sample_subsets(torch.tensor([row]), family, samples=1, **options)
            continue
        drawn, weight = enumerate_draws(monkeypatch, row, family, samples, **options)
        measure, expected = by_subset(drawn, weight), by_subset(exact, alpha)
        torch.testing.assert_close(measure, expected, rtol=0, atol=1e-13)


def test_three_modalities_average_to_the_powerset_exactly(monkeypatch):
    drawn, weight = enumerate_draws(monkeypatch, (True,) * 3, "powerset", 2)
    expected = torch.tensor([0] + [1 / 7] * 7, dtype=torch.float64)
    torch.testing.assert_close(by_subset(drawn, weight), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", FAMILIES)
def test_frequencies_are_those_of_the_family(case):
    family, options = FAMILIES[case]
    row = torch.ones(1, 4, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    drawn, weight = sample_subsets(
        row.expand(8000, -1), family, samples=1, generator=generator, **options
    )
    assert (weight == 1).all()
    exact, alpha, rows = *subsets(row, family, dtype=torch.float64, **options), 8000
    bits = 2 ** torch.arange(4)
    counts = torch.bincount((drawn[0] * bits).sum(dim=-1), minlength=16)
    expected = torch.zeros(16, dtype=torch.float64)
    expected.index_add_(0, (exact * bits).sum(dim=-1)[:, 0], rows * alpha[:, 0])
    possible = expected > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        assert chisquare(counts[possible], expected[possible]).pvalue > 0.001


def test_as_many_draws_as_patterns_are_the_enumeration():
    family, row = torch.eye(5).bool(), torch.ones(3, 5, dtype=torch.bool)
    for name in (family, "singletons"):
        drawn, weight = sample_subsets(row, name, samples=5)
        packed, rows, merged = pack(drawn, weight)
        assert len(packed) == 15
        assert rows.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        assert merged.tolist() == pytest.approx([0.2] * 15)


@pytest.mark.parametrize("modalities", [6, 62, 100])
def test_subsets_of_any_number_of_modalities(modalities):
    observed = torch.ones(3, modalities, dtype=torch.bool)
    observed[1, 5:] = False
    observed[2] = False
    drawn, weight = sample_subsets(observed, samples=modalities)
    sizes = drawn.sum(dim=-1)
    assert (sizes[:, :2] > 0).all()
    assert sizes[:, 2].sum() == weight[:, 2].sum() == 0
    assert not (drawn & ~observed).any()
    assert (weight[:, :2] == 1 / modalities).all()


@pytest.mark.parametrize("modalities", [3, 5])
def test_sizes_turn_up_as_often_as_they_weigh(modalities):
    # a member of each stratum: as many draws as subsets are each size as often as it has subsets
    drawn, _ = sample_subsets(torch.ones(20, modalities).bool(), samples=2**modalities - 1)
    for sizes in drawn.sum(dim=-1).t():
        assert sizes.bincount().tolist()[1:] == [
            math.comb(modalities, size) for size in range(1, modalities + 1)
        ]


def test_many_modalities_are_drawn_without_bias():
    observed = torch.ones(4000, 62, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    drawn, weight = sample_subsets(observed, samples=2, generator=generator)
    share = drawn.double().mean(dim=(0, 1))  # each modality is in half of all subsets
    assert ((share - 0.5).abs() < 5 * 0.5 / 8000**0.5).all()
    assert weight.unique().tolist() == [0.5]


@pytest.mark.parametrize("offset", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("row", [[False, True, True, True], [True, True, True, False]])
def test_the_ends_of_the_unit_interval_draw_what_has_weight(row, offset, monkeypatch):
    monkeypatch.setattr(
        torch, "rand", lambda *shape, **_: torch.full(shape, offset, dtype=torch.float64)
    )
    observed = torch.tensor([row])
    for family in ("singletons", "powerset", "groups"):
        drawn, weight = sample_subsets(observed, family, samples=3)
        assert (weight == 1 / 3).all()
        assert drawn.any(dim=-1).all()


def test_draws_depend_on_the_generator_alone():
    observed = torch.ones(50, 8, dtype=torch.bool)
    one, same, other = (
        sample_subsets(observed, samples=3, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    )
    assert one.equal(same)
    assert not one.equal(other)


def test_draws_of_no_rows_and_of_a_dtype():
    drawn, weight = sample_subsets(torch.ones(0, 3, dtype=torch.bool), samples=2)
    assert drawn.shape == (2, 0, 3)
    assert weight.shape == (2, 0)
    observed = torch.ones(2, 3, dtype=torch.bool)
    assert sample_subsets(observed, samples=1)[1].dtype == torch.float32
    assert sample_subsets(observed, samples=1, dtype=torch.float64)[1].dtype == torch.float64


def test_sample_subsets_name_what_is_wrong():
    observed = torch.tensor([[True, True, False], [False, False, True]])
    with pytest.raises(ValueError, match="'samples' should be at least 1, but is 0"):
        sample_subsets(observed, samples=0)
    with pytest.raises(ValueError, match=r"'family' .* leaves none for row 1 \(\[2\]\), with"):
        sample_subsets(observed, observed[:1], samples=1)
    with pytest.raises(ValueError, match="'family' should be one of"):
        sample_subsets(observed, "all", samples=1)
