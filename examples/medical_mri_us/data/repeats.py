"""Slices that share a place: copies, or several images in one series."""

from __future__ import annotations

__all__ = ["check_repeats"]

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from .planes import said
from .volumes import ImageError

SAME = 1e-3
"""How far apart along the normal two slices are that share a place, at most, mm."""

TELLING = (
    "EchoTime", "EffectiveEchoTime", "InversionTime", "InversionTimes", "DiffusionBValue",
    "ImageType", "FrameType", "ComplexImageComponent", "TemporalPositionIdentifier",
    "TemporalPositionIndex", "TriggerTime", "NominalCardiacTriggerDelayTime", "FlipAngle",
    "RepetitionTime", "AcquisitionNumber", "FrameAcquisitionNumber", "AcquisitionTime",
    "FrameAcquisitionDateTime",
)  # fmt: skip
"""The attributes by which images in one series differ, the most telling first."""

SHOWN = 4
"""How many values of an attribute are shown."""

Slice = tuple[str, Dataset, int]
"""The name of a file, its attributes, and the number of a frame."""


def check_repeats(slices: Sequence[Slice], along: np.ndarray, where: Path) -> None:
    """Says which slices share a place, and by what several images in a series differ.

    Arguments:
        slices: The slices, in their order along the normal.
        along: Their places along it, mm.
        where: What errors name.

    Raises:
        ImageError: If two slices share a place.
    """
    shared = np.flatnonzero(np.diff(along) <= SAME)
    if not shared.size:
        return
    places = np.concatenate([[0], np.cumsum(np.diff(along) > SAME)]).tolist()
    values = {
        name: [str(said(header, frame, name) or "") for _, header, frame in slices]
        for name in TELLING
    }
    varying = [name for name, texts in values.items() if _varies(places, texts)]
    images = max(Counter(places).values())
    for names in (*([name] for name in varying), varying):
        texts = [", ".join(values[name][k] for name in names) for k in range(len(slices))]
        found = list(dict.fromkeys(texts))
        if len(found) == images and len(set(zip(places, texts, strict=True))) == len(slices):
            listed = "; ".join(found[:SHOWN]) + ("; ..." if len(found) > SHOWN else "")
            raise ImageError(
                f"{where} cannot be used: it holds {len(found)} images in one series, told apart "
                f"by {' and '.join(names)} ({listed}); export each as a series of its own."
            )
    a, b = (_named(slices[k]) for k in (shared[0], shared[0] + 1))
    raise ImageError(
        f"{where} cannot be used: its slices stand twice, as {a} and {b} do, and nothing tells "
        "two images apart; remove the copies."
    )


def _varies(places: Sequence[int], texts: Sequence[str]) -> bool:
    """Whether slices that share a place have differing values somewhere."""
    found: dict[int, set[str]] = defaultdict(set)
    for place, text in zip(places, texts, strict=True):
        found[place].add(text)
    return any(len(different) > 1 for different in found.values())


def _named(one: Slice) -> str:
    name, header, frame = one
    return f"frame {frame + 1}" if "NumberOfFrames" in header else name
