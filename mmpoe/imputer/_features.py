r"""The numbers of the linear part: standardised values, indicators of categories, log counts."""

from __future__ import annotations

__all__ = ["Features"]

from collections.abc import Sequence

import numpy as np

from ._network import Modality
from ._tables import Column


class Features:
    """Turns the cells of an encoded table into standardised features, several for a category.

    Arguments:
        table: The encoded table, NaN where cells are missing, with shape (n, d).
        columns: What was learned about its columns.
        modalities: The modalities that they form; features follow their order.

    Attributes:
        column: The column of each feature, with shape (F).
        modality: The modality of each feature, with shape (F).
        loc, scale: What standardises each feature, with shape (F).
        slices: The features of each modality.
        blocks: The features of each block: of a modality, or of a part of one that is mixed.
        block: The block of each feature, with shape (F).
        classes: The categories of each block, 0 if it holds numbers.
    """

    def __init__(
        self, table: np.ndarray, columns: Sequence[Column], modalities: Sequence[Modality]
    ) -> None:
        self.counts = np.array([column.kind == "count" for column in columns])
        self.classes: list[int] = []
        self.slices: dict[str, slice] = {}
        self.blocks: list[slice] = []
        owners: list[int] = []
        members: list[int] = []
        for index, m in enumerate(modalities):
            first = len(owners)
            for block in m.blocks:
                classes = block.classes if block.kind == "categorical" else 0
                new = block.columns * classes if classes else block.columns
                self.classes.append(classes)
                self.blocks.append(slice(len(owners), len(owners) + len(new)))
                owners += new
                members += [index] * len(new)
            self.slices[m.name] = slice(first, len(owners))
        self.column, self.modality = np.array(owners), np.array(members)
        sizes = [part.stop - part.start for part in self.blocks]
        self.block = np.arange(len(sizes)).repeat(sizes)
        self.loc, self.scale = np.zeros(len(owners)), np.ones(len(owners))
        raw = self.encode(table)
        self.loc = np.nanmean(raw, axis=0)
        spread = np.nanstd(raw, axis=0)
        self.scale = np.where(spread > 1e-9, spread, 1.0)

    def encode(self, table: np.ndarray) -> np.ndarray:
        """Maps a table (n, d) to features (n, F), NaN where cells are missing."""
        numbers = np.where(self.counts, np.log1p(np.maximum(table, 0)), table)
        raw = numbers[:, self.column].astype(float)
        for part, classes in zip(self.blocks, self.classes, strict=True):
            if classes:
                hits = (raw[:, part] == np.arange(classes)).astype(float)
                raw[:, part] = np.where(np.isnan(raw[:, part]), np.nan, hits)
        return (raw - self.loc) / self.scale

    def raw(self, features: np.ndarray) -> np.ndarray:
        """Undoes the standardisation: encoded values, probabilities, log counts."""
        return features * self.scale + self.loc

    def probabilities(self, features: np.ndarray, part: slice, power: float = 1.0) -> np.ndarray:
        r"""Turns predicted indicators into probabilities of categories.

        Regressions on indicators may leave [0, 1], and shrink towards the frequencies:
        :math:`p_k \propto \max(m_k, \epsilon)^a`.
        """
        p = np.maximum(features[:, part] * self.scale[part] + self.loc[part], 1e-3) ** power
        return p / p.sum(axis=1, keepdims=True)

    def standardised(self, values: np.ndarray, part: slice) -> np.ndarray:
        """Standardises encoded values, probabilities or log counts of some features."""
        return (values - self.loc[part]) / self.scale[part]
