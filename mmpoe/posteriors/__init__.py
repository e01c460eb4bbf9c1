r"""Posteriors: rules that fuse a prior and given experts into :math:`q(z \mid x_s)`.

A *product* fuses all that is given; so do a barycentre and a sum of features. A *mixture* is an
even mixture of products, one for each member of a family of subsets of what is given; its rule
fuses one component, which the model draws once for all groups of a hierarchy.
"""

__all__ = [
    "CommonNoisePoE",
    "Draw",
    "Factors",
    "GPoE",
    "LinearPoE",
    "LinearPosterior",
    "MoE",
    "MoPoE",
    "PoE",
    "Posterior",
    "SumPooling",
    "WassersteinBarycenter",
]

from .base import Draw, Factors, Posterior
from .common_noise import CommonNoisePoE
from .linear import LinearPoE, LinearPosterior
from .mixtures import MoE, MoPoE
from .pooling import SumPooling, WassersteinBarycenter
from .products import GPoE, PoE
