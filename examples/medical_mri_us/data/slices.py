"""Slices of subjects, and batches of them in which each has its own modalities."""

from __future__ import annotations

__all__ = ["Slices", "TargetSlices", "batch_slices", "batch_targets", "neighbours"]

from collections.abc import MutableMapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.missing import collate

from .images import Volume
from .stored import StoredSubject
from .subjects import Subject

Images = MutableMapping[str, Tensor]

Place = int | tuple[int, int]
"""A sample by its index, or by its index and the seed of how it is augmented."""


class Stack(Protocol):
    """Slices that can be asked for by their indices, in memory or not."""

    def __len__(self) -> int:
        """Returns the number of slices."""
        ...

    def __getitem__(self, places: np.ndarray, /) -> Volume:
        """Returns slices, (*places, H, W)."""
        ...


def neighbours(volume: Stack, places: Sequence[int] | np.ndarray, slices: int) -> Volume:
    """Returns slices of a volume with those beside them, as channels: (n, slices, H, W).

    The slice itself is the first channel; then come the nearest, before and after, and so on.
    Beyond the ends of the volume, the last slice stands again.

    Arguments:
        volume: The volume, (S, H, W).
        places: The n slices.
        slices: The number of channels, odd.

    Example:
        >>> volume = np.arange(4.0).reshape(4, 1, 1)
        >>> neighbours(volume, [0, 2], 3)[:, :, 0, 0].tolist()
        [[0.0, 0.0, 1.0], [2.0, 1.0, 3.0]]
    """
    return volume[_around(np.asarray(places), slices, len(volume))]


def _around(places: np.ndarray, slices: int, depth: int) -> np.ndarray:
    """The indices of slices and of those beside them, (n, slices)."""
    steps = [0]
    for distance in range(1, slices // 2 + 1):
        steps += [-distance, distance]
    return (places[:, None] + np.array(steps)).clip(0, depth - 1)


class Slices(Dataset[tuple[Images, Tensor]]):
    """The slices of some subjects, each a mapping of what was observed and its field of view.

    Arguments:
        subjects: The subjects, in memory or stored.
        flip: Whether to mirror every other slice at random, left to right. That is drawn from the
            seed of a sample, where it is given with its index, as in ``slices[index, seed]``.
        slices: The number of channels of an image, see `neighbours`.
    """

    def __init__(
        self,
        subjects: Sequence[Subject | StoredSubject],
        *,
        flip: bool = False,
        slices: int = 1,
    ) -> None:
        self.subjects, self.flip, self.slices = subjects, flip, slices
        shown = [subject.shown.nonzero()[0] for subject in subjects]
        number = np.repeat(np.arange(len(shown)), [len(found) for found in shown])
        self.places = np.stack([number, np.concatenate([*shown, number[:0]])], axis=1)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Place) -> tuple[Images, Tensor]:
        images, _, fov = self.cut(index)
        if self.flip and torch.rand((), generator=_generator(index)) < 0.5:
            images, fov = _mirror(images), fov.flip(-1)
        return images, fov

    def cut(self, index: Place) -> tuple[Images, Images, Tensor]:
        """Returns a slice as it is: images, targets of those that have one, and field of view."""
        s, k = self.places[_index(index)]
        subject = self.subjects[s]
        images, targets, fov = subject.cut(k)
        found = _tensors(images)
        if self.slices > 1:
            around = _around(np.array([k]), self.slices, subject.shape[0])[0, 1:]
            beside = [_tensors(subject.cut(j)[0]) for j in around]
            found = {m: torch.cat([x, *(b[m] for b in beside)]) for m, x in found.items()}
        return found, _tensors(targets), torch.from_numpy(fov)[None]

    def weights(self, share: float) -> npt.NDArray[np.float64]:
        """Weights for sampling slices, with a share of draws from who has the rarest modality.

        Of several that are equally rare, the first of the default modalities counts, or else the
        first in the alphabet.

        Arguments:
            share: The share of draws, between 0 and 1, that go to subjects with that modality; the
                others go to all subjects alike.
        """
        shown = {m for s in self.subjects for m in s.images}
        counts = {m: sum(m in s.images for s in self.subjects) for m in shown}
        order = {m: k for k, m in enumerate(MODALITIES)}
        rarest = min(shown, key=lambda m: (counts[m], order.get(m, len(order)), m))
        holds = np.array([rarest in s.images for s in self.subjects])[self.places[:, 0]]
        return (1 - share) / len(holds) + share * holds / holds.sum()


