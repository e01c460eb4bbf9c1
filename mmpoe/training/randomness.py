"""All that training draws random numbers from, as one state."""

from __future__ import annotations

__all__ = ["Randomness"]

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor


class Randomness:
    """The generators of Python, NumPy, PyTorch and the device, and some of the caller's.

    Their states are tensors whose shapes never change, so that processes can exchange them.

    Arguments:
        device: The device of the training.
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
        """Puts all generators back into a state, those that it knows of."""
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
        """Starts the generators of Python, NumPy, PyTorch and the device from a seed."""
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Puts all generators back at the end of a ``with`` block."""
        state = self.state_dict()
        try:
            yield
        finally:
            self.load_state_dict(state)
