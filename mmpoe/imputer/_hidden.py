r"""Hierarchies that learn to predict hidden modalities, and which cells to hide in validation."""

from __future__ import annotations

__all__ = ["FEW", "HiddenNetwork", "hide_each", "hide_some", "partition"]

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mmpoe.missing import random_subsets
from mmpoe.training import Optimizer, fit

from ._features import Features
from ._network import Modality, SideBySide, build

FEW = 6
"""Up to how many modalities each subset of them is calibrated by itself."""
EVERY, PATIENCE = 25, 6
"""After how many steps the error is checked, and how many checks in a row may be in vain."""
WHOLE = 0.3
"""The share of training rows of which all that was observed is given."""


def hide_each(rows: int, modalities: int) -> list[np.ndarray]:
    """Masks (rows, modalities) of what is given: each hides one modality."""
    return [np.broadcast_to(~row, (rows, modalities)) for row in np.eye(modalities, dtype=bool)]


def partition(rows: int, parts: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Masks (rows, parts) of what is given: each part of a row is hidden by one of `size`."""
    turn = rng.permuted(np.tile(np.arange(parts) % size, (rows, 1)), axis=1)
    return [turn != i for i in range(size)]


def hide_some(observed: np.ndarray, share: float, rng: np.random.Generator) -> list[np.ndarray]:
    """A mask of what is given: at random, a share of what each row observed, and at least one."""
    rank = np.where(observed, rng.random(observed.shape), 2.0).argsort(axis=1).argsort(axis=1)
    return [rank < np.maximum(1, np.rint(share * observed.sum(axis=1)))[:, None]]


class HiddenNetwork:
    """An MMHVAE that is given parts of a row, and scored on all that was observed.

    Arguments:
        modalities: The modalities.
        features: What the means of its likelihoods are turned into.
        steps: The most training steps.
    """

    def __init__(self, modalities: Sequence[Modality], features: Features, steps: int) -> None:
        self.features, self.steps = features, steps
        self.blocks = [block for m in modalities for block in m.blocks]
        owners = [i for i, m in enumerate(modalities) for _ in m.blocks]
        self.owned = torch.eye(len(modalities), dtype=torch.bool)[owners]  # (blocks, M)
        self.model = build(self.blocks, 64, (8, 16))
        self.training = SideBySide(self.model, self.blocks)

    def fit(
        self, table: np.ndarray, questions: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> HiddenNetwork:
        """Trains on the rows of an encoded table, and keeps the weights that answer best.

        Arguments:
            table: The rows to train on.
            questions: Parts of other rows that are given, and the features (n, F) that are asked
                for, NaN where none is. Training ends when their error has not fallen for long.
        """
        best = _Best(self, questions)

        def bound(networks: SideBySide, batch: list[Tensor], done: float) -> Tensor:
            best.watch()
            return self._bound(networks, batch[0], done)

        batches = DataLoader(TensorDataset(_tensor(table)), 128, shuffle=True)
        optimizer = Optimizer(lr=3e-3, weight_decay=1e-2)
        with suppress(_Stopped):
            fit(
                self.training,
                batches,
                bound,
                steps=self.steps,
                optimizer=optimizer,
                accelerator="cpu",  # the networks are small
                progress=False,
            )
            best.compare()  # averaged weights are often better than the last ones
        best.restore()
        return self

    def error(self, questions: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        """The mean squared error of what is asked for."""
        errors = [np.square(self.predict(given) - y) for given, y in questions]
        return float(np.mean([np.nanmean(e) for e in errors])) if errors else 0.0

    @torch.no_grad()
    def predict(self, table: np.ndarray) -> np.ndarray:
        """Returns the expected features (n, F) given the cells of an encoded table."""
        x, observed = self._split(_tensor(table))
        likelihoods = self.model(x, observed, temperature=0.0).likelihoods
        parts = []
        for m, part in zip(self.blocks, self.features.blocks, strict=True):
            mean = likelihoods[m.name].mean.numpy().astype(float).reshape(len(table), -1)
            mean = np.log1p(mean) if m.kind == "count" else mean
            parts.append(self.features.standardised(mean, part))
        return np.concatenate(parts, axis=1)

    def _bound(self, networks: SideBySide, table: Tensor, done: float) -> Tensor:
        there = self._split(table)[1]
        observed = (there[:, :, None] & self.owned).any(dim=1)  # (n, M)
        whole = torch.rand(len(observed), 1) < WHOLE
        given = torch.where(whole, observed, _subsets(observed))
        given = there & (given[:, None] & self.owned).any(dim=2)  # (n, blocks)
        return networks.bound(table, given, min(1.0, 5 * done))

    def _split(self, table: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The blocks of a table, and which of them have an observed cell."""
        x = {m.name: table[:, m.columns] for m in self.blocks}
        return x, torch.stack([~v.isnan().all(dim=1) for v in x.values()], dim=1)


class _Stopped(Exception):
    """Training has not lowered the error for long."""


class _Best:
    """Keeps the weights that had the lowest error during training."""

    def __init__(
        self, network: HiddenNetwork, questions: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        self.network, self.questions = network, questions
        self.error, self.steps, self.since = np.inf, 0, 0
        self.state: dict[str, Tensor] = {}

    def watch(self) -> None:
        """Called before each step; ends training where the last checks were in vain."""
        if self.steps and self.steps % EVERY == 0 and self.questions:
            self.compare()
            if self.since >= PATIENCE:
                raise _Stopped
        self.steps += 1

    def compare(self) -> None:
        """Keeps the present weights if they are better."""
        model = self.network.model
        self.network.training.write(model)
        error = self.network.error(self.questions)
        self.since += 1
        if not self.state or error < self.error:
            self.error, self.since = error, 0
            self.state = {k: v.clone() for k, v in model.state_dict().items()}

    def restore(self) -> None:
        """Goes back to the best weights."""
        if self.state:
            self.network.model.load_state_dict(self.state)
        self.network.model.eval()


def _subsets(observed: Tensor) -> Tensor:
    """Draws parts of rows: of few modalities all subsets, of many all sizes alike often."""
    if observed.shape[1] <= FEW:
        return random_subsets(observed, proper=True)[0]
    return observed & (torch.rand(observed.shape) < torch.rand(len(observed), 1))


def _tensor(table: np.ndarray) -> Tensor:
    return torch.from_numpy(table).to(torch.get_default_dtype())
