"""Multimodal variational auto-encoders: short constructors over the same top-down loop."""

__all__ = [
    "MHVAE",
    "MMHVAE",
    "MMVAE",
    "MVAE",
    "MoPoEVAE",
    "MultimodalVAE",
    "Output",
    "Predictor",
    "UncalibratedWarning",
    "image_mmhvae",
    "in_chunks",
    "is_out_of_memory",
    "published_mmhvae",
    "sequence_mmhvae",
    "vector_mmhvae",
    "volume_mmhvae",
]

from .chunks import in_chunks, is_out_of_memory
from .core import MultimodalVAE, Output, UncalibratedWarning
from .flat import MMVAE, MVAE, MoPoEVAE
from .hierarchical import MHVAE, MMHVAE
from .predictor import Predictor
from .presets import image_mmhvae, sequence_mmhvae, vector_mmhvae, volume_mmhvae
from .published import published_mmhvae
