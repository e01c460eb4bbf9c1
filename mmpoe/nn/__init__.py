"""Building blocks for encoders, latent groups and decoders."""

__all__ = [
    "MLP",
    "BottomUp",
    "Concatenate",
    "ConvDecoder",
    "ConvEncoder",
    "GaussianHead",
    "ImageHead",
    "InvertedResidualCell",
    "MLPBottomUp",
    "MLPTopDown",
    "MarkovStep",
    "ModalityDict",
    "OwnBlock",
    "Patchify",
    "PrivateExpert",
    "ProjectionCell",
    "ResNetHead",
    "ResidualBlock",
    "ResidualCell",
    "SqueezeExcite",
    "TopDown",
    "UpsampleConv",
]

from .cells import (
    InvertedResidualCell,
    MarkovStep,
    ProjectionCell,
    ResidualCell,
    ResNetHead,
    SqueezeExcite,
    UpsampleConv,
)
from .containers import ModalityDict
from .convolutional import ConvDecoder, ConvEncoder
from .mlp import MLP, MLPBottomUp, MLPTopDown
from .private import Concatenate, OwnBlock, PrivateExpert
from .pyramid import BottomUp, GaussianHead, ImageHead, Patchify, ResidualBlock, TopDown
