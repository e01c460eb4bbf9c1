"""An endless stream of batches whose position and random state can be saved and restored."""

from __future__ import annotations

__all__ = ["shard"]

import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

T = TypeVar("T")

END = object()
"""Stands for the end of a pass."""


def shard(cases: Sequence[T], rank: int | None = None, world: int | None = None) -> list[T]:
    """Returns this process's share of the cases: every `world`-th, from the `rank`-th.

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


class Randomness:
    """The generators of Python, NumPy, PyTorch and the device, and some of the caller's.

    Their states are tensors whose shapes never change, so that processes can exchange them.

    Arguments:
        device: The device of the run.
        generators: More generators, such as that of a sampler.
    """

    def __init__(self, device: torch.device, generators: Sequence[Generator] = ()) -> None:
        self.device, self.generators = device, list(generators)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the states of all generators, tensors by name."""
        _, words, cached = random.getstate()
        _, keys, place, has_normal, normal = np.random.get_state()  # noqa: NPY002
        state = {
            "python": torch.tensor(words, dtype=torch.int64),
            "python.normal": torch.tensor(
                [cached is not None, cached or 0.0], dtype=torch.float64
            ),
            "numpy": torch.tensor([*map(int, keys), place], dtype=torch.int64),  # pyright: ignore
            "numpy.normal": torch.tensor([has_normal, normal], dtype=torch.float64),
            "torch": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        for i, generator in enumerate(self.generators):
            state[f"generator.{i}"] = generator.get_state()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the states of all generators that have one in `state`."""
        has, normal = state["python.normal"].tolist()
        random.setstate((3, tuple(state["python"].tolist()), normal if has else None))
        *keys, place = state["numpy"].tolist()
        has, normal = state["numpy.normal"].tolist()
        legacy = ("MT19937", np.array(keys, dtype=np.uint32), place, int(has), normal)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(state["torch"].cpu())
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)
        for i, generator in enumerate(self.generators):
            if f"generator.{i}" in state:
                generator.set_state(state[f"generator.{i}"].cpu())

    def seed(self, seed: int) -> None:
        """Seeds the generators of Python, NumPy, PyTorch and the device."""
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restores all generators at the end of a ``with`` block."""
        state = self.state_dict()
        try:
            yield
        finally:
            self.load_state_dict(state)


class Stream:
    """An endless iterator over batches that knows its position.

    To return to a position, it restores the generators to their state at the start of the pass
    and draws the batches of that pass again, so that a sampler makes the same order, and workers
    the same augmentations. A batch sampler with a method ``skip`` is asked for the rest of the
    pass instead, see :func:`~mmpoe.training.fit`.

    Arguments:
        batches: The batches of all processes, iterated again and again.
        device: The device of the run, whose generator is part of the random state.
        rank: The number of the process, from 0.
        world: The number of processes, each of which has its share of the batches.
        seed: The seed of the order of the batches, the same in all of several processes.

    Attributes:
        deal: How the batches of this pass came to this number of processes, if another number
            began it: ``processes``, how many those were; ``start``, the state of the generators of
            the first of them at the start of the pass; and ``drawn``, how many batches were drawn
            before the rest was dealt out anew.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ) -> None:
        self.source, self.rank, self.world = batches, rank, world
        self.batches = batches if world == 1 else split(batches, rank, world, seed)
        self.randomness = Randomness(device, _generators(self.batches))
        self.passes, self.position = -1, 0
        self.start: dict[str, Tensor] = {}
        self.deal: dict[str, Any] | None = None
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
                # a worker may have died: PyTorch raises its error when the signal arrives, in
                # whatever code runs then, which had better be this
                time.sleep(1)
            raise

    def _next(self) -> Any:  # noqa: ANN401
        batch = next(self._iterator, END)
        if batch is END:
            self._begin(self.passes + 1)
            batch = next(self._iterator, END)
        if batch is END and self.passes == 0:
            raise self._too_few()
        if batch is END:
            raise ValueError(
                "'batches' should be iterable again and again, as a list or a DataLoader is, "
                f"but is a {type(self.batches).__name__} that has nothing left."
            )
        self.position += 1
        return batch

    def seek(
        self,
        passes: int,
        position: int,
        start: dict[str, Tensor],
        deal: dict[str, Any] | None = None,
    ) -> None:
        """Returns to a position; the generators are then as the batches before it left them.

        Arguments:
            passes: The number of passes before this one.
            position: The number of batches of this pass that were drawn.
            start: The state of the generators at the start of this pass.
            deal: How the batches of this pass came to these processes, see `Stream`.

        Raises:
            ValueError: If the pass has fewer batches.
        """
        if passes < 0:  # nothing was drawn yet
            return
        self.randomness.load_state_dict(start)
        self._begin(passes, deal, position)
        if self.position < position:
            raise ValueError(
                f"'batches' should hold at least {position} batches, as many as were drawn before "
                f"the run was stopped, but holds {self.position}."
            )

    def take_over(
        self,
        passes: int,
        position: int,
        start: dict[str, Tensor],
        deal: dict[str, Any] | None,
        states: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Deals out the rest of a pass that another number of processes began.

        Its order is kept, so that each batch of the pass is still drawn once, but for leftovers
        that cannot be split evenly. Processes that there were before have their random states.

        Arguments:
            passes: The number of passes before this one.
            position: The number of batches of this pass that each of them has drawn.
            start: The state of the generators of the first of them at the start of this pass.
            deal: How the batches of this pass came to them, see `Stream`.
            states: The states of the generators of each of them.
        """
        before = len(states)
        own = states[self.rank] if self.rank < before else self.randomness.state_dict()
        shared = {k: v for k, v in states[0].items() if k.startswith("generator.")}
        rest = {k: v for k, v in own.items() if not k.startswith("generator.")}
        self._randomness_of(self._whole(before)).load_state_dict({**rest, **shared})
        if before > 1 and self.world > 1:  # the order of the next passes
            self.randomness.load_state_dict({**rest, **shared})
        if passes < 0:
            return
        if deal is None:
            deal = {"processes": before, "start": start, "drawn": 0}
        self._begin(passes, {**deal, "drawn": deal["drawn"] + position * before})

    @property
    def has_workers(self) -> bool:
        """Whether other processes load the batches."""
        return isinstance(self.batches, DataLoader) and self.batches.num_workers > 0

    def loading(self) -> list[list[Any]]:
        """Returns the indices of the samples that workers may be loading, by batch, if known.

        The sampler of the DataLoader draws them again as it did at the start of the pass.
        """
        loader = self.batches
        if not _is_indexed(loader) or self.deal is not None:
            return []
        number = loader.num_workers * (loader.prefetch_factor or 0)
        with self.randomness.kept():
            self.randomness.load_state_dict(self.start)
            rest, _ = _after(_indices(loader), self.position)
            return list(islice(rest, number))

    def _begin(self, passes: int, deal: dict[str, Any] | None = None, position: int = 0) -> None:
        """Begins a pass behind its first batches, or at its end if there are fewer."""
        self.start = self.randomness.state_dict()
        self.passes, self.deal = passes, deal
        if deal is not None:
            self._iterator, self.position = _after(self._dealt(**deal), position)
            return
        if getattr(self.batches, "_iterator", None) is not None:
            # a DataLoader draws a seed for new workers, but none for those that persist; drawing
            # one here gives a pass the same order with either
            generator = getattr(self.batches, "generator", None)
            torch.empty((), dtype=torch.int64).random_(generator=generator)
        self._iterator, self.position = _after(self.batches, position)

    def _dealt(self, processes: int, start: dict[str, Tensor], drawn: int) -> Iterable[Any]:
        """This process's share of what is left of a pass that other processes began."""
        whole = self._whole(processes)
        randomness = self._randomness_of(whole)
        with self.randomness.kept(), randomness.kept():
            randomness.load_state_dict(start)
            indexed = _is_indexed(whole)
            rest, _ = _after(_indices(whole) if indexed else whole, drawn)
            rest = list(rest) if indexed else rest
        share = _EveryNth(rest, self.rank, self.world)
        return _like(whole, list(share)) if _is_indexed(whole) else share

    def _whole(self, processes: int) -> Iterable[Any]:
        """All batches in the order in which a number of processes draw them."""
        return self.source if processes == 1 else split(self.source, 0, 1, 0)

    def _randomness_of(self, batches: Iterable[Any]) -> Randomness:
        return Randomness(self.randomness.device, _generators(batches))

    def _too_few(self) -> ValueError:
        if self.world == 1:
            return ValueError("'batches' should hold at least one batch, but is empty.")
        number = len(self.source) if isinstance(self.source, Sized) else "fewer"
        return ValueError(
            f"'batches' should hold at least one batch for each of {self.world} processes, but "
            f"holds {number}."
        )


def split(batches: Iterable[Any], rank: int, world: int, seed: int) -> Iterable[Any]:
    """Returns one process's share of the batches: every `world`-th, from the `rank`-th.

    Leftover batches that cannot be split evenly are skipped. A DataLoader loads only its share;
    the order of its sampler is the same in all processes. With an IterableDataset, which has no
    sampler, each process loads everything, and should do so in the same order.

    Arguments:
        batches: The batches of all processes.
        rank: The number of the process, from 0.
        world: The number of processes.
        seed: The seed of the sampler, the same in all processes.
    """
    if _is_indexed(batches):
        return _like(batches, _Share(batches.batch_sampler, rank, world, seed))
    return _EveryNth(batches, rank, world)


def _after(batches: Iterable[Any], number: int) -> tuple[Iterator[Any], int]:
    """The batches of a pass behind its first ones, and how many those are.

    They are skipped if the batch sampler can, and drawn otherwise.
    """
    if number > 0 and _is_indexed(batches) and _can_skip(batches.batch_sampler):
        rest = _Rest(batches.batch_sampler, number)
        iterator = iter(_like(batches, rest))
        rest.begin()  # now, while generators are as they were at the start of the pass
        return iterator, min(number, len(batches))
    iterator = iter(batches)
    return iterator, sum(1 for _ in islice(iterator, number))


def _can_skip(batch_sampler: object) -> bool:
    if isinstance(batch_sampler, _Share):
        return _can_skip(batch_sampler.batches)
    return hasattr(batch_sampler, "skip")


def _like(loader: DataLoader[Any], batch_sampler: Any) -> DataLoader[Any]:  # noqa: ANN401
    """A DataLoader that draws other batches, and is otherwise the same."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _indices(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The indices of the samples of each batch, in place of the batches."""
    return DataLoader(
        _Indices(),
        batch_sampler=loader.batch_sampler,
        collate_fn=list,
        generator=loader.generator,
    )


class _EveryNth:
    def __init__(self, batches: Iterable[Any], rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.batches)
        while len(turn := list(islice(iterator, self.world))) == self.world:
            yield turn[self.rank]


class _Share:
    """A batch sampler: one process's share of the batches of another one."""

    def __init__(self, batches: Any, rank: int, world: int, seed: int) -> None:  # noqa: ANN401
        self.batches, self.rank, self.world = batches, rank, world
        self.generator = Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Any]:
        return self.skip(0)

    def skip(self, number: int) -> Iterator[Any]:
        """Returns the share behind its first batches."""
        # samplers draw from the process's own generator, which differs among processes
        own, first = torch.get_rng_state(), number * self.world
        torch.set_rng_state(self.generator.get_state())
        try:
            if _can_skip(self.batches):
                batches = _Ahead(self.batches.skip(first))
                batches.begin()
            else:
                batches = list(self.batches)[first:]
            self.generator.set_state(torch.get_rng_state())
        finally:
            torch.set_rng_state(own)
        return iter(_EveryNth(batches, self.rank, self.world))

    def __len__(self) -> int:
        return len(self.batches) // self.world


