"""Building blocks for encoders, latent groups and decoders."""

__all__ = [
    "MLP",
    "BottomUp",
    "ConvDecoder",
    "ConvEncoder",
    "GaussianHead",
    "ImageHead",
    "ModalityDict",
    "Patchify",
    "ResidualBlock",
    "TopDown",
]

from .containers import ModalityDict
from .convolutional import ConvDecoder, ConvEncoder
from .mlp import MLP
from .pyramid import BottomUp, GaussianHead, ImageHead, Patchify, ResidualBlock, TopDown
