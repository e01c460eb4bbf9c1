"""Building blocks for encoders, latent groups, decoders and discriminators."""

__all__ = [
    "MLP",
    "BottomUp",
    "Concatenate",
    "Conditional",
    "ConvDecoder",
    "ConvEncoder",
    "GaussianHead",
    "GlobalDiscriminator",
    "ImageHead",
    "InvertedResidualCell",
    "MLPBottomUp",
    "MLPTopDown",
    "ModalityDict",
    "OwnBlock",
    "PatchDiscriminator",
    "Patchify",
    "PrivateExpert",
    "ProjectionCell",
    "Recorded",
    "ResidualBlock",
    "SqueezeExcite",
    "TopDown",
    "UpsampleConv",
    "evaluation",
]

# names imported as themselves are for the library's other packages, and not public
from .cells import InvertedResidualCell, ProjectionCell, SqueezeExcite, UpsampleConv
from .cells import MarkovStep as MarkovStep
from .cells import ResidualCell as ResidualCell
from .cells import ResNetHead as ResNetHead
from .conditional import Conditional
from .containers import ModalityDict
from .convolutional import ConvDecoder, ConvEncoder
from .discriminators import GlobalDiscriminator, PatchDiscriminator
from .mlp import MLP, MLPBottomUp, MLPTopDown
from .modes import evaluation
from .private import Concatenate, OwnBlock, PrivateExpert
from .pyramid import BottomUp, GaussianHead, ImageHead, Patchify, ResidualBlock, TopDown
from .recorded import Recorded
from .recorded import made_with as made_with
