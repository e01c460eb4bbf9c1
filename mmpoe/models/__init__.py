"""Multimodal variational auto-encoders: short constructors over the same top-down loop."""

__all__ = ["MMHVAE", "MVAE", "MultimodalVAE", "Output", "UncalibratedWarning", "image_mmhvae"]

from .core import MultimodalVAE, Output, UncalibratedWarning
from .images import image_mmhvae
from .mmhvae import MMHVAE
from .mvae import MVAE
