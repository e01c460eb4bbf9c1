"""Planes of slices: those of MR have to be alike for a model of slices to learn from them."""

from __future__ import annotations

__all__ = ["mixed", "planes_of", "turn_alike", "turned"]

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from .grids import axis_codes, reorient
from .images import Image
from .stored import StoredSubject
from .subjects import CaseError, Subject

S = TypeVar("S", bound=Subject | StoredSubject)

PLANES = (
    dict.fromkeys("SI", "axial") | dict.fromkeys("AP", "coronal") | dict.fromkeys("RL", "sagittal")
)
"""The planes of slices, by where the axis that counts them points to."""

SHOWN = 4
"""How many cases of a plane are named."""


def planes_of(subjects: Sequence[Subject | StoredSubject]) -> dict[str, list[str]]:
    """Returns the cases by the plane of their slices, of those that have no ultrasound.

    Slices of ultrasound, and of MR that was brought to it, lie in the plane of the probe, which
    differs from patient to patient as it should.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for subject in subjects:
        if "us" not in subject.images:
            found[PLANES[axis_codes(subject.affine)[2]]].append(subject.name)
    return dict(found)


def turn_alike(subjects: Sequence[S]) -> list[S]:
    """Turns and mirrors slices within their plane, until those of all cases lie alike.

    Cases with ultrasound stay as they are, see `planes_of`.

    Raises:
        CaseError: If slices of some cases lie in another plane than those of others.
    """
    planes = planes_of(subjects)
    if len(planes) > 1:
        raise CaseError(f"slices of all cases should lie in one plane, but {mixed(planes)}.")
    codes = Counter(axis_codes(s.affine) for s in subjects if "us" not in s.images)
    if len(codes) < 2:
        return list(subjects)
    ((common, _),) = codes.most_common(1)
    return [s if "us" in s.images else turned(s, common) for s in subjects]


def mixed(planes: dict[str, list[str]]) -> str:
    """Says which cases lie in which plane, and what to do about it."""
    listed = []
    for plane, names in sorted(planes.items(), key=lambda item: -len(item[1])):
        more = ", ..." if len(names) > SHOWN else ""
        listed.append(f"{len(names)} are {plane} ({', '.join(names[:SHOWN])}{more})")
    return (
        f"{' and '.join(listed)}: prepare them from their files, which turns all that are not "
        "much thicker than their pixels, or leave some out"
    )


def turned(subject: S, axes: str | None) -> S:
    """Returns a subject whose axes point to where a model's do; as it is if there are none.

    Arguments:
        subject: The subject.
        axes: Where rows, columns and slices are to point to, as of `axis_codes`.
    """
    if axes is None or axes == axis_codes(subject.affine):
        return subject
    if isinstance(subject, StoredSubject):
        return replace(subject, axes=axes)

    def turn(volume: np.ndarray) -> np.ndarray:
        image = reorient(Image(np.moveaxis(volume, 0, -1), subject.affine), axes)
        return np.ascontiguousarray(np.moveaxis(image.data, -1, 0))

    along = np.broadcast_to(np.float32(0), np.moveaxis(subject.fov, 0, -1).shape)
    affine = reorient(Image(along, subject.affine), axes).affine
    rows, columns, between = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return replace(
        subject,
        images={m: turn(v) for m, v in subject.images.items()},
        targets={m: turn(v) for m, v in subject.targets.items()},
        fov=turn(subject.fov),
        label=None if subject.label is None else turn(subject.label),
        affine=affine,
        spacing=(between, rows, columns),
    )
