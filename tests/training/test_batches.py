"""Batches and cases are shared out among processes."""

import pytest
import torch

from mmpoe.training import shard
from mmpoe.training.batches import split


def test_shares_of_a_loader_are_equal():
    generator = torch.Generator().manual_seed(0)
    for options in ({}, {"generator": generator}):
        loader = torch.utils.data.DataLoader(range(23), 3, shuffle=True, **options)
        passes = []
        for _ in range(2):
            shares = []
            for rank in range(3):
                torch.manual_seed(rank)
                generator.manual_seed(5)
                before = torch.get_rng_state()
                share = split(loader, rank, 3, seed=1)
                shares.append([rows.tolist() for rows in share])
                torch.set_rng_state(before)
            passes.append(shares)
        rows = [row for share in passes[0] for batch in share for row in batch]
        assert len(set(rows)) == len(rows)
        assert [len(share) for share in passes[0]] == [2, 2, 2]  # of 8 batches, 2 are left out
    once = split(iter("abcdefg"), 1, 3, seed=1)
    assert list(once) == ["b", "e"]


class Lines(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(10))


def test_streams_are_shared_out_by_batch():
    """An IterableDataset has no sampler to share out: each process loads all of it."""
    loader = torch.utils.data.DataLoader(Lines(), 2)
    shares = [[batch.tolist() for batch in split(loader, rank, 2, seed=1)] for rank in (0, 1)]
    assert shares == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]  # of 5 batches, 1 is left out


def test_cases_are_shared_out(monkeypatch):
    cases = list("abcdefg")
    for world in range(1, 9):
        shares = [shard(cases, rank, world) for rank in range(world)]
        assert sorted(case for share in shares for case in share) == cases
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shard(cases) == cases
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert shard(cases) == ["c", "f"]
    with pytest.raises(ValueError, match=r"'rank' should be from 0 to 1, but is 2"):
        shard(cases, 2, 2)
