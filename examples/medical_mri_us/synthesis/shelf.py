"""Volumes that are set aside in a file, and read one at a time."""

from __future__ import annotations

__all__ = ["Lazy", "Row", "Shelf", "Shelved"]

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from examples.medical_mri_us.data import Volume

T = TypeVar("T")


class Shelf:
    """Volumes of one shape in a file without a name, which is gone with the last reference to it.

    The file is read and written and never mapped, so that no volume stays in memory.

    Arguments:
        shape: The shape of the volumes; the first axis counts slices.
        folder: Where there is room for the file; by default, where temporary files are.
    """

    def __init__(self, shape: Sequence[int], folder: Path | None = None) -> None:
        self.shape = tuple(shape)
        self._bytes = 4 * int(np.prod(self.shape))
        self._places: dict[Any, int] = {}
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def put(self, key: object, volume: Volume) -> None:
        """Sets a volume aside."""
        self._write(key, 0, volume)

    def write(self, key: object, k: int, image: Volume) -> None:
        """Sets slice `k` of a volume aside."""
        self._write(key, k, image)

    def read(self, key: object) -> Volume:
        """Returns a volume, 0 where no slice was written."""
        return self._read(key, 0, self.shape)

    def slices(self, key: object, places: Sequence[int] | np.ndarray) -> Volume:
        """Returns some slices of a volume, (*places, H, W)."""
        places = np.asarray(places)
        found = [self._read(key, k, self.shape[1:]) for k in map(int, places.ravel())]
        return np.stack(found).reshape(*places.shape, *self.shape[1:])

    def _write(self, key: object, k: int, values: Volume) -> None:
        self._seek(key, k)
        left = np.ascontiguousarray(values, np.float32).data.cast("B")
        while left:  # the system may take a part
            left = left[self._file.write(left) :]

    def _read(self, key: object, k: int, shape: tuple[int, ...]) -> Volume:
        out = np.zeros(shape, np.float32)
        self._seek(key, k)
        left = out.data.cast("B")
        while left:
            left = left[self._file.readinto(left) :]  # pyright: ignore
        return out

    def _seek(self, key: object, k: int) -> None:
        if key not in self._places:
            self._places[key] = len(self._places)
            self._file.truncate(len(self._places) * self._bytes)
        self._file.seek(self._places[key] * self._bytes + k * self._bytes // self.shape[0])


class Shelved:
    """A volume on a shelf, as an array of slices.

    Arguments:
        shelf: The shelf.
        key: The key of the volume.
    """

    def __init__(self, shelf: Shelf, key: object) -> None:
        self.shelf, self.key = shelf, key

    def __len__(self) -> int:
        return self.shelf.shape[0]

    def __getitem__(self, places: Sequence[int] | np.ndarray) -> Volume:
        return self.shelf.slices(self.key, places)


class Lazy(Mapping[str, T], Generic[T]):
    """A mapping whose values are made each time that they are asked for.

    Arguments:
        names: The keys.
        make: Makes the value of a key.
    """

    def __init__(self, names: Sequence[str], make: Callable[[str], T]) -> None:
        self.names, self.make = list(names), make

    def __getitem__(self, name: str) -> T:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Row(Sequence[Volume]):
    """A sequence of volumes that are made each time that they are asked for.

    Arguments:
        number: Their number.
        make: Makes the one at a place.
    """

    def __init__(self, number: int, make: Callable[[int], Volume]) -> None:
        self.number, self.make = number, make

    def __getitem__(self, k: int) -> Volume:  # pyright: ignore
        if not 0 <= k < self.number:
            raise IndexError(k)
        return self.make(k)

    def __len__(self) -> int:
        return self.number
