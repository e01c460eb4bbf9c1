"""The sources of the images of a case, whatever the layout of the release."""

from __future__ import annotations

__all__ = ["Findings", "Input", "Source"]

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from examples.medical_mri_us.data.geometry import Affine
from examples.medical_mri_us.data.volumes import Image
from examples.medical_mri_us.modalities import MODALITIES


@dataclass(frozen=True, eq=False)
class Input:
    """An image of a case: how to read it, and how points of the reference get there."""

    name: str
    """The name in the record: the file, or the series."""
    read: Callable[[], Image]
    through: Affine | None = None
    """Points of the reference to points of this image, mm, RAS; None if they are the same."""
    files: tuple[Path, ...] = ()
    """The files or folders that it is read from."""


@dataclass(frozen=True, eq=False)
class Source:
    """A case of a release, before anything is read."""

    name: str
    split: str
    images: dict[str, Input]
    """By modality; one that is absent is missing."""
    reference: str = "us"
    """The modality whose grid all others are brought to."""
    turned: bool = False
    """Whether its slices are turned as those of all other cases, see `slices_last`."""
    label: Input | None = None
    fov: Input | None = None
    targets: dict[str, Input] = field(default_factory=dict)
    landmarks: str = ""
    """The text of landmarks.csv, if there are any."""
    patient: str = ""
    further: dict[str, str] = field(default_factory=dict)
    """The text of further columns of the index, such as an age or a site."""
    notes: tuple[str, ...] = ()
    """The images that were left out of the case, and why."""


@dataclass
class Findings:
    """The cases of a release."""

    sources: list[Source] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """The cases that cannot be prepared, and why."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of all cases: the default ones in their order, others after them."""
        found = {m: None for source in self.sources for m in source.images}
        return (*(m for m in MODALITIES if m in found), *(m for m in found if m not in MODALITIES))
