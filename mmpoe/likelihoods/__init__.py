r"""Likelihoods: modules that map a latent state to the distribution :math:`p(x_m \mid z)`.

Each wraps a network and turns its output into a distribution over one modality, for PyTorch and
for Pyro. The event is the whole entry: ``log_prob`` returns one number per sample.

====================================  ===========================================================
Data                                  Likelihood
====================================  ===========================================================
Real numbers                          :class:`Normal`; :class:`Laplace` for images;
                                      :class:`StudentT` with outliers;
                                      :class:`LowRankNormal` if elements vary together
Yes or no, shares                     :class:`Bernoulli`
Classes                               :class:`Categorical`
Ordered levels (grades, ratings)      :class:`Ordinal`
Counts                                :class:`Poisson`; :class:`NegativeBinomial` if they vary
                                      more than their mean
Counts with more zeros than that      :class:`ZeroInflatedPoisson`,
                                      :class:`ZeroInflatedNegativeBinomial`
Tables with columns of several kinds  :class:`Columns`
====================================  ===========================================================

A scale and its like is one number for all elements, or a tensor with one for each, broadcastable
to the shape of an entry.
"""

__all__ = [
    "Bernoulli",
    "Categorical",
    "Columns",
    "Laplace",
    "Likelihood",
    "LowRankNormal",
    "NegativeBinomial",
    "Normal",
    "OptimalScale",
    "Ordinal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]

# names imported as themselves are for the library's other packages, and not public
from .base import Likelihood
from .base import MakeLikelihood as MakeLikelihood
from .base import check_support as check_support
from .columns import Columns
from .continuous import Laplace, Normal, OptimalScale, StudentT
from .counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial, ZeroInflatedPoisson
from .discrete import Bernoulli, Categorical, Ordinal
from .low_rank import LowRankNormal
