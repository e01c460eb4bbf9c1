"""Building blocks for encoders, latent groups and decoders."""

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "ModalityDict"]

from .containers import ModalityDict
from .convolutional import ConvDecoder, ConvEncoder
from .mlp import MLP
