"""The systems of the comparison: one file each, with its source and what was slimmed.

Each file has two builders, of the names of the modalities and the side of the images in pixels:
``slim``, which trains in minutes on two cores, and ``full``, of the published size.
"""

from __future__ import annotations

__all__ = ["LABELS", "SYSTEMS", "Batch", "System", "build"]

from collections.abc import Sequence

from . import m2dn, mhvae, mmgan, mmhvae, mopoe, resvit, unet
from .common import Batch, System

SYSTEMS = {
    "unet": unet,
    "mopoe": mopoe,
    "mhvae": mhvae,
    "mmgan": mmgan,
    "resvit": resvit,
    "m2dn": m2dn,
    "mmhvae": mmhvae,
}
"""The modules of the systems, by name."""

LABELS = {
    "unet": "U-Net",
    "mopoe": "MoPoE",
    "mhvae": "MHVAE",
    "mmgan": "MM-GAN",
    "resvit": "ResViT",
    "m2dn": "M2DN-like",
    "mmhvae": "MMHVAE",
}
"""How the systems are written in tables and figures."""


def build(name: str, modalities: Sequence[str], size: int, *, full: bool = False) -> System:
    """Builds a system.

    Arguments:
        name: Its name, one of `SYSTEMS`.
        modalities: The names of the modalities.
        size: The height and width of the images, in pixels.
        full: Whether to build it at its published size.

    Raises:
        ValueError: If there is no system of that name.
    """
    if name not in SYSTEMS:
        raise ValueError(f"'name' should be one of {', '.join(SYSTEMS)}, but is {name!r}.")
    module = SYSTEMS[name]
    return module.full(modalities, size) if full else module.slim(modalities, size)
