"""The files of a synthesis: volumes, where they come from, and a picture."""

from __future__ import annotations

__all__ = ["hash_of", "write_synthesis"]

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

import mmpoe
from examples.medical_mri_us.data import axis_codes, write_image
from examples.medical_mri_us.data.images import image_files
from mmpoe.training import scratch, write_file

from .bids import derivative, open_derivatives
from .case import Synthesis
from .intensities import SCALE
from .preview import draw_preview

MEANING = (
    f"0 to {SCALE:g}, which is the model's scale from 0 to 1 times {SCALE:g}: ultrasound in its "
    "own unit; MR has none, its median in view is put on a fixed value in training. 0 out of view."
)
"""The meaning of the intensities of the volumes, in words."""

SPREAD = {
    True: "calibrated: intervals hold about what they should on cases that were held out",
    False: "uncalibrated: not known to match errors; `calibrate` fits what it takes, and measures",
}
"""The caveats of standard deviations, in words."""


def write_synthesis(
    folder: Path,
    name: str,
    synthesis: Synthesis,
    provenance: dict[str, Any],
    *,
    calibrated: bool,
    bids: bool = False,
    sequence: bool = False,
) -> list[Path]:
    """Writes ``<name>_<target>_{mean,std,sample01,...}.nii.gz``, ``<name>.png``, ``<name>.json``.

    As derivatives of BIDS, they are ``sub-<label>/[ses-<label>/]anat/<name>_desc-mean_T2w.nii.gz``
    and so on, beside a ``dataset_description.json``.

    All are written aside and named at the end, the JSON last: where it is, all are. The files that
    the JSON of an earlier run lists are removed.

    Arguments:
        folder: The folder to write to, which is there.
        name: The name of the case.
        synthesis: What to write.
        provenance: What it was made from and how.
        calibrated: Whether its standard deviations are known to match errors.
        bids: Whether to write them as derivatives of BIDS.
        sequence: Whether to write the samples of a target as one file, ``samples``, with a fourth
            axis that counts them, in place of a file for each.

    Returns:
        The files.

    Raises:
        OSError: If they cannot be written; there are none then.
    """
    if bids:
        folder, name = open_derivatives(folder, name)
    with scratch(folder) as aside:
        files = []
        kind = "calibrated" if calibrated else "uncalibrated"
        for target in synthesis.mean:
            for what, volume in _volumes(synthesis, target, sequence):
                files.append(
                    derivative(name, target, what) if bids else f"{name}_{target}_{what}.nii.gz"
                )
                said = f"{kind} standard deviation" if what == "std" else what
                said = f"synthetic {target}, {said}; research only"
                write_image(aside / files[-1], volume, synthesis.grid.affine, description=said)
        write_file(aside / f"{name}.png", draw_preview(synthesis, name, calibrated))
        content = {
            "case": name,
            **provenance,
            "intensities": MEANING,
            "std": SPREAD[calibrated] if synthesis.std else "none: it takes two samples",
            "grid": {
                "shape": list(synthesis.grid.shape),
                "affine": np.asarray(synthesis.grid.affine).tolist(),
                "axes": axis_codes(synthesis.grid.affine),
            },
            "frame": synthesis.record,
            "files": files,
            "versions": {
                "mmpoe": mmpoe.__version__,
                "torch": torch.__version__,
                "nibabel": nib.__version__,
                "numpy": np.__version__,
            },
            "notice": "Synthetic images for research only, not for clinical use.",
        }
        write_file(aside / f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())
        made = [*files, f"{name}.png", f"{name}.json"]
        _sync([aside / file for file in made])
        _remove_earlier(folder, name)
        for file in made:
            (aside / file).replace(folder / file)
    return [folder / file for file in made]


def _volumes(
    synthesis: Synthesis, target: str, sequence: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """The volumes of a target, one at a time, by what they are called."""
    yield "mean", synthesis.mean[target]
    if target in synthesis.std:
        yield "std", synthesis.std[target]
    samples = synthesis.samples.get(target, [])
    if sequence and len(samples):
        yield "samples", np.stack(list(samples), axis=-1)
        return
    for k, sample in enumerate(samples, start=1):
        yield f"sample{k:02d}", sample


def hash_of(*paths: Path) -> str:
    """Returns the SHA-256 of all files of a volume: one, a header and its voxels, or folders.

    Raises:
        ImageError: If a file is no header that can be read.
    """
    digest = hashlib.sha256()
    for file in (file for path in paths for file in image_files(path)):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _remove_earlier(folder: Path, name: str) -> None:
    """Removes what an earlier run wrote of a case; its JSON first, which vouches for the rest."""
    try:
        earlier = json.loads((folder / f"{name}.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        earlier = []
    (folder / f"{name}.json").unlink(missing_ok=True)
    for file in earlier:
        if str(file).startswith(f"{name}_") and "/" not in str(file):
            (folder / str(file)).unlink(missing_ok=True)


def _sync(files: Sequence[Path]) -> None:
    """Brings files to the disk before they get their names."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
