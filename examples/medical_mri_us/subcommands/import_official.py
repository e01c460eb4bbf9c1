"""``import-official``: published weights into a model's folder."""

from __future__ import annotations

__all__ = ["ImportOfficial", "run"]

from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.medical_mri_us.official import convert


@dataclass(frozen=True)
class ImportOfficial:
    """Convert published MMHVAE weights into model.safetensors and model.json.

    The file is read as tensors alone: code inside is never run.
    """

    checkpoint: tyro.conf.Positional[Path]
    """The published file, CP_main_<epoch>.pth."""
    out: Path
    """The folder to write."""


def run(options: ImportOfficial) -> int:
    """Converts the file and says what it holds."""
    model = convert(options.checkpoint, options.out)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"Wrote {options.out}: an MMHVAE of {', '.join(model.modalities)}, "
        f"{len(model.groups)} latent groups, {parameters:,} parameters."
    )
    return 0
