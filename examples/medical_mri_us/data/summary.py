"""Counts of the images that a data set has and lacks."""

from __future__ import annotations

__all__ = ["check_training", "missingness_table"]

from collections import Counter
from collections.abc import Sequence
from typing import Any

from examples.medical_mri_us.modalities import MODALITIES

from .index import Case


def check_training(cases: Sequence[Case], modalities: Sequence[str] = MODALITIES) -> None:
    """Checks that there is something to learn from for each modality.

    Arguments:
        cases: The training cases.
        modalities: The names of the modalities.

    Raises:
        ValueError: If there is no case, or no case has some modality.
    """
    if not cases:
        raise ValueError("'cases' should hold at least one training case, but is empty.")
    absent = [m for m in modalities if not any(m in case.images for case in cases)]
    if absent:
        raise ValueError(
            f"'cases' should show each modality at least once, but none of {len(cases)} training "
            f"cases has {', '.join(absent)}; leave it out of the modalities."
        )


def missingness_table(
    cases: Sequence[Case], modalities: Sequence[str] = MODALITIES
) -> dict[str, Any]:
    """Counts what is missing, ready for JSON.

    Arguments:
        cases: The cases.
        modalities: The names of the modalities.

    Returns:
        ``modalities``; ``splits``, with for each split ``cases``, ``observed`` (the number of
        cases by modality), ``incomplete`` (cases that lack some) and ``patterns``: a list of
        ``observed`` (one boolean per modality) and ``cases``, the most frequent first.
    """
    splits = {}
    for split in dict.fromkeys(case.split for case in cases):
        rows = [tuple(m in c.images for m in modalities) for c in cases if c.split == split]
        patterns = sorted(Counter(rows).items(), key=lambda item: (-item[1], item[0]))
        splits[split] = {
            "cases": len(rows),
            "observed": {m: sum(row[k] for row in rows) for k, m in enumerate(modalities)},
            "incomplete": sum(not all(row) for row in rows),
            "patterns": [{"observed": list(p), "cases": count} for p, count in patterns],
        }
    return {"modalities": list(modalities), "splits": splits}
