"""Multimodal variational auto-encoders: short constructors over the same top-down loop."""

__all__ = ["MMHVAE", "MVAE", "MultimodalVAE", "Output", "UncalibratedWarning"]

from .core import MultimodalVAE, Output, UncalibratedWarning
from .mmhvae import MMHVAE
from .mvae import MVAE
