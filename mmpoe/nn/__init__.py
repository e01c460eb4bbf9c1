"""Building blocks for encoders, latent groups and decoders."""

__all__ = [
    "MLP",
    "BottomUp",
    "Concatenate",
    "ConvDecoder",
    "ConvEncoder",
    "GaussianHead",
    "ImageHead",
    "MLPBottomUp",
    "MLPTopDown",
    "ModalityDict",
    "OwnBlock",
    "Patchify",
    "PrivateExpert",
    "ResidualBlock",
    "TopDown",
]

from .containers import ModalityDict
from .convolutional import ConvDecoder, ConvEncoder
from .mlp import MLP, MLPBottomUp, MLPTopDown
from .private import Concatenate, OwnBlock, PrivateExpert
from .pyramid import BottomUp, GaussianHead, ImageHead, Patchify, ResidualBlock, TopDown
