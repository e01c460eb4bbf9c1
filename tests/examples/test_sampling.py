"""Batches in proportion to weights: their frequencies, their seeds, and what is skipped."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from examples.medical_mri_us.data import WeightedBatches


def drawn(batches):
    return np.array([index for batch in batches for index, _ in batch])


def test_frequencies_are_those_of_the_weights():
    weights = np.array([0.0, 1.0, 2.5, 0.0, 4.0, 0.5, 0.0])
    torch.manual_seed(0)
    counts = np.bincount(drawn(WeightedBatches(weights, 20, 1000)), minlength=7)
    assert (counts[weights == 0] == 0).all()
    shown = weights > 0
    expected = counts.sum() * weights[shown] / weights.sum()
    assert stats.chisquare(counts[shown], expected).pvalue > 0.01


def test_more_samples_than_single_precision_can_count():
    """Above 2**24, where `torch.multinomial` refuses; the last samples are drawn as others are."""
    number = 2**24 + 2**20
    with pytest.raises(RuntimeError, match=r"2\^24"):
        torch.multinomial(torch.ones(number), 1)
    weights = np.zeros(number)
    weights[2**24 :] = 1
    torch.manual_seed(0)
    places = drawn(WeightedBatches(weights, 1000, 2))
    assert places.min() >= 2**24
    assert stats.kstest((places - 2**24) / 2**20, "uniform").pvalue > 0.01


def test_the_rest_of_a_pass_is_that_of_the_whole():
    batches = WeightedBatches(np.arange(50), 4, 10)
    torch.manual_seed(3)
    whole = list(batches)
    after = torch.get_rng_state()
    assert len(whole) == len(batches) == 10
    for number in (0, 1, 7, 10, 12):
        torch.manual_seed(3)
        assert list(batches.skip(number)) == whole[number:]
        assert torch.equal(torch.get_rng_state(), after)
    assert list(batches) != whole  # the next pass
    seeds = [seed for batch in whole for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


def test_skipping_many_batches_takes_no_longer_than_few():
    """A pass of 10**12 batches could not be drawn."""
    batches = WeightedBatches([1, 2], 2, 10**12)
    first, *_ = itertools.islice(batches.skip(10**12 - 1), 1)
    assert len(first) == 2


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1, -1], "finite numbers of at least 0, but has shape \\(2,\\) and lies in -1 to 1"),
        ([np.nan], "finite numbers of at least 0"),
        ([[1.0]], "but has shape \\(1, 1\\)"),
        ([0.0, 0.0], "'weights' should have an entry above 0"),
        ([], "'weights' should have an entry above 0"),
    ],
)
def test_bad_weights_are_told(weights, words):
    with pytest.raises(ValueError, match=words):
        WeightedBatches(weights, 1, 1)
