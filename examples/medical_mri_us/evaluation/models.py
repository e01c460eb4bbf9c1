"""The trained models that are evaluated together."""

from __future__ import annotations

__all__ = ["Trained", "choose_device", "load_trained"]

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples.medical_mri_us.models import load_model, model_folder
from mmpoe.models import MMHVAE


@dataclass(frozen=True)
class Trained:
    """A trained model and where it came from."""

    name: str
    model: MMHVAE
    description: dict[str, Any]
    folder: Path
    """The folder of the weights."""
    sha256: str
    """The digest of the weights' file."""

    @property
    def size(self) -> int:
        """The height and width of its slices, in pixels."""
        return int(self.description["architecture"]["size"])

    @property
    def axes(self) -> str | None:
        """The directions of the axes of its slices, if all its training cases shared them."""
        return self.description.get("axes")


def load_trained(runs: Sequence[Path], device: torch.device) -> list[Trained]:
    """Loads models from folders of trainings, or of saved models; they are named by the folders.

    Raises:
        ValueError: If the models are not of the same modalities and size.
        CheckpointError: If a model cannot be read.
    """
    found: list[Trained] = []
    for run in runs:
        folder = model_folder(run)
        model, description = load_model(folder)
        name = run.resolve().name
        while name in [other.name for other in found]:
            name += "'"
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        found.append(Trained(name, model.to(device), description, folder, digest))
    first = found[0]
    for other in found[1:]:
        ours, theirs = (
            f"{', '.join(t.model.modalities)} at {t.size} pixels" for t in (first, other)
        )
        if ours != theirs:
            raise ValueError(
                f"'compare' should hold models of {ours}, but {other.folder} is one of {theirs}."
            )
    return found


def choose_device(name: str) -> torch.device:
    """Returns the device of a name, or for ``"auto"`` a CUDA device if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"'device' should be auto, cpu or cuda, but is {name!r}.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"'device' is {name!r}, but there is no CUDA device here.")
    return device
