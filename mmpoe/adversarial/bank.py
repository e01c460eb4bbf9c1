"""A memory of real images, for modalities that a batch lacks."""

from __future__ import annotations

__all__ = ["ImageBank"]

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from mmpoe.missing import (
    check_finite,
    check_modalities,
    check_names,
    check_observed,
    check_valid,
)

GENERATOR, PREFIX = "generator", "images."


class ImageBank:
    r"""Remembers the last observed images of each modality, on the CPU.

    A discriminator needs real images of a modality that all rows of a batch may lack. The oldest
    images are replaced first: a uniform sample of all past images would change ever more rarely,
    and a discriminator would memorise it. A rare modality keeps its images until there are as many
    new ones.

    The bank has a generator of its own and leaves PyTorch's alone. Its state is part of
    :meth:`state_dict`, so that training can resume bit for bit.

    Arguments:
        modalities: The names of the modalities, in the order of the columns of all masks.
        size: The largest number of images to remember of each modality.
        seed: The seed of its generator.

    Attributes:
        images: The images of each modality, oldest first, with shape :math:`(n, *)`, where
            :math:`n` is at most `size`. A modality that was never observed has no entry.

    Raises:
        ValueError: If `modalities` are not distinct names or `size` is not positive.

    Example:
        >>> bank = ImageBank(["us", "t2"], size=2)
        >>> x = {"us": torch.arange(3.0)[:, None], "t2": torch.full((3, 1), torch.nan)}
        >>> bank.push(x, torch.tensor([[True, False]] * 3))
        >>> bank.images
        {'us': tensor([[1.],
                [2.]])}
        >>> bank.draw("us", 4).shape
        torch.Size([4, 1])
    """

    def __init__(self, modalities: Sequence[str], size: int = 64, seed: int = 0) -> None:
        check_modalities(modalities)
        if size < 1:
            raise ValueError(f"'size' should be at least 1, but is {size}.")
        self.modalities = list(modalities)
        self.size = size
        self.images: dict[str, Tensor] = {}
        self._generator = Generator().manual_seed(seed)

    def push(
        self,
        x: Mapping[str, Tensor],
        observed: Tensor,
        *,
        valid: Mapping[str, Tensor] | None = None,
    ) -> None:
        r"""Adds the observed images of a batch, and drops the oldest ones beyond the size.

        Arguments:
            x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
                entries are never read.
            observed: What was observed, boolean, with shape :math:`(B, M)`.
            valid: For some modalities, which elements inside an entry are in view, boolean,
                broadcastable to :math:`(B, *)`; others are never read, and remembered as 0.

        Raises:
            ValueError: If `observed` does not have one boolean column per modality, a modality is
                unknown, an observed entry is absent or not finite, `valid` has another shape,
                or images change their shape or dtype.
        """
        check_observed(observed, self.modalities)
        check_names(list(x), self.modalities, argument="x")
        check_names(list(valid or {}), self.modalities, argument="valid")
        new = {}
        for column, m in enumerate(self.modalities):
            seen = observed[:, column]
            if not bool(seen.any()):
                continue
            if m not in x or len(x[m]) != len(seen):
                shown = f"has shape {tuple(x[m].shape)}" if m in x else "is absent"
                raise ValueError(
                    f"'x' should hold one row per row of 'observed' ({len(seen)}) of {m!r}, which "
                    f"was observed, but it {shown}."
                )
            seen = seen.to(x[m].device)
            inside = None if valid is None else valid.get(m)
            if inside is not None:
                check_valid(inside, tuple(x[m].shape), m)
            check_finite(x[m], seen, m, inside)
            images = x[m].detach()[seen]
            if inside is not None:
                images = torch.where(inside.broadcast_to(x[m].shape)[seen], images, 0)
            new[m] = images.to("cpu", copy=True)
            self._check_like(new[m], m)
        for m, images in new.items():
            held = [self.images[m]] if m in self.images else []
            self.images[m] = torch.cat([*held, images])[-self.size :].clone()

    def draw(self, modality: str, number: int) -> Tensor:
        r"""Draws images of a modality, uniformly and with replacement, with shape :math:`(N, *)`.

        Arguments:
            modality: The modality.
            number: The number of images :math:`N`.

        Raises:
            ValueError: If the modality is unknown, or none of its images was pushed yet.
        """
        check_names([modality], self.modalities, argument="modality")
        if modality not in self.images:
            raise ValueError(
                f"'modality' should be one that was pushed, {', '.join(self.images) or 'none'} "
                f"so far, but is {modality!r}."
            )
        images = self.images[modality]
        return images[torch.randint(len(images), (number,), generator=self._generator)]

    def state_dict(self) -> dict[str, Tensor]:
        """Returns all images, and the state of the generator, as tensors by name."""
        images = {PREFIX + m: images.clone() for m, images in self.images.items()}
        return {**images, GENERATOR: self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores a state of :meth:`state_dict`.

        Arguments:
            state: The state of a bank with the same modalities and at least as small a size.

        Raises:
            ValueError: If the state is that of another bank.
        """
        if GENERATOR not in state:
            raise ValueError(f"'state' should hold {GENERATOR!r}, but holds {', '.join(state)}.")
        images = {
            key.removeprefix(PREFIX): value for key, value in state.items() if key != GENERATOR
        }
        check_names(list(images), self.modalities, argument="state")
        for m, held in images.items():
            if not 1 <= len(held) <= self.size:
                raise ValueError(
                    f"'state' should hold 1 to {self.size} images of each modality, "
                    f"but holds {len(held)} of {m!r}."
                )
        self.images = {m: held.detach().to("cpu", copy=True) for m, held in images.items()}
        self._generator.set_state(state[GENERATOR].cpu())

    def _check_like(self, images: Tensor, modality: str) -> None:
        """Raises a ValueError unless images have the shape and dtype of older ones."""
        held = self.images.get(modality, images)
        if held.shape[1:] != images.shape[1:] or held.dtype != images.dtype:
            raise ValueError(
                f"'x' should hold images of {modality!r} as before, with shape "
                f"{tuple(held.shape[1:])} and {held.dtype}, but has {tuple(images.shape[1:])} and "
                f"{images.dtype}."
            )
