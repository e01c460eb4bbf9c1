r"""Products of experts for multimodal data with missing modalities."""

__version__ = "0.1.0"

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from . import omics as omics
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

__all__ = [  # noqa: RUF022  # modules, and then names of theirs
    "adversarial",
    "distributions",
    "evidence",
    "gaussian",
    "hierarchy",
    "imputation",
    "imputer",
    "kernels",
    "likelihoods",
    "metrics",
    "missing",
    "models",
    "nn",
    "objectives",
    "omics",
    "oracles",
    "posteriors",
    "pyro",
    "training",
    "MHVAE",
    "MMHVAE",
    "MMVAE",
    "MVAE",
    "MoPoEVAE",
    "MultimodalImputer",
    "calibrate",
    "elbo",
    "impute",
]

_ORIGINS = {
    "MHVAE": "models",
    "MMHVAE": "models",
    "MMVAE": "models",
    "MVAE": "models",
    "MoPoEVAE": "models",
    "MultimodalImputer": "imputer",
    "calibrate": "imputation",
    "elbo": "objectives",
    "impute": "imputation",
}
"""The modules of the names that are no modules themselves."""


def __getattr__(name: str) -> object:
    """Imports a module, or the module of a name, the first time that it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _import_module(f"{__name__}.{_ORIGINS.get(name, name)}")
    found = getattr(module, name) if name in _ORIGINS else module
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Lists the public names, imported or not."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
