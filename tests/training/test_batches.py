"""Batches and cases are shared out among processes."""

import pytest
import torch
from torch import Generator
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from mmpoe.training import shard
from mmpoe.training.batches import Stream, split


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


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(22))


def shuffled(**options):
    return DataLoader(range(22), 2, shuffle=True, collate_fn=list, **options)


class Pairs:
    """A batch sampler that can skip: pairs of 22 rows in an order that one number decides."""

    def __iter__(self):
        return self.skip(0)

    def __len__(self):
        return 11

    def skip(self, number):
        seed = int(torch.randint(2**40, ()))  # at the first batch
        order = torch.randperm(22, generator=Generator().manual_seed(seed))
        yield from order.reshape(11, 2)[number:].tolist()


class Noting(Dataset):
    """Rows that are their own numbers, and a list of those that were read."""

    def __init__(self):
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return index


LOADERS = {
    "by a sampler that skips": lambda: DataLoader(
        range(22), batch_sampler=Pairs(), collate_fn=list
    ),
    "by the generator of the process": shuffled,
    "by a generator of its own": lambda: shuffled(generator=Generator().manual_seed(3)),
    "by that of a sampler": lambda: DataLoader(
        range(22),
        2,
        sampler=RandomSampler(range(22), generator=Generator().manual_seed(3)),
        collate_fn=list,
    ),
    "in one order": lambda: [[2 * i, 2 * i + 1] for i in range(11)],
    "as they come": lambda: DataLoader(Numbers(), 2, collate_fn=list),
}


class Process:
    """One process of several, with generators of its own."""

    def __init__(self, load, rank, world):
        torch.manual_seed(10 + rank)
        self.stream = Stream(load(), torch.device("cpu"), rank, world, seed=5)
        self.state = self.stream.randomness.state_dict()

    def __next__(self):
        self.stream.randomness.load_state_dict(self.state)
        batch = next(self.stream)
        self.state = self.stream.randomness.state_dict()
        return batch

    def resume(self, saved):
        """Resumes as the keeper of a run does."""
        torch.manual_seed(99 + self.stream.rank)
        place = saved["passes"], saved["position"]
        if len(saved["random"]) == self.stream.world:
            self.stream.seek(*place, saved["start"][self.stream.rank], saved["deal"])
            self.stream.randomness.load_state_dict(saved["random"][self.stream.rank])
        else:
            self.stream.take_over(*place, saved["start"][0], saved["deal"], saved["random"])
        self.state = self.stream.randomness.state_dict()
        return self


def launch(load, world, saved=None):
    processes = [Process(load, rank, world) for rank in range(world)]
    return processes if saved is None else [p.resume(saved) for p in processes]


def save(processes):
    first = processes[0].stream
    return {
        "passes": first.passes,
        "position": first.position,
        "deal": first.deal,
        "start": [p.stream.start for p in processes],
        "random": [p.state for p in processes],
    }


def draw(processes, turns):
    """The batches of some turns, in the order of the processes."""
    return [next(process) for _ in range(turns) for process in processes]


@pytest.mark.fault(80)
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS.keys())
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2), (1, 3), (4, 1)])
def test_another_number_of_processes_draws_the_rest_of_a_pass_in_its_order(before, after, load):
    """And the next passes whole, but for leftovers."""
    whole = draw(launch(load, before), 11 // before)
    processes = launch(load, before)
    first = draw(processes, 2)
    resumed = launch(load, after, save(processes))
    left = 11 - 2 * before
    rest = draw(resumed, left // after)
    assert first == whole[: 2 * before]
    order = first + rest
    assert order[: len(whole)] == whole[: len(order)]
    assert len({tuple(batch) for batch in order}) == len(order) == 11 - left % after

    for _ in range(2):
        following = draw(resumed, 11 // after)
        assert len({tuple(batch) for batch in following}) == len(following)


@pytest.mark.fault(80)
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS.keys())
def test_a_pass_may_change_hands_again_and_resume_in_between(load):
    """A stop among as many processes changes nothing, also after they have become fewer."""
    processes = launch(load, 3)
    drawn = draw(processes, 1)
    processes = launch(load, 2, save(processes))
    drawn += draw(processes, 1)
    expected = draw(launch(load, 2, save(processes)), 3)
    processes = launch(load, 2, save(processes))
    drawn += draw(processes, 1)
    saved = save(processes)
    processes = launch(load, 2, saved)
    assert drawn[5:] + draw(processes, 2) == expected
    processes = launch(load, 1, saved)
    drawn += draw(processes, 4)
    assert sorted(sum(drawn, [])) == list(range(22))  # noqa: RUF017
    assert processes[0].stream.passes == 0


def test_processes_that_had_drawn_nothing_may_be_others():
    processes = launch(shuffled, 2)
    saved = {**save(processes), "start": [{}, {}]}
    assert sorted(sum(draw(launch(shuffled, 1, saved), 11), [])) == list(range(22))  # noqa: RUF017


@pytest.mark.fault(79)
@pytest.mark.parametrize("load", [lambda n: [[0]] * n, lambda n: DataLoader(range(n)), iter])
def test_fewer_batches_than_processes_are_told_with_both_numbers(load):
    number = "fewer" if load is iter else "3"
    batches = load([[0]] * 3) if load is iter else load(3)
    with pytest.raises(ValueError, match=rf"for each of 4 processes, but holds {number}\."):
        next(Stream(batches, torch.device("cpu"), 1, 4))


@pytest.mark.fault(36)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("world", [1, 2])
def test_what_a_sampler_skips_is_not_read_again(world, rank):
    """The rest of the pass, and the next pass, are those of a stream that went on."""
    rank = min(rank, world - 1)
    data = Noting()
    load = lambda: DataLoader(data, batch_sampler=Pairs(), collate_fn=list)
    torch.manual_seed(10 + rank)
    stream = Stream(load(), torch.device("cpu"), rank, world, seed=5)
    share = 11 // world
    for _ in range(share + 2):
        next(stream)
    place = stream.passes, stream.position, stream.start
    state = stream.randomness.state_dict()
    expected = [next(stream) for _ in range(2 * share)]

    torch.manual_seed(99)
    data.read.clear()
    again = Stream(load(), torch.device("cpu"), rank, world, seed=5)
    again.seek(*place)
    assert data.read == []
    again.randomness.load_state_dict(state)
    assert [next(again) for _ in range(2 * share)] == expected
    assert (again.passes, again.position) == (stream.passes, stream.position)
    with pytest.raises(ValueError, match=rf"at least 12 batches, .* but holds {share}\."):
        again.seek(1, 12, place[2])


def test_samples_that_workers_load_are_known_behind_what_was_skipped():
    load = lambda: DataLoader(range(22), batch_sampler=Pairs(), num_workers=1)
    torch.manual_seed(0)
    stream = Stream(load(), torch.device("cpu"))
    stream.seek(0, 3, stream.randomness.state_dict())
    loading = stream.loading()
    assert len(loading) == 2
    assert [next(stream).tolist() for _ in range(2)] == loading