class _Rest:
    """A batch sampler: the batches of another one, which can skip, behind the first ones."""

    def __init__(self, batches: Any, number: int) -> None:  # noqa: ANN401
        self.batches, self.number = batches, number
        self._last: _Ahead | None = None

    def __iter__(self) -> Iterator[Any]:
        # a DataLoader with workers calls this twice, and draws from the second iterator
        self._last = _Ahead(self.batches.skip(self.number))
        return self._last

    def __len__(self) -> int:
        return max(0, len(self.batches) - self.number)

    def begin(self) -> None:
        """Draws the first batch that the last iterator is to return."""
        if self._last is not None:
            self._last.begin()


class _Ahead(Iterator[Any]):
    """An iterator that can draw its first item before that is asked for."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items = items
        self._first: list[Any] | None = None

    def begin(self) -> None:
        """Draws the first item, if there is one, unless that was done."""
        if self._first is None:
            self._first = list(islice(self.items, 1))

    def __next__(self) -> Any:  # noqa: ANN401
        self.begin()
        return self._first.pop() if self._first else next(self.items)


class _Indices(Dataset[Any]):
    """A data set whose samples are their own indices."""

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        return index


def _is_indexed(batches: object) -> TypeGuard[DataLoader[Any]]:
    """Whether a sampler draws the batches; that of an IterableDataset is a placeholder."""
    return (
        isinstance(batches, DataLoader)
        and batches.batch_sampler is not None
        and not isinstance(batches.dataset, IterableDataset)
    )


def _generators(batches: object) -> list[Generator]:
    """The generators of a DataLoader and of its samplers."""
    found = {}
    for owner in (batches, *_samplers(batches)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, Generator):
            found[id(generator)] = generator
    return list(found.values())


def _samplers(owner: object) -> Iterator[object]:
    for name in ("batch_sampler", "sampler", "batches"):
        part = getattr(owner, name, None)
        if part is not None:
            yield part
            yield from _samplers(part)
