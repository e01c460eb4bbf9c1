"""Batches again and again: from a position that can be saved, and shared among processes."""

from __future__ import annotations

__all__ = ["Stream", "generators_of", "shard", "split"]

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .randomness import Randomness

T = TypeVar("T")


class Stream:
    """An endless iterator over batches that knows where it is.

    To find a place again, it puts the generators back to where the pass began and draws the
    batches of that pass anew, so that a sampler makes the same order, and workers the same
    augmentations.

    Arguments:
        batches: The batches, iterated again and again.
        randomness: What their order is drawn from.
    """

    def __init__(self, batches: Iterable[Any], randomness: Randomness) -> None:
        self.batches, self.randomness = batches, randomness
        self.passes, self.position = -1, 0
        self.start: dict[str, Tensor] = {}
        self._iterator: Iterator[Any] = iter(())

    def __iter__(self) -> Stream:
        """Returns the stream itself."""
        return self

    def __next__(self) -> Any:  # noqa: ANN401
        """Returns the next batch.

        Raises:
            ValueError: If there is none, or no second pass.
        """
        try:
            return self._next()
        except (ConnectionError, EOFError):
            if self.has_workers:
                # one may have died: PyTorch raises an error when the signal of that is here, in
                # whatever is done at that moment, which had better be this
                time.sleep(1)
            raise

    def _next(self) -> Any:  # noqa: ANN401
        for batch in self._iterator:
            self.position += 1
            return batch
        self._begin(self.passes + 1)
        for batch in self._iterator:
            self.position += 1
            return batch
        if self.passes == 0:
            raise ValueError("'batches' should hold at least one batch, but is empty.")
        raise ValueError(
            "'batches' should be iterable again and again, as a list or a DataLoader is, "
            f"but is a {type(self.batches).__name__} that has nothing left."
        )

    def seek(self, passes: int, position: int, start: dict[str, Tensor]) -> None:
        """Goes to a place; the generators are then where the batches before it have left them.

        Arguments:
            passes: The number of passes before.
            position: The number of batches of the pass that were drawn.
            start: The state of the generators when the pass began.

        Raises:
            ValueError: If the pass has fewer batches.
        """
        if passes < 0:  # nothing was drawn yet
            return
        self.randomness.load_state_dict(start)
        self._begin(passes)
        self.position = sum(1 for _ in islice(self._iterator, position))
        if self.position < position:
            raise ValueError(
                f"'batches' should hold at least {position} batches, as many as were drawn before "
                f"the training was stopped, but holds {self.position}."
            )

    @property
    def has_workers(self) -> bool:
        """Whether other processes load the batches."""
        return isinstance(self.batches, DataLoader) and self.batches.num_workers > 0

    def under_way(self) -> list[list[Any]]:
        """The samples of each batch that is not here yet, but may be loading, if they are known.

        A DataLoader that has a sampler draws them again as it did when the pass began.
        """
        loader = self.batches
        if not _has_places(loader):
            return []
        again = DataLoader(
            _Places(),
            batch_sampler=loader.batch_sampler,
            collate_fn=list,
            generator=loader.generator,
        )
        number = loader.num_workers * (loader.prefetch_factor or 0)
        with self.randomness.kept():
            self.randomness.load_state_dict(self.start)
            return list(islice(again, self.position, self.position + number))

    def _begin(self, passes: int) -> None:
        self.start = self.randomness.state_dict()
        self.passes, self.position = passes, 0
        if getattr(self.batches, "_iterator", None) is not None:
            # a DataLoader draws a seed for new workers, but none for those that persist; so that
            # a pass has the same order with either, it is drawn in any case
            generator = getattr(self.batches, "generator", None)
            torch.empty((), dtype=torch.int64).random_(generator=generator)
        self._iterator = iter(self.batches)


def generators_of(batches: object) -> list[Generator]:
    """Returns the generators of a DataLoader and of its samplers."""
    found = {}
    for owner in (batches, *_samplers(batches)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, Generator):
            found[id(generator)] = generator
    return list(found.values())


def split(batches: Iterable[Any], rank: int, world: int, seed: int) -> Iterable[Any]:
    """Returns the share of one of several processes: every `world`-th batch, from the `rank`-th.

    Those at the end that do not go round are left out. A DataLoader loads its share alone; the
    order of its sampler is the same in all processes. One of an IterableDataset, which has no
    sampler, loads all in each process, and should do so in the same order.

    Arguments:
        batches: The batches of all.
        rank: The number of the process, from 0.
        world: The number of processes.
        seed: What the order is drawn from, the same in all processes.
    """
    if _has_places(batches):
        return DataLoader(
            batches.dataset,
            batch_sampler=_Share(batches.batch_sampler, rank, world, seed),
            num_workers=batches.num_workers,
            collate_fn=batches.collate_fn,
            pin_memory=batches.pin_memory,
            timeout=batches.timeout,
            worker_init_fn=batches.worker_init_fn,
            multiprocessing_context=batches.multiprocessing_context,
            generator=batches.generator,
            prefetch_factor=batches.prefetch_factor,
            persistent_workers=batches.persistent_workers,
        )
    return _EveryNth(batches, rank, world)


def shard(cases: Sequence[T], rank: int | None = None, world: int | None = None) -> list[T]:
    """Returns the cases that are one process's, when several synthesise what others do not.

    Arguments:
        cases: All cases, in the same order in all processes.
        rank: The number of the process, from 0; by default that of ``torchrun``, or 0.
        world: The number of processes; by default that of ``torchrun``, or 1.

    Raises:
        ValueError: If `rank` is not that of one of the processes.

    Example:
        >>> shard(["a", "b", "c", "d", "e"], rank=1, world=2)
        ['b', 'd']
    """
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank
    world = int(os.environ.get("WORLD_SIZE", 1)) if world is None else world
    if not 0 <= rank < world:
        raise ValueError(f"'rank' should be from 0 to {world - 1}, but is {rank}.")
    return list(cases[rank::world])


def _has_places(batches: object) -> TypeGuard[DataLoader[Any]]:
    """Whether batches are drawn by a sampler; that of an IterableDataset is none, without end."""
    return (
        isinstance(batches, DataLoader)
        and batches.batch_sampler is not None
        and not isinstance(batches.dataset, IterableDataset)
    )


class _Places(Dataset[Any]):
    """The place of each sample in a data set, in the place of the sample."""

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401
        return place


class _EveryNth:
    def __init__(self, batches: Iterable[Any], rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.batches)
        while len(turn := list(islice(iterator, self.world))) == self.world:
            yield turn[self.rank]


class _Share:
    """A batch sampler: the share of a process of the batches of another one."""

    def __init__(self, batches: Any, rank: int, world: int, seed: int) -> None:  # noqa: ANN401
        self.batches, self.rank, self.world = batches, rank, world
        self.generator = Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Any]:
        # samplers draw from the generator of the process, which is another one in each
        own = torch.get_rng_state()
        torch.set_rng_state(self.generator.get_state())
        try:
            batches = list(self.batches)
            self.generator.set_state(torch.get_rng_state())
        finally:
            torch.set_rng_state(own)
        return iter(_EveryNth(batches, self.rank, self.world))

    def __len__(self) -> int:
        return len(self.batches) // self.world


def _samplers(owner: object) -> Iterator[object]:
    for name in ("batch_sampler", "sampler", "batches"):
        part = getattr(owner, name, None)
        if part is not None:
            yield part
            yield from _samplers(part)
