"""Your own images, which an index lists: NIfTI, NRRD or DICOM on grids that differ."""

from __future__ import annotations

__all__ = ["find_own"]

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from examples.medical_mri_us.data import Image, read_image, read_index
from examples.medical_mri_us.data.foreign import read_bytes

from .sources import Findings, Input, Source


def find_own(
    index: Path,
    modalities: Sequence[str],
    resample_to: str | None = None,
    *,
    prefer: Literal["sform", "qform"] | None = None,
    zero_nonfinite: bool = False,
) -> Findings:
    """Finds the cases of an index.

    Arguments:
        index: The index.
        modalities: The names of the modalities.
        resample_to: The modality whose grid the others of a case are brought to, with its axes;
            where a case lacks it, the first that it has. By default, it is ultrasound. Slices of
            other modalities that were not asked for are turned alike, see `slices_last`.
        prefer: Which of two affines to believe, see `read_image`.
        zero_nonfinite: Whether NaN and infinity become 0.

    Raises:
        ValueError: If the index cannot be used, or no modality has that name.
    """
    if resample_to is not None and resample_to not in modalities:
        raise ValueError(
            f"'resample_to' should be one of {', '.join(modalities)}, but is {resample_to!r}."
        )

    def taken(path: Path) -> Input:
        def read() -> Image:
            return read_image(path, prefer=prefer, zero_nonfinite=zero_nonfinite, sheared=True)

        return Input(str(path), read)

    findings = Findings()
    for case in read_index(index, modalities, anywhere=True):
        wanted = resample_to or ("us" if "us" in modalities else None)
        reference = wanted if wanted in case.images else next(iter(case.images))
        notes = (
            () if wanted in (None, reference)
            else (f"without {wanted}, its grid is that of {reference}",)
        )  # fmt: skip
        try:
            landmarks = "" if case.landmarks is None else read_bytes(case.landmarks).decode()
        except (OSError, ValueError) as error:
            findings.failed[case.name] = f"{case.landmarks} cannot be read: {error}"
            continue
        findings.sources.append(
            Source(
                case.name,
                case.split,
                {m: taken(p) for m, p in case.images.items()},
                reference=reference,
                turned=reference not in ("us", resample_to),
                label=None if case.label is None else taken(case.label),
                fov=None if case.fov is None else taken(case.fov),
                targets={m: taken(p) for m, p in case.targets.items()},
                landmarks=landmarks,
                patient=case.patient,
                further=case.further,
                notes=notes,
            )
        )
    return findings
