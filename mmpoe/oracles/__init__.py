r"""Linear-Gaussian models whose posteriors and evidence are known exactly, to test against.

Each oracle is also a model of the library, with the exact experts: an objective that should be
tight is tight on it, and by how much another one falls short is known. All is in float64.
"""

from .flat import LinearGaussian as LinearGaussian
from .hierarchy import LinearGaussianHierarchy as LinearGaussianHierarchy

__all__ = ["LinearGaussian", "LinearGaussianHierarchy"]
