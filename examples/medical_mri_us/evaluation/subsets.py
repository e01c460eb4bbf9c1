"""The subsets of modalities that a model can be given."""

from __future__ import annotations

__all__ = ["SUBSETS", "all_subsets", "is_published"]

import itertools
from collections.abc import Sequence

from examples.medical_mri_us.modalities import MODALITIES


def all_subsets(modalities: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Returns all non-empty subsets of the modalities, small ones first."""
    return tuple(
        subset
        for count in range(1, len(modalities) + 1)
        for subset in itertools.combinations(modalities, count)
    )


def is_published(given: Sequence[str]) -> bool:
    """Whether the published table has these inputs: ultrasound alone, or any MR without it.

    These are 8 of the 15 subsets, and hold 19 of the 28 cross-modal cells.
    """
    return set(given) <= set(MODALITIES) and (list(given) == ["us"] or "us" not in given)


SUBSETS = all_subsets(MODALITIES)
"""All 15 non-empty subsets of the modalities."""
