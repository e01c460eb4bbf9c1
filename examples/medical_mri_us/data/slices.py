"""Slices of subjects, and batches of them in which each has its own modalities."""

from __future__ import annotations

__all__ = ["Slices", "TargetSlices", "batch_slices", "batch_targets", "neighbours"]

from collections.abc import MutableMapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.missing import collate

from .images import Volume
from .subjects import Subject

Images = MutableMapping[str, Tensor]


def neighbours(volume: Volume, places: Sequence[int] | np.ndarray, slices: int) -> Volume:
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
    steps = [0]
    for distance in range(1, slices // 2 + 1):
        steps += [-distance, distance]
    index = np.asarray(places)[:, None] + np.array(steps)
    return volume[index.clip(0, len(volume) - 1)]


class Slices(Dataset[tuple[Images, Tensor]]):
    """The slices of some subjects, each a mapping of what was observed and its field of view.

    Arguments:
        subjects: The subjects.
        flip: Whether to mirror every other slice at random, left to right.
        slices: The number of channels of an image, see `neighbours`.
    """

    def __init__(
        self, subjects: Sequence[Subject], *, flip: bool = False, slices: int = 1
    ) -> None:
        self.subjects, self.flip, self.slices = subjects, flip, slices
        self.places = [
            (s, k)
            for s, subject in enumerate(subjects)
            for k in range(len(subject.fov))
            if subject.fov[k].any()
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Images, Tensor]:
        s, k = self.places[index]
        subject = self.subjects[s]
        images = _cut(subject.images, k, self.slices)
        fov = torch.from_numpy(subject.fov[k])[None]
        if self.flip and torch.rand(()) < 0.5:
            images, fov = _mirror(images), fov.flip(-1)
        return images, fov

    def weights(self, share: float) -> list[float]:
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
        holds = [rarest in self.subjects[s].images for s, _ in self.places]
        return [(1 - share) / len(holds) + share * h / sum(holds) for h in holds]


class TargetSlices(Dataset[tuple[Images, Images, Tensor]]):
    """Slices with what to make of them, for harmonised synthesis: inputs, targets, field of view.

    The target of a modality is its harmonised image, where the index lists one, else the input
    itself.

    Arguments:
        subjects: The subjects.
        flip: Whether to mirror every other slice at random, left to right.
        size: The side of the window that is taken of larger slices, each time at random among
            those that show something; None for whole slices.
        context: The covariates of each subject, by name, if there are any.
        slices: The number of channels of an input, see `neighbours`; a target has one.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
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

    def __getitem__(self, index: int) -> tuple[Images, Images, Tensor]:
        images, fov = self.slices[index]
        s, k = self.slices.places[index]
        own = {m: image[:1] for m, image in images.items()}  # without the slices beside it
        targets = {**own, **_cut(self.slices.subjects[s].targets, k)}
        if self.size is not None and max(fov.shape[1:]) > self.size:
            rows, columns = _window(fov[0], self.size)
            images, targets = (
                {m: v[:, rows, columns] for m, v in of.items()} for of in (images, targets)
            )
            fov = fov[:, rows, columns]
        if self.flip and torch.rand(()) < 0.5:
            images, targets, fov = _mirror(images), _mirror(targets), fov.flip(-1)
        if self.context is not None:
            images = {**images, "context": self.context[s]}  # pyright: ignore
        return images, targets, fov

    def weights(self, share: float) -> list[float]:
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


def _window(fov: Tensor, size: int) -> tuple[slice, slice]:
    """Draws a window with a random pixel of the view in it, and little but the view."""
    seen = fov.nonzero()
    pixel = seen[int(torch.randint(len(seen), ()))]
    found = []
    for axis in (0, 1):
        low, high = int(seen[:, axis].min()), int(seen[:, axis].max()) + 1
        start = int(pixel[axis]) - int(torch.randint(size, ()))
        if high - low > size:
            start = min(max(start, low), high - size)
        else:
            start = (low + high - size) // 2
        start = min(max(start, 0), fov.shape[axis] - size)
        found.append(slice(start, start + size))
    return found[0], found[1]


def _cut(volumes: dict[str, Volume], k: int, slices: int = 1) -> Images:
    if slices == 1:
        return {m: torch.from_numpy(v[k])[None] for m, v in volumes.items()}
    return {m: torch.from_numpy(neighbours(v, [k], slices)[0]) for m, v in volumes.items()}


def _mirror(images: Images) -> Images:
    return {m: image.flip(-1) for m, image in images.items()}