class TargetSlices(Dataset[tuple[Images, Images, Tensor]]):
    """Slices with what to make of them, for harmonised synthesis: inputs, targets, field of view.

    The target of a modality is its harmonised image, where the index lists one, else the input
    itself.

    Arguments:
        subjects: The subjects, in memory or stored.
        flip: See `Slices`.
        size: The side of the window that is taken of larger slices, each time at random among
            those that show something; None for whole slices.
        context: The covariates of each subject, by name, if there are any.
        slices: The number of channels of an input, see `neighbours`; a target has one.
    """

    def __init__(
        self,
        subjects: Sequence[Subject | StoredSubject],
        *,
        flip: bool = False,
        size: int | None = None,
        context: Sequence[Images] | None = None,
        slices: int = 1,
    ) -> None:
        self.slices, self.flip, self.size = Slices(subjects, slices=slices), flip, size
        self.context = context

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: Place) -> tuple[Images, Images, Tensor]:
        images, targets, fov = self.slices.cut(index)
        own = {m: image[:1] for m, image in images.items()}  # without the slices beside it
        targets, generator = {**own, **targets}, _generator(index)
        if self.size is not None and max(fov.shape[1:]) > self.size:
            rows, columns = _window(fov[0], self.size, generator)
            images, targets = (
                {m: v[:, rows, columns] for m, v in of.items()} for of in (images, targets)
            )
            fov = fov[:, rows, columns]
        if self.flip and torch.rand((), generator=generator) < 0.5:
            images, targets, fov = _mirror(images), _mirror(targets), fov.flip(-1)
        if self.context is not None:
            subject, _ = self.slices.places[_index(index)]
            images = {**images, "context": self.context[subject]}  # pyright: ignore
        return images, targets, fov

    def weights(self, share: float) -> npt.NDArray[np.float64]:
        """Weights for sampling, as of `Slices.weights`."""
        return self.slices.weights(share)


def batch_slices(
    slices: Sequence[tuple[Images, Tensor]], modalities: Sequence[str] = MODALITIES
) -> tuple[Images, Tensor, Tensor]:
    """Makes a batch: images by modality (B, 1, H, W), what was observed (B, M), fields of view."""
    x, observed = collate([images for images, _ in slices], modalities)
    return dict(x), observed, torch.stack([fov for _, fov in slices])


def batch_targets(
    slices: Sequence[tuple[Images, Images, Tensor]], modalities: Sequence[str] = MODALITIES
) -> tuple[Images, Images, Tensor, Tensor]:
    """Makes a batch of `TargetSlices`: inputs, targets, what was observed, fields of view."""
    x, observed = collate([images for images, _, _ in slices], modalities)
    targets, _ = collate([targets for _, targets, _ in slices], modalities)
    return x, dict(targets), observed, torch.stack([fov for _, _, fov in slices])


def _index(index: Place) -> int:
    return index[0] if isinstance(index, tuple) else index


def _generator(index: Place) -> torch.Generator | None:
    """The generator of a sample with a seed of its own; None for that of the process."""
    return torch.Generator().manual_seed(index[1]) if isinstance(index, tuple) else None


def _window(fov: Tensor, size: int, generator: torch.Generator | None) -> tuple[slice, slice]:
    """Draws a window with a random pixel of the view in it, and little but the view."""
    seen = fov.nonzero()
    pixel = seen[int(torch.randint(len(seen), (), generator=generator))]
    found = []
    for axis in (0, 1):
        low, high = int(seen[:, axis].min()), int(seen[:, axis].max()) + 1
        start = int(pixel[axis]) - int(torch.randint(size, (), generator=generator))
        if high - low > size:
            start = min(max(start, low), high - size)
        else:
            start = (low + high - size) // 2
        start = min(max(start, 0), fov.shape[axis] - size)
        found.append(slice(start, start + size))
    return found[0], found[1]


def _tensors(images: dict[str, Volume]) -> Images:
    return {m: torch.from_numpy(image)[None] for m, image in images.items()}


def _mirror(images: Images) -> Images:
    return {m: image.flip(-1) for m, image in images.items()}
