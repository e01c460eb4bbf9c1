"""Building blocks for encoders, latent groups, decoders and discriminators."""

__all__ = [
    "MLP",
    "BottomUp",
    "Concatenate",
    "ConvDecoder",
    "ConvEncoder",
    "GaussianHead",
    "GlobalDiscriminator",
    "ImageHead",
    "InvertedResidualCell",
    "MLPBottomUp",
    "MLPTopDown",
    "MarkovStep",
    "ModalityDict",
    "OwnBlock",
    "PatchDiscriminator",
    "Patchify",
    "PrivateExpert",
    "ProjectionCell",
    "ResNetHead",
    "ResidualBlock",
    "ResidualCell",
    "SqueezeExcite",
    "TopDown",
    "UpsampleConv",
    "receptive_field",
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
from .discriminators import GlobalDiscriminator, PatchDiscriminator, receptive_field
from .mlp import MLP, MLPBottomUp, MLPTopDown
from .private import Concatenate, OwnBlock, PrivateExpert
from .pyramid import BottomUp, GaussianHead, ImageHead, Patchify, ResidualBlock, TopDown
