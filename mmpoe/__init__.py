r"""Products of experts for multimodal data with missing modalities."""

__version__ = "0.1.0"

from . import adversarial as adversarial
from . import distributions as distributions
from . import evidence as evidence
from . import gaussian as gaussian
from . import hierarchy as hierarchy
from . import imputation as imputation
from . import imputer as imputer
from . import kernels as kernels
from . import likelihoods as likelihoods
from . import metrics as metrics
from . import missing as missing
from . import models as models
from . import nn as nn
from . import objectives as objectives
from . import oracles as oracles
from . import posteriors as posteriors
from . import pyro as pyro
from . import training as training
from .imputation import calibrate as calibrate
from .imputation import impute as impute
from .imputer import MultimodalImputer as MultimodalImputer
from .models import MHVAE as MHVAE
from .models import MMHVAE as MMHVAE
from .models import MMVAE as MMVAE
from .models import MVAE as MVAE
from .models import MoPoEVAE as MoPoEVAE
from .objectives import elbo as elbo
