"""An estimator that fills what is missing in tables and sets of arrays, scikit-learn style."""

__all__ = ["MultimodalImputer", "PredictiveDistribution"]

from .distribution import PredictiveDistribution
from .estimator import MultimodalImputer
